//! The memory that a memory node lends, as somebody with power over its machine reads and changes it: through
//! /proc/PID/mem of a node that the test has started.

#![allow(dead_code, reason = "each test file uses its part of this")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use mycoram_fabric::units::PAGE_BYTES;

/// What the node calls its memory; see `fabric/src/node/pool.rs`.
const POOL: &str = "memfd:mycoram-pool";

/// All that one node lends.
pub(crate) struct NodeMemory {
    memory: File,
    /// Where the parts of the pool are mapped in the node, in the pool's order: start and length.
    parts: Vec<(u64, usize)>,
}

impl NodeMemory {
    pub(crate) fn of(pid: u32) -> Self {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("our own child");
        let mut parts: Vec<(u64, u64, usize)> = maps
            .lines()
            .filter(|line| line.contains(POOL))
            .map(|line| {
                let hex = |text: &str| u64::from_str_radix(text, 16).expect("a number");
                let mut words = line.split_whitespace();
                let (start, end) = words
                    .next()
                    .and_then(|w| w.split_once('-'))
                    .expect("a range");
                let offset = words.nth(1).expect("an offset");
                (hex(offset), hex(start), (hex(end) - hex(start)) as usize)
            })
            .collect();
        parts.sort_unstable();
        parts.dedup_by_key(|(offset, ..)| *offset);
        assert!(!parts.is_empty(), "the node lends nothing");
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .expect("our own child");
        Self {
            memory,
            parts: parts
                .into_iter()
                .map(|(_, start, bytes)| (start, bytes))
                .collect(),
        }
    }

    /// All of it.
    pub(crate) fn all(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for (start, bytes) in &self.parts {
            let from = all.len();
            all.resize(from + bytes, 0);
            self.memory
                .read_exact_at(&mut all[from..], *start)
                .expect("its memory");
        }
        all
    }

    /// The pages that are not zeros, by their place in the pool.
    pub(crate) fn pages(&self) -> Vec<(usize, Vec<u8>)> {
        let all = self.all();
        all.chunks_exact(PAGE_BYTES)
            .enumerate()
            .filter(|(_, page)| **page != [0; PAGE_BYTES])
            .map(|(place, page)| (place, page.to_vec()))
            .collect()
    }

    pub(crate) fn page(&self, place: usize) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES];
        self.memory
            .read_exact_at(&mut page, self.address(place))
            .expect("its memory");
        page
    }

    pub(crate) fn put(&self, place: usize, page: &[u8]) {
        assert_eq!(page.len(), PAGE_BYTES);
        self.memory
            .write_all_at(page, self.address(place))
            .expect("its memory");
    }

    fn address(&self, place: usize) -> u64 {
        let mut at = place * PAGE_BYTES;
        for (start, bytes) in &self.parts {
            if at < *bytes {
                return start + at as u64;
            }
            at -= bytes;
        }
        panic!("page {place} is outside of the pool")
    }
}

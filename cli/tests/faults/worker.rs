//! The workload: a program on the agent that checks at every visit of a page that its last write is there.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mycoram_agent::daemon::client::{AttachRequest, Connection};
use mycoram_agent::kernel::MemoryFile;
use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::{ByteCount, PAGE_BYTES};

use super::plan::Draw;

pub(crate) const SOCKET: &str = "MYCORAM_WORKER_SOCKET";
pub(crate) const SEED: &str = "MYCORAM_WORKER_SEED";
/// Begins a line with the visits so far.
pub(crate) const VISITS: &str = "worker: visits ";
/// Begins the last line, when all was right.
pub(crate) const DONE: &str = "worker: done ";

const BYTES: ByteCount = ByteCount::mib(12);
const LOCAL: ByteCount = ByteCount::mib(2);
/// Each has pages of its own, so that it knows the last write.
const THREADS: usize = 2;

/// What a page holds after so many writes; 0: it was never written.
fn content(page: usize, writes: u32, into: &mut [u8]) {
    if writes == 0 {
        return into.fill(0);
    }
    let mut word = Draw::new((page as u64) << 32 | u64::from(writes));
    for place in into.chunks_exact_mut(8) {
        place.copy_from_slice(&word.number().to_le_bytes());
    }
}

struct Pages<'a> {
    mapping: &'a Mapping,
    first: usize,
    /// By page, from the first.
    writes: Vec<u32>,
    expected: Vec<u8>,
    found: Vec<u8>,
}

impl Pages<'_> {
    fn check(&mut self, at: usize) {
        let (page, writes) = (self.first + at, self.writes[at]);
        self.mapping
            .copy_out(page * PAGE_BYTES, &mut self.found)
            .expect("inside");
        content(page, writes, &mut self.expected);
        if self.found == self.expected {
            return;
        }
        let found = std::mem::take(&mut self.found);
        let older = (0..writes).rev().find(|older| {
            content(page, *older, &mut self.expected);
            self.expected == found
        });
        match older {
            Some(older) => {
                eprintln!("worker: page {page} holds write {older}, the last one was {writes}")
            }
            None => eprintln!(
                "worker: page {page} holds none of its {writes} writes, but {:x?} ...",
                &found[..32]
            ),
        }
        std::process::exit(1);
    }

    fn write(&mut self, at: usize) {
        self.writes[at] += 1;
        let page = self.first + at;
        content(page, self.writes[at], &mut self.expected);
        self.mapping
            .copy_in(page * PAGE_BYTES, &self.expected)
            .expect("inside");
    }
}

/// The body of the test `worker_process`, which each test executable has. Does nothing without its variables.
pub(crate) fn serve() {
    let (Some(socket), Ok(seed)) = (std::env::var_os(SOCKET), std::env::var(SEED)) else {
        return;
    };
    let seed: u64 = seed.parse().expect("a seed");
    let memory = MemoryFile::create(c"worker", BYTES).expect("a memfd");
    let mapping = Mapping::shared(&memory, BYTES.as_usize()).expect("a mapping");
    let request = AttachRequest {
        memory: memory.as_fd().try_clone_to_owned().expect("dup"),
        base: mapping.as_ptr() as u64,
        bytes: BYTES,
        file_offset: 0,
        local_budget: LOCAL,
        extent_bytes: ByteCount::mib(1),
        fault_workers: 0,
    };
    let attached = Connection::open(Path::new(&socket))
        .expect("the agent listens")
        .attach(request, |notice| eprintln!("worker: {notice:?}"))
        .expect("there is room");
    let (ending, visits) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (mapping, ending, visits) = (&mapping, &ending, &visits);
            scope.spawn(move || work(mapping, thread, seed, ending, visits));
        }
        scope.spawn(|| {
            // Its end is the word to end.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            ending.store(true, Ordering::Release);
        });
        while !ending.load(Ordering::Acquire) {
            println!("{VISITS}{}", visits.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    attached.end().expect("the agent is there");
    println!("{DONE}{}", visits.load(Ordering::Relaxed));
}

fn work(mapping: &Mapping, thread: usize, seed: u64, ending: &AtomicBool, visits: &AtomicU64) {
    let share = mapping.len() / PAGE_BYTES / THREADS;
    let mut pages = Pages {
        mapping,
        first: thread * share,
        writes: vec![0; share],
        expected: vec![0; PAGE_BYTES],
        found: vec![0; PAGE_BYTES],
    };
    let mut draw = Draw::new(seed ^ (thread as u64 + 1));
    while !ending.load(Ordering::Acquire) {
        let at = draw.between(0, share as u64) as usize;
        pages.check(at);
        if draw.between(0, 2) == 0 {
            pages.write(at);
        }
        visits.fetch_add(1, Ordering::Relaxed);
    }
    for at in 0..share {
        pages.check(at);
        visits.fetch_add(1, Ordering::Relaxed);
    }
}

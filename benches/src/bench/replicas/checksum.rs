//! What a page's checksum adds to a page that is written back.
//!
//! An evictor copies pages out of a pipe into frames, a run at a time, and then takes the checksum of each
//! frame, whose bytes the processor has just moved: most of the cost of bytes that come from memory is paid
//! by the copy. So runs of pages of a memory file, more of them than caches hold, are read into the frames
//! of a lane: without a checksum, with the agent's, and with the one that was not chosen, in turn. The
//! difference is the figure; what the agent's costs where nobody touched the page before stands beside it.
//!
//! Why the agent's is XXH3 and not CRC32C, which takes less time where the processor multiplies polynomials
//! in vectors: it is well inside of what it may cost, on every processor with vectors; and its 64 bits also
//! say whether a page has changed since it was written. A page that has, and whose checksum is the old one,
//! would be dropped as clean: with 32 bits that is one changed page in 4 billion, minutes apart at a
//! million evictions a second.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use crc_fast::CrcAlgorithm;
use mycoram_agent::SLOTS_PER_PIPE;
use mycoram_fabric::units::PAGE_BYTES;
use nix::sys::memfd::{MFdFlags, memfd_create};
use twox_hash::XxHash3_64;

use super::Unmeasured;
use crate::report::Metric;

/// Pages of a round: more than a processor's second cache holds.
const PAGES: usize = 32 << 10;
/// Pages that are read at a time, as many as a parking pipe holds, and frames of a lane.
const RUN: usize = SLOTS_PER_PIPE as usize;
const FRAMES: usize = 4 * RUN;
/// How often each is taken in a round; the least counts, as nothing makes a copy faster than it is.
const TURNS: usize = 3;

type Checksum = fn(&[u8]) -> u64;

fn none(_: &[u8]) -> u64 {
    0
}

fn crc32c(page: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, page)
}

pub(super) fn run(rounds: u32) -> Result<Vec<Metric>, Unmeasured> {
    let mut word = 1_u64;
    let mut next = || {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        word.to_le_bytes()
    };
    let memory: Vec<u8> = (0..PAGES * PAGE_BYTES / 8).flat_map(|_| next()).collect();
    let file: File = memfd_create(c"mycoram-bench", MFdFlags::MFD_CLOEXEC)?.into();
    file.write_all_at(&memory, 0)?;
    let mut frames = vec![0; FRAMES * PAGE_BYTES];
    let kinds: [Checksum; 3] = [none, XxHash3_64::oneshot, crc32c];
    let (mut copy, mut ours, mut other, mut untouched) = (vec![], vec![], vec![], vec![]);
    for _ in 0..=rounds {
        let mut least = [f64::INFINITY; 3];
        for _ in 0..TURNS {
            for (least, checksum) in least.iter_mut().zip(kinds) {
                *least = least.min(copied(&file, &mut frames, checksum)?);
            }
        }
        copy.push(least[0]);
        ours.push(least[1] - least[0]);
        other.push(least[2] - least[0]);
        let start = Instant::now();
        for page in memory.chunks_exact(PAGE_BYTES) {
            black_box(XxHash3_64::oneshot(black_box(page)));
        }
        untouched.push(per_page(start));
    }
    let median = |name, mut samples: Vec<f64>| {
        // The first time is slow: nothing is mapped yet.
        samples.remove(0);
        Metric::median(name, samples, "us")
    };
    Ok(vec![
        median("checksum_us", ours),
        median("checksum_crc32c_us", other),
        median("checksum_untouched_us", untouched),
        median("page_copy_us", copy),
    ])
}

fn per_page(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6 / PAGES as f64
}

/// Reads all pages into the frames, in runs, and takes each page's checksum; microseconds a page.
fn copied(file: &File, frames: &mut [u8], checksum: Checksum) -> std::io::Result<f64> {
    let start = Instant::now();
    for run in 0..PAGES / RUN {
        let bytes = RUN * PAGE_BYTES;
        let first = run * bytes % frames.len();
        let block = &mut frames[first..first + bytes];
        file.read_exact_at(block, (run * bytes) as u64)?;
        for page in block.chunks_exact(PAGE_BYTES) {
            black_box(checksum(black_box(page)));
        }
    }
    Ok(per_page(start))
}

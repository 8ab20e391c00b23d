//! The checksum of a page, as the agent takes it when it writes a page back and when it reads one.

use std::hint::black_box;
use std::time::Instant;

use mycoram_fabric::units::PAGE_BYTES;
use twox_hash::XxHash3_64;

use crate::report::Metric;

/// Pages of a round: more than a processor's caches hold.
const PAGES: usize = 32 << 10;

pub(super) fn run(rounds: u32) -> Vec<Metric> {
    let mut word = 1_u64;
    let mut next = || {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        word.to_le_bytes()
    };
    let memory: Vec<u8> = (0..PAGES * PAGE_BYTES / 8).flat_map(|_| next()).collect();
    let mut samples = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        for page in memory.chunks_exact(PAGE_BYTES) {
            black_box(XxHash3_64::oneshot(black_box(page)));
        }
        samples.push(start.elapsed().as_secs_f64() * 1e6 / PAGES as f64);
    }
    vec![Metric::median("checksum_us", samples, "us")]
}

//! Sealing a page on its way out, and opening it on its way in, as a sealed region's lanes do it.

use std::hint::black_box;
use std::time::Instant;

use mycoram_agent::seal::PageSeal;
use mycoram_fabric::units::{PAGE_BYTES, PageIndex};

use super::Unmeasured;
use crate::report::Metric;

/// Pages of a round: more than a processor's caches hold.
const PAGES: usize = 32 << 10;

pub(super) fn run(rounds: u32) -> Result<Vec<Metric>, Unmeasured> {
    let mut seal = PageSeal::random().ok_or("no random numbers")?;
    let mut memory = vec![0x5a_u8; PAGES * PAGE_BYTES];
    let mut frame = vec![0; PAGE_BYTES];
    let (mut sealing, mut opening) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        for (page, bytes) in (0..).zip(memory.chunks_exact(PAGE_BYTES)) {
            // A lane seals in a frame of its own.
            frame.copy_from_slice(bytes);
            black_box(seal.seal(PageIndex::new(page), &mut frame));
        }
        sealing.push(start.elapsed().as_secs_f64() * 1e6 / PAGES as f64);
        // Opening works in place, and on one page as on another.
        let sealed = memory.first_chunk_mut::<PAGE_BYTES>().ok_or("no page")?;
        let tag = seal.seal(PageIndex::new(0), sealed).ok_or("not sealed")?;
        let sealed = *sealed;
        for bytes in memory.chunks_exact_mut(PAGE_BYTES) {
            bytes.copy_from_slice(&sealed);
        }
        let start = Instant::now();
        let mut opened = 0;
        for bytes in memory.chunks_exact_mut(PAGE_BYTES) {
            opened += usize::from(seal.open(PageIndex::new(0), tag, bytes));
        }
        let took = start.elapsed().as_secs_f64();
        if opened != PAGES {
            return Err("a page did not open".into());
        }
        opening.push(took * 1e6 / PAGES as f64);
    }
    Ok(vec![
        Metric::median("seal_us", sealing, "us"),
        Metric::median("open_us", opening, "us"),
    ])
}

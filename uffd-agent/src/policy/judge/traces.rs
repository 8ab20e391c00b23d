//! Traces of accesses: page numbers in the order of use. The same seed makes the same trace.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

pub(super) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

pub(super) fn below(rng: &mut ChaCha8Rng, end: u32) -> u32 {
    ((u64::from(rng.next_u32()) * u64::from(end)) >> 32) as u32
}

pub(super) fn uniform(seed: u64, pages: u32, length: usize) -> Vec<u32> {
    let mut rng = rng(seed);
    (0..length).map(|_| below(&mut rng, pages)).collect()
}

/// Page k is used with a weight of 1 / (k + 1)^s; which page is the k-th is shuffled.
pub(super) fn zipf(seed: u64, pages: u32, s: f64, length: usize) -> Vec<u32> {
    let mut rng = rng(seed);
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (0..pages)
        .map(|k| {
            sum += f64::from(k + 1).powf(-s);
            sum
        })
        .collect();
    let mut names: Vec<u32> = (0..pages).collect();
    for at in (1..names.len()).rev() {
        names.swap(at, below(&mut rng, at as u32 + 1) as usize);
    }
    (0..length)
        .map(|_| {
            let at = f64::from(rng.next_u32()) / f64::from(u32::MAX) * sum;
            let k = cumulative.partition_point(|c| *c < at);
            names[k.min(names.len() - 1)]
        })
        .collect()
}

pub(super) fn looping(pages: u32, length: usize) -> Vec<u32> {
    (0..length).map(|at| at as u32 % pages).collect()
}

/// Half of the accesses go to `hot` pages at random; the others scan through `cold` pages, over and over.
pub(super) fn hot_and_scan(seed: u64, hot: u32, cold: u32, length: usize) -> Vec<u32> {
    let mut rng = rng(seed);
    let mut at = 0;
    (0..length)
        .map(|_| {
            if rng.next_u32() & 1 == 0 {
                below(&mut rng, hot)
            } else {
                at = (at + 1) % cold;
                hot + at
            }
        })
        .collect()
}

/// Zipf over one half of the pages, then over the other, and so on.
pub(super) fn phases(seed: u64, pages: u32, phases: u32, length: usize) -> Vec<u32> {
    (0..phases)
        .flat_map(|phase| {
            zipf(
                seed + u64::from(phase),
                pages / 2,
                0.9,
                length / phases as usize,
            )
            .into_iter()
            .map(move |page| page + (phase % 2) * (pages / 2))
        })
        .collect()
}

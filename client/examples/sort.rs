//! Sorts a data set four times its local budget, in place, and verifies the result.
//!
//!     cargo run --release -p mycoram --example sort -- 'myco://127.0.0.1:7700?local=64MiB'
//!
//! The sort is the standard library's: it does not know that three quarters of the memory are elsewhere.

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use mycoram::{Advice, FarMemory};

/// Times the local budget.
const OVER_BUDGET: usize = 4;

/// A well-mixed sequence that needs no state but its place (splitmix64).
fn key(place: u64) -> u64 {
    let mut z = place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sum and exclusive or of all keys: the same before and after, if none was lost or made up.
fn digest(keys: impl Iterator<Item = u64>) -> (u64, u64) {
    keys.fold((0, 0), |(sum, xor), key| (sum.wrapping_add(key), xor ^ key))
}

fn run(place: &str) -> Result<bool, Box<dyn Error>> {
    let far = FarMemory::open(place)?;
    let local = far.config().local.as_usize();
    let mut memory = far.map(OVER_BUDGET * local)?;
    // SAFETY: any bytes are a u64, and a mapping starts at a page.
    let (_, keys, _) = unsafe { memory.align_to_mut::<u64>() };
    let count = keys.len() as u64;
    println!(
        "{count} keys in {} MiB, {} MiB of it local",
        (count * 8) >> 20,
        local >> 20
    );

    let start = Instant::now();
    for (place, slot) in keys.iter_mut().enumerate() {
        *slot = key(place as u64);
    }
    println!("filled in {:.2} s", start.elapsed().as_secs_f64());

    let start = Instant::now();
    keys.sort_unstable();
    println!("sorted in {:.2} s", start.elapsed().as_secs_f64());

    memory.advise(.., Advice::Sequential)?;
    // SAFETY: as above.
    let (_, keys, _) = unsafe { memory.align_to::<u64>() };
    let start = Instant::now();
    let ordered = keys.is_sorted();
    let complete = digest(keys.iter().copied()) == digest((0..count).map(key));
    println!("verified in {:.2} s", start.elapsed().as_secs_f64());

    let stats = memory.stats()?;
    println!(
        "{} faults (p50 {:.1} us, p99 {:.1} us), {} pages prefetched, {} evicted",
        stats.faults,
        stats.fault_p50_ns as f64 / 1000.0,
        stats.fault_p99_ns as f64 / 1000.0,
        stats.prefetched_pages,
        stats.evicted_pages,
    );
    println!(
        "{} MiB read, {} MiB written, {} MiB resident",
        stats.bytes_read >> 20,
        stats.bytes_written >> 20,
        stats.resident_bytes >> 20
    );
    memory.unmap()?;
    Ok(ordered && complete)
}

fn main() -> ExitCode {
    let Some(place) = std::env::args().nth(1) else {
        eprintln!("usage: sort myco://HOST:PORT[,HOST:PORT...]?local=SIZE | CONFIG_FILE");
        return ExitCode::from(2);
    };
    match run(&place) {
        Ok(true) => {
            println!("pass: in order, and every key is there");
            ExitCode::SUCCESS
        }
        Ok(false) => {
            println!("fail: not in order, or keys are missing");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprint!("sort: {error}");
            let mut cause = error.source();
            while let Some(why) = cause {
                eprint!(": {why}");
                cause = why.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

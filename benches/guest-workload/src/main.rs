//! The only program of the demo's guest: it is the guest's init, so nothing else runs there.
//!
//! ```text
//!   fill every page -> (visit all in a new random order, verify, rewrite) x passes -> verify -> power off
//! ```
//!
//! What it says goes to the console as lines that start with `workload:`; the last one is
//! `workload: result {json}`. Built static, run as `/init` of an initramfs, told what to do on the
//! kernel's command line: `workload.mib=400 workload.passes=3 workload.seed=1`. Run outside of a guest
//! (not as process 1) it takes the same words as arguments and just ends, which is how it is tested.

mod memory;
mod order;
mod pattern;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use memory::Memory;
use order::Permutation;

/// What to do, from `workload.KEY=NUMBER` words.
struct Plan {
    /// MiB to fill. Default 64.
    mib: u64,
    /// Passes of verify-and-rewrite behind the fill. Default 3.
    passes: u64,
    /// Seed of contents and orders. Default 1.
    seed: u64,
}

impl Plan {
    fn read(words: &str) -> Self {
        let mut plan = Self {
            mib: 64,
            passes: 3,
            seed: 1,
        };
        for (key, value) in words
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("workload.")?.split_once('='))
        {
            let Ok(value) = value.parse() else { continue };
            match key {
                "mib" => plan.mib = value,
                "passes" => plan.passes = value,
                "seed" => plan.seed = value,
                _ => {}
            }
        }
        plan
    }
}

/// What came of it.
struct Outcome {
    pages: u64,
    touches: u64,
    wrong: u64,
    seconds: f64,
}

fn run(plan: &Plan) -> Result<Outcome, std::io::Error> {
    let mut memory = Memory::map(plan.mib << 20)?;
    let pages = memory.pages();
    let mut outcome = Outcome {
        pages,
        touches: 0,
        wrong: 0,
        seconds: 0.0,
    };
    let start = Instant::now();
    for page in Permutation::new(pages, plan.seed) {
        pattern::write(memory.page(page), plan.seed, page, 0);
        outcome.touches += 1;
        report_progress("fill", 0, outcome.touches, pages);
    }
    for pass in 1..=plan.passes {
        let order = Permutation::new(pages, plan.seed.wrapping_add(pass));
        for (visited, page) in (1..).zip(order) {
            let bytes = memory.page(page);
            if !pattern::is(bytes, plan.seed, page, pass - 1) {
                outcome.wrong += 1;
                println!("workload: wrong contents in page {page} at pass {pass}");
            }
            pattern::write(bytes, plan.seed, page, pass);
            outcome.touches += 1;
            report_progress("verify", pass, visited, pages);
        }
    }
    for page in Permutation::new(pages, plan.seed.wrapping_add(plan.passes + 1)) {
        if !pattern::is(memory.page(page), plan.seed, page, plan.passes) {
            outcome.wrong += 1;
            println!("workload: wrong contents in page {page} at the end");
        }
        outcome.touches += 1;
    }
    outcome.seconds = start.elapsed().as_secs_f64();
    Ok(outcome)
}

/// A line for every quarter of a pass.
fn report_progress(what: &str, pass: u64, done: u64, pages: u64) {
    let quarter = (pages / 4).max(1);
    if done.is_multiple_of(quarter) {
        println!("workload: {what} pass {pass}, {done} of {pages} pages");
    }
}

fn main() -> ExitCode {
    let is_init = std::process::id() == 1;
    let words = if is_init {
        memory::kernel_command_line()
    } else {
        std::env::args()
            .skip(1)
            .fold(String::new(), |all, word| all + " " + &word)
    };
    let plan = Plan::read(&words);
    println!(
        "workload: start, {} MiB, {} passes, seed {}",
        plan.mib, plan.passes, plan.seed
    );
    let verdict = match run(&plan) {
        Ok(outcome) => {
            let mut line = String::new();
            let _ = write!(
                line,
                "{{\"verification\":\"{}\",\"pages\":{},\"touched_bytes\":{},\"touches\":{},\"wrong_pages\":{},\"seconds\":{:.3}}}",
                if outcome.wrong == 0 { "pass" } else { "fail" },
                outcome.pages,
                outcome.pages * memory::PAGE_BYTES as u64,
                outcome.touches,
                outcome.wrong,
                outcome.seconds
            );
            println!("workload: result {line}");
            outcome.wrong == 0
        }
        Err(error) => {
            println!("workload: mapping {} MiB failed: {error}", plan.mib);
            false
        }
    };
    if is_init {
        memory::power_off();
    }
    if verdict {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

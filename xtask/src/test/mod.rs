//! `cargo xtask test`: every test of the workspace, each in the place it needs.
//!
//! ```text
//!   deps ─> build all test programs ─┬─> host: all but those below, then doc tests
//!                                    ├─> guest 7.2, pair:     rxe_*.rs
//!                                    ├─> guest 7.2, nodes:3:  rxe_nodes_*.rs
//!                                    └─> guest 6.1, pair:     k61_*.rs and rxe_device_*.rs
//! ```
//!
//! A suite that passes is one line; one that fails shows all it wrote. The last line is the sum, alone.

mod build;
mod inside;
mod place;
mod run;
mod tally;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use mycoram_testbed::newer_qemu;

use crate::{deps, testbed};
use build::Suite;
use place::Group;
use tally::{Report, SuiteReport};

/// Options of `cargo xtask test`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Write the result of each suite as JSON.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Only suites with this in their name, for example `fabric` or `rxe_`.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Also run the device's own tests on kernel 6.12.
    #[arg(long)]
    all_kernels: bool,
    /// Show what passing suites write, too.
    #[arg(long)]
    verbose: bool,
}

/// Builds and runs; non-zero if anything failed.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match run_all(arguments) {
        Ok(report) => {
            report.print_failures();
            println!("{}", report.sum());
            if report.failed() == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("test: {}", testbed::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run_all(arguments: &Arguments) -> Result<Report, Box<dyn Error>> {
    deps::ensure()?;
    println!("test: building all test programs");
    let built = build::test_programs()?;
    // Tests that read a disk directly are not to wait behind all that was built.
    nix::unistd::sync();
    let wanted: Vec<Suite> = built
        .into_iter()
        .filter(|suite| {
            arguments
                .only
                .as_ref()
                .is_none_or(|text| suite.name().contains(text))
        })
        .collect();
    let groups = place::groups(arguments.all_kernels);
    let total = groups
        .iter()
        .map(|group| {
            wanted
                .iter()
                .filter(|suite| group.takes(&suite.target))
                .count()
        })
        .sum();
    let mut progress = Progress {
        at: 0,
        total,
        verbose: arguments.verbose,
        qemus: qemus()?,
        report: Report::default(),
    };
    for group in groups {
        let suites: Vec<&Suite> = wanted
            .iter()
            .filter(|suite| group.takes(&suite.target))
            .collect();
        run_group(group, &suites, &mut progress)?;
    }
    if arguments.only.is_none() {
        println!("test: doc tests");
        progress.done(run::doc_tests()?);
    }
    if let Some(path) = &arguments.json {
        fs::write(path, serde_json::to_vec_pretty(&progress.report)?)?;
    }
    Ok(progress.report)
}

/// The QEMUs to test with: what the caller names in MYCORAM_QEMU, else the machine's own and a newer one.
fn qemus() -> Result<String, Box<dyn Error>> {
    if let Ok(named) = std::env::var("MYCORAM_QEMU") {
        return Ok(named);
    }
    let own = "qemu-system-x86_64".to_owned();
    let dir = crate::checkout::target_dir().join("testbed/newer-qemu");
    Ok(match newer_qemu(&dir)? {
        Some(newer) => format!("{own}:{}", newer.display()),
        None => {
            println!("test: the apt sources lead to no newer QEMU than {own}");
            own
        }
    })
}

fn run_group(
    group: Group,
    suites: &[&Suite],
    progress: &mut Progress,
) -> Result<(), Box<dyn Error>> {
    match group.guest() {
        None => {
            for suite in suites {
                progress.begin(suite, group);
                progress.done(run::on_host(suite, &progress.qemus)?);
            }
        }
        Some(_) if suites.is_empty() => {}
        Some(guest) => {
            let mut guest = inside::Guest::new(guest);
            for suite in suites {
                progress.begin(suite, group);
                progress.done(guest.run(suite, group)?);
            }
        }
    }
    Ok(())
}

/// Says what runs, and what came of it.
struct Progress {
    at: usize,
    total: usize,
    verbose: bool,
    /// Separated by `:`.
    qemus: String,
    report: Report,
}

impl Progress {
    fn begin(&mut self, suite: &Suite, group: Group) {
        self.at += 1;
        println!("[{}/{}] {} ({group})", self.at, self.total, suite.name());
    }

    fn done(&mut self, (suite, output): (SuiteReport, String)) {
        if self.verbose || suite.failed > 0 {
            println!("{output}");
        } else {
            for line in output.lines().filter(|line| line.starts_with("skipped:")) {
                println!("    {line}");
            }
        }
        println!("    {suite}");
        self.report.add(suite);
    }
}

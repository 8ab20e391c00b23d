//! `cargo xtask testbed -- CMD…`

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use mycoram_testbed::inside::{self, Setting};
use mycoram_testbed::{
    Job, KernelSeries, Options, Outcome, PassThrough, Place, Testbed, Topology, Wanted,
};

use crate::checkout;

/// Exit code when the test bed itself broke: nobody's command uses it by convention.
const BROKE: u8 = 125;
/// Exit code of a command that ran over its limit, as timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// Exit code of a command that could not be started, as shells have it.
const NOT_STARTED: u8 = 127;

/// Options of `cargo xtask testbed`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Guest kernel: 6.1, 6.12 or 7.2 [default: 7.2]. Naming one means a guest.
    #[arg(long)]
    kernel: Option<KernelSeries>,
    /// rxe devices: `pair`, or `nodes:N` (one namespace each; kernel 7.2).
    #[arg(long, default_value = "pair")]
    topology: Topology,
    /// The guest's processors.
    #[arg(long, default_value_t = 1)]
    smp: u8,
    /// The guest's memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 3072)]
    memory: u32,
    /// Where to run: auto, host or guest.
    #[arg(long, default_value = "auto")]
    inside: Wanted,
    /// Give a boot up after this many seconds; it is tried twice.
    #[arg(long, value_name = "SECS", default_value_t = 100)]
    boot_timeout: u64,
    /// End the command (and the guest) after this many seconds.
    #[arg(long, value_name = "SECS", default_value_t = 1800)]
    timeout: u64,
    /// The command and its arguments.
    #[arg(last = true, required = true, num_args = 1..)]
    command: Vec<String>,
}

/// Options of the inside.
#[derive(Args)]
pub(crate) struct InsideArguments {
    /// Descriptor of the control stream; process 1 of a guest has none.
    #[arg(long)]
    control_fd: Option<i32>,
}

/// Runs the command; its exit code becomes ours.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    let mut options = options();
    options.wanted = arguments.inside;
    options.kernel = arguments.kernel;
    options.topology = arguments.topology;
    options.vcpus = arguments.smp;
    options.memory_mib = arguments.memory;
    options.boot_limit = Duration::from_secs(arguments.boot_timeout);
    match run_in(
        options,
        arguments.command,
        Duration::from_secs(arguments.timeout),
    ) {
        Ok(outcome) => {
            match outcome {
                Outcome::Exited(0) => {}
                Outcome::Exited(code) => {
                    eprintln!("testbed: the command failed with exit code {code}")
                }
                Outcome::Signalled(signal) => {
                    eprintln!("testbed: the command was killed by signal {signal}")
                }
            }
            ExitCode::from(u8::try_from(outcome.exit_code()).unwrap_or(BROKE))
        }
        Err(error) => {
            eprintln!("testbed: {}", chain(error.as_ref()));
            ExitCode::from(code_of(error.as_ref()))
        }
    }
}

/// Becomes the inside of a test bed.
pub(crate) fn inside(arguments: &InsideArguments) -> ExitCode {
    let setting = arguments
        .control_fd
        .map_or(Setting::Guest, |control_fd| Setting::Host { control_fd });
    match inside::serve(setting) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testbed: inside: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The test bed's options for this checkout.
pub(crate) fn options() -> Options {
    Options::new(
        checkout::target_dir().join("testbed"),
        vec!["testbed-inside".to_owned()],
    )
}

pub(crate) fn run_in(
    options: Options,
    command: Vec<String>,
    limit: Duration,
) -> Result<Outcome, Box<dyn Error>> {
    let testbed = Testbed::detect(options)?;
    let mut booted = testbed.boot()?;
    match testbed.place() {
        Place::Host => eprintln!("testbed: running on this host"),
        Place::Guest(series) => eprintln!(
            "testbed: running in a guest with kernel {series} (console: {})",
            booted.console_log().display()
        ),
    }
    let mut words = command.into_iter();
    let program = words.next().unwrap_or_default();
    Ok(booted.run(
        &Job::here(program, words.collect(), limit)?,
        &mut PassThrough,
    )?)
}

fn code_of(error: &(dyn Error + 'static)) -> u8 {
    use mycoram_testbed::{BootError, RunError};
    if let Some(BootError::Interrupted { signal }) = error.downcast_ref() {
        return u8::try_from(128 + signal).unwrap_or(BROKE);
    }
    match error.downcast_ref::<RunError>() {
        Some(RunError::Timeout { .. }) => TIMED_OUT,
        Some(RunError::Start { .. }) => NOT_STARTED,
        Some(RunError::Interrupted { signal }) => u8::try_from(128 + signal).unwrap_or(BROKE),
        _ => BROKE,
    }
}

/// An error and its causes, in one sentence.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

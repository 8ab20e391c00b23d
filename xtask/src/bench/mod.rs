//! `cargo xtask bench NAME`: builds the benches in release and runs one, or all of them, in the test bed where
//! rxe is needed.

mod all;

use std::error::Error;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Args, ValueEnum};
use mycoram_testbed::{Job, KernelSeries, Outcome, PassThrough, Testbed};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::{checkout, deps, testbed};

/// Guests of benches have two processors, as the figures they are compared with had.
const VCPUS: u8 = 2;
/// A bench that takes longer than this is stuck.
const LIMIT: Duration = Duration::from_secs(3600);
/// The bench that compares with the kernel's own ways of using far memory: only a kernel with rxe has them.
const PEERS: &str = "peers";
/// All of them, and a table.
const ALL: &str = "all";
/// The kernel of guests, the one whose swap path over NVMe-oF RDMA has figures to compare with.
const KERNEL: KernelSeries = KernelSeries::V6_12;

/// How the bench's processes talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// TCP on this machine.
    Tcp,
    /// RDMA over rxe, in the test bed.
    Verbs,
}

impl Transport {
    /// As options and files say it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Verbs => "verbs",
        }
    }
}

/// Options of `cargo xtask bench`.
#[derive(Args, Clone)]
pub(crate) struct Arguments {
    /// Which bench: `list` names them; `all` runs each, and ends with a table of figures and their bounds.
    name: String,
    /// How pages travel.
    #[arg(long, value_enum)]
    transport: Option<Transport>,
    /// Where to write the figures as JSON.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// The guest's memory in MiB, where a guest is used.
    #[arg(long, value_name = "MIB", default_value_t = 3072)]
    memory: u32,
    /// Further arguments for the bench itself.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Builds and runs one bench.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match build_and_run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("bench: {}", testbed::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn build_and_run(arguments: &Arguments) -> Result<u8, Box<dyn Error>> {
    deps::ensure()?;
    let built = checkout::cargo()
        .args(["build", "--release", "--bins"])
        .args(["-p", "mycoram-benches", "-p", "myco"])
        .status()?;
    if !built.success() {
        return Ok(1);
    }
    let program = checkout::target_dir().join("release/mycoram-benches");
    match arguments.name.as_str() {
        ALL => all::run(arguments, &program),
        _ => run_one(arguments, &program),
    }
}

fn run_one(arguments: &Arguments, program: &Path) -> Result<u8, Box<dyn Error>> {
    if arguments.transport == Some(Transport::Verbs) || arguments.name == PEERS {
        run_in_testbed(arguments, program)
    } else {
        let mut command = Command::new(program);
        command.args(words(arguments, arguments.json.as_deref()));
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            // A signal that ends us runs nobody's `drop`.
            command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
        }
        let status = command.status()?;
        Ok(status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1))
    }
}

/// Writes the JSON into the directory that comes back, then moves it to where it was asked for.
fn run_in_testbed(arguments: &Arguments, program: &Path) -> Result<u8, Box<dyn Error>> {
    let mut options = testbed::options();
    options.vcpus = VCPUS;
    options.memory_mib = arguments.memory;
    options.unnamed_kernel = KERNEL;
    if arguments.name == PEERS {
        // What this bench sets up stays until the guest ends, so it never runs on this host.
        options.kernel = Some(KERNEL);
    }
    let inside_json = options.out_dir.join(format!(
        "bench-{}-{}.json",
        arguments.name,
        std::process::id()
    ));
    let mut booted = Testbed::detect(options)?.boot()?;
    let inside_path = arguments.json.as_ref().map(|_| inside_json.as_path());
    let job = Job::here(
        program.to_string_lossy(),
        words(arguments, inside_path),
        LIMIT,
    )?;
    let outcome = booted.run(&job, &mut PassThrough)?;
    if let Some(path) = &arguments.json
        && inside_json.exists()
    {
        fs::copy(&inside_json, path)?;
        fs::remove_file(&inside_json)?;
    }
    if let Outcome::Signalled(signal) = outcome {
        eprintln!("bench: killed by signal {signal}");
    }
    Ok(u8::try_from(outcome.exit_code()).unwrap_or(1))
}

/// The bench program's own arguments.
fn words(arguments: &Arguments, json: Option<&Path>) -> Vec<String> {
    let mut words = vec![arguments.name.clone()];
    if let Some(transport) = arguments.transport {
        words.extend(["--transport".to_owned(), transport.name().to_owned()]);
    }
    if let Some(json) = json {
        words.extend(["--json".to_owned(), json.to_string_lossy().into_owned()]);
    }
    words.extend(arguments.rest.iter().cloned());
    words
}

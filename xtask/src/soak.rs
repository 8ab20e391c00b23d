//! `cargo xtask soak`: random faults under a verifying workload, for minutes. The test programs that do it are
//! `random_faults` and `rxe_nodes_random_faults` of `cli/`; here they get a seed, a time and a place.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use mycoram_testbed::{Job, PassThrough, Testbed, Topology};
use serde::Deserialize;

use crate::bench::Transport;
use crate::{checkout, deps, testbed};

/// Namespaces with a memory node each.
const NODES: u8 = 3;
/// What it may take beyond its time: boot, start, the last round, a verification.
const BEYOND: Duration = Duration::from_secs(900);

/// Options of `cargo xtask soak`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How pages travel; `verbs` runs in the test bed.
    #[arg(long, value_enum, default_value = "tcp")]
    transport: Transport,
    /// How long faults are made.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// What is done when follows from it [default: another one each time, which is said].
    #[arg(long)]
    seed: Option<u64>,
    /// What the control plane keeps its records in: a file, or an etcd of three members, which two processes of the
    /// control plane share, and members are killed and stopped too.
    #[arg(long, value_enum, default_value = "redb")]
    store: Store,
    /// Over tcp in the test bed too, whose kernel can lose and delay packets.
    #[arg(long)]
    testbed: bool,
    /// Write what was done as JSON.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

/// Where the control plane's records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Store {
    Redb,
    Etcd,
}

impl Store {
    /// As the test programs read it.
    fn name(self) -> &'static str {
        match self {
            Self::Redb => "redb",
            Self::Etcd => "etcd",
        }
    }
}

/// The part of cargo's messages that names a test program.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Runs it; non-zero when a page was lost or wrong, or something did not become whole again.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match build_and_run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {}", testbed::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn build_and_run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    deps::ensure()?;
    let name = match arguments.transport {
        Transport::Tcp => "random_faults",
        Transport::Verbs => "rxe_nodes_random_faults",
    };
    let in_testbed = arguments.testbed || arguments.transport == Transport::Verbs;
    let program = test_program(name, in_testbed)?;
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => u64::from(SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos()),
    };
    let mut options = testbed::options();
    let json = if in_testbed {
        options
            .out_dir
            .join(format!("soak-{}.json", std::process::id()))
    } else {
        std::env::temp_dir().join(format!("mycoram-soak-{}.json", std::process::id()))
    };
    let variables = [
        ("MYCORAM_SEED", seed.to_string()),
        (
            "MYCORAM_FAULT_SECONDS",
            (arguments.minutes * 60).to_string(),
        ),
        ("MYCORAM_FAULT_STORE", arguments.store.name().to_owned()),
        ("MYCORAM_FAULT_JSON", json.display().to_string()),
    ];
    let words = ["no_page_is_lost_or_wrong", "--nocapture"];
    println!(
        "soak: {} minutes over {}, seed {seed}",
        arguments.minutes,
        arguments.transport.name()
    );
    let passed = if in_testbed {
        options.topology = Topology::Nodes(NODES);
        options.vcpus = 2;
        let mut booted = Testbed::detect(options)?.boot()?;
        let words = words.map(str::to_owned).into();
        let limit = Duration::from_secs(arguments.minutes * 60) + BEYOND;
        let mut job = Job::here(program.to_string_lossy(), words, limit)?;
        let variables = variables.map(|(name, value)| (name.to_owned(), value));
        job.environment.extend(variables);
        booted.run(&job, &mut PassThrough)?.exit_code() == 0
    } else {
        let mut command = Command::new(&program);
        command.args(words).envs(variables).env("CI", "true");
        command.status()?.success()
    };
    hand_over(&json, arguments.json.as_deref())?;
    println!("soak: {}", if passed { "passed" } else { "failed" });
    Ok(passed)
}

/// Builds it and what it starts. An emulated processor is too slow for a debug build: a node's handshake with the control
/// plane takes longer there than the node is waited for.
fn test_program(name: &str, release: bool) -> Result<PathBuf, Box<dyn Error>> {
    let profile = if release { "release" } else { "dev" };
    let output = checkout::cargo()
        .args(["test", "--no-run", "--package", "myco", "--test", name])
        .args(["--profile", profile])
        .arg("--message-format=json-render-diagnostics")
        .stderr(std::process::Stdio::inherit())
        .output()?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let found = messages.lines().find_map(|line| {
        let message: Message = serde_json::from_str(line).ok()?;
        (message.target?.name == name).then_some(message.executable?)
    });
    found.ok_or_else(|| format!("the test program {name} could not be built").into())
}

fn hand_over(written: &Path, wanted: Option<&Path>) -> Result<(), Box<dyn Error>> {
    if written.exists() {
        if let Some(wanted) = wanted {
            fs::copy(written, wanted)?;
        }
        fs::remove_file(written)?;
    }
    Ok(())
}

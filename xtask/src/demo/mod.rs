//! `cargo xtask demo`: the main job, from nothing to a report.
//!
//! ```text
//!   build ─> `myco control serve` and three `myco node serve`
//!                └─> `myco vm run --nodes control://…?replicas=2` (QEMU, a quarter of its RAM local)
//!                        │ the guest's only program fills and verifies its memory
//!                        │   half way: kill -9 of a memory node; its replicas are made anew elsewhere
//!            report <─ verdict
//!              ^         └─ watch: figures once a second, and the kernel's own count of the guest's
//!              └─────────── resident RAM, all the time
//! ```
//!
//! `--replicas 1` takes two nodes, kills none and needs none to live on.
//!
//! `--transport verbs` does the same inside of the test bed, with a node to each namespace and a
//! smaller guest, because there it is an emulation inside of an emulation.

mod guest;
mod loss;
mod parts;
mod report;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use report::Report;

use crate::bench::Transport;
use crate::{checkout, deps, testbed};

/// Longest that the demo's guest may take, whole.
const GUEST_LIMIT: Duration = Duration::from_secs(1200);
/// Longest that the demo inside of the test bed may take, boot and all; building is done before.
const TESTBED_LIMIT: Duration = Duration::from_secs(1500);

/// Options of `cargo xtask demo`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Write the report as JSON to this file.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// How the memory nodes are reached; `verbs` runs in the test bed.
    #[arg(long, value_enum, default_value = "tcp")]
    transport: Transport,
    /// The guest's RAM in MiB [default: 512; verbs: 128].
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// How much of it may be resident here, in MiB [default: a quarter].
    #[arg(long, value_name = "MIB")]
    local: Option<u64>,
    /// How much of it the guest's program uses, in MiB [default: 400; verbs: 40].
    #[arg(long, value_name = "MIB")]
    touch: Option<u64>,
    /// Verify-and-rewrite passes behind the fill [default: 3; verbs: 1].
    #[arg(long)]
    passes: Option<u64>,
    /// Memory nodes that each page is on; with more than one, a node is killed in mid-run.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=4))]
    replicas: u8,
    /// Seed of contents and orders.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The QEMU to use.
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: String,
    /// Set by the demo itself, inside of the test bed.
    #[arg(long, hide = true)]
    inside: bool,
}

impl Arguments {
    fn plan(&self) -> Plan {
        let (memory, touch, passes) = match self.transport {
            Transport::Tcp => (512, 400, 3),
            // Debian's kernel leaves a program about 50 of 128 MiB; what it cannot have is a panic.
            Transport::Verbs => (128, 40, 1),
        };
        let memory_mib = self.memory.unwrap_or(memory);
        Plan {
            transport: self.transport,
            memory_mib,
            local_mib: self.local.unwrap_or(memory_mib / 4),
            touch_mib: self.touch.unwrap_or(touch),
            passes: self.passes.unwrap_or(passes),
            replicas: self.replicas,
            seed: self.seed,
            qemu: self.qemu.clone(),
        }
    }

    /// These arguments again, for the same program inside of the test bed.
    fn inside(&self, json: &Path) -> Vec<String> {
        let plan = self.plan();
        let mut words: Vec<String> = [
            "demo",
            "--inside",
            "--transport",
            plan.transport.name(),
            "--json",
        ]
        .map(str::to_owned)
        .into();
        words.push(json.display().to_string());
        for (name, value) in [
            ("--memory", plan.memory_mib),
            ("--local", plan.local_mib),
            ("--touch", plan.touch_mib),
            ("--passes", plan.passes),
            ("--replicas", plan.replicas.into()),
            ("--seed", plan.seed),
        ] {
            words.extend([name.to_owned(), value.to_string()]);
        }
        words.extend(["--qemu".to_owned(), plan.qemu]);
        words
    }
}

/// What one demo does, all defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    transport: Transport,
    memory_mib: u64,
    local_mib: u64,
    touch_mib: u64,
    passes: u64,
    replicas: u8,
    seed: u64,
    qemu: String,
}

impl Plan {
    /// One of them may be lost, if the pages are not.
    fn nodes(&self) -> usize {
        match self.replicas {
            1 => 2,
            replicas => usize::from(replicas) + 1,
        }
    }

    /// How many are killed.
    fn losses(&self) -> usize {
        usize::from(self.replicas > 1)
    }

    /// What each lends: with a third to spare it holds its part when others are gone.
    fn capacity_mib(&self) -> u64 {
        let left = (self.nodes() - self.losses()) as u64;
        (self.memory_mib * u64::from(self.replicas) * 3 / 2 / left).next_multiple_of(16)
    }
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    /// A file of the demo's own.
    #[error("{path} cannot be read or written")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A program did not start.
    #[error("{program} could not be started")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    /// A build failed; cargo has said why.
    #[error("building {what} failed")]
    Build { what: &'static str },
    /// A process of the cluster ended, or never said that it is ready.
    #[error("{part} did not become ready: its words are above")]
    NotReady { part: String },
    /// `myco cluster` failed.
    #[error("myco cluster {verb} failed: its words are above")]
    Cluster { verb: &'static str },
    /// Nodes are ready, but the control plane does not say so.
    #[error("the control plane has not seen all {nodes} memory nodes after {seconds} s")]
    NotJoined { nodes: usize, seconds: u64 },
    /// The guest's kernel could not be had.
    #[error("no kernel for the guest")]
    Kernel(#[from] mycoram_testbed::KernelStoreError),
    /// The system lacks packages, and they could not be installed.
    #[error("the system is not complete")]
    Deps(#[from] deps::DepsError),
    /// The test bed broke.
    #[error("the test bed broke")]
    Testbed(#[source] Box<dyn std::error::Error>),
    /// The guest took too long.
    #[error("the guest was not done after {seconds} s")]
    Timeout { seconds: u64 },
    /// `myco vm run` failed.
    #[error("myco vm run ended with {status}; its words are above")]
    Vm { status: std::process::ExitStatus },
    /// The guest ended without a verdict.
    #[error("the guest ended before its program said whether the memory was right")]
    NoVerdict,
    /// A report or figures of another shape than this program's.
    #[error("{what} are not what this version of the demo reads")]
    Shape {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    /// The test bed does not say where its devices are.
    #[error("the test bed names no rxe address in {variable}")]
    NoDevice { variable: String },
}

/// Runs the demo, prints its report. Non-zero when anything was wrong.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let plan = arguments.plan();
    let outcome = match (arguments.transport, arguments.inside) {
        (Transport::Verbs, false) => in_testbed(arguments),
        (_, inside) => here(&plan, inside),
    };
    let report = match outcome {
        Ok(report) => report,
        Err(error) => {
            eprintln!("demo: {}", testbed::chain(&error));
            return ExitCode::FAILURE;
        }
    };
    if let Some(path) = &arguments.json
        && let Err(error) = report.write(path)
    {
        eprintln!("demo: {}", testbed::chain(&error));
        return ExitCode::FAILURE;
    }
    if arguments.inside {
        return ExitCode::SUCCESS;
    }
    print!("{report}");
    let faults = report.complaints();
    for complaint in &faults {
        eprintln!("demo: {complaint}");
    }
    if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// On this machine, or inside of the test bed, where everything is built already.
fn here(plan: &Plan, inside: bool) -> Result<Report, DemoError> {
    if !inside {
        deps::ensure()?;
        parts::build()?;
        guest::prepare()?;
    }
    let scratch = parts::Scratch::new()?;
    let image = guest::prepared()?;
    let mut cluster = parts::Cluster::start(plan, scratch.path())?;
    watch::guest(plan, &image, &mut cluster, scratch.path(), GUEST_LIMIT)
}

/// The same program again, inside of the test bed.
fn in_testbed(arguments: &Arguments) -> Result<Report, DemoError> {
    deps::ensure()?;
    parts::build()?;
    guest::prepare()?;
    let mut options = testbed::options();
    // One to each memory node, and one to the guest.
    options.topology = mycoram_testbed::Topology::Nodes(arguments.plan().nodes() as u8 + 1);
    options.vcpus = 2;
    let json = options.out_dir.join("demo.json");
    let program = std::env::current_exe().map_err(|source| DemoError::File {
        path: "xtask".into(),
        source,
    })?;
    let mut command = vec![program.display().to_string()];
    command.extend(arguments.inside(&json));
    let outcome = testbed::run_in(options, command, TESTBED_LIMIT).map_err(DemoError::Testbed)?;
    if outcome.exit_code() != 0 {
        return Err(DemoError::NoVerdict);
    }
    Report::read(&json)
}

/// Where the release build puts a program of this workspace.
fn program(name: &str) -> PathBuf {
    checkout::target_dir().join("release").join(name)
}

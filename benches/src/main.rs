//! `mycoram-benches NAME`: what Mycoram does, how fast, against what cannot be beaten and what a user would
//! take instead. Run as `cargo xtask bench NAME`, which builds in release and goes to the test bed for rxe.
//!
//! ```text
//!   bench (this process)      starts, orders, computes ratios, writes JSON
//!     +- myco node serve      on one processor
//!     +- program              on the other: maps, touches, and is the floors' client
//!     +- page server          the floors' other end, where the node runs
//! ```

mod bench;
mod bounds;
mod child;
mod cpu_time;
mod floor;
mod machine;
mod memory;
mod node;
mod peer;
mod placement;
mod program;
mod report;
mod samples;
mod wire;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::units::ByteCount;
use serde::Serialize;

use bench::{BenchError, Findings, Setting};
use floor::Waiting;
use placement::Placement;
use report::{Metric, Report};

#[derive(Parser)]
#[command(
    name = "mycoram-benches",
    about = "Figures of Mycoram, as ratios taken in one run"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fault service over the floor of a bare round trip and a bare userfaultfd fault.
    Fault(Options),
    /// Sequential scan of a mostly remote region over the transport's own bandwidth.
    Scan(Options),
    /// Touches of a wholly resident region over plain shared memory.
    Resident(Options),
    /// Processor time of an agent with nothing to do, and bytes of page table.
    Idle(Options),
    /// Against the kernel's swap over NVMe-oF RDMA; in the test bed only.
    Peers(Options),
    /// What a second replica costs, how soon a dead node is got over, rebuild, placement.
    Replicas(ReplicaOptions),
    /// The names of the benches, one a line.
    List,
    #[command(hide = true)]
    Program {
        #[arg(long)]
        cpu: Option<usize>,
    },
    #[command(hide = true)]
    PageServer {
        #[arg(long, value_enum)]
        waiting: Waiting,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TransportName {
    Tcp,
    Verbs,
}

#[derive(Args)]
struct Options {
    /// How pages travel. For peers: verbs.
    #[arg(long, value_enum)]
    transport: Option<TransportName>,
    /// Where to write the figures; standard output if not given.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Size of the region.
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    region: ByteCount,
    /// Rounds; figures are medians over them.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How the floors' clients and fault handlers wait. A fault worker polls.
    #[arg(long, value_enum, default_value = "polling")]
    floor_waiting: Waiting,
    /// How the floors' page server waits. A memory node sleeps.
    #[arg(long, value_enum, default_value = "sleeping")]
    floor_server_waiting: Waiting,
    /// Leave placement on processors to the kernel.
    #[arg(long)]
    anywhere: bool,
}

#[derive(Args)]
struct ReplicaOptions {
    #[command(flatten)]
    options: Options,
    /// What is measured; may be given again. All of it if not given.
    #[arg(long = "part", value_enum)]
    parts: Vec<bench::replicas::Part>,
}

impl Options {
    fn transport(&self, default: TransportKind) -> TransportKind {
        match self.transport {
            Some(TransportName::Tcp) => TransportKind::Tcp,
            Some(TransportName::Verbs) => TransportKind::Verbs,
            None => default,
        }
    }

    /// A quarter of the region is local.
    fn setting(&self, default: TransportKind, region: ByteCount) -> Setting {
        let transport = self.transport(default);
        let placement = if self.anywhere {
            Placement {
                program_cpu: None,
                node_cpu: None,
            }
        } else {
            Placement::apart()
        };
        Setting {
            transport,
            placement,
            region_bytes: region.as_usize(),
            local_bytes: region.as_usize() / 4,
            rounds: self.rounds,
        }
    }
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Fault(options) => {
            let parameters = bench::fault::parameters(
                options.setting(TransportKind::Tcp, options.region),
                options.floor_waiting,
                options.floor_server_waiting,
            );
            let found = bench::fault::run(&parameters);
            finish("fault", &options, parameters, found, bench::fault::nothing)
        }
        Command::Scan(options) => {
            let parameters =
                bench::scan::parameters(options.setting(TransportKind::Tcp, options.region));
            let found = bench::scan::run(&parameters);
            finish("scan", &options, parameters, found, bench::scan::nothing)
        }
        Command::Resident(options) => {
            let parameters =
                bench::resident::parameters(options.setting(TransportKind::Tcp, options.region));
            let found = bench::resident::run(&parameters);
            finish(
                "resident",
                &options,
                parameters,
                found,
                bench::resident::nothing,
            )
        }
        Command::Idle(options) => {
            let parameters =
                bench::idle::parameters(options.setting(TransportKind::Tcp, options.region));
            let found = bench::idle::run(&parameters);
            finish("idle", &options, parameters, found, bench::idle::nothing)
        }
        Command::Peers(options) => {
            // The size that the swap path's first figures were taken with.
            let region = ByteCount::mib(128);
            let parameters =
                bench::peers::parameters(options.setting(TransportKind::Verbs, region));
            let found = bench::peers::run(&parameters);
            finish("peers", &options, parameters, found, bench::peers::nothing)
        }
        Command::Replicas(ReplicaOptions { options, parts }) => {
            let setting = options.setting(TransportKind::Tcp, options.region);
            let parameters = bench::replicas::parameters(setting, &parts);
            let found = bench::replicas::run(&parameters);
            finish(
                "replicas",
                &options,
                parameters,
                found,
                bench::replicas::nothing,
            )
        }
        Command::List => {
            for name in ["fault", "scan", "resident", "idle", "peers", "replicas"] {
                println!("{name}");
            }
            ExitCode::SUCCESS
        }
        Command::Program { cpu } => exit(program::serve(cpu)),
        Command::PageServer { waiting } => exit(floor::tcp::serve(waiting)),
    }
}

fn exit(outcome: std::io::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mycoram-benches: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes what was found, or that nothing was and why.
fn finish<P: Serialize>(
    name: &'static str,
    options: &Options,
    parameters: P,
    found: Result<Findings, BenchError>,
    nothing: fn() -> Vec<Metric>,
) -> ExitCode {
    let failure = found.as_ref().err().map(|error| in_words(error));
    let findings = found.unwrap_or_else(|_| nothing().into());
    let transport = options.transport(TransportKind::Tcp);
    let judged = |metric: Metric| {
        let bound = bounds::of(metric.name(), transport);
        metric.beside(bound)
    };
    let report = Report {
        bench: name,
        machine: machine::Machine::this(),
        parameters,
        metrics: findings.metrics.into_iter().map(judged).collect(),
        breakdown: findings.breakdown,
        failure: failure.clone(),
    };
    let written = report.write(options.json.as_deref());
    if let Some(failure) = &failure {
        eprintln!("{name}: {failure}");
    }
    match (written, failure) {
        (Ok(()), None) => ExitCode::SUCCESS,
        (Ok(()), Some(_)) => ExitCode::FAILURE,
        (Err(error), _) => {
            let place = options
                .json
                .as_deref()
                .unwrap_or(Path::new("standard output"));
            eprintln!("{name}: {} cannot be written: {error}", place.display());
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, in one sentence.
fn in_words(error: &dyn Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        sentence = format!("{sentence}: {error}");
        cause = error.source();
    }
    sentence
}

//! `myco node serve`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use mycoram_fabric::node::{
    Bounds, DataServerError, Drained, HugePages, MemoryNode, NodeConfig, Pool, PoolError,
    StartError, start_data_server,
};
use mycoram_fabric::units::ByteCount;
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;

use crate::command::Outcome;
use crate::durations;
use crate::exit_codes;
use crate::failure::Failure;
use crate::limits;
use crate::node::{self, Transport};
use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the control channel listens; port 0 takes any that is free
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,

    /// How much memory to lend, such as 512MiB or 64GiB; it is reserved at once
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    capacity: ByteCount,

    /// Over what the memory is reached
    #[arg(long, value_enum, default_value = "tcp")]
    transport: Transport,

    /// Where data connections are taken [default: the address of --listen, any free port]
    #[arg(long, value_name = "IP:PORT")]
    data_listen: Option<SocketAddr>,

    /// Lend huge pages: if there are enough of them (prefer), or not at all without (require)
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true,
          default_missing_value = "prefer")]
    hugepages: Option<HugePagesWhen>,

    /// How much of it one tenant may have [default: all]
    #[arg(long, value_name = "SIZE")]
    tenant_quota: Option<ByteCount>,

    /// How long memory is kept for an owner that is gone, before it is freed
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = durations::parse)]
    orphan_ttl: Duration,

    /// How long owners may take to leave after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = durations::parse)]
    drain_timeout: Duration,

    /// Control connections at most
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_connections: u32,

    /// How long a control connection may be silent; owners speak once a second
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = durations::parse)]
    idle_timeout: Duration,
}

/// When to take huge pages.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum HugePagesWhen {
    /// If there are enough
    Prefer,
    /// Or do not start
    Require,
}

/// Schema `myco.node-ready`: one line, when owners can come.
#[derive(Serialize)]
struct Ready {
    control: SocketAddr,
    data: SocketAddr,
    transport: &'static str,
    capacity_bytes: ByteCount,
    hugepages: bool,
    incarnation: String,
    pid: u32,
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    // Before any thread is started, so that all of them leave the signals to this one.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals
        .thread_block()
        .map_err(|errno| Failure::new(exit_codes::FAILURE, errno))?;
    limits::raise();

    let hugepages = match args.hugepages {
        None => HugePages::Off,
        Some(HugePagesWhen::Prefer) => HugePages::Prefer,
        Some(HugePagesWhen::Require) => HugePages::Require,
    };
    let pool = Pool::reserve(args.capacity, hugepages).map_err(pool_failure)?;
    let hugepages = pool.hugepages();
    let any_port = SocketAddr::new(args.listen.ip(), 0);
    let data = start_data_server(
        args.transport.into(),
        args.data_listen.unwrap_or(any_port),
        Arc::clone(pool.mapping()),
    )
    .map_err(data_failure)?;
    let data_address = data.address();
    let config = NodeConfig {
        bounds: Bounds {
            tenant_bytes: args.tenant_quota,
            orphan_ttl_ms: millis(args.orphan_ttl),
            ..Bounds::default()
        },
        connections: args.max_connections,
        idle_ms: millis(args.idle_timeout),
        ..NodeConfig::new(args.listen)
    };
    let node = MemoryNode::start(&config, pool, data).map_err(start_failure)?;

    let ready = Ready {
        control: node.control(),
        data: data_address,
        transport: node::word(args.transport.into()),
        capacity_bytes: args.capacity,
        hugepages,
        incarnation: format!("{:016x}", node.incarnation().get()),
        pid: std::process::id(),
    };
    output.print("myco.node-ready", 1, &ready, |out| {
        writeln!(
            out,
            "ready: lends {} at {} (data at {} over {})",
            ready.capacity_bytes, ready.control, ready.data, ready.transport
        )
    })?;

    wait(&signals)?;
    tracing::info!("the node is being stopped");
    // Who asks a second time does not want to wait for the owners.
    let again = std::thread::Builder::new()
        .name("myco-signals".to_owned())
        .spawn(move || {
            if wait(&signals).is_ok() {
                std::process::exit(i32::from(exit_codes::OK));
            }
        });
    drop(again);
    if node.drain(args.drain_timeout) == Drained::TimeUp {
        eprintln!(
            "myco: owners had not left after {:?}; their pages on this node are lost",
            args.drain_timeout
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn wait(signals: &SigSet) -> Result<Signal, Failure> {
    signals
        .wait()
        .map_err(|errno| Failure::new(exit_codes::FAILURE, errno))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn pool_failure(error: PoolError) -> Failure {
    match error {
        PoolError::Size { .. } => Failure::new(exit_codes::USAGE, error)
            .advise("give --capacity in MiB or GiB, such as 512MiB"),
        PoolError::NotEnough { .. } => {
            Failure::new(exit_codes::FULL, error).advise("give a smaller --capacity")
        }
        PoolError::Kernel { .. } | PoolError::Map(_) => Failure::new(exit_codes::FULL, error)
            .advise("give a smaller --capacity; for --hugepages=require, reserve more of them in /proc/sys/vm/nr_hugepages"),
    }
}

fn data_failure(error: DataServerError) -> Failure {
    use mycoram_fabric::transport::tcp::{RingError, ServeError};
    let code = match &error {
        DataServerError::Tcp(ServeError::Ring(RingError::Forbidden(_))) => exit_codes::PERMISSION,
        DataServerError::Tcp(ServeError::Ring(RingError::TooOld(_))) => exit_codes::MISSING,
        DataServerError::Tcp(ServeError::Listen { .. }) => {
            return Failure::new(exit_codes::FAILURE, error)
                .advise("give --data-listen an address of this machine and a port that is free");
        }
        DataServerError::Tcp(_) => exit_codes::FAILURE,
        _ => exit_codes::MISSING,
    };
    // The errors of both providers name the way out themselves.
    Failure::new(code, error)
}

fn start_failure(error: StartError) -> Failure {
    let failed = matches!(error, StartError::Listen { .. });
    let failure = Failure::new(exit_codes::FAILURE, error);
    if failed {
        failure.advise("give --listen an address of this machine and a port that is free")
    } else {
        failure
    }
}

//! `myco agent serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use mycoram_agent::daemon::{AllowedPeers, Daemon, DaemonConfig, DaemonConfigError, StartError};
use mycoram_agent::kernel::{KernelFeatures, lock_process};
use mycoram_control::metrics::MetricsServer;
use mycoram_fabric::units::ByteCount;
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;

use crate::agent_metrics::Metrics;
use crate::command::Outcome;
use crate::exit_codes;
use crate::failure::Failure;
use crate::far_nodes::FarNodes;
use crate::limits;
use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The memory nodes: a nodes file, or a control plane as in control://HOST:PORT?tls=DIR&replicas=2
    #[arg(long, value_name = "FILE|URL")]
    nodes: FarNodes,

    /// How much all programs together may have resident on this machine, such as 4GiB
    #[arg(long, value_name = "SIZE")]
    max_local: ByteCount,

    /// How much the programs of one user together may have resident [default: half of --max-local]
    #[arg(long, value_name = "SIZE")]
    max_local_per_user: Option<ByteCount>,

    /// How much all programs together may have on memory nodes [default: as much as the nodes lend]
    #[arg(long, value_name = "SIZE")]
    max_far: Option<ByteCount>,

    /// How much the programs of one user together may have on memory nodes [default: as --max-far]
    #[arg(long, value_name = "SIZE")]
    max_far_per_user: Option<ByteCount>,

    /// Where programs connect; the directory must exist
    #[arg(long, value_name = "PATH", default_value = "/run/mycoram-agent.sock")]
    socket: PathBuf,

    /// Where page tables and records of programs live, for the next daemon: a directory on tmpfs
    #[arg(long, value_name = "DIR", default_value = "/dev/shm/mycoram/daemon")]
    state_dir: PathBuf,

    /// Programs at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_clients: usize,

    /// Who else may connect: a user's number, or "everybody" [default: root and the user it runs as]
    #[arg(long, value_name = "UID", num_args = 1..)]
    allow: Vec<Allow>,

    /// Seal all programs' pages (encrypt and authenticate them) with the key in this file; see docs/sealing.md
    #[arg(long, value_name = "FILE")]
    seal_key: Option<PathBuf>,

    #[command(flatten)]
    metrics: Metrics,

    /// Do not lend /dev/userfaultfd to programs that may not open it themselves
    #[arg(long)]
    no_lend_device: bool,
}

/// One who may connect.
#[derive(Clone, Copy, Debug)]
enum Allow {
    User(u32),
    Everybody,
}

impl FromStr for Allow {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "everybody" => Ok(Self::Everybody),
            number => number.parse().map(Self::User),
        }
    }
}

/// Schema `myco.agent-ready`: one line, when programs can connect.
#[derive(Serialize)]
struct Ready {
    socket: PathBuf,
    max_local_bytes: ByteCount,
    metrics: Option<SocketAddr>,
    nodes: usize,
    kernel_lacks: Vec<&'static str>,
    pid: u32,
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    // Before any thread is started, so that all of them leave the signals to this one.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals
        .thread_block()
        .map_err(|errno| Failure::new(exit_codes::FAILURE, errno))?;
    // Each program has some fifty descriptors open here.
    limits::raise();
    let features = KernelFeatures::probe().map_err(|error| {
        Failure::new(exit_codes::PERMISSION, error)
            .advise("run it as root, or give it CAP_SYS_PTRACE")
    })?;
    let far = args.nodes.open()?;
    keep_in_memory();
    let daemon = Daemon::start(config(args), far.source).map_err(start_failure)?;
    let metrics = args.metrics.of_all(&args.state_dir)?;
    let ready = Ready {
        metrics: metrics.as_ref().map(MetricsServer::address),
        socket: args.socket.clone(),
        max_local_bytes: args.max_local,
        nodes: far.nodes,
        kernel_lacks: features.missing().collect(),
        pid: std::process::id(),
    };
    output.print("myco.agent-ready", 1, &ready, |out| {
        for lack in &ready.kernel_lacks {
            writeln!(out, "note: this kernel has {lack}")?;
        }
        writeln!(
            out,
            "ready: programs may have {} resident, at {}",
            ready.max_local_bytes,
            ready.socket.display()
        )
    })?;
    let stopper = daemon.stopper();
    std::thread::Builder::new()
        .name("myco-signals".to_owned())
        .spawn(move || {
            let waited = signals.wait();
            tracing::info!(
                ?waited,
                "the daemon ends; its programs wait for the next one"
            );
            stopper.stop();
        })?;
    daemon.run();
    drop(metrics);
    Ok(ExitCode::SUCCESS)
}

fn config(args: &Args) -> DaemonConfig {
    let mut config = DaemonConfig::new(args.socket.clone(), args.max_local);
    config.state_dir.clone_from(&args.state_dir);
    config.max_clients = args.max_clients;
    config.lend_device = !args.no_lend_device;
    config.seal_key.clone_from(&args.seal_key);
    if let Some(share) = args.max_local_per_user {
        config.max_local_per_user = share;
    }
    if let Some(far) = args.max_far {
        config.max_far = far;
    }
    if let Some(share) = args.max_far_per_user {
        config.max_far_per_user = share;
    }
    let users: Vec<u32> = args
        .allow
        .iter()
        .filter_map(|allow| match allow {
            Allow::User(uid) => Some(*uid),
            Allow::Everybody => None,
        })
        .collect();
    config.allow = if users.len() < args.allow.len() {
        AllowedPeers::Everybody
    } else if users.is_empty() {
        AllowedPeers::SameUser
    } else {
        AllowedPeers::Users(users)
    };
    config
}

/// An agent that is swapped out makes all its programs wait.
pub(crate) fn keep_in_memory() {
    // Without the right to lock all of it, a limit would make later allocations fail.
    if nix::unistd::geteuid().is_root()
        && let Err(error) = lock_process()
    {
        tracing::warn!(%error, "the daemon's own memory may be swapped out");
    }
}

fn start_failure(error: StartError) -> Failure {
    let (code, advice) = match &error {
        StartError::Config(DaemonConfigError::Share { .. }) => {
            (exit_codes::USAGE, "give a larger --max-local")
        }
        StartError::Config(_) => (exit_codes::USAGE, "give another --max-clients"),
        StartError::Seal(_) => (
            exit_codes::USAGE,
            "give --seal-key a key file of its own; see docs/sealing.md",
        ),
        StartError::Running { .. } => (
            exit_codes::REFUSED,
            "end the other daemon, or give this one a --state-dir and a --socket of its own",
        ),
        StartError::State(_) | StartError::Lock { .. } => (
            exit_codes::PERMISSION,
            "give a --state-dir that this user may write",
        ),
        StartError::Listen { .. } => (
            exit_codes::FAILURE,
            "give --socket a path in a directory that this user may write",
        ),
        _ => return Failure::new(exit_codes::FAILURE, error),
    };
    Failure::new(code, error).advise(advice)
}

//! `myco node serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use mycoram_control::client::{ControlAddress, Member, Membership, MembershipError};
use mycoram_control::cluster::NodeAddress;
use mycoram_control::identity::{Credentials, Role, read_cluster_key};
use mycoram_control::metrics::{MetricsServer, node_page};
use mycoram_fabric::node::{
    Bounds, DataServerError, Drained, GrantCheck, HugePages, MemoryNode, NodeConfig, NodeHandle,
    Pool, PoolError, StartError, start_data_server,
};
use mycoram_fabric::placement::FailureDomain;
use mycoram_fabric::units::ByteCount;
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;

use crate::command::Outcome;
use crate::control;
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

    /// How long memory is kept for an owner that is gone, before it is freed [default: 10m; with --control
    /// until the control plane says so]
    #[arg(long, value_name = "TIME", value_parser = durations::parse)]
    orphan_ttl: Option<Duration>,

    /// How long owners may take to leave after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = durations::parse)]
    drain_timeout: Duration,

    /// Control connections at most
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_connections: u32,

    /// How long a control connection may be silent; owners speak once a second
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = durations::parse)]
    idle_timeout: Duration,

    /// The cluster's public key: take only owners with a grant of its control plane [default: cluster.pub
    /// in the directory of --tls]
    #[arg(long, value_name = "FILE", requires = "name")]
    cluster_key: Option<PathBuf>,

    /// What the cluster calls this node; grants are for one node by name
    #[arg(long, value_name = "NAME", value_parser = node::parse_name)]
    name: Option<String>,

    /// Join the cluster of this control plane; leave it on SIGTERM, when all extents were moved elsewhere
    #[arg(
        long,
        value_name = "control://HOST:PORT",
        requires = "name",
        requires = "trust"
    )]
    control: Option<ControlAddress>,

    /// What fails with this node, from wide to narrow [default: ///NAME]
    #[arg(long, value_name = "REGION/ZONE/RACK/HOST")]
    domain: Option<FailureDomain>,

    /// Where owners reach it, if that is not the address of --listen
    #[arg(long, value_name = "IP:PORT")]
    advertise: Option<SocketAddr>,

    /// Certificates, for the control channel and the control plane: what `myco cluster init` made, or the
    /// part of it for nodes
    #[arg(long, value_name = "DIR", group = "trust")]
    tls: Option<PathBuf>,

    /// Without certificates for the control plane
    #[arg(long, group = "trust")]
    insecure: bool,

    /// Where metrics are read over HTTP, in the format of Prometheus [default: nowhere]
    #[arg(long, value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
}

/// How long memory is kept without a control plane, for an owner that is gone.
const ORPHAN_TTL: Duration = Duration::from_secs(600);

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
    name: Option<String>,
    control: SocketAddr,
    data: SocketAddr,
    transport: &'static str,
    capacity_bytes: ByteCount,
    hugepages: bool,
    /// Whether owners need a grant.
    grants: bool,
    tls: bool,
    metrics: Option<SocketAddr>,
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

    let grants = grant_check(args)?;
    let tls = match &args.tls {
        None => None,
        Some(directory) => Some(
            Credentials::read(directory, Role::Node)
                .and_then(|credentials| credentials.channel_server())
                .map_err(control::credentials_failure)?,
        ),
    };
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
            orphan_ttl_ms: match (args.orphan_ttl, &args.control) {
                (Some(ttl), _) => durations::millis(ttl),
                // What it holds counts as replicas for as long as the control plane says.
                (None, Some(_)) => u64::MAX,
                (None, None) => durations::millis(ORPHAN_TTL),
            },
            ..Bounds::default()
        },
        connections: args.max_connections,
        idle_ms: durations::millis(args.idle_timeout),
        grants,
        tls,
        ..NodeConfig::new(args.listen)
    };
    let node = MemoryNode::start(&config, pool, data).map_err(start_failure)?;
    let metrics = serve_metrics(args, node.handle())?;
    let membership = args
        .control
        .as_ref()
        .map(|control| join(args, control, &node))
        .transpose()?;

    let ready = Ready {
        name: args.name.clone(),
        control: node.control(),
        data: data_address,
        transport: node::word(args.transport.into()),
        capacity_bytes: args.capacity,
        hugepages,
        grants: config.grants.is_some(),
        tls: config.tls.is_some(),
        metrics: metrics.as_ref().map(MetricsServer::address),
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
    if let Some(membership) = membership {
        match membership.leave(args.drain_timeout) {
            Ok(0) => {}
            Ok(left) => eprintln!(
                "myco: {} of extents had no time to move; they are made anew from other replicas",
                ByteCount::new(left)
            ),
            Err(error) => eprintln!("myco: the cluster was not left: {error}"),
        }
    }
    if node.drain(args.drain_timeout) == Drained::TimeUp {
        eprintln!(
            "myco: owners had not left after {:?}; their pages on this node are lost",
            args.drain_timeout
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the node a member of its cluster.
fn join(args: &Args, control: &ControlAddress, node: &MemoryNode) -> Result<Membership, Failure> {
    let client = control::node_client(control, args.tls.as_ref())?;
    // clap asks for a name with --control.
    let name = args.name.clone().unwrap_or_default();
    let address = args.advertise.unwrap_or(node.control());
    if address.ip().is_unspecified() {
        return Err(Failure::new(exit_codes::USAGE, NoAddress { address })
            .advise("give --advertise the address at which agents reach this node"));
    }
    let member = Member {
        domain: args.domain.clone().unwrap_or_else(|| FailureDomain {
            host: name.clone(),
            ..FailureDomain::default()
        }),
        name,
        addresses: vec![NodeAddress {
            transport: args.transport.into(),
            control: address,
        }],
        capacity: args.capacity,
        incarnation: node.incarnation(),
    };
    Membership::start(client, &member, node.handle()).map_err(|error| match error {
        MembershipError::Client(error) => control::client_failure(error),
        other => Failure::new(exit_codes::FAILURE, other),
    })
}

/// A node that checks grants has a name.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a node with a cluster's key has no name")]
struct NoName;

/// Others cannot reach it there.
#[derive(Debug, thiserror::Error)]
#[error("{address} is no address at which others reach this node")]
struct NoAddress {
    address: SocketAddr,
}

/// Serves figures, if asked to.
fn serve_metrics(args: &Args, node: NodeHandle) -> Result<Option<MetricsServer>, Failure> {
    let page = move || Some(node_page(&node.status().ok()?, &node.refusals().ok()?));
    args.metrics
        .map(|address| MetricsServer::start(address, page))
        .transpose()
        .map_err(|error| {
            Failure::new(exit_codes::FAILURE, error)
                .advise("give --metrics an address of this machine and a port that is free")
        })
}

/// What owners must show. Without a key anybody is taken, and that is said.
fn grant_check(args: &Args) -> Result<Option<GrantCheck>, Failure> {
    let beside = args.tls.as_ref().and_then(|directory| {
        let places = [
            directory.join("node/cluster.pub"),
            directory.join("cluster.pub"),
        ];
        places.into_iter().find(|path| path.exists())
    });
    let Some(path) = args.cluster_key.as_ref().or(beside.as_ref()) else {
        eprintln!(
            "myco: without --cluster-key whoever reaches this node may use its memory; trust the network"
        );
        return Ok(None);
    };
    let key = read_cluster_key(path).map_err(|error| {
        Failure::new(exit_codes::CONFIG, error)
            .advise("give the file cluster.pub that `myco cluster init` made")
    })?;
    match args.name.clone() {
        Some(node) => Ok(Some(GrantCheck { key, node })),
        None => Err(Failure::new(exit_codes::USAGE, NoName)
            .advise("give --name: grants are for one node by name")),
    }
}

fn wait(signals: &SigSet) -> Result<Signal, Failure> {
    signals
        .wait()
        .map_err(|errno| Failure::new(exit_codes::FAILURE, errno))
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

//! `myco control serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use mycoram_control::cluster::Limits;
use mycoram_control::identity::{Credentials, Role, read_signing_key};
use mycoram_control::service::{ControlServer, ServeConfig, ServeError, StoreAddress, Trust};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;

use crate::command::Outcome;
use crate::control::{self, credentials_failure};
use crate::durations;
use crate::exit_codes;
use crate::failure::Failure;
use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where it listens; port 0 takes any that is free
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,

    /// Where it keeps what it knows: redb:PATH, or etcd:URL,URL... of an etcd that several control planes share
    #[arg(long, value_name = "STORE")]
    store: StoreAddress,

    /// Where others reach it, for followers to tell [default: where it listens]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,

    #[command(flatten)]
    etcd: control::EtcdFlags,

    #[command(flatten)]
    trust: control::Trust,

    /// What grants are signed with [default: signing.key beside the certificates]
    #[arg(long, value_name = "FILE")]
    signing_key: Option<PathBuf>,

    /// Where metrics are read over HTTP, in the format of Prometheus [default: nowhere]
    #[arg(long, value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,

    /// A memory node that is not heard for so long is down
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = durations::parse)]
    node_lease: Duration,

    /// An owner that is not heard for so long may be followed without force
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = durations::parse)]
    owner_lease: Duration,
}

/// Schema `myco.control-ready`: one line, when callers can come.
#[derive(Serialize)]
struct Ready {
    address: SocketAddr,
    metrics: Option<SocketAddr>,
    cluster: Option<String>,
    tls: bool,
    pid: u32,
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals
        .thread_block()
        .map_err(|errno| Failure::new(exit_codes::FAILURE, errno))?;

    let trust = match &args.trust.tls {
        Some(directory) => {
            let credentials = Credentials::read(directory, Role::Control);
            Trust::Certificates(credentials.map_err(credentials_failure)?)
        }
        None => {
            eprintln!("myco: --insecure: whoever reaches this control plane may do everything");
            Trust::Anybody
        }
    };
    let beside = match &trust {
        Trust::Certificates(credentials) => Some(credentials.directory().join("signing.key")),
        Trust::Anybody => None,
    };
    let signing = args
        .signing_key
        .as_ref()
        .or(beside.as_ref())
        .map(|path| read_signing_key(path))
        .transpose()
        .map_err(|error| Failure::new(exit_codes::CONFIG, error))?;
    let cluster = signing.as_ref().map(|key| key.cluster().to_string());
    let tls = matches!(trust, Trust::Certificates(_));
    let config = ServeConfig {
        listen: args.listen,
        trust,
        signing,
        metrics: args.metrics,
        limits: Limits {
            node_lease_ms: durations::millis(args.node_lease),
            owner_lease_ms: durations::millis(args.owner_lease),
            ..Limits::default()
        },
        advertise: args.advertise.clone(),
    };
    let store = args.etcd.open(&args.store)?;
    let server = ControlServer::start(config, store).map_err(serve_failure)?;
    let ready = Ready {
        address: server.address(),
        metrics: server.metrics(),
        cluster,
        tls,
        pid: std::process::id(),
    };
    output.print("myco.control-ready", 1, &ready, |out| {
        writeln!(out, "ready: control://{}", ready.address)?;
        match ready.metrics {
            Some(metrics) => writeln!(out, "metrics: http://{metrics}/metrics"),
            None => Ok(()),
        }
    })?;
    signals
        .wait()
        .map_err(|errno| Failure::new(exit_codes::FAILURE, errno))?;
    tracing::info!("the control plane is being stopped");
    drop(server);
    Ok(ExitCode::SUCCESS)
}

fn serve_failure(error: ServeError) -> Failure {
    match error {
        ServeError::Listen { .. } => Failure::new(exit_codes::FAILURE, error)
            .advise("give an address of this machine and a port that is free"),
        ServeError::Certificates(_) => Failure::new(exit_codes::CONFIG, error)
            .advise("make them anew with `myco cluster init`"),
        _ => Failure::new(exit_codes::FAILURE, error),
    }
}

//! `myco control`: the control plane, and how other subcommands reach it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use mycoram_control::client::{Access, ClientError, ControlAddress, ControlClient, SetupError};
use mycoram_control::identity::{Credentials, CredentialsError, Role};
use mycoram_control::proto::NodeState;
use mycoram_control::proto::refusal::Kind;
use mycoram_control::service::StoreAddress;
use mycoram_control::store::{EtcdOptions, Store};
use mycoram_fabric::session::TlsDial;

use crate::command::Outcome;
use crate::durations;
use crate::exit_codes;
use crate::failure::Failure;
use crate::output::Output;
use crate::{control_move, control_serve};

/// Decide where regions live, watch memory nodes, and heal what they lose
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve as a cluster's control plane until SIGTERM
    Serve(control_serve::Args),

    /// Take what a stopped control plane knows to another store, such as an etcd that several share
    MoveStore(control_move::Args),
}

pub(crate) fn run(args: Args, output: &Output) -> Outcome {
    match args.verb {
        Verb::Serve(args) => control_serve::run(&args, output),
        Verb::MoveStore(args) => control_move::run(&args, output),
    }
}

/// How long a call on a node's control channel may take.
const NODE_CALL: Duration = Duration::from_secs(2);

/// How a subcommand reaches the control plane.
#[derive(Debug, clap::Args)]
pub(crate) struct Reach {
    /// Where the control plane is
    #[arg(long, value_name = "control://HOST:PORT")]
    control: ControlAddress,

    #[command(flatten)]
    trust: Trust,
}

/// Certificates, or none by name.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Trust {
    /// The directory that `myco cluster init` made, or the part of it for this role
    #[arg(long, value_name = "DIR")]
    pub(crate) tls: Option<PathBuf>,

    /// Without certificates: whoever reaches the other side may do everything
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// How an etcd is spoken to.
#[derive(Debug, clap::Args)]
pub(crate) struct EtcdFlags {
    /// Keys in etcd begin with this; clusters that share an etcd must differ in it
    #[arg(long, value_name = "NAME", default_value = "mycoram")]
    store_prefix: String,

    /// The authority that signed the certificates of etcd's members, for https
    #[arg(long, value_name = "FILE")]
    store_ca: Option<PathBuf>,

    /// The certificate that is shown to etcd
    #[arg(long, value_name = "FILE", requires = "store_key")]
    store_cert: Option<PathBuf>,

    /// The key of that certificate
    #[arg(long, value_name = "FILE", requires = "store_cert")]
    store_key: Option<PathBuf>,

    /// A leader that etcd does not hear for so long is followed by another; at least 2s
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = durations::parse)]
    leader_lease: Duration,
}

impl EtcdFlags {
    /// Opens a store, which need not be an etcd.
    pub(crate) fn open(&self, store: &StoreAddress) -> Result<Box<dyn Store>, Failure> {
        let options = EtcdOptions {
            prefix: self.store_prefix.clone(),
            ca: self.store_ca.clone(),
            identity: self.store_cert.clone().zip(self.store_key.clone()),
            leader_lease: self.leader_lease,
        };
        store.open(&options).map_err(|error| {
            Failure::new(exit_codes::FAILURE, error).advise(match store {
                StoreAddress::Redb(_) => {
                    "name a file in a directory that this user may write, that no other process uses"
                }
                StoreAddress::Etcd(_) => {
                    "see that the URLs, the prefix and the certificates can be used"
                }
            })
        })
    }
}

impl Reach {
    /// A client for a person, who may show an admin's certificate or an agent's.
    pub(crate) fn client(&self) -> Result<ControlClient, Failure> {
        let credentials = match &self.trust.tls {
            None => None,
            Some(directory) => Some(person(directory).map_err(credentials_failure)?),
        };
        client(&self.control, credentials)
    }

    /// For a person who opens control channels of memory nodes; `None`: they are not encrypted.
    pub(crate) fn dial(&self) -> Result<Option<TlsDial>, Failure> {
        let Some(directory) = &self.trust.tls else {
            return Ok(None);
        };
        let credentials = person(directory).map_err(credentials_failure)?;
        let dial = credentials.channel_client(NODE_CALL);
        dial.map(Some).map_err(credentials_failure)
    }
}

/// The certificates that a person shows: an admin's or an agent's.
pub(crate) fn person(directory: &Path) -> Result<Credentials, CredentialsError> {
    Credentials::read(directory, Role::Admin).or_else(|_| Credentials::read(directory, Role::Agent))
}

/// A client with these credentials.
pub(crate) fn client(
    address: &ControlAddress,
    credentials: Option<Credentials>,
) -> Result<ControlClient, Failure> {
    ControlClient::new(&Access::new(address.clone(), credentials)).map_err(|error| {
        let code = match error {
            SetupError::Threads(_) => exit_codes::FAILURE,
            SetupError::Certificates { .. } => exit_codes::CONFIG,
        };
        Failure::new(code, error)
    })
}

/// A client of a memory node, shared with its membership.
pub(crate) fn node_client(
    address: &ControlAddress,
    tls: Option<&PathBuf>,
) -> Result<Arc<ControlClient>, Failure> {
    let credentials = tls
        .map(|directory| Credentials::read(directory, Role::Node))
        .transpose()
        .map_err(credentials_failure)?;
    client(address, credentials).map(Arc::new)
}

/// What is wrong with certificates.
pub(crate) fn credentials_failure(error: CredentialsError) -> Failure {
    Failure::new(exit_codes::CONFIG, error)
        .advise("give the directory that `myco cluster init` made, or the part of it for this role")
}

/// What it means to a script that the control plane did not do what it was asked.
pub(crate) fn client_failure(error: ClientError) -> Failure {
    let code = client_code(&error);
    let failure = Failure::new(code, error);
    match code {
        exit_codes::UNREACHABLE => failure.advise(
            "see that `myco control serve` runs there, and that --tls and --insecure agree with it",
        ),
        exit_codes::FULL => failure.advise("add memory nodes, or ask for less"),
        _ => failure,
    }
}

/// As an exit code.
pub(crate) fn client_code(error: &ClientError) -> u8 {
    match error.refused().map(|refused| &refused.kind) {
        None => exit_codes::UNREACHABLE,
        Some(Some(Kind::NoRoom(_))) => exit_codes::FULL,
        Some(_) => exit_codes::REFUSED,
    }
}

/// One word for each state of a node.
pub(crate) fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Unspecified => "unknown",
        NodeState::Joining => "joining",
        NodeState::Up => "up",
        NodeState::Suspect => "suspect",
        NodeState::Down => "down",
        NodeState::Draining => "draining",
        NodeState::Left => "left",
    }
}

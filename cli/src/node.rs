//! `myco node`: memory nodes.

use clap::{Subcommand, ValueEnum};
use mycoram_fabric::session::SessionError;
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::wire::Refusal;
use mycoram_fabric::wire::grant::MAX_NODE_NAME_BYTES;

use crate::command::Outcome;
use crate::exit_codes;
use crate::failure::Failure;
use crate::output::Output;
use crate::{node_drain, node_list, node_serve, node_status};

/// Lend this machine's memory, or look at a node that does
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lend memory of this machine until SIGTERM
    Serve(Box<node_serve::Args>),
    /// Show what a memory node lends, and to how many
    Status(node_status::Args),
    /// Show all memory nodes of a cluster
    List(node_list::Args),
    /// Have everything moved off a node of a cluster
    Drain(node_drain::Args),
}

pub(crate) fn run(args: Args, output: &Output) -> Outcome {
    match args.verb {
        Verb::Serve(args) => node_serve::run(&args, output),
        Verb::List(args) => node_list::run(&args, output),
        Verb::Drain(args) => node_drain::run(&args, output),
        Verb::Status(args) => node_status::run(&args, output),
    }
}

/// A transport, as it is written on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// RDMA: needs a device (see `rdma link`)
    Verbs,
    /// Sockets and io_uring: works everywhere
    Tcp,
}

impl From<Transport> for TransportKind {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Verbs => Self::Verbs,
            Transport::Tcp => Self::Tcp,
        }
    }
}

/// A node's name, as it may stand in a cluster.
pub(crate) fn parse_name(text: &str) -> Result<String, NameError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let length = 1..=MAX_NODE_NAME_BYTES as usize;
    if length.contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(NameError)
    }
}

/// A text is no name.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "a node's name is 1 to {MAX_NODE_NAME_BYTES} letters, digits, dots, dashes and underscores"
)]
pub(crate) struct NameError;

/// One word for each transport.
pub(crate) fn word(transport: TransportKind) -> &'static str {
    match transport {
        TransportKind::Verbs => "verbs",
        TransportKind::Tcp => "tcp",
        TransportKind::Sim => "sim",
    }
}

/// What it means to a script that a memory node did not do what it was asked.
pub(crate) fn session_failure(error: SessionError) -> Failure {
    let refusal = error.refusal();
    match error {
        SessionError::Unreachable { .. } | SessionError::Broke { .. } => {
            Failure::new(exit_codes::UNREACHABLE, error)
                .advise("start it with `myco node serve`, or correct the address and port")
        }
        SessionError::Tls { .. } => Failure::new(exit_codes::REFUSED, error)
            .advise("give --tls the certificates of the node's cluster"),
        SessionError::Version { .. } => Failure::new(exit_codes::REFUSED, error)
            .advise("run the same version of myco on both machines"),
        SessionError::Protocol { .. } => Failure::new(exit_codes::UNREACHABLE, error)
            .advise("give the control address that `myco node serve` printed when it was ready"),
        SessionError::Refused { .. } => match refusal {
            Some(Refusal::Full { .. } | Refusal::Quota { .. }) => {
                Failure::new(exit_codes::FULL, error)
            }
            _ => Failure::new(exit_codes::REFUSED, error),
        },
        SessionError::Unexpected { .. } => Failure::new(exit_codes::FAILURE, error),
    }
}

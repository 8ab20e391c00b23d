//! `myco cluster`: the cluster as a whole.

use clap::Subcommand;

use crate::command::Outcome;
use crate::output::Output;
use crate::{cluster_init, cluster_status};

/// Make a cluster's identity, or look at a cluster
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a cluster's certificates and keys
    Init(cluster_init::Args),
    /// Show a cluster's nodes, memory and replicas in sum
    Status(cluster_status::Args),
}

pub(crate) fn run(args: Args, output: &Output) -> Outcome {
    match args.verb {
        Verb::Status(args) => cluster_status::run(&args, output),
        Verb::Init(args) => cluster_init::run(&args, output),
    }
}

//! `myco agent`: the agent for programs.

use clap::Subcommand;

use crate::agent_serve;
use crate::command::Outcome;
use crate::output::Output;

/// Serve programs on this machine that want far memory without an agent of their own
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve far memory to programs that connect, until SIGTERM
    Serve(agent_serve::Args),
}

pub(crate) fn run(args: Args, output: &Output) -> Outcome {
    match args.verb {
        Verb::Serve(args) => agent_serve::run(&args, output),
    }
}

//! The tree of nouns and verbs. Help, man page and completions all come from this one definition.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Failure;
use crate::output::Output;
use crate::{agent, cluster, completions, control, exit_codes, man, node, region, version, vm};

/// What a subcommand comes to: an exit code of its own choice (mostly success), or a failure.
pub(crate) type Outcome = Result<ExitCode, Failure>;

/// Far memory for VMs and processes: pages live on other machines and come in on demand.
#[derive(Debug, Parser)]
#[command(name = "myco", version, about, max_term_width = 100, after_help = exit_codes::HELP)]
pub(crate) struct Cli {
    /// Print data as JSON on stdout (each object carries its schema's name and version; a failure is a myco.error)
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Lend this machine's memory, or look at a node that does
    Node(node::Args),
    /// Decide where regions live, watch memory nodes, and heal what they lose
    Control(control::Args),
    /// Make a cluster's identity, or look at a cluster
    Cluster(cluster::Args),
    /// Make, look at and delete regions
    Region(region::Args),
    /// Serve programs on this machine that want far memory without an agent of their own
    Agent(agent::Args),
    /// Run QEMU guests whose RAM lives on memory nodes
    Vm(vm::Args),
    /// Print the version of myco, of its protocols and of its JSON output
    Version(version::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
    /// Print the manual page in roff, or write one page per subcommand into a directory
    Man(man::Args),
}

/// Whether `--json` is among arguments that make no sense otherwise. What follows `--` is another program's.
pub(crate) fn is_json_asked_for(arguments: impl Iterator<Item = OsString>) -> bool {
    arguments
        .take_while(|argument| argument != "--")
        .any(|argument| argument == "--json")
}

impl Noun {
    /// Runs the chosen subcommand.
    pub(crate) fn run(self, output: &Output) -> Outcome {
        match self {
            Self::Node(args) => node::run(args, output),
            Self::Control(args) => control::run(args, output),
            Self::Region(args) => region::run(args, output),
            Self::Cluster(args) => cluster::run(args, output),
            Self::Agent(args) => agent::run(args, output),
            Self::Vm(args) => vm::run(args, output),
            Self::Version(args) => version::run(&args, output),
            Self::Completions(args) => completions::run(&args, output),
            Self::Man(args) => man::run(&args, output),
        }
    }
}

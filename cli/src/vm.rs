//! `myco vm`: QEMUs on far memory.

use std::process::ExitCode;

use clap::Subcommand;
use mycoram_qemu::registry::{Registry, RegistryError};

use crate::command::Outcome;
use crate::exit_codes;
use crate::failure::Failure;
use crate::output::Output;
use crate::{vm_list, vm_stats};

/// Run QEMU guests whose RAM lives on memory nodes
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the VMs that run on this machine
    List(vm_list::Args),
    /// Show what a VM's memory has done, and what of it is resident
    Stats(vm_stats::Args),
}

pub(crate) fn run(args: Args, output: &Output) -> Outcome {
    match args.verb {
        Verb::List(args) => vm_list::run(&args, output),
        Verb::Stats(args) => vm_stats::run(&args, output),
    }
}

/// The VMs of this user.
pub(crate) fn registry() -> Result<Registry, Failure> {
    Registry::open().map_err(registry_failure)
}

/// What a failed look into the registry means to a script.
pub(crate) fn registry_failure(error: RegistryError) -> Failure {
    match error {
        RegistryError::Unknown => Failure::new(exit_codes::UNREACHABLE, error)
            .advise("look at `myco vm list`; VMs are seen by the user who started them"),
        RegistryError::Taken { .. } => Failure::new(exit_codes::REFUSED, error).advise(
            "choose another --name, or take an orphaned VM over with `myco vm attach --pid PID`",
        ),
        RegistryError::InUse => {
            Failure::new(exit_codes::REFUSED, error).advise("choose another --name")
        }
        RegistryError::Foreign { .. } => Failure::new(exit_codes::PERMISSION, error),
        other => Failure::new(exit_codes::FAILURE, other),
    }
}

/// Nothing more to say.
pub(crate) const DONE: Outcome = Ok(ExitCode::SUCCESS);

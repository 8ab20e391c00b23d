//! `myco cluster init`.

use std::path::PathBuf;
use std::process::ExitCode;

use mycoram_control::identity::{InitError, init_cluster};
use serde::Serialize;

use crate::command::Outcome;
use crate::exit_codes;
use crate::failure::Failure;
use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A directory that is not there yet: the authority, and one part for the machines of each role
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Schema `myco.cluster-init`.
#[derive(Serialize)]
struct Made<'a> {
    cluster: String,
    directory: &'a PathBuf,
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    let cluster = init_cluster(&args.directory).map_err(failure)?;
    let made = Made {
        cluster: cluster.to_string(),
        directory: &args.directory,
    };
    output.print("myco.cluster-init", 1, &made, |out| {
        let directory = made.directory.display();
        writeln!(out, "made: cluster {} in {directory}", made.cluster)?;
        writeln!(
            out,
            "  control/ node/ agent/ admin/  copy each to the machines of its role"
        )?;
        writeln!(
            out,
            "  ca.key                         keep it offline; it makes certificates"
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

fn failure(error: InitError) -> Failure {
    let written = matches!(error, InitError::Write { .. });
    let failure = Failure::new(exit_codes::FAILURE, error);
    if written {
        failure.advise("name a directory that is not there yet, where this user may write")
    } else {
        failure
    }
}

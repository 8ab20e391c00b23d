//! `myco version`.

use std::process::ExitCode;

use serde::Serialize;

use crate::command::Outcome;
use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    control_protocol: u16,
}

pub(crate) fn run(_args: &Args, output: &Output) -> Outcome {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        control_protocol: mycoram_fabric::wire::VERSION,
    };
    output.print("myco.version", 1, &version, |out| {
        writeln!(out, "myco {}", version.version)?;
        writeln!(out, "control protocol {}", version.control_protocol)
    })?;
    Ok(ExitCode::SUCCESS)
}

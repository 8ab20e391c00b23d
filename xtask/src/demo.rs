//! `cargo xtask demo`: a guest with a quarter of its RAM local and the rest on two memory nodes.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::bench::Transport;

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How pages travel.
    #[arg(long, value_enum, default_value = "tcp")]
    transport: Transport,
    /// Where to write the report as JSON.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

/// Runs the demo.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    eprintln!(
        "demo: no guest to show yet over {:?} ({:?})",
        arguments.transport, arguments.json
    );
    ExitCode::FAILURE
}

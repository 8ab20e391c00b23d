//! `myco completions SHELL`.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::command::{Cli, Outcome};
use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For which shell
    shell: Shell,
}

pub(crate) fn run(args: &Args, _output: &Output) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "myco", &mut script);
    Output::words(|out| out.write_all(&script))?;
    Ok(ExitCode::SUCCESS)
}

//! `myco man`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::command::{Cli, Outcome};
use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write myco.1, myco-node-serve.1 and so on into this directory, instead of printing myco.1
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, _output: &Output) -> Outcome {
    let command = Cli::command();
    if let Some(directory) = &args.directory {
        std::fs::create_dir_all(directory)?;
        clap_mangen::generate_to(command, directory)?;
    } else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        Output::words(|out| out.write_all(&page))?;
    }
    Ok(ExitCode::SUCCESS)
}

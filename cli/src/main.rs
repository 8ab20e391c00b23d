//! The command `myco NOUN VERB`. It reads arguments, calls the houses below it and prints what they
//! say; it has no logic of its own.
//!
//! ```text
//!   arguments (clap) -> one file per subcommand -> outcome ok   -> stdout: data, words or --json
//!                                               -> Failure      -> stderr: causes, what to do now
//!                                                                  stdout: an error object with --json
//!                                                                  exit code: see exit_codes
//! ```
//!
//! To add a subcommand: a file with `Args` and `run`, and one line in its noun's enum in `command`.

mod agent;
mod agent_metrics;
mod agent_serve;
mod cluster;
mod cluster_init;
mod cluster_status;
mod command;
mod completions;
mod control;
mod control_move;
mod control_serve;
mod durations;
mod exit_codes;
mod failure;
mod far_nodes;
mod limits;
mod logging;
mod man;
mod node;
mod node_drain;
mod node_list;
mod node_serve;
mod node_status;
mod output;
mod region;
mod region_create;
mod region_reserve;
mod region_verify;
mod version;
mod vm;
mod vm_attach;
mod vm_list;
mod vm_run;
mod vm_stats;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match command::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let json = command::is_json_asked_for(std::env::args_os().skip(1));
            return failure::usage(&error, &output::Output::new(json));
        }
    };
    let output = output::Output::new(cli.json);
    logging::start();
    match cli.noun.run(&output) {
        Ok(code) => code,
        Err(failure) => failure.report(&output),
    }
}

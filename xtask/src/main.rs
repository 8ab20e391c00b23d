//! `cargo xtask`: the project's own commands, one file each. No logic that another house could own.

mod checkout;
mod layout;
mod testbed;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of this checkout.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run a command against real rxe devices: on this host if it can, else in a booted guest.
    Testbed(testbed::Arguments),
    /// Check the rules of the house that a compiler does not know.
    Layout(layout::Arguments),
    /// The inside of the test bed; started by it, never by hand.
    #[command(hide = true)]
    TestbedInside(testbed::InsideArguments),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Task::Testbed(arguments) => testbed::run(arguments),
        Task::Layout(arguments) => layout::run(&arguments),
        Task::TestbedInside(arguments) => testbed::inside(&arguments),
    }
}

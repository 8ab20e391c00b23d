//! `cargo xtask`: the project's own commands, one file each. No logic that another house could own.

mod bench;
mod checkout;
mod demo;
mod deps;
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
    /// Run a Linux guest with most of its RAM on two memory nodes, and verify every byte.
    Demo(demo::Arguments),
    /// Run one bench, in release.
    Bench(bench::Arguments),
    /// Install the system packages that are missing.
    Deps(deps::Arguments),
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
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Deps(arguments) => deps::run(&arguments),
        Task::Testbed(arguments) => testbed::run(arguments),
        Task::Layout(arguments) => layout::run(&arguments),
        Task::TestbedInside(arguments) => testbed::inside(&arguments),
    }
}

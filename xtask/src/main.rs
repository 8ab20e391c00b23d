//! `cargo xtask`: the project's own commands, one file each. No logic that another house could own.

mod bench;
mod checkout;
mod demo;
mod deps;
mod hygiene;
mod install_client;
mod layout;
mod licences;
mod soak;
mod test;
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
    /// Run a Linux guest with most of its RAM on memory nodes, kill one of them, and verify every byte.
    Demo(demo::Arguments),
    /// Run all tests, those that need rxe devices or an older kernel in booted guests.
    Test(test::Arguments),
    /// Kill, stop, cut off and slow down processes at random under a verifying workload.
    Soak(soak::Arguments),
    /// Run one bench, in release.
    Bench(bench::Arguments),
    /// Check that each dependency's licence is one we can ship under.
    Licences,
    /// Check that no file names a registry or mirror of the machine it was written on.
    Hygiene,
    /// Install the system packages that are missing.
    Deps(deps::Arguments),
    /// Install libmycoram, its header and its pkg-config file for C programs.
    InstallClient(install_client::Arguments),
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
        Task::Test(arguments) => test::run(&arguments),
        Task::Soak(arguments) => soak::run(&arguments),
        Task::Licences => licences::run(),
        Task::Hygiene => hygiene::run(),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Deps(arguments) => deps::run(&arguments),
        Task::InstallClient(arguments) => install_client::run(&arguments),
        Task::Testbed(arguments) => testbed::run(arguments),
        Task::Layout(arguments) => layout::run(&arguments),
        Task::TestbedInside(arguments) => testbed::inside(&arguments),
    }
}

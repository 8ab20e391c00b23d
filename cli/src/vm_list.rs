//! `myco vm list`.

use mycoram_fabric::units::ByteCount;
use mycoram_qemu::registry::{VmFigures, VmState};
use serde::Serialize;

use crate::command::Outcome;
use crate::output::Output;
use crate::vm;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

#[derive(Serialize)]
struct List {
    vms: Vec<VmFigures>,
}

pub(crate) fn run(_args: &Args, output: &Output) -> Outcome {
    let listing = vm::registry()?.list().map_err(vm::registry_failure)?;
    for error in &listing.unreadable {
        eprintln!("myco: {error}");
    }
    let vms = listing
        .vms
        .iter()
        .map(|(record, state)| VmFigures::read(record, *state))
        .collect();
    output.print("myco.vm-list", 1, &List { vms }, |out| {
        writeln!(
            out,
            "{:<20} {:>8} {:<9} {:>10} {:>10} {:>10}",
            "NAME", "QEMU", "STATE", "MEMORY", "LOCAL", "RESIDENT"
        )?;
        for (record, state) in &listing.vms {
            writeln!(
                out,
                "{:<20} {:>8} {:<9} {:>10} {:>10} {:>10}",
                record.name.as_str(),
                record.target.process.pid,
                word(*state),
                record.memory.to_string(),
                record.local_budget.to_string(),
                record
                    .resident_bytes()
                    .map_or_else(|| "?".to_owned(), |bytes| ByteCount::new(bytes).to_string()),
            )?;
        }
        Ok(())
    })?;
    vm::DONE
}

/// One word for each state.
pub(crate) fn word(state: VmState) -> &'static str {
    match state {
        VmState::Running => "running",
        VmState::Orphaned => "orphaned",
        VmState::Ended => "ended",
    }
}

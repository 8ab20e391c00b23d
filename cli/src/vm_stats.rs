//! `myco vm stats NAME`.

use mycoram_agent::RegionName;
use mycoram_fabric::units::ByteCount;
use mycoram_qemu::registry::VmFigures;

use crate::command::Outcome;
use crate::output::Output;
use crate::{vm, vm_list};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The VM's name
    name: RegionName,
}

pub(crate) fn run(args: &Args, output: &Output) -> Outcome {
    let (record, state) = vm::registry()?
        .find(&args.name)
        .map_err(vm::registry_failure)?;
    let figures = VmFigures::read(&record, state);
    output.print("myco.vm-stats", 1, &figures, |out| {
        let mut row = |name: &str, value: String| writeln!(out, "{name:<24} {value}");
        row("name", figures.name.to_string())?;
        row("state", vm_list::word(state).to_owned())?;
        row("qemu", figures.qemu_pid.to_string())?;
        row("agent", figures.agent_pid.to_string())?;
        row("memory", figures.memory.to_string())?;
        row("local budget", figures.local_budget.to_string())?;
        if let Some(bytes) = figures.resident_bytes {
            row("resident (kernel)", ByteCount::new(bytes).to_string())?;
        }
        row(
            "attach",
            format!(
                "{:.2} ms, main thread stopped {:.2} ms",
                figures.attach_ms, figures.stopped_ms
            ),
        )?;
        let Some(region) = &figures.region else {
            return row("region", "no figures yet".to_owned());
        };
        row(
            "faults",
            format!("{} ({} read from a node)", region.faults, region.majors),
        )?;
        row(
            "fault service",
            format!(
                "p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us",
                region.fault_p50_us, region.fault_p99_us, region.fault_p999_us
            ),
        )?;
        row("hit rate", format!("{:.3}", region.hit_rate))?;
        row(
            "pages",
            format!(
                "{} resident, {} remote, {} lost",
                region.resident, region.remote, region.lost
            ),
        )?;
        row(
            "evictions",
            format!(
                "{} ({} clean, {} zero)",
                region.evictions, region.evictions_clean, region.evictions_zero
            ),
        )?;
        row(
            "bytes",
            format!(
                "{} read, {} written",
                ByteCount::new(region.transport.bytes_read),
                ByteCount::new(region.transport.bytes_written)
            ),
        )
    })?;
    vm::DONE
}

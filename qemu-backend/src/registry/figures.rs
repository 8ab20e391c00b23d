//! A VM's figures: what is recorded about it, what the kernel counts, what its region has done.

use mycoram_agent::{RegionName, RegionStats};
use mycoram_fabric::units::ByteCount;
use serde::Serialize;

use super::{VmRecord, VmState};

/// Version of the figures' JSON.
pub const FIGURES_VERSION: u32 = 1;

/// A VM's figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VmFigures {
    /// [`FIGURES_VERSION`].
    pub version: u32,
    /// The VM's name.
    pub name: RegionName,
    /// How it stands.
    pub state: VmState,
    /// QEMU.
    pub qemu_pid: i32,
    /// The process that serves its faults, alive or not.
    pub agent_pid: i32,
    /// Its RAM, bytes.
    pub memory: ByteCount,
    /// How much of it may be resident, bytes.
    pub local_budget: ByteCount,
    /// How much of it is resident, bytes, as the kernel counts; `None` once QEMU has ended.
    pub resident_bytes: Option<u64>,
    /// From QEMU answering QMP to its faults being served, ms.
    pub attach_ms: f64,
    /// How long its main thread stood still for that, ms.
    pub stopped_ms: f64,
    /// What its region has done; `None` before its agent has written any.
    pub region: Option<RegionStats>,
}

impl VmFigures {
    /// The figures of a VM, with those of its region as they are at hand.
    #[must_use]
    pub fn new(record: &VmRecord, state: VmState, region: Option<RegionStats>) -> Self {
        Self {
            version: FIGURES_VERSION,
            name: record.name.clone(),
            state,
            qemu_pid: record.target.process.pid,
            agent_pid: record.agent.pid,
            memory: record.memory,
            local_budget: record.local_budget,
            resident_bytes: record.resident_bytes(),
            attach_ms: record.attach_us as f64 / 1000.0,
            stopped_ms: record.stopped_us as f64 / 1000.0,
            region,
        }
    }

    /// The figures of a VM, with those that its agent writes once a second.
    #[must_use]
    pub fn read(record: &VmRecord, state: VmState) -> Self {
        let path = RegionStats::path(&record.state_dir, &record.name);
        Self::new(record, state, RegionStats::read(&path).ok())
    }
}

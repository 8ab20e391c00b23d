//! What is recorded about one VM.

use std::path::PathBuf;

use mycoram_agent::RegionName;
use mycoram_fabric::units::ByteCount;
use serde::{Deserialize, Serialize};

use crate::attach::TakeOver;
use crate::process::ProcessIdentity;

/// Version of the record; another one is not read.
pub const RECORD_VERSION: u32 = 1;

/// What is recorded about a running VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Its name; also its region's.
    pub name: RegionName,
    /// The process that serves its faults.
    pub agent: ProcessIdentity,
    /// QEMU and what was made in it.
    pub target: TakeOver,
    /// Its QMP socket, if one is known.
    pub qmp: Option<PathBuf>,
    /// Its RAM.
    pub memory: ByteCount,
    /// How much of it may be resident.
    pub local_budget: ByteCount,
    /// Where the region's state and figures are.
    pub state_dir: PathBuf,
    /// The file that names the memory nodes, as it was given.
    pub nodes: PathBuf,
    /// How long the attach took, us: from QEMU answering QMP to its faults being served.
    pub attach_us: u64,
    /// How long QEMU's main thread stood still for it, us.
    pub stopped_us: u64,
}

/// How a VM stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// QEMU and its agent are there.
    Running,
    /// The agent has died; QEMU waits at its next fault until another takes over.
    Orphaned,
    /// QEMU has ended.
    Ended,
}

impl VmRecord {
    /// How it stands now.
    #[must_use]
    pub fn state(&self) -> VmState {
        match (self.target.process.is_alive(), self.agent.is_alive()) {
            (false, _) => VmState::Ended,
            (true, true) => VmState::Running,
            (true, false) => VmState::Orphaned,
        }
    }

    /// Bytes of its RAM that are resident now, as the kernel counts them; `None` if QEMU cannot be looked at.
    #[must_use]
    pub fn resident_bytes(&self) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        let number = self.target.in_target.memory?;
        let path = format!("/proc/{}/fd/{number}", self.target.process.pid);
        Some(std::fs::metadata(path).ok()?.blocks() * 512)
    }
}

//! What an attach gives: plain data, for the agent to take over.

use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::process::{PidFd, ProcessIdentity};

/// A pipe that both QEMU and we hold.
#[derive(Debug)]
pub struct ParkingPipe {
    /// The end to read from.
    pub read: OwnedFd,
    /// The end to write (splice) to.
    pub write: OwnedFd,
}

/// The numbers of a [`ParkingPipe`]'s ends in QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetPipe {
    /// The end to read from.
    pub read: RawFd,
    /// The end to write to.
    pub write: RawFd,
}

/// What was made in QEMU, by QEMU's own numbers: all that another agent needs to take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetDescriptors {
    /// The userfaultfd.
    pub userfaultfd: RawFd,
    /// The memory's file; `None` if QEMU holds no descriptor of it.
    pub memory: Option<RawFd>,
    /// The parking pipes.
    pub pipes: Vec<TargetPipe>,
}

/// A QEMU whose faults can be served.
#[derive(Debug)]
pub struct Attached {
    /// QEMU.
    pub process: ProcessIdentity,
    /// QEMU, held so that its end can be waited for.
    pub pidfd: PidFd,
    /// Its userfaultfd: close-on-exec, non-blocking; neither handshake nor registration was done by us.
    pub userfaultfd: OwnedFd,
    /// The file that its RAM is on.
    pub memory: OwnedFd,
    /// Where its RAM is mapped, in QEMU.
    pub base: u64,
    /// The size of its RAM.
    pub bytes: u64,
    /// Where in `memory` the byte at `base` lies.
    pub file_offset: u64,
    /// The pipes in which pages that are leaving survive us.
    pub pipes: Vec<ParkingPipe>,
    /// The numbers of all this in QEMU.
    pub in_target: TargetDescriptors,
    /// How long QEMU's main thread stood still for it; zero after a takeover.
    pub stopped_for: Duration,
}

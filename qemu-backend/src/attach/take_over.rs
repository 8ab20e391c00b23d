//! A later attach: everything is there, by the numbers that the first one recorded.

use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{Attached, ParkingPipe, TakeOverError, TargetDescriptors};
use crate::memory::shared_mappings;
use crate::process::{FileIdentity, Mapping, PidFd, ProcessIdentity, open_mapping, read_maps};

/// What is recorded about an attached QEMU, so that another agent can take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeOver {
    /// QEMU; a later process with its pid is refused.
    pub process: ProcessIdentity,
    /// Where its RAM is mapped, in QEMU.
    pub base: u64,
    /// The size of its RAM.
    pub bytes: u64,
    /// Where in the file the byte at `base` lies.
    pub file_offset: u64,
    /// The numbers in QEMU.
    pub in_target: TargetDescriptors,
}

impl From<&Attached> for TakeOver {
    fn from(attached: &Attached) -> Self {
        Self {
            process: attached.process,
            base: attached.base,
            bytes: attached.bytes,
            file_offset: attached.file_offset,
            in_target: attached.in_target.clone(),
        }
    }
}

/// Gets everything back from a QEMU whose agent has died. No ptrace; QEMU notices nothing.
///
/// The caller makes sure that the former agent is dead. Faults that it had read and not answered wait
/// until the whole range is woken (UFFDIO_WAKE): do that before the first read.
pub fn take_over(record: &TakeOver) -> Result<Attached, TakeOverError> {
    let pidfd = PidFd::open_identity(record.process)?;
    let pid = pidfd.pid();
    let mapping = recorded_mapping(pid, record)?;

    let target = &record.in_target;
    check(pid, target.userfaultfd, "userfaultfd", |link| {
        link == "anon_inode:[userfaultfd]"
    })?;
    let userfaultfd = pidfd.get_fd(target.userfaultfd)?;
    let mut pipes = Vec::with_capacity(target.pipes.len());
    for pipe in &target.pipes {
        let other = link(pid, pipe.write).unwrap_or_default();
        check(pid, pipe.read, "parking pipe", |link| {
            link.starts_with("pipe:") && link == other
        })?;
        pipes.push(ParkingPipe {
            read: pidfd.get_fd(pipe.read)?,
            write: pidfd.get_fd(pipe.write)?,
        });
    }
    let memory = recorded_memory(&pidfd, &mapping, target.memory)?;
    Ok(Attached {
        process: record.process,
        pidfd,
        userfaultfd,
        memory,
        base: record.base,
        bytes: record.bytes,
        file_offset: record.file_offset,
        pipes,
        in_target: target.clone(),
        stopped_for: Duration::ZERO,
    })
}

fn recorded_mapping(pid: Pid, record: &TakeOver) -> Result<Mapping, TakeOverError> {
    shared_mappings(&read_maps(pid)?)
        .into_iter()
        .find(|m| {
            m.start == record.base
                && m.bytes() == record.bytes
                && m.file_offset == record.file_offset
        })
        .ok_or(TakeOverError::NoMapping {
            pid,
            base: record.base,
            bytes: record.bytes,
        })
}

fn recorded_memory(
    pidfd: &PidFd,
    mapping: &Mapping,
    number: Option<RawFd>,
) -> Result<OwnedFd, TakeOverError> {
    if let Some(number) = number {
        let fd = pidfd.get_fd(number)?;
        if FileIdentity::of(&fd).is_ok_and(|file| file == mapping.file) {
            return Ok(fd);
        }
    }
    Ok(open_mapping(pidfd.pid(), pidfd, mapping)?.0)
}

fn link(pid: Pid, number: RawFd) -> Option<String> {
    let path = std::fs::read_link(format!("/proc/{pid}/fd/{number}")).ok()?;
    path.into_os_string().into_string().ok()
}

fn check(
    pid: Pid,
    number: RawFd,
    expected: &'static str,
    fits: impl FnOnce(&str) -> bool,
) -> Result<(), TakeOverError> {
    // An unreadable link is no verdict: pidfd_getfd right behind it says why.
    match link(pid, number) {
        Some(link) if !fits(&link) => Err(TakeOverError::Changed {
            pid,
            number,
            expected,
        }),
        _ => Ok(()),
    }
}

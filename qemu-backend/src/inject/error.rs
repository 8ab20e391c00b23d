//! What can go wrong while another process makes a call for us.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::PtraceDenial;
use crate::process::{IdentityError, MapsError};

/// Why the calls were not made. Whatever the reason, the target was left as it was found.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// This machine's architecture has no injection.
    #[error("attaching to a process is built for x86_64 and aarch64 only")]
    UnsupportedArchitecture,
    /// The target ended before or while we were at it.
    #[error("process {pid} ended while it was being attached")]
    TargetExited {
        /// The target.
        pid: Pid,
    },
    /// The kernel does not let us trace the target.
    #[error(transparent)]
    Denied(PtraceDenial),
    /// A ptrace request failed.
    #[error("ptrace {request} of process {pid} failed")]
    Ptrace {
        /// The target.
        pid: Pid,
        /// The request.
        request: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// Waiting for the target to stop failed.
    #[error("waiting for process {pid} to stop failed")]
    Wait {
        /// The target.
        pid: Pid,
        /// What the kernel said.
        source: Errno,
    },
    /// The target did not stop in time; it is let go as soon as it does.
    #[error("process {pid} did not stop within {} ms: it is in an uninterruptible wait", .limit.as_millis())]
    Deadline {
        /// The target.
        pid: Pid,
        /// How long was waited.
        limit: Duration,
    },
    /// The target stopped in a way that ptrace does not document.
    #[error("process {pid} stopped with the unexpected status {status:#x}")]
    UnexpectedStop {
        /// The target.
        pid: Pid,
        /// The wait status.
        status: i32,
    },
    /// More signals than `MAX_STOPS` came while waiting for one stop.
    #[error("process {pid} got so many signals that it could not be stopped for a call")]
    TooManyStops {
        /// The target.
        pid: Pid,
    },
    /// The target's text has no system call instruction to borrow.
    #[error("no `{wanted}` was found in the text of process {pid}")]
    NoInstruction {
        /// The target.
        pid: Pid,
        /// What was looked for.
        wanted: &'static str,
    },
    /// The stack of the stopped thread has too little room.
    #[error(
        "the stack of process {pid} at {stack_pointer:#x} has no {needed} bytes left to borrow"
    )]
    NoStack {
        /// The target.
        pid: Pid,
        /// Where its stack ends.
        stack_pointer: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The target's mappings could not be read.
    #[error("the mappings of the target cannot be read")]
    Maps(#[from] MapsError),
    /// The target could not be looked at.
    #[error("the target cannot be looked at")]
    Identity(#[from] IdentityError),
    /// The target's memory could not be reached.
    #[error("memory of process {pid} at {address:#x} cannot be reached")]
    Memory {
        /// The target.
        pid: Pid,
        /// Where.
        address: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread that traces could not be started.
    #[error("no thread for tracing could be started")]
    Thread(#[source] io::Error),
    /// The work that was to be done while the target stood still panicked; the target was restored.
    #[error("the injection was given up")]
    GivenUp,
}

impl InjectError {
    /// A failed ptrace request. ESRCH means that the target is not stopped any more: it was killed.
    pub(super) fn ptrace(pid: Pid, request: &'static str, source: Errno) -> Self {
        match source {
            Errno::ESRCH => Self::TargetExited { pid },
            source => Self::Ptrace {
                pid,
                request,
                source,
            },
        }
    }
}

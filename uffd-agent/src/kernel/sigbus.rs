//! What stands in for poison on kernels before 6.6: the agent sends SIGBUS to the thread that waits for a
//! lost page.
//!
//! ```text
//!   fault on a lost page --> SIGBUS to the thread --> its handler jumps away, or the process ends
//!     the same thread is back at the same page, again and again (it is inside a system call, where a
//!     signal does not interrupt the fault) --> the process is ended
//!     the thread blocks or ignores SIGBUS --> the process is ended, as the kernel does to a
//!     thread that cannot take the signal of its own fault
//! ```
//!
//! So a lost page is never zeros and never a hang. It is weaker than poison in one way: a system call
//! that meets a lost page ends the process where poison gives EFAULT.

use nix::errno::Errno;

use super::{CallFailed, PidFd, TargetAddr};

/// Faults of one thread on one lost page, after which it cannot be inside a handler: 8.
const STRIKES: u8 = 8;
/// Threads whose strikes are remembered: 64. The oldest is forgotten, and gets its strikes anew.
const REMEMBERED: usize = 64;

/// What was done about a fault on a lost page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Struck {
    /// The thread got SIGBUS.
    Thread,
    /// The process was ended with SIGKILL.
    Process,
    /// Thread or process had ended already.
    Gone,
}

/// Why nothing could be done; the thread still waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SigbusError {
    /// The agent may not signal the target.
    #[error("the agent may not signal process {pid}: run it as the same user or with CAP_KILL")]
    NotPermitted {
        /// The target.
        pid: i32,
    },
    /// The kernel refused.
    #[error("a thread at a lost page could not be signalled")]
    Call(#[from] CallFailed),
}

#[derive(Clone, Copy, Debug, Default)]
struct Strike {
    tid: i32,
    addr: TargetAddr,
    count: u8,
}

/// The stand-in for one target. Not on the path of a page that can be served.
#[derive(Debug)]
pub struct SigbusStandIn {
    target: PidFd,
    strikes: [Strike; REMEMBERED],
    next: usize,
}

impl SigbusStandIn {
    /// For the threads of `target`.
    #[must_use]
    pub fn new(target: PidFd) -> Self {
        Self {
            target,
            strikes: [Strike::default(); REMEMBERED],
            next: 0,
        }
    }

    /// Tells thread `tid` that the page at `addr` is lost. Its faults name it only if the handshake asked
    /// for THREAD_ID; without, `tid` is `None` and the process is ended. The caller wakes the page after.
    pub fn strike(&mut self, tid: Option<i32>, addr: TargetAddr) -> Result<Struck, SigbusError> {
        let Some(tid) = tid.filter(|tid| *tid > 0) else {
            return self.end_process();
        };
        if self.count(tid, addr) > STRIKES || !takes_sigbus(self.target.pid(), tid) {
            return self.end_process();
        }
        // SAFETY: tgkill takes numbers; the thread-group number keeps a reused tid from being hit.
        let answer =
            unsafe { libc::syscall(libc::SYS_tgkill, self.target.pid(), tid, libc::SIGBUS) };
        match Errno::result(answer) {
            Ok(_) => Ok(Struck::Thread),
            Err(Errno::ESRCH) => Ok(Struck::Gone),
            Err(Errno::EPERM) => Err(SigbusError::NotPermitted {
                pid: self.target.pid(),
            }),
            Err(source) => Err(CallFailed {
                call: "tgkill",
                source,
            }
            .into()),
        }
    }

    fn end_process(&self) -> Result<Struck, SigbusError> {
        match self.target.signal(libc::SIGKILL) {
            Ok(true) => Ok(Struck::Process),
            Ok(false) => Ok(Struck::Gone),
            Err(CallFailed {
                source: Errno::EPERM,
                ..
            }) => Err(SigbusError::NotPermitted {
                pid: self.target.pid(),
            }),
            Err(e) => Err(e.into()),
        }
    }

    /// How often this thread has been at this page, this time included.
    fn count(&mut self, tid: i32, addr: TargetAddr) -> u8 {
        if let Some(known) = self.strikes.iter_mut().find(|s| s.tid == tid) {
            if known.addr != addr {
                *known = Strike {
                    tid,
                    addr,
                    count: 0,
                };
            }
            known.count = known.count.saturating_add(1);
            return known.count;
        }
        self.strikes[self.next] = Strike {
            tid,
            addr,
            count: 1,
        };
        self.next = (self.next + 1) % REMEMBERED;
        1
    }
}

/// Whether the thread would notice SIGBUS: neither blocked nor ignored. What cannot be read counts as
/// yes: then the signal itself finds out.
fn takes_sigbus(pid: i32, tid: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")) else {
        return true;
    };
    let bit = 1_u64 << (libc::SIGBUS - 1);
    !status
        .lines()
        .filter_map(|line| {
            line.strip_prefix("SigBlk:")
                .or_else(|| line.strip_prefix("SigIgn:"))
        })
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & bit != 0)
}

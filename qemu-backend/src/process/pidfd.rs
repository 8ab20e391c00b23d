//! A process held by a descriptor: it cannot be mistaken for another, its end can be waited for,
//! and its descriptors can be duplicated.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::{IdentityError, ProcessIdentity};

/// A process, held by a pidfd.
#[derive(Debug)]
pub struct PidFd {
    pid: Pid,
    fd: OwnedFd,
}

/// Why a process could not be taken hold of.
#[derive(Debug, thiserror::Error)]
pub enum PidFdError {
    /// There is no such process.
    #[error("there is no process {pid}")]
    Gone {
        /// The process asked for.
        pid: Pid,
    },
    /// `pidfd_open` failed.
    #[error("process {pid} cannot be taken hold of (pidfd_open)")]
    Open {
        /// The process asked for.
        pid: Pid,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its identity could not be read.
    #[error("process {pid} cannot be identified")]
    Identity {
        /// The process asked for.
        pid: Pid,
        /// Why not.
        source: IdentityError,
    },
    /// The pid belongs to another process by now.
    #[error(
        "process {pid} is another one than the one that was meant (it started at {found} ticks, not {expected})"
    )]
    Reused {
        /// The pid.
        pid: Pid,
        /// The start that was meant.
        expected: u64,
        /// The start that was found.
        found: u64,
    },
}

/// Why a descriptor of another process could not be duplicated.
#[derive(Debug, thiserror::Error)]
pub enum GetFdError {
    /// The target has no such descriptor.
    #[error("process {pid} has no descriptor {number}")]
    NoSuchDescriptor {
        /// The target.
        pid: Pid,
        /// The number, in the target.
        number: RawFd,
    },
    /// The target has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// The target.
        pid: Pid,
    },
    /// We may not.
    #[error(
        "no permission to duplicate descriptors of process {pid} (pidfd_getfd): run as the same user, or with CAP_SYS_PTRACE; \
         where kernel.yama.ptrace_scope is not 0 the capability is always needed"
    )]
    Denied {
        /// The target.
        pid: Pid,
    },
    /// Anything else.
    #[error("descriptor {number} of process {pid} cannot be duplicated")]
    Other {
        /// The target.
        pid: Pid,
        /// The number, in the target.
        number: RawFd,
        /// What the kernel said.
        source: io::Error,
    },
}

impl PidFd {
    /// Takes hold of the process that has `pid` now.
    pub fn open(pid: Pid) -> Result<Self, PidFdError> {
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or an error.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
        match Errno::result(raw) {
            Ok(fd) => Ok(Self {
                pid,
                // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
                fd: unsafe { OwnedFd::from_raw_fd(fd as RawFd) },
            }),
            Err(Errno::ESRCH | Errno::EINVAL) => Err(PidFdError::Gone { pid }),
            Err(errno) => Err(PidFdError::Open {
                pid,
                source: errno.into(),
            }),
        }
    }

    /// Takes hold of exactly this process; a later one with the same pid is refused.
    pub fn open_identity(identity: ProcessIdentity) -> Result<Self, PidFdError> {
        let pid = Pid::from_raw(identity.pid);
        let held = Self::open(pid)?;
        // Read after the pidfd is held: if the identity matches now, the pidfd is of that process.
        let now =
            ProcessIdentity::of(pid).map_err(|source| PidFdError::Identity { pid, source })?;
        if now == identity {
            Ok(held)
        } else {
            Err(PidFdError::Reused {
                pid,
                expected: identity.start_ticks,
                found: now.start_ticks,
            })
        }
    }

    /// The pid, in this pid namespace.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// A descriptor of our own for what the target holds as `number`.
    pub fn get_fd(&self, number: RawFd) -> Result<OwnedFd, GetFdError> {
        // SAFETY: pidfd_getfd takes three integers and returns a new descriptor or an error.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.fd.as_raw_fd(), number, 0) };
        match Errno::result(raw) {
            // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
            Ok(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
            Err(Errno::EBADF) => Err(GetFdError::NoSuchDescriptor {
                pid: self.pid,
                number,
            }),
            Err(Errno::ESRCH) => Err(GetFdError::Gone { pid: self.pid }),
            Err(Errno::EPERM) => Err(GetFdError::Denied { pid: self.pid }),
            Err(errno) => Err(GetFdError::Other {
                pid: self.pid,
                number,
                source: errno.into(),
            }),
        }
    }

    /// Waits until the process has ended (it may still be a zombie); `false` if `limit` passed first.
    pub fn wait_exit(&self, limit: Option<Duration>) -> io::Result<bool> {
        let timeout = match limit {
            Some(limit) => PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        loop {
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Whether the process has ended.
    pub fn has_exited(&self) -> io::Result<bool> {
        self.wait_exit(Some(Duration::ZERO))
    }

    /// Sends a signal to exactly this process.
    pub fn send_signal(&self, signal: nix::sys::signal::Signal) -> io::Result<()> {
        // SAFETY: pidfd_send_signal with a null siginfo takes integers only.
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        Errno::result(done).map(drop).map_err(io::Error::from)
    }

    /// Gives the descriptor up.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

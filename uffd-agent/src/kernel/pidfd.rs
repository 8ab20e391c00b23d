//! Processes held by a descriptor, so that a number that was given to another process meanwhile can never
//! be mistaken for them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::CallFailed;

/// Since Linux 6.5; the libc crate does not name it everywhere.
const SO_PEERPIDFD: libc::c_int = 77;

/// Why a process cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PidFdError {
    /// It has ended.
    #[error("there is no process {pid}")]
    NoProcess {
        /// Its number.
        pid: i32,
    },
    /// ptrace rules forbid it.
    #[error(
        "descriptors of process {pid} may not be taken: run as the same user or with CAP_SYS_PTRACE, \
         and with kernel.yama.ptrace_scope at most 1"
    )]
    NotPermitted {
        /// Its number.
        pid: i32,
    },
    /// It has no such descriptor.
    #[error("process {pid} has no descriptor {fd}")]
    NoDescriptor {
        /// Its number.
        pid: i32,
        /// The descriptor's number there.
        fd: RawFd,
    },
    /// The kernel refused.
    #[error("the process cannot be held by a descriptor")]
    Call(#[from] CallFailed),
}

/// A process, alive or ended, never another one.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: i32,
}

impl PidFd {
    /// The process that `pid` names now. Its descriptor is readable when the process has ended.
    pub fn open(pid: i32) -> Result<Self, PidFdError> {
        // SAFETY: pidfd_open takes numbers and answers a close-on-exec descriptor or -1.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        match Errno::result(raw) {
            Ok(raw) => Ok(Self {
                // SAFETY: the kernel has just made this descriptor for us; descriptors fit an int.
                fd: unsafe { OwnedFd::from_raw_fd(raw as RawFd) },
                pid,
            }),
            Err(Errno::ESRCH | Errno::EINVAL) => Err(PidFdError::NoProcess { pid }),
            Err(source) => Err(CallFailed {
                call: "pidfd_open",
                source,
            }
            .into()),
        }
    }

    /// The descriptor alone.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The process at the other end of a connected Unix socket: the one that connected. On kernels before
    /// 6.5 its number is asked for and opened, which is right unless it has ended meanwhile.
    pub fn of_peer(socket: impl AsFd) -> Result<Self, PidFdError> {
        let peer = getsockopt(&socket, PeerCredentials)
            .map_err(CallFailed::of("getsockopt(SO_PEERCRED)"))?;
        let mut raw: libc::c_int = -1;
        let mut bytes = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the option's value is an int; value and length outlive the call.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERPIDFD,
                (&raw mut raw).cast(),
                &raw mut bytes,
            )
        };
        if answer == 0 && raw >= 0 {
            // SAFETY: the kernel has just made this descriptor for us.
            let fd = unsafe { OwnedFd::from_raw_fd(raw) };
            return Ok(Self {
                fd,
                pid: peer.pid(),
            });
        }
        Self::open(peer.pid())
    }

    /// A second descriptor of the same process.
    pub fn try_clone(&self) -> Result<Self, CallFailed> {
        let fd = self
            .fd
            .try_clone()
            .map_err(|_| CallFailed::last("fcntl(F_DUPFD_CLOEXEC)"))?;
        Ok(Self { fd, pid: self.pid })
    }

    /// When the process began, in clock ticks since boot: with its number it names a process for good.
    /// `None` when it has ended.
    #[must_use]
    pub fn began(&self) -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        // The second field is the program's name in brackets and may hold anything.
        let fields = &stat[stat.rfind(')')? + 1..];
        let began = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
        // Still the same process after the reading: then the number was its own all the time.
        (!self.has_ended().unwrap_or(true)).then_some(began)
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A duplicate of the process's descriptor `fd`, close-on-exec. Needs ptrace permission, but stops
    /// nothing.
    pub fn take_descriptor(&self, fd: RawFd) -> Result<OwnedFd, PidFdError> {
        let pid = self.pid;
        // SAFETY: pidfd_getfd takes numbers and answers a new descriptor or -1.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.fd.as_raw_fd(), fd, 0) };
        match Errno::result(raw) {
            // SAFETY: the kernel has just made this descriptor for us; descriptors fit an int.
            Ok(raw) => Ok(unsafe { OwnedFd::from_raw_fd(raw as RawFd) }),
            Err(Errno::EPERM) => Err(PidFdError::NotPermitted { pid }),
            Err(Errno::EBADF) => Err(PidFdError::NoDescriptor { pid, fd }),
            Err(Errno::ESRCH) => Err(PidFdError::NoProcess { pid }),
            Err(source) => Err(CallFailed {
                call: "pidfd_getfd",
                source,
            }
            .into()),
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> Result<bool, CallFailed> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO)
            .map(|ready| ready > 0)
            .map_err(CallFailed::of("poll"))
    }

    /// Sends it a signal; `false` if it has ended already.
    pub fn signal(&self, signal: libc::c_int) -> Result<bool, CallFailed> {
        // SAFETY: pidfd_send_signal takes numbers and no information structure.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(answer) {
            Ok(_) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(source) => Err(CallFailed {
                call: "pidfd_send_signal",
                source,
            }),
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

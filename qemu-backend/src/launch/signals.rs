//! The signals that are meant for the VM.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What ends a VM when it is sent to us.
const FORWARDED: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// [`FORWARDED`] as a set.
pub(super) fn forwarded() -> SigSet {
    FORWARDED.into_iter().collect()
}

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) signal: Signal,
    /// The terminal sent it to the whole foreground group: QEMU has it already.
    pub(super) by_terminal: bool,
}

/// SIGTERM, SIGINT and SIGHUP, to be read instead of obeyed. Dropping it obeys them again.
#[derive(Debug)]
pub(super) struct Signals {
    fd: SignalFd,
    former: SigSet,
}

impl Signals {
    /// Blocks them in this thread and in those it starts from now on: so before any other thread.
    pub(super) fn block() -> io::Result<Self> {
        let set = forwarded();
        let mut former = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut former))?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { fd, former })
    }

    /// The next signal that came, if one did.
    pub(super) fn next(&self) -> io::Result<Option<Received>> {
        let Some(info) = self.fd.read_signal()? else {
            return Ok(None);
        };
        Ok(Signal::try_from(info.ssi_signo as i32)
            .ok()
            // Positive codes are the kernel's own: a terminal, or its hang-up.
            .map(|signal| Received {
                signal,
                by_terminal: info.ssi_code > 0,
            }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.former), None);
    }
}

//! Ctrl-C and its kin as something to poll: while this guard lives, SIGINT, SIGTERM and SIGHUP are
//! readable events of this thread instead of the end of the process, so that a guest is ended first.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Holds the signals back from the thread that made it.
pub(crate) struct Interrupts {
    signals: SignalFd,
    mask_before: SigSet,
}

impl Interrupts {
    /// Takes the signals over.
    pub(crate) fn hold() -> nix::Result<Self> {
        let mut held = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            held.add(signal);
        }
        let mut mask_before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&held), Some(&mut mask_before))?;
        let signals = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self {
            signals,
            mask_before,
        })
    }

    /// The signal number, if one came.
    pub(crate) fn take(&self) -> nix::Result<Option<i32>> {
        Ok(self
            .signals
            .read_signal()?
            .map(|info| info.ssi_signo.cast_signed()))
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // Only an invalid argument can fail this, and there is nobody to tell in a drop.
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.mask_before), None);
    }
}

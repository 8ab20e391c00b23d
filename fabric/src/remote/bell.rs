//! A bell: one thread rings, another has a descriptor to wait on.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// See the module.
#[derive(Debug)]
pub(super) struct Bell {
    event: EventFd,
}

impl Bell {
    pub(super) fn new() -> nix::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event })
    }

    /// Makes the descriptor readable.
    pub(super) fn ring(&self) {
        // Fails only when it has been rung 2^64 - 2 times unheard: it is readable then.
        let _ = self.event.write(1);
    }

    /// Makes it unreadable again.
    pub(super) fn silence(&self) {
        // Fails only when it was not rung.
        let _ = self.event.read();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

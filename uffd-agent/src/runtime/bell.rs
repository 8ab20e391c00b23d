//! Waking a sleeping thread of the region: an eventfd that is written only when its owner sleeps.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// One for each thread.
#[derive(Debug)]
pub(crate) struct Bell {
    fd: EventFd,
    sleeping: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> Result<Self, nix::Error> {
        Ok(Self {
            fd: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            sleeping: AtomicBool::new(false),
        })
    }

    /// Wakes the owner if it sleeps.
    pub(crate) fn ring(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // Full means that it will wake anyway.
            let _ = self.fd.write(1);
        }
    }

    /// The owner is going to sleep: after this call it looks at its conditions once more.
    pub(crate) fn lie_down(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
    }

    /// The owner is awake.
    pub(crate) fn get_up(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
        let _ = self.fd.read();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

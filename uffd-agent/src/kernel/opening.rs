//! The ways to a userfaultfd that also sees faults taken inside the kernel (system calls, KVM).
//!
//! ```text
//!   userfaultfd(2)              CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1
//!     | EPERM
//!   /dev/userfaultfd, IOC_NEW   mode of the device; the descriptor may have been handed over
//! ```
//!
//! The user-mode-only kind is never used: reads and writes by the kernel on behalf of the target would
//! fail with EFAULT.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use super::abi;

const DEVICE_PATH: &str = "/dev/userfaultfd";
const FLAGS: libc::c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;

/// Why this process got no userfaultfd.
#[derive(Debug, thiserror::Error)]
pub enum OpenUserfaultError {
    /// Neither way is open to this process.
    #[error(
        "this process may not create a userfaultfd: set the sysctl vm.unprivileged_userfaultfd=1, \
         or give it CAP_SYS_PTRACE, or let it open /dev/userfaultfd (its mode and owner decide)"
    )]
    NotPermitted {
        /// What opening the device said.
        #[source]
        device: io::Error,
    },
    /// The kernel was built without it.
    #[error("this kernel was built without userfaultfd (CONFIG_USERFAULTFD)")]
    NotBuilt,
    /// /dev/userfaultfd cannot be opened.
    #[error(
        "/dev/userfaultfd cannot be opened (since Linux 6.1; its mode and owner decide who may)"
    )]
    Device(#[source] io::Error),
    /// The descriptor is not /dev/userfaultfd.
    #[error("the descriptor that was handed over is not /dev/userfaultfd")]
    NotTheDevice,
    /// Something else.
    #[error("creating a userfaultfd failed")]
    Kernel(#[source] Errno),
}

/// An open /dev/userfaultfd. Whoever holds it may make userfaultfds of its own address space, whatever
/// the sysctl says; so it can be handed to a process with fewer rights.
#[derive(Debug)]
pub struct UserfaultDevice {
    fd: OwnedFd,
}

impl UserfaultDevice {
    /// Opens the device.
    pub fn open() -> Result<Self, OpenUserfaultError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(DEVICE_PATH)
            .map(|file| Self { fd: file.into() })
            .map_err(OpenUserfaultError::Device)
    }

    /// Takes a descriptor that was handed over; [`Self::create`] finds out whether it is the device.
    #[must_use]
    pub fn from_received(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// A userfaultfd on the calling process's address space, close-on-exec and non-blocking.
    pub fn create(&self) -> Result<OwnedFd, OpenUserfaultError> {
        // SAFETY: the ioctl takes flags by value; a descriptor of another kind answers ENOTTY.
        let raw =
            unsafe { abi::userfaultfd_ioc_new(self.fd.as_raw_fd(), FLAGS) }.map_err(
                |e| match e {
                    Errno::ENOTTY | Errno::EINVAL => OpenUserfaultError::NotTheDevice,
                    other => OpenUserfaultError::Kernel(other),
                },
            )?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(raw) })
    }
}

impl AsFd for UserfaultDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// By the system call.
pub(super) fn by_system_call() -> Result<OwnedFd, Errno> {
    // SAFETY: userfaultfd(2) takes flags by value and answers a descriptor or -1.
    let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::c_long::from(FLAGS)) };
    let raw = Errno::result(raw)?;
    let raw = libc::c_int::try_from(raw).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// By whichever way is open.
pub(super) fn by_any_way() -> Result<OwnedFd, OpenUserfaultError> {
    match by_system_call() {
        Ok(fd) => Ok(fd),
        Err(Errno::EPERM) => match UserfaultDevice::open() {
            Ok(device) => device.create(),
            Err(OpenUserfaultError::Device(device)) => {
                Err(OpenUserfaultError::NotPermitted { device })
            }
            Err(other) => Err(other),
        },
        Err(Errno::ENOSYS) => Err(OpenUserfaultError::NotBuilt),
        Err(other) => Err(OpenUserfaultError::Kernel(other)),
    }
}

//! The two ways in which a target comes by a userfaultfd, and which of them is open.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;

use super::DeviceState;

/// The ioctl of /dev/userfaultfd that makes a new one: `_IO(0xAA, 0)` (linux/userfaultfd.h).
pub(super) const USERFAULTFD_IOC_NEW: u64 = 0xAA00;
/// Flags of both ways. Not USER_MODE_ONLY: faults of the kernel and of KVM would fail.
pub(super) const FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;

const DEVICE: &str = "/dev/userfaultfd";
const SYSCTL: &str = "/proc/sys/vm/unprivileged_userfaultfd";

/// What opening the device gave.
pub(super) enum Device {
    Open(OwnedFd),
    Not(DeviceState),
}

/// Opens the device, if there is one and we may.
pub(super) fn open_device() -> Device {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(file) => Device::Open(file.into()),
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied) => {
            Device::Not(DeviceState::Denied)
        }
        Err(_) => Device::Not(DeviceState::Missing),
    }
}

/// The value of vm.unprivileged_userfaultfd.
pub(super) fn sysctl() -> Option<u8> {
    std::fs::read_to_string(SYSCTL).ok()?.trim().parse().ok()
}

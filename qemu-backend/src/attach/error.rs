//! Why a QEMU could not be attached or taken over.

use std::fmt;
use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::inject::InjectError;
use crate::memory::FindMemoryError;
use crate::process::{DescriptorError, GetFdError, IdentityError, MapsError, PidFdError};

/// Why a QEMU could not be attached. QEMU is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The process could not be taken hold of.
    #[error(transparent)]
    Process(#[from] PidFdError),
    /// The process could not be identified.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its memory was not found, or cannot be paged.
    #[error(transparent)]
    Memory(#[from] FindMemoryError),
    /// Its mappings could not be read.
    #[error("whether QEMU is managed already cannot be told")]
    Maps(#[from] MapsError),
    /// Another userfaultfd has its faults.
    #[error(
        "QEMU {pid} already has an agent, or a background-snapshot is running in it: its RAM is registered with another userfaultfd; \
         if the agent has died, `myco vm attach` on the same machine takes over by its record"
    )]
    AlreadyManaged {
        /// QEMU.
        pid: Pid,
    },
    /// The injection failed.
    #[error(transparent)]
    Inject(#[from] InjectError),
    /// The kernel refuses a userfaultfd.
    #[error(transparent)]
    UserfaultfdDenied(UserfaultfdDenial),
    /// The kernel has no userfaultfd.
    #[error("this kernel is built without userfaultfd (CONFIG_USERFAULTFD)")]
    NoUserfaultfd,
    /// Making the userfaultfd failed otherwise.
    #[error("QEMU {pid} could not make a userfaultfd")]
    Userfaultfd {
        /// QEMU.
        pid: Pid,
        /// What the kernel said.
        source: Errno,
    },
    /// QEMU has no room for the descriptors.
    #[error(
        "QEMU {pid} has room for only {got} of {wanted} descriptors; raise its limit of open files (RLIMIT_NOFILE)"
    )]
    NoRoom {
        /// QEMU.
        pid: Pid,
        /// How many it could take (they were closed again).
        got: usize,
        /// How many were handed over.
        wanted: usize,
        /// What the kernel said.
        source: Errno,
    },
    /// The descriptors could not be handed over.
    #[error(
        "QEMU {pid} cannot be handed descriptors; a seccomp filter or security module may forbid it"
    )]
    HandOver {
        /// QEMU.
        pid: Pid,
        /// What the kernel said.
        source: Errno,
    },
    /// A pipe could not be made.
    #[error("a parking pipe cannot be made; raise our limit of open files (ulimit -n)")]
    MakePipe(#[source] Errno),
    /// The pipes could not be made large enough.
    #[error(
        "the parking pipes cannot hold {} pages each: raise fs.pipe-max-size or fs.pipe-user-pages-soft",
        mycoram_agent::SLOTS_PER_PIPE
    )]
    PipeSize(#[source] Errno),
    /// A descriptor could not be duplicated to us.
    #[error(transparent)]
    GetFd(#[from] GetFdError),
}

/// Why a QEMU could not be taken over by its record.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// The process is gone, or is another one.
    #[error(transparent)]
    Process(#[from] PidFdError),
    /// A descriptor could not be duplicated to us.
    #[error(transparent)]
    GetFd(#[from] GetFdError),
    /// A recorded number is something else by now.
    #[error(
        "descriptor {number} of process {pid} is no {expected} any more: the record is of another time"
    )]
    Changed {
        /// QEMU.
        pid: Pid,
        /// The number, in QEMU.
        number: RawFd,
        /// What it was when recorded.
        expected: &'static str,
    },
    /// The file of the memory could not be opened.
    #[error(transparent)]
    Memory(#[from] DescriptorError),
    /// The mappings could not be read.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The recorded mapping is not there.
    #[error("process {pid} has no shared memory of {bytes} bytes at {base:#x} any more")]
    NoMapping {
        /// QEMU.
        pid: Pid,
        /// The recorded address.
        base: u64,
        /// The recorded size.
        bytes: u64,
    },
}

/// Why /dev/userfaultfd was not the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// The kernel has none (before 6.1).
    Missing,
    /// We may not open it.
    Denied,
}

/// QEMU was refused a userfaultfd, by both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct UserfaultfdDenial {
    /// QEMU.
    pub pid: Pid,
    /// The value of vm.unprivileged_userfaultfd, if there is one.
    pub sysctl: Option<u8>,
    /// Why the device was not the way.
    pub device: DeviceState,
}

impl fmt::Display for UserfaultfdDenial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid;
        write!(f, "QEMU {pid} may not make a userfaultfd: ")?;
        match self.sysctl {
            Some(1) => write!(f, "a seccomp filter or security module refuses it")?,
            Some(value) => write!(
                f,
                "vm.unprivileged_userfaultfd is {value} and QEMU lacks CAP_SYS_PTRACE"
            )?,
            None => write!(f, "QEMU lacks CAP_SYS_PTRACE")?,
        }
        match self.device {
            DeviceState::Missing => write!(
                f,
                ", and this kernel has no /dev/userfaultfd (6.1 and newer); set `sysctl vm.unprivileged_userfaultfd=1`"
            ),
            DeviceState::Denied => write!(
                f,
                ", and we may not open /dev/userfaultfd; give us access to it (`setfacl -m u:USER:rw /dev/userfaultfd`), \
                 or set `sysctl vm.unprivileged_userfaultfd=1`"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_denial_says_what_to_do() {
        let pid = Pid::from_raw(9);
        for (device, word) in [
            (DeviceState::Missing, "sysctl vm.unprivileged_userfaultfd=1"),
            (DeviceState::Denied, "access"),
        ] {
            let text = UserfaultfdDenial {
                pid,
                sysctl: Some(0),
                device,
            }
            .to_string();
            assert!(
                text.contains(word) && text.contains("CAP_SYS_PTRACE"),
                "{text}"
            );
        }
    }
}

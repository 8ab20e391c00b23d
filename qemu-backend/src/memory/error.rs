//! Why the guest's RAM was not found.

use std::io;

use nix::unistd::Pid;

use crate::process::{DescriptorError, MapsError};
use crate::qmp::QmpError;

/// Why the guest's RAM was not found, or cannot be paged.
#[derive(Debug, thiserror::Error)]
pub enum FindMemoryError {
    /// QEMU has no memory that others can reach.
    #[error(
        "QEMU {pid} has no shared memory backend, so its RAM cannot be reached from outside; start it with \
         `-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem` \
         (SIZE as in -m), or let `myco vm run` start it"
    )]
    NoSharedBackend {
        /// QEMU.
        pid: Pid,
    },
    /// The memory that was meant is private.
    #[error(
        "the memory backend `{id}` of QEMU {pid} is private, so it cannot be reached from outside; add `share=on` to its \
         -object, or use `-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem`"
    )]
    Private {
        /// QEMU.
        pid: Pid,
        /// The backend's id.
        id: String,
    },
    /// No memory fits the choice.
    #[error("QEMU {pid} has no shared memory that fits what was asked for; there are {} shared mappings", .candidates)]
    NoMatch {
        /// QEMU.
        pid: Pid,
        /// How many there are of other size or path.
        candidates: usize,
    },
    /// Several fit.
    #[error("{count} memory backends of QEMU {pid} fit; name one by its id, path or size")]
    Ambiguous {
        /// QEMU.
        pid: Pid,
        /// How many fit.
        count: usize,
    },
    /// The file is on a file system whose faults cannot be served.
    #[error(
        "the memory of QEMU {pid} lies on a file system (type {file_system:#x}) without userfaultfd; \
         put mem-path on a tmpfs such as /dev/shm, or use memory-backend-memfd"
    )]
    FileSystem {
        /// QEMU.
        pid: Pid,
        /// The number that statfs gives.
        file_system: i64,
    },
    /// The memory is made of huge pages.
    #[error(
        "the memory of QEMU {pid} is made of huge pages ({page_bytes} bytes); start it without hugetlb=on, on a plain tmpfs or memfd"
    )]
    HugePages {
        /// QEMU.
        pid: Pid,
        /// Their size.
        page_bytes: u64,
    },
    /// Its mappings could not be read.
    #[error("the mappings of QEMU cannot be read")]
    Maps(#[from] MapsError),
    /// The file could not be opened.
    #[error("the guest's memory cannot be opened")]
    Open(#[from] DescriptorError),
    /// QMP did not answer.
    #[error("QEMU's answer about its memory is missing")]
    Qmp(#[from] QmpError),
    /// The file could not be looked at.
    #[error("the file of the guest's memory cannot be looked at")]
    Stat(#[source] io::Error),
}

impl FindMemoryError {
    /// Whether we only lack the right to look.
    pub(crate) fn is_permission(&self) -> bool {
        match self {
            Self::Maps(MapsError::Read { source, .. })
            | Self::Open(DescriptorError::List { source, .. }) => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            _ => false,
        }
    }
}

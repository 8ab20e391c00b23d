//! Why the registry could not be used.

use std::io;
use std::path::PathBuf;

/// Why the registry could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The directory could not be made or read.
    #[error("the directory of running VMs, {}, cannot be used", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The directory is somebody else's.
    #[error("{} belongs to another user or is open to others; remove it, or set XDG_RUNTIME_DIR", .path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// A record could not be written, read or removed.
    #[error("the record {} cannot be used", .path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A record is not one of ours, or of another version.
    #[error("{} is no record of a VM of this version", .path.display())]
    Form {
        /// The record.
        path: PathBuf,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// The name is taken.
    #[error("a VM of this name runs already (QEMU {pid})")]
    Taken {
        /// Its QEMU.
        pid: i32,
    },
    /// Another process starts or serves a VM of this name.
    #[error("another process starts or serves a VM of this name")]
    InUse,
    /// There is no such VM.
    #[error("no VM of this name runs here")]
    Unknown,
}

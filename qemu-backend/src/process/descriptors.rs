//! The files of another process: which descriptor is it, and a descriptor of our own for it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::unistd::Pid;

use super::{Mapping, PidFd};

/// What makes two descriptors the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// The device number (`st_dev`).
    pub device: u64,
    /// The inode number.
    pub inode: u64,
}

impl FileIdentity {
    /// The file behind one of our own descriptors.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let stat = nix::sys::stat::fstat(fd)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

/// Why a file of another process could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// `/proc/PID/fd` could not be read.
    #[error(
        "the descriptors of process {pid} cannot be listed: it has ended, or belongs to another user"
    )]
    List {
        /// The process.
        pid: Pid,
        /// What the kernel said.
        source: io::Error,
    },
    /// Neither a descriptor nor the mapping itself could be opened.
    #[error(
        "the file behind the mapping at {start:#x} of process {pid} cannot be opened: process {pid} holds no descriptor of it, \
         and /proc/{pid}/map_files needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN"
    )]
    Open {
        /// The process.
        pid: Pid,
        /// The first address of the mapping.
        start: u64,
        /// What the kernel said to the last attempt.
        source: io::Error,
    },
}

/// The lowest descriptor number under which `pid` holds `file`, if it holds it at all.
pub fn find_descriptor(pid: Pid, file: FileIdentity) -> Result<Option<RawFd>, DescriptorError> {
    let listing = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .map_err(|source| DescriptorError::List { pid, source })?;
    let mut found: Option<RawFd> = None;
    for entry in listing.flatten() {
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<RawFd>().ok())
        else {
            continue;
        };
        // A descriptor that was closed meanwhile is not the one that backs a live mapping.
        let Ok(metadata) = std::fs::metadata(entry.path()) else {
            continue;
        };
        let this = FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        if this == file && found.is_none_or(|lowest| number < lowest) {
            found = Some(number);
        }
    }
    Ok(found)
}

/// The file behind a mapping, open for reading and writing, and the number under which the target
/// holds it itself (if it does).
///
/// Re-opened through `/proc/PID/fd` where the file's mode lets us, duplicated where it does not,
/// opened through `/proc/PID/map_files` where the target has closed it.
pub fn open_mapping(
    pid: Pid,
    pidfd: &PidFd,
    mapping: &Mapping,
) -> Result<(OwnedFd, Option<RawFd>), DescriptorError> {
    let number = find_descriptor(pid, mapping.file)?;
    if let Some(number) = number {
        if let Ok(file) = open_read_write(&format!("/proc/{pid}/fd/{number}")) {
            return Ok((file.into(), Some(number)));
        }
        if let Ok(duplicate) = pidfd.get_fd(number) {
            return Ok((duplicate, Some(number)));
        }
    }
    let path = format!(
        "/proc/{pid}/map_files/{:x}-{:x}",
        mapping.start, mapping.end
    );
    match open_read_write(&path) {
        Ok(file) => Ok((file.into(), number)),
        Err(source) => Err(DescriptorError::Open {
            pid,
            start: mapping.start,
            source,
        }),
    }
}

fn open_read_write(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

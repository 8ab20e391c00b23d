//! Asks QMP and the kernel, chooses, opens.

use std::io::{self, BufRead, BufReader};
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;

use nix::sys::statfs::fstatfs;
use nix::unistd::Pid;
use serde_json::Value;

use super::FindMemoryError;
use super::choose::{Backend, MemoryChoice, choose, meant_backend, shared_mappings};
use crate::process::{Mapping, MapsError, PidFd, open_mapping, read_maps};
use crate::qmp::{Qmp, QmpError};

const TMPFS_MAGIC: i64 = 0x0102_1994;
/// Read at a time: each read walks on in the target's mappings.
const SMAPS_BYTES: usize = 64 << 10;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// A guest's RAM, found and open.
#[derive(Debug)]
pub struct GuestMemory {
    /// The mapping inside QEMU.
    pub mapping: Mapping,
    /// The file behind it, open for reading and writing.
    pub file: OwnedFd,
    /// The number under which QEMU itself holds the file; `None` if it closed it.
    pub target_fd: Option<RawFd>,
    /// The backend's id, if QMP told it.
    pub backend: Option<String>,
}

/// Finds the memory that is meant in a running QEMU and opens its file.
///
/// With `qmp`, QEMU itself says which backend is the machine's memory and whether it is shared;
/// without, the mappings must leave no doubt.
pub fn find_memory(
    pidfd: &PidFd,
    qmp: Option<&mut Qmp>,
    choice: &MemoryChoice,
) -> Result<GuestMemory, FindMemoryError> {
    let pid = pidfd.pid();
    let backend = qmp.map(|qmp| ask(pid, qmp, choice)).transpose()?;
    let candidates = shared_mappings(&read_maps(pid)?);
    let mapping = choose(pid, choice, backend.as_ref(), &candidates)?;
    let (file, target_fd) = open_mapping(pid, pidfd, &mapping)?;
    check_file_system(pid, &file)?;
    Ok(GuestMemory {
        mapping,
        file,
        target_fd,
        backend: backend.map(|b| b.id),
    })
}

fn ask(pid: Pid, qmp: &mut Qmp, choice: &MemoryChoice) -> Result<Backend, FindMemoryError> {
    let backends = qmp.memory_backends()?;
    let main = qmp.main_memory_id()?;
    if let MemoryChoice::Path(wanted) = choice {
        for backend in &backends {
            let Some(id) = backend.id.as_deref() else {
                continue;
            };
            let path = backend_path(qmp, id)?;
            if path.as_ref() == Some(wanted) {
                return Ok(Backend {
                    id: id.into(),
                    bytes: backend.size,
                    shared: backend.share,
                    path,
                });
            }
        }
        return Err(FindMemoryError::NoMatch {
            pid,
            candidates: backends.len(),
        });
    }
    let meant = meant_backend(pid, choice, &backends, main.as_deref())?;
    let id = meant.id.clone().unwrap_or_default();
    let path = backend_path(qmp, &id)?;
    Ok(Backend {
        id,
        bytes: meant.size,
        shared: meant.share,
        path,
    })
}

/// The path of a memory-backend-file; the other kinds have none.
fn backend_path(qmp: &mut Qmp, id: &str) -> Result<Option<PathBuf>, QmpError> {
    match qmp.property(&format!("/objects/{id}"), "mem-path") {
        // A mem-path that is a directory gives a file without a name: only its size can tell it.
        Ok(Value::String(path)) => Ok(Some(PathBuf::from(path)).filter(|p| !p.is_dir())),
        Ok(_) | Err(QmpError::Refused { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

fn check_file_system(pid: Pid, file: &OwnedFd) -> Result<(), FindMemoryError> {
    let stat = fstatfs(file).map_err(|errno| FindMemoryError::Stat(errno.into()))?;
    match stat.filesystem_type().0 as i64 & 0xffff_ffff {
        TMPFS_MAGIC => Ok(()),
        HUGETLBFS_MAGIC => Err(FindMemoryError::HugePages {
            pid,
            page_bytes: stat.block_size() as u64,
        }),
        file_system => Err(FindMemoryError::FileSystem { pid, file_system }),
    }
}

/// Whether the mapping's faults belong to a userfaultfd already (its missing, write-protect or minor mode).
///
/// Read from `/proc/PID/smaps`; costs about 10 us a mapping of the target.
pub fn is_registered(pid: Pid, mapping: &Mapping) -> Result<bool, MapsError> {
    let read = |source: io::Error| MapsError::Read { pid, source };
    let file = std::fs::File::open(format!("/proc/{pid}/smaps")).map_err(read)?;
    let mut inside = false;
    for line in BufReader::with_capacity(SMAPS_BYTES, file).lines() {
        let line = line.map_err(read)?;
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if inside
                && flags
                    .split_ascii_whitespace()
                    .any(|f| matches!(f, "um" | "uw" | "ui"))
            {
                return Ok(true);
            }
        } else if let Some((start, _)) = line.split_once('-')
            && let Ok(start) = u64::from_str_radix(start, 16)
        {
            if start >= mapping.end {
                break;
            }
            inside = start >= mapping.start;
        }
    }
    Ok(false)
}

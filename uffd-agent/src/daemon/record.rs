//! What the daemon writes down about a client, so that the next daemon knows whom it serves: a small file
//! beside the region's page table, readable by the daemon only.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mycoram_fabric::units::ByteCount;
use serde::{Deserialize, Serialize};

use super::message::{self, Kind, MAX_MESSAGE_BYTES, MessageError, Token};
use crate::RegionName;

const SUFFIX: &str = ".client";

/// A client as the next daemon needs to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) name: RegionName,
    pub(super) token: Token,
    pub(super) uid: u32,
    pub(super) pid: i32,
    /// When the process began: see [`crate::kernel::PidFd::began`].
    pub(super) began: u64,
    pub(super) local_budget: ByteCount,
    /// Size of the region.
    pub(super) bytes: ByteCount,
    pub(super) fault_workers: u8,
}

/// Why a record cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system.
    #[error("the record {path} of a client cannot be written or read")]
    Io {
        /// Which.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The content.
    #[error("the record {path} of a client is damaged")]
    Content {
        /// Which.
        path: PathBuf,
        /// The reason.
        #[source]
        source: MessageError,
    },
}

fn path_of(state_dir: &Path, name: &RegionName) -> PathBuf {
    state_dir.join(format!("{name}{SUFFIX}"))
}

/// Makes the directory, for the daemon only.
pub(super) fn make_dir(state_dir: &Path) -> Result<(), RecordError> {
    let io = |source| RecordError::Io {
        path: state_dir.to_owned(),
        source,
    };
    fs::create_dir_all(state_dir).map_err(io)?;
    fs::set_permissions(state_dir, Permissions::from_mode(0o700)).map_err(io)
}

impl Record {
    /// Writes it: whole, or not at all.
    pub(super) fn write(&self, state_dir: &Path) -> Result<(), RecordError> {
        let path = path_of(state_dir, &self.name);
        let bytes = message::encode(Kind::Record, self).map_err(|source| RecordError::Content {
            path: path.clone(),
            source,
        })?;
        let new = path.with_extension("client-new");
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| fs::rename(&new, &path));
        written.map_err(|source| RecordError::Io { path, source })
    }

    /// Forgets it.
    pub(super) fn remove(&self, state_dir: &Path) {
        // If it is gone already, so much the better.
        let _ = fs::remove_file(path_of(state_dir, &self.name));
    }

    /// All that an earlier daemon has written down, and what cannot be read.
    pub(super) fn read_all(
        state_dir: &Path,
    ) -> Result<Vec<Result<Self, RecordError>>, RecordError> {
        let entries = fs::read_dir(state_dir).map_err(|source| RecordError::Io {
            path: state_dir.to_owned(),
            source,
        })?;
        Ok(entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.to_string_lossy().ends_with(SUFFIX))
            .map(|path| Self::read(&path))
            .collect())
    }

    fn read(path: &Path) -> Result<Self, RecordError> {
        let mut bytes = Vec::new();
        fs::File::open(path)
            .and_then(|file| {
                file.take(MAX_MESSAGE_BYTES as u64 + 1)
                    .read_to_end(&mut bytes)
            })
            .map_err(|source| RecordError::Io {
                path: path.to_owned(),
                source,
            })?;
        message::decode(Kind::Record, &bytes).map_err(|source| RecordError::Content {
            path: path.to_owned(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_outlive_their_writer_and_damage_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let state_dir = dir.path().join("daemon");
        make_dir(&state_dir).expect("made");
        let mode = fs::metadata(&state_dir)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
        let record = |name: &str| Record {
            name: name.parse().expect("a name"),
            token: Token([7; 16]),
            uid: 1,
            pid: 2,
            began: 3,
            local_budget: ByteCount::mib(4),
            bytes: ByteCount::mib(16),
            fault_workers: 1,
        };
        record("a").write(&state_dir).expect("written");
        record("b").write(&state_dir).expect("written");
        fs::write(state_dir.join("c.client"), b"nonsense").expect("written");
        let read = Record::read_all(&state_dir).expect("listed");
        assert_eq!(read.len(), 3);
        assert_eq!(read.iter().filter(|r| r.is_err()).count(), 1);
        assert!(read.iter().flatten().any(|r| *r == record("a")));
        record("a").remove(&state_dir);
        assert_eq!(Record::read_all(&state_dir).expect("listed").len(), 2);
    }
}

//! The state file: what a successor needs to go on when the agent was killed.
//!
//! ```text
//!   0        slot A: magic, version, sequence, length, checksum | header (JSON) | directory (opaque)
//!   2 MiB    slot B: the same; the newer valid one counts, the older one is overwritten next
//!   4 MiB    entries, 16 bytes a page; behind them, where pages are sealed, 24 bytes a page
//! ```
//!
//! The file lies on tmpfs and is sparse. The lock ends with the last mapping of the entries. The agent that serves the region holds an flock on it; that is
//! what makes a second agent impossible, and what tells a dead agent from a living one.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mycoram_fabric::transport::{Mapping, MappingError};
use mycoram_fabric::units::{ByteCount, Epoch, PageCount, RegionId};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::seals::{SEAL_BYTES, SealTable};
use super::table::{ENTRY_BYTES, PageTable};
use crate::config::DEFAULT_STATE_DIR;
use crate::seal::SealHeader;

const MAGIC: [u8; 8] = *b"MYCOPTAB";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 40;
const SLOT_BYTES: u64 = 2 << 20;
const TABLE_OFFSET: u64 = 2 * SLOT_BYTES;
/// How often the directory of a new file may be removed under our hands.
const MAKE_TRIES: u32 = 16;
/// Longest directory that a region can keep.
pub(crate) const MAX_DIRECTORY_BYTES: usize = 1 << 20;

/// Why there is no usable state file.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// Another agent holds the lock.
    #[error("another agent serves this region: it holds the lock on {path}")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A dead agent's region whose target still lives.
    #[error(
        "{path} belongs to a region whose agent died and whose target, process {target_pid}, still waits: take it over, or end that process"
    )]
    Orphaned {
        /// The file.
        path: PathBuf,
        /// Who waits.
        target_pid: i32,
    },
    /// There is none.
    #[error("there is no region here: {path} does not exist")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It could not be made, read or written.
    #[error("the state file {path} cannot be used")]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// It could not be mapped.
    #[error("the state file {path} cannot be mapped")]
    Map {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: MappingError,
    },
    /// Neither slot is whole, or it is another version's.
    #[error("{path} is not a state file of version {VERSION}, or it is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// An entry that means nothing.
    #[error("{path} is damaged")]
    Word {
        /// The file.
        path: PathBuf,
        /// The entry.
        #[source]
        source: super::WordError,
    },
    /// The directory of extents does not fit.
    #[error("a directory of {bytes} bytes is too long; a state file has room for 1 MiB")]
    Directory {
        /// How long it is.
        bytes: usize,
    },
}

/// What the state file says besides the entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) region: RegionId,
    pub(crate) epoch: Epoch,
    pub(crate) pages: PageCount,
    pub(crate) target_pid: i32,
    /// Start time of the target as /proc counts it: a number that was given away again is noticed.
    pub(crate) target_started: u64,
    pub(crate) file_offset: u64,
    pub(crate) bytes: ByteCount,
    /// Where the region's pages lie in the target: address, first page, pages.
    pub(crate) segments: Vec<(u64, u32, u32)>,
    pub(crate) held_uffd: RawFd,
    pub(crate) held_memory: RawFd,
    pub(crate) held_pipes: Vec<(RawFd, RawFd)>,
    /// How the region's key is got from the key file, where its pages are sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seal: Option<SealHeader>,
}

impl Header {
    /// Where the seals begin: behind the entries.
    const fn seals_offset(&self) -> usize {
        TABLE_OFFSET as usize + self.pages.as_usize() * ENTRY_BYTES
    }

    /// How long the file is.
    const fn file_bytes(&self) -> usize {
        match self.seal {
            Some(_) => self.seals_offset() + self.pages.as_usize() * SEAL_BYTES,
            None => self.seals_offset(),
        }
    }
}

/// A locked state file.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    file: File,
    sequence: u64,
    header: Header,
    directory: Vec<u8>,
}

/// When a process started, clock ticks since boot; `None` if there is none.
pub(crate) fn process_started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and brackets: what follows the last bracket counts.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

impl StateFile {
    fn path_of(state_dir: &Path, name: &str) -> PathBuf {
        state_dir.join(format!("{name}.pages"))
    }

    fn open_locked(path: &Path, create: bool) -> Result<File, StateFileError> {
        let io = |source| StateFileError::Io {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::NotFound if !create => StateFileError::Missing {
                    path: path.to_owned(),
                },
                _ => io(source),
            })?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(StateFileError::InUse {
                path: path.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }

    /// Makes the file, and its directory where there is none.
    fn make_locked(state_dir: &Path, path: &Path) -> Result<File, StateFileError> {
        let mut tries = 0;
        loop {
            std::fs::create_dir_all(state_dir).map_err(|source| StateFileError::Io {
                path: state_dir.to_owned(),
                source,
            })?;
            tries += 1;
            match Self::open_locked(path, true) {
                // Somebody whose file was the last one there has just removed the directory.
                Err(StateFileError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound && tries < MAKE_TRIES => {}
                made => return made,
            }
        }
    }

    /// A new file for a region that starts. A file that a dead agent left is replaced if its target has
    /// ended too.
    pub(crate) fn create(
        state_dir: &Path,
        name: &str,
        header: Header,
        directory: &[u8],
    ) -> Result<Self, StateFileError> {
        let path = Self::path_of(state_dir, name);
        let file = Self::make_locked(state_dir, &path)?;
        let length = file.metadata().map_or(0, |m| m.len());
        if length > 0
            && let Ok((_, old, _)) = Self::read_newest(&file, &path)
            && process_started(old.target_pid) == Some(old.target_started)
        {
            return Err(StateFileError::Orphaned {
                path,
                target_pid: old.target_pid,
            });
        }
        let io = |source| StateFileError::Io {
            path: path.clone(),
            source,
        };
        file.set_len(0).map_err(io)?;
        file.set_len(header.file_bytes() as u64).map_err(io)?;
        let mut state = Self {
            path,
            file,
            sequence: 0,
            header,
            directory: Vec::new(),
        };
        state.set_directory(directory)?;
        Ok(state)
    }

    /// The file that a dead agent left, locked.
    pub(crate) fn open(state_dir: &Path, name: &str) -> Result<Self, StateFileError> {
        let path = Self::path_of(state_dir, name);
        let file = Self::open_locked(&path, false)?;
        let (sequence, header, directory) = Self::read_newest(&file, &path)?;
        let length = file.metadata().map_or(0, |m| m.len());
        if length != header.file_bytes() as u64 {
            return Err(StateFileError::Damaged { path });
        }
        Ok(Self {
            path,
            file,
            sequence,
            header,
            directory,
        })
    }

    fn read_newest(file: &File, path: &Path) -> Result<(u64, Header, Vec<u8>), StateFileError> {
        (0..2)
            .filter_map(|slot| Self::read_slot(file, slot * SLOT_BYTES))
            .max_by_key(|(sequence, ..)| *sequence)
            .ok_or_else(|| StateFileError::Damaged {
                path: path.to_owned(),
            })
    }

    fn read_slot(file: &File, offset: u64) -> Option<(u64, Header, Vec<u8>)> {
        let mut prefix = [0; PREFIX_BYTES];
        file.read_exact_at(&mut prefix, offset).ok()?;
        let number = |at: usize| -> u64 {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&prefix[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let (version, sequence) = (number(8), number(16));
        let (lengths, checksum) = (number(24), number(32));
        let header_length = (lengths & 0xffff_ffff) as usize;
        let directory_length = (lengths >> 32) as usize;
        let fits = prefix[..8] == MAGIC
            && version == u64::from(VERSION)
            && PREFIX_BYTES + header_length + directory_length <= SLOT_BYTES as usize;
        if !fits {
            return None;
        }
        let mut body = vec![0; header_length + directory_length];
        file.read_exact_at(&mut body, offset + PREFIX_BYTES as u64)
            .ok()?;
        if XxHash3_64::oneshot_with_seed(sequence, &body) != checksum {
            return None;
        }
        let header = serde_json::from_slice(&body[..header_length]).ok()?;
        Some((sequence, header, body.split_off(header_length)))
    }

    fn write(&mut self) -> Result<(), StateFileError> {
        let sequence = self.sequence + 1;
        let header = serde_json::to_vec(&self.header).map_err(|e| self.io(e.into()))?;
        let mut slot = Vec::with_capacity(PREFIX_BYTES + header.len() + self.directory.len());
        slot.extend_from_slice(&MAGIC);
        slot.extend_from_slice(&u64::from(VERSION).to_le_bytes());
        slot.extend_from_slice(&sequence.to_le_bytes());
        let lengths = header.len() as u64 | (self.directory.len() as u64) << 32;
        slot.extend_from_slice(&lengths.to_le_bytes());
        let mut body = header;
        body.extend_from_slice(&self.directory);
        let checksum = XxHash3_64::oneshot_with_seed(sequence, &body);
        slot.extend_from_slice(&checksum.to_le_bytes());
        slot.extend_from_slice(&body);
        if slot.len() as u64 > SLOT_BYTES {
            return Err(StateFileError::Directory {
                bytes: self.directory.len(),
            });
        }
        self.file
            .write_all_at(&slot, (sequence % 2) * SLOT_BYTES)
            .map_err(|e| self.io(e))?;
        self.sequence = sequence;
        Ok(())
    }

    fn io(&self, source: std::io::Error) -> StateFileError {
        StateFileError::Io {
            path: self.path.clone(),
            source,
        }
    }

    /// Where in the mapping that [`Self::table`] makes the entries begin.
    pub(crate) const fn table_offset() -> usize {
        TABLE_OFFSET as usize
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn directory(&self) -> &[u8] {
        &self.directory
    }

    pub(crate) fn set_header(&mut self, header: Header) -> Result<(), StateFileError> {
        self.header = header;
        self.write()
    }

    pub(crate) fn set_directory(&mut self, directory: &[u8]) -> Result<(), StateFileError> {
        if directory.len() > MAX_DIRECTORY_BYTES {
            return Err(StateFileError::Directory {
                bytes: directory.len(),
            });
        }
        self.directory = directory.to_vec();
        self.write()
    }

    /// Maps the entries.
    pub(crate) fn table(&self) -> Result<(PageTable, Arc<Mapping>), StateFileError> {
        let mapping = Mapping::shared(&self.file, self.header.file_bytes()).map_err(|source| {
            StateFileError::Map {
                path: self.path.clone(),
                source,
            }
        })?;
        let mapping = Arc::new(mapping);
        PageTable::over(
            Arc::clone(&mapping),
            TABLE_OFFSET as usize,
            self.header.pages,
        )
        .map(|table| (table, mapping))
        .ok_or_else(|| StateFileError::Damaged {
            path: self.path.clone(),
        })
    }

    /// The seals in the mapping that [`Self::table`] made; `None` where pages are not sealed.
    pub(crate) fn seals(&self, mapping: &Arc<Mapping>) -> Option<SealTable> {
        self.header.seal.as_ref()?;
        SealTable::over(
            Arc::clone(mapping),
            self.header.seals_offset(),
            self.header.pages,
        )
    }

    /// The region is over: nobody needs the file any more. A file of the same name that is another
    /// region's stays.
    pub(crate) fn remove(&self) {
        use std::os::unix::fs::MetadataExt;
        let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
        let ours = self.file.metadata().map(identity).ok();
        if ours.is_some() && std::fs::metadata(&self.path).map(identity).ok() == ours {
            // Whoever removed it before us has done what was to be done.
            let _ = std::fs::remove_file(&self.path);
        }
        // The directory that nobody named goes with the last file in it; who needs it next makes it.
        let common = Path::new(DEFAULT_STATE_DIR);
        if self.path.parent() == Some(common) {
            let _ = std::fs::remove_dir(common);
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::{Header, SLOT_BYTES, StateFile, StateFileError, process_started};
    use crate::page_table::{PageState, Word};
    use mycoram_fabric::units::{ByteCount, Epoch, PageCount, PageIndex, RegionId};
    use std::os::unix::fs::FileExt;

    fn header(pid: i32) -> Header {
        Header {
            region: RegionId::new(7),
            epoch: Epoch::new(3),
            pages: PageCount::new(100),
            target_pid: pid,
            target_started: process_started(pid).unwrap_or(1),
            file_offset: 0,
            bytes: ByteCount::new(100 * 4096),
            segments: vec![(0x7000_0000, 0, 100)],
            held_uffd: 5,
            held_memory: 6,
            held_pipes: vec![(7, 8), (9, 10)],
            seal: None,
        }
    }

    #[test]
    fn the_directory_that_nobody_named_goes_with_its_last_file() {
        let common = std::path::Path::new(crate::config::DEFAULT_STATE_DIR);
        let me = std::process::id() as i32;
        let state = StateFile::create(common, &format!("test-{me}"), header(me), b"");
        let state = state.expect("a new file");
        state.remove();
        assert!(!state.path().exists());
        // Others of this machine may be using it, or just making it.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while std::fs::read_dir(common).is_ok_and(|mut files| files.next().is_none()) {
            assert!(std::time::Instant::now() < until, "it is empty, and left");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        // One that was named stays.
        let named = tempfile::tempdir().expect("a directory");
        let state = StateFile::create(named.path(), "r", header(me), b"").expect("a new file");
        state.remove();
        assert!(named.path().exists());
    }

    #[test]
    fn a_successor_reads_what_the_agent_wrote() {
        let dir = tempfile::tempdir().expect("a directory");
        let me = std::process::id() as i32;
        let mut state =
            StateFile::create(dir.path(), "r", header(me), b"where").expect("a new file");
        let mapped = state.table().expect("mapped");
        let table = &mapped.0;
        let word = Word::NEVER_WRITTEN.with_state(PageState::Remote);
        table.set(PageIndex::new(99), word);
        table.set_checksum(PageIndex::new(99), 0xfeed);
        state.set_directory(b"elsewhere").expect("written");
        assert!(matches!(
            StateFile::open(dir.path(), "r"),
            Err(StateFileError::InUse { .. })
        ));
        drop((state, mapped));
        let again = StateFile::create(dir.path(), "r", header(me), b"");
        assert!(
            matches!(again, Err(StateFileError::Orphaned { .. })),
            "{again:?}"
        );
        let successor = StateFile::open(dir.path(), "r").expect("the lock is free");
        assert_eq!(successor.header(), &header(me));
        assert_eq!(successor.directory(), b"elsewhere");
        let (table, _) = successor.table().expect("mapped");
        assert_eq!(table.word(PageIndex::new(99)), word);
        assert_eq!(table.checksum(PageIndex::new(99)), 0xfeed);
    }

    #[test]
    fn a_torn_slot_leaves_the_older_one_and_two_torn_slots_are_said() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut state = StateFile::create(dir.path(), "r", header(1), b"old").expect("new");
        state.set_directory(b"new").expect("written");
        let newest = (state.sequence % 2) * SLOT_BYTES;
        state.file.write_all_at(b"x", newest + 60).expect("torn");
        drop(state);
        let state = StateFile::open(dir.path(), "r").expect("the older slot");
        assert_eq!(state.directory(), b"old");
        state
            .file
            .write_all_at(b"x", (SLOT_BYTES - newest) + 60)
            .expect("torn");
        drop(state);
        assert!(matches!(
            StateFile::open(dir.path(), "r"),
            Err(StateFileError::Damaged { .. })
        ));
    }

    #[test]
    fn a_dead_targets_file_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut gone = header(std::process::id() as i32);
        gone.target_started += 1;
        drop(StateFile::create(dir.path(), "r", gone, b"").expect("new"));
        assert!(StateFile::create(dir.path(), "r", header(1), b"").is_ok());
        assert!(matches!(
            StateFile::open(dir.path(), "other"),
            Err(StateFileError::Missing { .. })
        ));
    }
}

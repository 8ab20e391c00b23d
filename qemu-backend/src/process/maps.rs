//! `/proc/PID/maps`, line by line.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use nix::unistd::Pid;

use super::FileIdentity;

/// What may be done with the bytes of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
    /// Writes reach the file and every other mapping of it.
    pub shared: bool,
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address, in the target.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What may be done with it.
    pub permissions: Permissions,
    /// Where in the file `start` lies, in bytes.
    pub file_offset: u64,
    /// The file; both numbers are 0 for anonymous memory.
    pub file: FileIdentity,
    /// The name as the kernel writes it: a path, `/memfd:NAME (deleted)`, `[stack]`, or empty.
    pub name: String,
}

impl Mapping {
    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Whether `next` goes on where this mapping ends: the next address, and the next byte of the same file.
    #[must_use]
    pub fn is_continued_by(&self, next: &Self) -> bool {
        self.end == next.start
            && self.file == next.file
            && self.permissions == next.permissions
            && self.file_offset + self.bytes() == next.file_offset
    }

    /// The path of the file, without the mark that a deleted file carries.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        let name = self.name.strip_suffix(" (deleted)").unwrap_or(&self.name);
        name.starts_with('/').then(|| PathBuf::from(name))
    }
}

/// Why the mappings of a process could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// The file could not be read: no such process, or no permission.
    #[error("the mappings of process {pid} cannot be read")]
    Read {
        /// The process.
        pid: Pid,
        /// What the kernel said.
        source: io::Error,
    },
    /// A line has another form than the kernel documents.
    #[error("line {line} of the mappings of process {pid} has an unknown form")]
    Form {
        /// The process.
        pid: Pid,
        /// Counted from 1.
        line: usize,
    },
}

/// A QEMU has about 300 mappings of 100 bytes; read at once, they are of one moment.
const USUAL_BYTES: usize = 64 << 10;

/// All mappings of `pid`, in the order of their addresses.
pub fn read_maps(pid: Pid) -> Result<Vec<Mapping>, MapsError> {
    let mut text = Vec::with_capacity(USUAL_BYTES);
    File::open(format!("/proc/{pid}/maps"))
        .and_then(|mut file| file.read_to_end(&mut text))
        .map_err(|source| MapsError::Read { pid, source })?;
    parse_maps(&String::from_utf8_lossy(&text)).map_err(|line| MapsError::Form { pid, line })
}

/// Parses the text of a `maps` file; the error is the number of the first line that does not parse.
pub fn parse_maps(text: &str) -> Result<Vec<Mapping>, usize> {
    text.lines()
        .enumerate()
        .map(|(index, line)| parse_line(line).ok_or(index + 1))
        .collect()
}

fn parse_line(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let (head, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = tail;
        head
    };
    let (start, end) = field().split_once('-')?;
    let flags = field().as_bytes();
    let offset = field();
    let (major, minor) = field().split_once(':')?;
    let inode = field();
    let &[read, write, execute, shared] = flags else {
        return None;
    };
    let mapping = Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        permissions: Permissions {
            read: read == b'r',
            write: write == b'w',
            execute: execute == b'x',
            shared: shared == b's',
        },
        file_offset: u64::from_str_radix(offset, 16).ok()?,
        file: FileIdentity {
            device: libc::makedev(
                u32::from_str_radix(major, 16).ok()?,
                u32::from_str_radix(minor, 16).ok()?,
            ),
            inode: inode.parse().ok()?,
        },
        name: rest.trim_start().to_owned(),
    };
    (mapping.start < mapping.end).then_some(mapping)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
7f1e98000000-7f1ea0000000 rw-s 00000000 00:01 1033                       /memfd:memory-backend-memfd (deleted)
7f1ea0000000-7f1ea8000000 rw-s 08000000 00:01 1033                       /memfd:memory-backend-memfd (deleted)
7ffd0f1e2000-7ffd0f203000 rw-p 00000000 00:00 0                          [stack]
7f1ea8021000-7f1eac000000 ---p 00000000 00:00 0 
7f2000000000-7f2000001000 r-xp 0001a000 fe:00 247030                     /opt/a name with  spaces
";

    #[test]
    fn lines_become_mappings() {
        let maps = parse_maps(TEXT).unwrap();
        assert_eq!(maps.len(), 5);
        assert!(
            maps[0].permissions.shared && maps[0].permissions.write && !maps[0].permissions.execute
        );
        assert_eq!(maps[0].bytes(), 128 << 20);
        assert!(maps[0].is_continued_by(&maps[1]));
        assert!(!maps[1].is_continued_by(&maps[2]));
        assert_eq!(
            maps[0].path().unwrap(),
            PathBuf::from("/memfd:memory-backend-memfd")
        );
        assert_eq!(maps[2].path(), None);
        assert_eq!(maps[3].name, "");
        assert_eq!(maps[4].name, "/opt/a name with  spaces");
        assert_eq!(
            maps[4].file,
            FileIdentity {
                device: libc::makedev(0xfe, 0),
                inode: 247_030
            }
        );
    }

    #[test]
    fn a_malformed_line_is_named() {
        assert_eq!(
            parse_maps("7f1e98000000-7f1ea0000000 rw-s 0 00:01 7\nrubbish\n"),
            Err(2)
        );
        assert_eq!(parse_maps("2000-1000 rw-s 0 00:01 7\n"), Err(1));
        assert_eq!(parse_maps("1000-2000 rw 0 00:01 7\n"), Err(1));
    }

    #[test]
    fn our_own_mappings_parse() {
        let maps = read_maps(Pid::this()).unwrap();
        assert!(maps.iter().any(|m| m.name == "[stack]"));
        assert!(maps.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
}

//! Which of QEMU's mappings is the guest's RAM: a pure choice from what QMP and the kernel say.

use std::path::PathBuf;

use nix::unistd::Pid;

use super::FindMemoryError;
use crate::process::Mapping;
use crate::qmp::MemoryBackend;

/// Which memory is meant, where QEMU has more than one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MemoryChoice {
    /// The machine's main memory; the only shared mapping, where QMP cannot be asked.
    #[default]
    Main,
    /// The backend with this id. Needs QMP.
    Id(String),
    /// The backend on this file (the path as QEMU was given it).
    Path(PathBuf),
    /// The backend of this many bytes.
    Bytes(u64),
}

/// What QMP says about the memory that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its id.
    pub id: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether it is shared.
    pub shared: bool,
    /// Its file, if it has a path.
    pub path: Option<PathBuf>,
}

/// The shared, writable mappings of files; neighbours that continue each other are one.
#[must_use]
pub fn shared_mappings(maps: &[Mapping]) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for mapping in maps {
        let p = mapping.permissions;
        if !(p.shared && p.read && p.write && !p.execute && mapping.file.inode != 0)
            || mapping.name.starts_with("/dev/dri")
        {
            continue;
        }
        match found.last_mut() {
            Some(last) if last.is_continued_by(mapping) => last.end = mapping.end,
            _ => found.push(mapping.clone()),
        }
    }
    found
}

/// The backend that is meant, among those of `query-memdev`.
///
/// `main` is the id that the machine names as its main memory.
pub(super) fn meant_backend<'a>(
    pid: Pid,
    choice: &MemoryChoice,
    backends: &'a [MemoryBackend],
    main: Option<&str>,
) -> Result<&'a MemoryBackend, FindMemoryError> {
    let by_id = |id: &str| backends.iter().find(|b| b.id.as_deref() == Some(id));
    let fitting: Vec<&MemoryBackend> = match choice {
        MemoryChoice::Main => match main.and_then(by_id) {
            Some(backend) => vec![backend],
            None => backends.iter().filter(|b| b.share).collect(),
        },
        MemoryChoice::Id(id) => by_id(id).into_iter().collect(),
        MemoryChoice::Bytes(bytes) => backends.iter().filter(|b| b.size == *bytes).collect(),
        // Only the mappings know paths.
        MemoryChoice::Path(_) => backends.iter().collect(),
    };
    match fitting[..] {
        [one] => Ok(one),
        [] if backends.iter().any(|b| b.share) => Err(FindMemoryError::NoMatch {
            pid,
            candidates: backends.len(),
        }),
        [] => Err(FindMemoryError::NoSharedBackend { pid }),
        _ => Err(FindMemoryError::Ambiguous {
            pid,
            count: fitting.len(),
        }),
    }
}

/// The one mapping that is the memory that is meant.
///
/// `candidates` are QEMU's [`shared_mappings`]; `backend` is what QMP said, if it could be asked.
pub fn choose(
    pid: Pid,
    choice: &MemoryChoice,
    backend: Option<&Backend>,
    candidates: &[Mapping],
) -> Result<Mapping, FindMemoryError> {
    if let Some(backend) = backend.filter(|b| !b.shared) {
        // The memory that QEMU makes by itself is called after the machine: nobody named it.
        return Err(if backend.id.contains('.') {
            FindMemoryError::NoSharedBackend { pid }
        } else {
            FindMemoryError::Private {
                pid,
                id: backend.id.clone(),
            }
        });
    }
    if candidates.is_empty() {
        return Err(FindMemoryError::NoSharedBackend { pid });
    }
    let bytes = match (backend, choice) {
        (Some(backend), _) => Some(backend.bytes),
        (None, MemoryChoice::Bytes(bytes)) => Some(*bytes),
        (None, _) => None,
    };
    let path = match (backend, choice) {
        (_, MemoryChoice::Path(path)) => Some(path),
        (Some(backend), _) => backend.path.as_ref(),
        (None, _) => None,
    };
    let fitting: Vec<&Mapping> = candidates
        .iter()
        .filter(|m| bytes.is_none_or(|bytes| m.bytes() == bytes))
        .filter(|m| path.is_none_or(|path| m.path().as_ref() == Some(path)))
        .collect();
    match fitting[..] {
        [one] => Ok(one.clone()),
        [] => Err(FindMemoryError::NoMatch {
            pid,
            candidates: candidates.len(),
        }),
        _ => Err(FindMemoryError::Ambiguous {
            pid,
            count: fitting.len(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::parse_maps;

    const PID: Pid = Pid::from_raw(7);

    fn candidates(text: &str) -> Vec<Mapping> {
        shared_mappings(&parse_maps(text).unwrap())
    }

    fn backend(bytes: u64, shared: bool, path: Option<&str>) -> Backend {
        Backend {
            id: "mem".into(),
            bytes,
            shared,
            path: path.map(PathBuf::from),
        }
    }

    const TWO: &str = "\
7f0000000000-7f0004000000 rw-s 00000000 00:01 27  /memfd:memory-backend-memfd (deleted)
7f0004000000-7f0008000000 rw-s 04000000 00:01 27  /memfd:memory-backend-memfd (deleted)
7f0008000000-7f000c000000 rw-p 00000000 00:01 28  /memfd:memory-backend-memfd (deleted)
7f0010000000-7f0014000000 rw-s 00000000 00:1b 2   /dev/shm/ram
7f0020000000-7f0020001000 r--s 00000000 00:1b 3   /dev/shm/read-only
";

    #[test]
    fn split_mappings_are_one_and_private_ones_none() {
        let found = candidates(TWO);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].bytes(), 128 << 20);
        assert_eq!(found[1].bytes(), 64 << 20);
    }

    #[test]
    fn size_and_path_decide() {
        let two = candidates(TWO);
        let chosen = choose(
            PID,
            &MemoryChoice::Main,
            Some(&backend(64 << 20, true, None)),
            &two,
        )
        .unwrap();
        assert_eq!(chosen.start, 0x7f00_1000_0000);
        let chosen = choose(PID, &MemoryChoice::Bytes(128 << 20), None, &two).unwrap();
        assert_eq!(chosen.start, 0x7f00_0000_0000);
        let chosen = choose(PID, &MemoryChoice::Path("/dev/shm/ram".into()), None, &two).unwrap();
        assert_eq!(chosen.start, 0x7f00_1000_0000);
        let with_path = backend(64 << 20, true, Some("/dev/shm/other"));
        assert!(matches!(
            choose(PID, &MemoryChoice::Main, Some(&with_path), &two),
            Err(FindMemoryError::NoMatch { candidates: 2, .. })
        ));
        assert!(matches!(
            choose(PID, &MemoryChoice::Main, None, &two),
            Err(FindMemoryError::Ambiguous { count: 2, .. })
        ));
    }

    #[test]
    fn private_memory_is_refused_with_the_words_to_add() {
        let error = choose(
            PID,
            &MemoryChoice::Main,
            Some(&backend(64 << 20, false, None)),
            &[],
        )
        .unwrap_err();
        assert!(matches!(error, FindMemoryError::Private { .. }));
        assert!(error.to_string().contains("share=on"));
        let unnamed = Backend {
            id: "pc.ram".into(),
            ..backend(64 << 20, false, None)
        };
        let error = choose(PID, &MemoryChoice::Main, Some(&unnamed), &[]).unwrap_err();
        assert!(matches!(error, FindMemoryError::NoSharedBackend { .. }));
        assert!(error.to_string().contains("-object memory-backend-memfd"));
        assert!(matches!(
            choose(PID, &MemoryChoice::Main, None, &[]),
            Err(FindMemoryError::NoSharedBackend { .. })
        ));
    }

    #[test]
    fn the_meant_backend_is_the_machines_own() {
        let make = |id: &str, size, share| MemoryBackend {
            id: Some(id.into()),
            size,
            share,
        };
        let backends = [
            make("a", 1 << 20, true),
            make("b", 2 << 20, true),
            make("c", 1 << 20, false),
        ];
        let meant = |choice: &MemoryChoice, main| {
            meant_backend(PID, choice, &backends, main).map(|b| b.id.clone().unwrap())
        };
        assert_eq!(meant(&MemoryChoice::Main, Some("b")).unwrap(), "b");
        assert_eq!(
            meant(&MemoryChoice::Id("c".into()), Some("b")).unwrap(),
            "c"
        );
        assert_eq!(meant(&MemoryChoice::Bytes(2 << 20), None).unwrap(), "b");
        assert!(matches!(
            meant(&MemoryChoice::Main, None),
            Err(FindMemoryError::Ambiguous { count: 2, .. })
        ));
        assert!(matches!(
            meant(&MemoryChoice::Id("x".into()), None),
            Err(FindMemoryError::NoMatch { .. })
        ));
    }
}

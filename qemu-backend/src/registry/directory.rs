//! The directory: claimed names, records that appear whole or not at all, stale ones removed.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mycoram_agent::RegionName;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

use super::{RECORD_VERSION, RegistryError, VmRecord, VmState};

/// The directory of running VMs.
#[derive(Clone, Debug)]
pub struct Registry {
    directory: PathBuf,
}

/// What a look into the directory gives.
#[derive(Debug, Default)]
pub struct Listing {
    /// The VMs, by name, with how they stand.
    pub vms: Vec<(VmRecord, VmState)>,
    /// Records that could not be read; they are left alone.
    pub unreadable: Vec<RegistryError>,
}

/// How often a lock file may be removed under our hands.
const CLAIM_TRIES: usize = 16;

/// A name that is ours. The kernel gives it up with the process that holds it, however that ends.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Before the lock is given up: who comes next makes a new one.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Registry {
    /// The registry of this user, made if it is not there.
    pub fn open() -> Result<Self, RegistryError> {
        let base = if geteuid().is_root() {
            PathBuf::from("/run/mycoram")
        } else if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty())
        {
            Path::new(&runtime).join("mycoram")
        } else {
            PathBuf::from(format!("/tmp/mycoram-{}", geteuid()))
        };
        Self::at(&base)
    }

    /// The registry under `base`, made if it is not there.
    pub fn at(base: &Path) -> Result<Self, RegistryError> {
        let directory = base.join("vms");
        for path in [base, &directory] {
            make_private(path)?;
        }
        Ok(Self { directory })
    }

    /// Where the QMP socket of `name` belongs.
    #[must_use]
    pub fn qmp_path(&self, name: &RegionName) -> PathBuf {
        self.directory.join(format!("{name}.qmp"))
    }

    /// Takes a name for a new VM: none of this name runs, and none can start until the claim is dropped.
    /// What an ended one left behind is removed.
    pub fn claim(&self, name: &RegionName) -> Result<Claim, RegistryError> {
        let claim = self.claim_running(name)?;
        match self.find(name) {
            Ok((record, VmState::Running | VmState::Orphaned)) => Err(RegistryError::Taken {
                pid: record.target.process.pid,
            }),
            Ok((_, VmState::Ended)) | Err(RegistryError::Unknown | RegistryError::Form { .. }) => {
                self.remove(name)?;
                Ok(claim)
            }
            Err(other) => Err(other),
        }
    }

    /// Takes the name of a VM that may run already: nobody else serves it until the claim is dropped.
    pub fn claim_running(&self, name: &RegionName) -> Result<Claim, RegistryError> {
        let path = self.directory.join(format!("{name}.lock"));
        let unusable = |source: io::Error| RegistryError::Record {
            path: path.clone(),
            source,
        };
        for _ in 0..CLAIM_TRIES {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(unusable)?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, Errno::EWOULDBLOCK)) => return Err(RegistryError::InUse),
                Err((_, errno)) => return Err(unusable(errno.into())),
            };
            // Its former holder may have removed it between our two steps.
            let ours = lock.metadata().map_err(unusable)?;
            if std::fs::metadata(&path)
                .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
            {
                return Ok(Claim { path, _lock: lock });
            }
        }
        Err(RegistryError::InUse)
    }

    /// Writes a record; readers see the old one or the new one, whole.
    pub fn write(&self, record: &VmRecord) -> Result<(), RegistryError> {
        let path = self.record_path(&record.name);
        let partial = self.directory.join(format!(".{}.partial", record.name));
        let text = serde_json::to_vec_pretty(record).map_err(|source| RegistryError::Form {
            path: path.clone(),
            source,
        })?;
        let written = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| std::fs::rename(&partial, &path));
        written.map_err(|source| RegistryError::Record { path, source })
    }

    /// Removes the record and the socket of `name`; neither needs to be there.
    pub fn remove(&self, name: &RegionName) -> Result<(), RegistryError> {
        for path in [self.record_path(name), self.qmp_path(name)] {
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(RegistryError::Record { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The VM of this name.
    pub fn find(&self, name: &RegionName) -> Result<(VmRecord, VmState), RegistryError> {
        let record = read(&self.record_path(name))?;
        let state = record.state();
        Ok((record, state))
    }

    /// The VM whose QEMU is `pid`, if there is one.
    pub fn find_pid(&self, pid: i32) -> Result<Option<(VmRecord, VmState)>, RegistryError> {
        let listing = self.list()?;
        Ok(listing
            .vms
            .into_iter()
            .find(|(record, _)| record.target.process.pid == pid))
    }

    /// All VMs that run or wait. Records of ended ones are removed.
    pub fn list(&self) -> Result<Listing, RegistryError> {
        let unusable = |source| RegistryError::Directory {
            path: self.directory.clone(),
            source,
        };
        let mut listing = Listing::default();
        for entry in std::fs::read_dir(&self.directory).map_err(unusable)? {
            let path = entry.map_err(unusable)?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => match record.state() {
                    VmState::Ended => self.remove(&record.name)?,
                    state => listing.vms.push((record, state)),
                },
                // It ended between the two looks.
                Err(RegistryError::Unknown) => {}
                Err(other) => listing.unreadable.push(other),
            }
        }
        listing
            .vms
            .sort_by(|(a, _), (b, _)| a.name.as_str().cmp(b.name.as_str()));
        Ok(listing)
    }

    fn record_path(&self, name: &RegionName) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }
}

fn read(path: &Path) -> Result<VmRecord, RegistryError> {
    let text = std::fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => RegistryError::Unknown,
        _ => RegistryError::Record {
            path: path.to_owned(),
            source,
        },
    })?;
    let form = |source| RegistryError::Form {
        path: path.to_owned(),
        source,
    };
    let record: VmRecord = serde_json::from_slice(&text).map_err(form)?;
    if record.version == RECORD_VERSION {
        Ok(record)
    } else {
        Err(form(serde::de::Error::custom(format_args!(
            "version {}, not {RECORD_VERSION}",
            record.version
        ))))
    }
}

fn make_private(path: &Path) -> Result<(), RegistryError> {
    let unusable = |source| RegistryError::Directory {
        path: path.to_owned(),
        source,
    };
    match DirBuilder::new().mode(0o700).create(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            return Err(unusable(source));
        }
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(path).map_err(unusable)?;
    let ours =
        metadata.is_dir() && metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if ours {
        Ok(())
    } else {
        Err(RegistryError::Foreign {
            path: path.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::{TakeOver, TargetDescriptors};
    use crate::process::ProcessIdentity;
    use mycoram_fabric::units::ByteCount;
    use std::os::unix::fs::PermissionsExt;

    fn record(name: &str, qemu: ProcessIdentity, agent: ProcessIdentity) -> VmRecord {
        VmRecord {
            version: RECORD_VERSION,
            name: name.parse().unwrap(),
            agent,
            target: TakeOver {
                process: qemu,
                base: 0x7f00_0000_0000,
                bytes: 1 << 20,
                file_offset: 0,
                in_target: TargetDescriptors {
                    userfaultfd: 20,
                    memory: None,
                    pipes: Vec::new(),
                },
            },
            qmp: None,
            memory: ByteCount::new(1 << 20),
            local_budget: ByteCount::new(1 << 20),
            state_dir: "/dev/shm/mycoram".into(),
            nodes: "nodes.toml".into(),
            attach_us: 3000,
            stopped_us: 200,
        }
    }

    fn dead() -> ProcessIdentity {
        ProcessIdentity {
            pid: std::process::id() as i32,
            start_ticks: 1,
        }
    }

    #[test]
    fn states_follow_the_processes() {
        let base = tempfile::tempdir().unwrap();
        let registry = Registry::at(&base.path().join("mycoram")).unwrap();
        let own = ProcessIdentity::own().unwrap();
        registry.write(&record("runs", own, own)).unwrap();
        registry.write(&record("waits", own, dead())).unwrap();
        registry.write(&record("ended", dead(), own)).unwrap();
        std::fs::write(base.path().join("mycoram/vms/strange.json"), "{}").unwrap();

        let listing = registry.list().unwrap();
        let seen: Vec<_> = listing
            .vms
            .iter()
            .map(|(r, s)| (r.name.as_str().to_owned(), *s))
            .collect();
        assert_eq!(
            seen,
            [
                ("runs".to_owned(), VmState::Running),
                ("waits".to_owned(), VmState::Orphaned)
            ]
        );
        assert_eq!(listing.unreadable.len(), 1);
        assert!(matches!(
            registry.find(&"ended".parse().unwrap()),
            Err(RegistryError::Unknown)
        ));
        assert!(registry.find_pid(own.pid).unwrap().is_some());
        assert!(registry.find_pid(1).unwrap().is_none());
    }

    #[test]
    fn a_name_is_claimed_once() {
        let base = tempfile::tempdir().unwrap();
        let registry = Registry::at(base.path().join("m").as_path()).unwrap();
        let own = ProcessIdentity::own().unwrap();
        let name: RegionName = "a".parse().unwrap();
        registry.claim(&name).unwrap();
        registry.write(&record("a", own, own)).unwrap();
        assert!(matches!(
            registry.claim(&name),
            Err(RegistryError::Taken { .. })
        ));
        registry.write(&record("a", own, dead())).unwrap();
        assert!(matches!(
            registry.claim(&name),
            Err(RegistryError::Taken { .. })
        ));
        registry.write(&record("a", dead(), dead())).unwrap();
        registry.claim(&name).unwrap();
        assert!(matches!(registry.find(&name), Err(RegistryError::Unknown)));
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let open = base.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            Registry::at(&open),
            Err(RegistryError::Foreign { .. })
        ));
    }

    #[test]
    fn another_version_is_not_read() {
        let base = tempfile::tempdir().unwrap();
        let registry = Registry::at(base.path().join("m").as_path()).unwrap();
        let own = ProcessIdentity::own().unwrap();
        let mut newer = record("newer", own, own);
        newer.version = 2;
        registry.write(&newer).unwrap();
        assert!(matches!(
            registry.find(&newer.name),
            Err(RegistryError::Form { .. })
        ));
    }
}

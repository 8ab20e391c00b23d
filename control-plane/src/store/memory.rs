//! A store in memory, whose disk can be full, and whose owner can die around a commit; also one that several
//! control planes share, that one of them can be cut off from, and to which commits can come late.
//!
//! The disk outlives the store that writes it, as a real one does: a control plane that is started again
//! opens the same disk. What is on it has the same bytes as in any other store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::format::{decode, decode_key, encode, encode_key};
use super::{Alone, Lead, Loaded, Probe, Revision, Store, StoreError};
use crate::cluster::Batch;

/// A leader that does not ask for so long is none any more.
const LEADER_LEASE_MS: u64 = 2_000;

/// What happens to the next commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// They are done.
    #[default]
    None,
    /// There is no room, until this is set otherwise.
    Full,
    /// The next one fails and is not done; then as without fault.
    LoseNext,
    /// The next one fails and is done; then as without fault.
    KeepNext,
    /// The next one fails, and is done when [`Disk::arrive`] says so, if it may be done then; then as without
    /// fault. Its owner has given it up long since: among the members of a store requests wait.
    DelayNext,
}

/// A commit that is on its way.
#[derive(Debug)]
struct Late {
    guard: Option<u64>,
    at: Revision,
    batch: Batch,
}

#[derive(Debug, Default)]
struct Content {
    revision: Revision,
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    fault: Fault,
    now_ms: u64,
    leader: Option<Leader>,
    guards: u64,
    unguarded: bool,
    unnumbered: bool,
    /// In the order in which they were sent.
    late: Vec<Late>,
}

#[derive(Debug)]
struct Leader {
    guard: u64,
    address: String,
    until_ms: u64,
}

impl Content {
    /// As far as the time has not run out.
    fn leader(&self) -> Option<&Leader> {
        self.leader
            .as_ref()
            .filter(|leader| leader.until_ms > self.now_ms)
    }

    /// Whether whoever has `guard` may write, or say something, at a revision; `shared`: where others could, too.
    fn check(&self, shared: bool, guard: Option<u64>, at: Revision) -> Result<(), StoreError> {
        let leader = self.leader();
        if shared && (guard.is_none() || leader.map(|leader| leader.guard) != guard) {
            let leader = leader.map(|leader| leader.address.clone());
            return Err(StoreError::Deposed { leader });
        }
        if self.revision != at && !self.unnumbered {
            return Err(StoreError::Overtaken {
                expected: at,
                current: self.revision,
            });
        }
        Ok(())
    }

    fn write(&mut self, batch: &Batch) {
        for (key, record) in &batch.changes {
            match record {
                Some(record) => self.values.insert(encode_key(*key), encode(*key, record)),
                None => self.values.remove(&encode_key(*key)),
            };
        }
        self.revision = Revision(self.revision.0 + 1);
    }
}

/// What is durable.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    content: Arc<Mutex<Content>>,
}

impl Disk {
    /// From now on this happens.
    pub fn set_fault(&self, fault: Fault) {
        self.with(|content| content.fault = fault);
    }

    /// What the clock of a shared disk shows.
    pub fn set_time(&self, now_ms: u64) {
        self.with(|content| content.now_ms = now_ms);
    }

    /// From now on whoever commits is let: a bug that a test plants.
    pub fn leave_out_the_guard(&self) {
        self.with(|content| content.unguarded = true);
    }

    /// From now on nobody's commit is compared with what was written meanwhile: a bug that a test plants.
    pub fn leave_out_the_revision(&self) {
        self.with(|content| content.unnumbered = true);
    }

    /// The commits that were delayed arrive. Gives how many came, and those that still could be done.
    pub fn arrive(&self) -> (usize, Vec<Batch>) {
        self.with(|content| {
            let mut done = Vec::new();
            let came = std::mem::take(&mut content.late);
            let count = came.len();
            for late in came {
                if content.unguarded || content.check(true, late.guard, late.at).is_ok() {
                    content.write(&late.batch);
                    done.push(late.batch);
                }
            }
            (count, done)
        })
    }

    /// How often it was written.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.with(|content| content.revision)
    }

    /// What is on it.
    pub fn read(&self) -> Result<Loaded, StoreError> {
        self.with(|content| {
            let mut records = Vec::with_capacity(content.values.len());
            for (key, value) in &content.values {
                let key = decode_key(key)?;
                records.push((key, decode(key, value)?));
            }
            Ok(Loaded {
                revision: content.revision,
                records,
            })
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Content) -> T) -> T {
        work(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A control plane's hold of a [`Disk`].
#[derive(Debug)]
pub struct MemoryStore {
    disk: Disk,
    shared: bool,
    guard: Option<u64>,
    cut_off: bool,
}

/// A failure that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store was told to fail")]
struct Told;

impl MemoryStore {
    /// Opens what is on a disk.
    #[must_use]
    pub fn new(disk: Disk) -> Self {
        Self {
            disk,
            shared: false,
            guard: None,
            cut_off: false,
        }
    }

    /// Opens what is on a disk that others have, too.
    #[must_use]
    pub fn shared(disk: Disk) -> Self {
        Self {
            shared: true,
            ..Self::new(disk)
        }
    }

    /// Whether the disk cannot be reached.
    pub fn set_cut_off(&mut self, cut_off: bool) {
        self.cut_off = cut_off;
    }

    fn reach(&self) -> Result<(), StoreError> {
        if self.cut_off {
            Err(StoreError::Failed(Box::new(Told)))
        } else {
            Ok(())
        }
    }
}

impl Store for MemoryStore {
    fn is_shared(&self) -> bool {
        self.shared
    }

    fn lead(&mut self, address: &str) -> Result<Lead, StoreError> {
        self.reach()?;
        if !self.shared {
            return Ok(Lead::Ours { guard: 0 });
        }
        let guard = self.guard;
        let lead = self.disk.with(|content| {
            let until_ms = content.now_ms + LEADER_LEASE_MS;
            if content.leader().is_none() {
                content.guards += 1;
                content.leader = Some(Leader {
                    guard: content.guards,
                    address: address.to_owned(),
                    until_ms,
                });
                let guard = content.guards;
                return Lead::Ours { guard };
            }
            match &mut content.leader {
                Some(leader) if Some(leader.guard) == guard => {
                    leader.until_ms = until_ms;
                    let guard = leader.guard;
                    Lead::Ours { guard }
                }
                Some(leader) => Lead::Theirs(leader.address.clone()),
                None => Lead::Nobodys,
            }
        });
        self.guard = match lead {
            Lead::Ours { guard } => Some(guard),
            _ => None,
        };
        Ok(lead)
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.reach()?;
        self.disk.read()
    }

    fn confirm(&mut self, at: Revision) -> Result<(), StoreError> {
        self.reach()?;
        self.disk
            .with(|content| content.check(self.shared, self.guard, at))
    }

    fn commit(&mut self, at: Revision, batch: &Batch) -> Result<Revision, StoreError> {
        self.reach()?;
        self.disk.with(|content| {
            if !content.unguarded {
                content.check(self.shared, self.guard, at)?;
            }
            let fault = content.fault;
            match fault {
                Fault::Full => return Err(StoreError::Full(Box::new(Told))),
                Fault::LoseNext => {
                    content.fault = Fault::None;
                    return Err(StoreError::Failed(Box::new(Told)));
                }
                Fault::DelayNext => {
                    content.fault = Fault::None;
                    // What writes its own file waits for nobody: it is done or not.
                    if self.shared {
                        let batch = batch.clone();
                        let guard = self.guard;
                        content.late.push(Late { guard, at, batch });
                    }
                    return Err(StoreError::Failed(Box::new(Told)));
                }
                Fault::None | Fault::KeepNext => content.fault = Fault::None,
            }
            content.write(batch);
            match fault {
                Fault::KeepNext => Err(StoreError::Failed(Box::new(Told))),
                _ => Ok(content.revision),
            }
        })
    }

    fn probe(&self) -> Arc<dyn Probe> {
        Arc::new(Alone("memory"))
    }
}

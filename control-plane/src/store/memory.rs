//! A store in memory, whose disk can be full, and whose owner can die around a commit; also one that several
//! control planes share, and that one of them can be cut off from.
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

    fn check(&self, content: &Content, at: Revision) -> Result<(), StoreError> {
        let leader = content.leader();
        if self.shared && (self.guard.is_none() || leader.map(|leader| leader.guard) != self.guard)
        {
            let leader = leader.map(|leader| leader.address.clone());
            return Err(StoreError::Deposed { leader });
        }
        if content.revision != at {
            return Err(StoreError::Overtaken {
                expected: at,
                current: content.revision,
            });
        }
        Ok(())
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
        self.disk.with(|content| self.check(content, at))
    }

    fn commit(&mut self, at: Revision, batch: &Batch) -> Result<Revision, StoreError> {
        self.reach()?;
        self.disk.with(|content| {
            if !content.unguarded {
                self.check(content, at)?;
            }
            let fault = content.fault;
            match fault {
                Fault::Full => return Err(StoreError::Full(Box::new(Told))),
                Fault::LoseNext => {
                    content.fault = Fault::None;
                    return Err(StoreError::Failed(Box::new(Told)));
                }
                Fault::None | Fault::KeepNext => content.fault = Fault::None,
            }
            for (key, record) in &batch.changes {
                match record {
                    Some(record) => content
                        .values
                        .insert(encode_key(*key), encode(*key, record)),
                    None => content.values.remove(&encode_key(*key)),
                };
            }
            content.revision = Revision(content.revision.0 + 1);
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

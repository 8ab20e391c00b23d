//! A store in memory, whose disk can be full, and whose owner can die around a commit.
//!
//! The disk outlives the store that writes it, as a real one does: a control plane that is started again
//! opens the same disk. What is on it has the same bytes as in any other store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::format::{decode, decode_key, encode, encode_key};
use super::{Loaded, Revision, Store, StoreError};
use crate::cluster::Batch;

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
}

/// A failure that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store was told to fail")]
struct Told;

impl MemoryStore {
    /// Opens what is on a disk.
    #[must_use]
    pub fn new(disk: Disk) -> Self {
        Self { disk }
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.disk.read()
    }

    fn commit(&mut self, at: Revision, batch: &Batch) -> Result<Revision, StoreError> {
        self.disk.with(|content| {
            if content.revision != at {
                return Err(StoreError::Overtaken {
                    expected: at,
                    current: content.revision,
                });
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
            content.revision = Revision(at.0 + 1);
            match fault {
                Fault::KeepNext => Err(StoreError::Failed(Box::new(Told))),
                _ => Ok(content.revision),
            }
        })
    }
}

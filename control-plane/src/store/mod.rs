//! Where the control plane's records are kept, so that whoever starts it again goes on.
//!
//! ```text
//!   load   -> the revision, all records
//!   commit    at this revision: these changes, all or none, durable when it returns -> the next revision
//!             at another one:   refused, somebody else leads
//! ```
//!
//! One trait, so that the same control plane runs on one machine (`redb`) and in a simulation (`memory`).
//! After a commit that failed it is not always known whether it was done: undo the step, load again.

mod format;
mod memory;
mod redb;

#[cfg(test)]
mod tests;

use std::fmt;

pub use self::format::{FORMAT_VERSION, FormatError, Malformed};
pub use self::memory::{Disk, Fault, MemoryStore};
pub use self::redb::RedbStore;
use crate::cluster::{Batch, Key, Record};

/// How often a store was written. Two that differ hold different things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u64);

impl Revision {
    /// Wraps the raw number.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "revision {}", self.0)
    }
}

/// All there is.
#[derive(Debug, Default)]
pub struct Loaded {
    /// At which revision.
    pub revision: Revision,
    /// In no order.
    pub records: Vec<(Key, Record)>,
}

/// Why a store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else wrote to it. Nothing was written.
    #[error("the store is at {current}, not at {expected}: another control plane leads")]
    Overtaken {
        /// What the caller knew.
        expected: Revision,
        /// What it is at.
        current: Revision,
    },
    /// No room. Nothing was written.
    #[error("the disk of the store is full: make room, changes wait until then")]
    Full(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another process has it.
    #[error("the store is open in another process")]
    InUse,
    /// A record makes no sense.
    #[error("a record of the store cannot be read")]
    Format(#[from] FormatError),
    /// It cannot be read or written. Whether the last commit was done is not known: load again.
    #[error("the store cannot be read or written")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// See the module.
pub trait Store: Send {
    /// Reads all records. Also after a failure: then it is opened again.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Writes a batch, if the store is `at` that revision. `Ok`: it is durable, at the revision that is given.
    fn commit(&mut self, at: Revision, batch: &Batch) -> Result<Revision, StoreError>;
}

//! Where the control plane's records are kept, so that whoever starts it again goes on.
//!
//! ```text
//!   load   -> the revision, all records
//!   commit    at this revision: these changes, all or none, durable when it returns -> the next revision
//!             at another one:   refused, somebody else leads
//! ```
//!
//! One trait, so that the same control plane runs on one machine (`redb`), on several that share a store
//! (`etcd`), and in a simulation (`memory`). After a commit that failed it is not always known whether it was
//! done: undo the step, load again.
//!
//! Of those that share a store one leads, and only it may load to go on from there, commit and confirm:
//!
//! ```text
//!   lead       nobody leads -> ours, from now on; with another guard than before: load, begin anew
//!   confirm    nobody else leads, nothing was written since: what is remembered holds now
//! ```

mod etcd;
mod format;
mod memory;
mod moving;
mod redb;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

pub use self::etcd::{EtcdError, EtcdOptions, EtcdStore};
pub use self::format::{FORMAT_VERSION, FormatError, Malformed};
pub use self::memory::{Disk, Fault, MemoryStore};
pub use self::moving::{MoveError, copy_all};
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
    /// Another control plane leads by now. Nothing was written.
    #[error("another control plane leads")]
    Deposed {
        /// Where it is reached, if that is known.
        leader: Option<String>,
    },
    /// Something else was written to it, of which it was not known whether it would be. Nothing was written.
    #[error("the store is at {current}, not at {expected}: it is to be loaded again")]
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

/// Who leads, of the control planes that share a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lead {
    /// The one that asked.
    Ours {
        /// Grows whenever anybody takes the lead. Another one than before: it was lost meanwhile, others may have
        /// led, and what was known before says nothing.
        guard: u64,
    },
    /// Another one, that is reached there.
    Theirs(String),
    /// None, for a moment.
    Nobodys,
}

/// How a store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreHealth {
    /// Which sort: `redb`, `etcd` or `memory`.
    pub kind: &'static str,
    /// Changes can be written.
    pub writable: bool,
    /// Its members, where it has any.
    pub members: Vec<MemberHealth>,
    /// The control planes that share it, where several can.
    pub processes: Vec<ProcessSeen>,
}

/// A member of a store, as it says itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberHealth {
    /// Where it was asked.
    pub address: String,
    /// It answered. If not, only why is known.
    pub up: bool,
    /// Why it did not answer: what its machine, or the certificates, said.
    pub silent_because: Option<String>,
    /// It knows who leads the store.
    pub follows: bool,
    /// It leads the store.
    pub leads: bool,
    /// Bytes of its file.
    pub bytes: u64,
    /// Its version.
    pub version: String,
    /// What it complains of, such as a full disk.
    pub alarms: Vec<String>,
}

/// A control plane that shares a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSeen {
    /// Where it is reached.
    pub address: String,
    /// It leads.
    pub leads: bool,
}

/// Looks at a store while somebody else works with it.
#[tonic::async_trait]
pub trait Probe: Send + Sync {
    /// As it is now. Takes a bounded time, also when nobody answers.
    async fn health(&self) -> StoreHealth;
}

/// See the module.
pub trait Store: Send {
    /// Whether several control planes can work with it, one at a time.
    fn is_shared(&self) -> bool {
        false
    }

    /// Takes the lead if nobody has it; others are told that `address` is where the leader is reached. Asked
    /// again and again, also by who leads. A store of one process is always led by it.
    fn lead(&mut self, _address: &str) -> Result<Lead, StoreError> {
        Ok(Lead::Ours { guard: 0 })
    }

    /// Reads all records. Also after a failure: then it is opened again. Who does not lead may read, too.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Writes a batch, if the store is `at` that revision. `Ok`: it is durable, at the revision that is given.
    fn commit(&mut self, at: Revision, batch: &Batch) -> Result<Revision, StoreError>;

    /// Whether what was loaded or committed last, `at` that revision, is all there is at this moment. A store
    /// of one process is not written by anybody else.
    fn confirm(&mut self, _at: Revision) -> Result<(), StoreError> {
        Ok(())
    }

    /// Who can look at it meanwhile.
    fn probe(&self) -> Arc<dyn Probe>;
}

/// A store without members, of one process.
struct Alone(&'static str);

#[tonic::async_trait]
impl Probe for Alone {
    async fn health(&self) -> StoreHealth {
        StoreHealth {
            kind: self.0,
            writable: true,
            ..StoreHealth::default()
        }
    }
}

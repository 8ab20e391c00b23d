//! What lanes know of a region: its homes and its nodes, as one snapshot that is replaced whole.
//!
//! A lane looks at the version before it makes requests, which is one load. Only when it has changed does it
//! take the lock, which others hold for no longer than it takes to copy a pointer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::homes::Homes;
use super::link::NodeLink;
use super::watch::WatchHandle;

/// See the module.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) homes: Arc<Homes>,
    /// In the order of the directory's nodes; only ever longer than before.
    pub(super) links: Arc<[Arc<NodeLink>]>,
    /// One a link; none in simulated time.
    pub(super) watches: Option<Arc<[WatchHandle]>>,
}

/// Where the newest snapshot is.
pub(super) struct Published {
    version: AtomicU64,
    newest: Mutex<Snapshot>,
}

impl Published {
    pub(super) fn new(snapshot: Snapshot) -> Self {
        Self {
            version: AtomicU64::new(snapshot.homes.version()),
            newest: Mutex::new(snapshot),
        }
    }

    /// Of the newest snapshot, or of a newer one.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(super) fn newest(&self) -> Snapshot {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.clone()
    }

    /// From now on requests are made by this.
    pub(super) fn publish(&self, snapshot: Snapshot) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let version = snapshot.homes.version();
        let former = std::mem::replace(&mut *newest, snapshot);
        self.version.store(version, Ordering::Release);
        drop(newest);
        drop(former);
    }
}

//! A region's remote side: what all its lanes share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::clock::Clock;
use super::directory::Directory;
use super::frames::FramePool;
use super::homes::Homes;
use super::lane::Lane;
use super::link::NodeLink;
use super::queue::Moved;
use super::watch::{Watch, WatchHandle};
use crate::pages::{LaneConfig, LaneError, PageLane, RemoteRegion, RemoteStats};
use crate::placement::RegionEntry;
use crate::units::PageCount;

/// Counted by all lanes.
#[derive(Debug, Default)]
pub(super) struct Counters {
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    reconnects: AtomicU64,
}

impl Counters {
    pub(super) fn add(&self, moved: Moved) {
        for (counter, by) in [
            (&self.bytes_read, moved.bytes_read),
            (&self.bytes_written, moved.bytes_written),
            (&self.reads, moved.reads),
            (&self.writes, moved.writes),
        ] {
            if by > 0 {
                counter.fetch_add(by, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn reconnected(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the lanes share.
pub(super) struct Shared {
    pub(super) directory: Directory,
    pub(super) homes: Arc<Homes>,
    pub(super) links: Arc<[Arc<NodeLink>]>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) counters: Counters,
    /// Shared with the links.
    pub(super) fenced: Arc<AtomicBool>,
    pub(super) frames: Arc<FramePool>,
    /// One a node; none in simulated time. Emptied on release.
    pub(super) watches: Mutex<Vec<Watch>>,
}

impl Shared {
    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }

    pub(super) fn pages(&self) -> PageCount {
        // Checked when the region was opened.
        PageCount::holding(self.directory.region.bytes).unwrap_or_default()
    }

    /// Handles of the watch threads, in the order of the nodes; `None` where there are none.
    pub(super) fn watches(&self) -> Option<Vec<WatchHandle>> {
        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        (!watches.is_empty()).then(|| watches.iter().map(Watch::handle).collect())
    }
}

/// A region whose pages live on memory nodes. Made by [`Remote::create`] or [`Remote::reopen`].
pub struct Remote {
    pub(super) shared: Arc<Shared>,
}

impl Remote {
    /// What a successor needs to take the region over with [`Remote::reopen`]. It holds the region's
    /// secret: keep it where only the owner reads.
    #[must_use]
    pub fn directory(&self) -> Vec<u8> {
        self.shared.directory.encode()
    }

    /// The region, at the epoch of this owner.
    #[must_use]
    pub fn entry(&self) -> &RegionEntry {
        &self.shared.directory.region
    }

    /// How many of the region's nodes are lost.
    fn nodes_lost(&self) -> u64 {
        self.shared
            .links
            .iter()
            .filter(|link| link.is_lost())
            .count() as u64
    }
}

impl RemoteRegion for Remote {
    fn pages(&self) -> PageCount {
        self.shared.pages()
    }

    fn open_lane(&self, config: &LaneConfig) -> Result<Box<dyn PageLane>, LaneError> {
        Ok(Box::new(Lane::open(Arc::clone(&self.shared), config)?))
    }

    fn stats(&self) -> RemoteStats {
        let counters = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RemoteStats {
            bytes_read: get(&counters.bytes_read),
            bytes_written: get(&counters.bytes_written),
            reads: get(&counters.reads),
            writes: get(&counters.writes),
            reconnects: get(&counters.reconnects),
            nodes_lost: self.nodes_lost(),
        }
    }

    fn node_name(&self, node: u16) -> String {
        let record = self.shared.directory.nodes.get(usize::from(node));
        record.map_or_else(
            || format!("node {node}"),
            |record| record.entry.name.clone(),
        )
    }

    fn release(&self) {
        for link in self.shared.links.iter() {
            link.release();
        }
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("region", &self.shared.directory.region)
            .finish_non_exhaustive()
    }
}

//! A region's remote side: what all its lanes share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::assemble::RemoteOptions;
use super::changes::{Changes, Losses};
use super::directory::{Directory, Worth};
use super::frames::FramePool;
use super::homes::Homes;
use super::keeper::Keeper;
use super::lane::Lane;
use super::published::Published;
use super::queue::Moved;
use super::thin::Thin;
use super::transports::Transports;
use super::waits::LanePosts;
use super::watch::Watch;
use crate::authority::{AuthorityError, RegionAuthority};
use crate::check::{CheckOrder, CheckReport};
use crate::pages::{
    KeepDirectory, KeepError, LaneConfig, LaneError, NodeSet, PageLane, RemoteRegion, RemoteStats,
};
use crate::placement::RegionEntry;
use crate::rebuild::Rebuilder;
use crate::session::Identity;
use crate::units::{ExtentIndex, PAGE_SHIFT, PageCount, PageIndex};

/// Counted by all lanes.
#[derive(Debug, Default)]
pub(super) struct Counters {
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    reconnects: AtomicU64,
    failovers: AtomicU64,
    hedges_won: AtomicU64,
    hedges_lost: AtomicU64,
    repairs: AtomicU64,
}

impl Counters {
    pub(super) fn add(&self, moved: Moved) {
        for (counter, by) in [
            (&self.bytes_read, moved.bytes_read),
            (&self.bytes_written, moved.bytes_written),
            (&self.reads, moved.reads),
            (&self.writes, moved.writes),
            (&self.failovers, moved.failovers),
            (&self.hedges_won, moved.hedges_won),
            (&self.hedges_lost, moved.hedges_lost),
            (&self.repairs, moved.repairs),
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
    pub(super) region: RegionEntry,
    pub(super) identity: Identity,
    pub(super) options: RemoteOptions,
    pub(super) transports: Transports,
    pub(super) authority: Arc<dyn RegionAuthority>,
    pub(super) published: Published,
    pub(super) lanes: LanePosts,
    pub(super) counters: Counters,
    /// Shared with the links.
    pub(super) fenced: Arc<AtomicBool>,
    /// Shared with the links.
    pub(super) losses: Arc<Losses>,
    pub(super) released: AtomicBool,
    pub(super) frames: Arc<FramePool>,
    /// Held for as long as a change takes; see `changes`.
    pub(super) changes: Mutex<Changes>,
    /// Held for moments. Changed only with `changes` held.
    pub(super) directory: Mutex<Directory>,
    /// One a node; none in simulated time. Dropped with the region.
    pub(super) watches: Mutex<Vec<Watch>>,
    /// None in simulated time.
    pub(super) keepers: Mutex<Vec<Keeper>>,
    /// What was placed when the region was adopted, if it was.
    pub(super) inherited: Option<Arc<Homes>>,
    /// Not where every extent was placed when the region was opened.
    pub(super) thin: Option<Thin>,
}

impl Shared {
    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }

    pub(super) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// The authority knows a new owner.
    pub(super) fn fence(&self) {
        if !self.fenced.swap(true, Ordering::AcqRel) {
            tracing::error!(
                region = %self.region.id,
                epoch = %self.region.epoch,
                "this owner was fenced: the region has a new one"
            );
        }
    }

    /// The extent that a page is in.
    pub(super) fn extent_of(&self, page: PageIndex) -> ExtentIndex {
        let extent_pages = (self.region.extent_bytes.get() >> PAGE_SHIFT).max(1);
        // A region has at most as many extents as pages.
        ExtentIndex::new((u64::from(page.get()) / extent_pages) as u32)
    }

    pub(super) fn pages(&self) -> PageCount {
        // Checked when the region was opened.
        PageCount::holding(self.region.bytes).unwrap_or_default()
    }

    pub(super) fn add_watch(&self, watch: Watch) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.push(watch);
    }
}

/// A region whose pages live on memory nodes. Made by [`Remote::create`] or [`Remote::reopen`].
pub struct Remote {
    pub(super) shared: Arc<Shared>,
    /// Carries out the authority's orders; not where it gives none, or in simulated time.
    pub(super) rebuilder: OnceLock<Rebuilder>,
}

impl Remote {
    /// What a successor needs to take the region over with [`Remote::reopen`]. It holds the region's
    /// secret: keep it where only the owner reads. It changes when homes do: see [`RemoteRegion::keep_directory`].
    #[must_use]
    pub fn directory(&self) -> Vec<u8> {
        self.shared.directory().encode()
    }

    /// The thread that makes up for lost replicas, where there is one.
    #[must_use]
    pub fn rebuilder(&self) -> Option<&Rebuilder> {
        self.rebuilder.get()
    }

    /// The region, at the epoch of this owner.
    #[must_use]
    pub fn entry(&self) -> &RegionEntry {
        &self.shared.region
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
        let links = self.shared.published.newest().links;
        let directory = self.shared.directory();
        let worth = |worth| {
            let homes = directory.homes.iter().flatten();
            homes.filter(|home| home.worth == worth).count() as u64
        };
        let rebuild = self.rebuilder.get().map(Rebuilder::progress);
        let rebuild = rebuild.unwrap_or_default();
        let placed = (0..directory.homes.len() as u32).map(ExtentIndex::new);
        let placed = placed.filter(|extent| directory.is_placed(*extent)).count();
        let of_thin = |counter: fn(&Thin) -> &AtomicU64| {
            let thin = self.shared.thin.as_ref();
            thin.map_or(0, |thin| get(counter(thin)))
        };
        RemoteStats {
            bytes_read: get(&counters.bytes_read),
            bytes_written: get(&counters.bytes_written),
            reads: get(&counters.reads),
            writes: get(&counters.writes),
            reconnects: get(&counters.reconnects),
            nodes_lost: links.iter().filter(|link| link.is_lost()).count() as u64,
            replicas_live: worth(Worth::Live),
            replicas_copying: worth(Worth::Copying),
            replicas_stale: worth(Worth::Stale),
            failovers: get(&counters.failovers),
            hedges_won: get(&counters.hedges_won),
            hedges_lost: get(&counters.hedges_lost),
            repairs: get(&counters.repairs),
            rebuild_waiting: rebuild.waiting as u64,
            rebuild_pages_left: rebuild.pages_left,
            rebuilt_replicas: rebuild.copied,
            rebuilt_bytes: rebuild.bytes,
            rebuild_failures: rebuild.failures,
            extents: directory.homes.len() as u64,
            extents_placed: placed as u64,
            writes_unplaced: of_thin(|thin| &thin.held),
            places_away: of_thin(|thin| &thin.away),
            places_refused: of_thin(|thin| &thin.refused),
        }
    }

    fn expect(&self, page: PageIndex) {
        if let Some(thin) = &self.shared.thin
            && page.get() < self.shared.pages().get()
        {
            thin.touch(self.shared.extent_of(page));
        }
    }

    fn is_placed(&self, page: PageIndex) -> bool {
        let thin = self.shared.thin.as_ref();
        thin.is_none_or(|thin| thin.is_placed(self.shared.extent_of(page)))
    }

    fn inherits(&self, page: PageIndex) -> bool {
        let inherited = self.shared.inherited.as_ref();
        inherited.is_some_and(|homes| homes.is_placed(self.shared.extent_of(page)))
    }

    fn has_room(&self) -> bool {
        !self.shared.thin.as_ref().is_some_and(Thin::is_full)
    }

    fn node_name(&self, node: u16) -> String {
        let links = self.shared.published.newest().links;
        let link = links.get(usize::from(node));
        link.map_or_else(
            || format!("node {node}"),
            |link| link.record.entry.name.clone(),
        )
    }

    fn keep_directory(&self, keep: KeepDirectory) -> Result<(), KeepError> {
        self.shared.keep_directory(keep)
    }

    fn replicas_of(&self, page: PageIndex) -> NodeSet {
        let extent = self.shared.extent_of(page).get() as usize;
        let directory = self.shared.directory();
        let mut nodes = NodeSet::NONE;
        for home in directory.homes.get(extent).into_iter().flatten() {
            if home.worth == Worth::Live {
                nodes.add(home.node);
            }
        }
        nodes
    }

    fn check_wanted(&self) -> Option<CheckOrder> {
        self.shared.authority.check_wanted()
    }

    fn check_told(&self, report: &CheckReport) -> Result<(), AuthorityError> {
        self.shared.authority.check_told(report)
    }

    fn release(&self) {
        self.shared.released.store(true, Ordering::Release);
        if let Some(thin) = &self.shared.thin {
            // What is being placed just now is given back too.
            drop(thin.ask());
        }
        for link in self.shared.published.newest().links.iter() {
            link.release();
        }
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("region", &self.shared.region)
            .finish_non_exhaustive()
    }
}

//! A region that an agent serves: the handle through which its owner speaks to it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;
use mycoram_fabric::pages::{LaneError, PageError, RemoteRegion};
use mycoram_fabric::units::{ByteCount, Epoch, PAGE_BYTES, PageCount, PageIndex, RegionId};

use super::address::Segment;
use super::failure::ThreadPanic;
use super::fault_worker::AdviceGiven;
use super::set_up::{Running, SetUpError};
use super::shared::{Shared, Standing, count};
use super::take_over::SavedRegion;
use super::victim_desk::VictimDesk;
use super::{attach, failure, flush, orders, snapshot, take_over};
use crate::config::{Advice, ConfigError, RegionConfig, check_budget};
use crate::kernel::{
    CallFailed, HandshakeError, MemoryFileError, MemoryLock, ParkingError, PidFdError,
    ReceiveError, RegisterError,
};
use crate::page_table::{StateFile, StateFileError};
use crate::seal::SealError;
use crate::stats::RegionStats;
use crate::target::{PrivateTarget, Target};

/// Whose region it is, as the remote side knows it. Kept in the state file for a successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The region's identity.
    pub region: RegionId,
    /// The epoch under which `remote` was opened. A successor opens with a higher one.
    pub epoch: Epoch,
    /// Whatever the remote side needs to open the same pages again; at most 1 MiB. Opaque here.
    pub directory: Vec<u8>,
}

/// Why a region could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The configuration cannot be.
    #[error("the region's configuration cannot be")]
    Config(#[from] ConfigError),
    /// Remote side and target differ in size.
    #[error("the region has {remote} at the memory nodes and {target} in the target")]
    SizeMismatch {
        /// At the memory nodes.
        remote: PageCount,
        /// In the target.
        target: PageCount,
    },
    /// Start, length or place in the file is not whole pages, or outside of the file.
    #[error("the target's mapping is not whole pages of its file")]
    Mapping,
    /// The file cannot be paged.
    #[error("the target's memory cannot be paged")]
    Memory(#[from] MemoryFileError),
    /// The file has pages of another size.
    #[error(
        "the target's memory has huge pages; regions have pages of 4 KiB: use a file without hugetlb"
    )]
    HugePages,
    /// The pipes do not do.
    #[error("the target's parking pipes cannot be used")]
    Pipes(#[from] ParkingError),
    /// A pipe is not empty.
    #[error("a parking pipe holds {0} already: give each region pipes of its own")]
    PipeInUse(PageCount),
    /// The descriptor does not do.
    #[error("the target's userfaultfd cannot be used")]
    Userfault(#[from] ReceiveError),
    /// The handshake failed.
    #[error("the target's userfaultfd cannot be set up")]
    Handshake(#[from] HandshakeError),
    /// The mapping cannot be watched.
    #[error("the target's mapping cannot be watched")]
    Register(#[from] RegisterError),
    /// The target cannot be held.
    #[error("the target process cannot be held")]
    Process(#[from] PidFdError),
    /// A call to the kernel failed.
    #[error("the target's memory cannot be looked at")]
    Call(#[from] CallFailed),
    /// The state file.
    #[error("the region's state file cannot be used")]
    State(#[from] StateFileError),
    /// Its pages cannot be sealed, or opened.
    #[error("the region's pages cannot be sealed")]
    Seal(#[from] SealError),
    /// Threads, lanes, descriptors.
    #[error("the region's threads could not be started")]
    SetUp(#[from] SetUpError),
}

/// Why a region could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// The state file: missing, damaged, or locked by an agent that lives.
    #[error("the region's state file cannot be used")]
    State(#[from] StateFileError),
    /// The target has ended since.
    #[error("the region's target, process {pid}, has ended")]
    TargetGone {
        /// Its number.
        pid: i32,
    },
    /// The epoch is not higher than the dead agent's.
    #[error("taking a region over needs an epoch higher than {held}; {asked} was given")]
    EpochTooLow {
        /// The dead agent's.
        held: Epoch,
        /// Given.
        asked: Epoch,
    },
    /// It is another region.
    #[error("the state file is {held}'s, and {asked} was to be taken over")]
    OtherRegion {
        /// The file's.
        held: RegionId,
        /// Given.
        asked: RegionId,
    },
    /// What attaching checks too.
    #[error("the region cannot be served")]
    Attach(#[from] AttachError),
    /// A descriptor of the target.
    #[error("the target's descriptors cannot be taken over")]
    Descriptor(#[from] PidFdError),
}

/// Why an order to a region was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The target has exited, or the region was ended.
    #[error("the region has ended")]
    Ended,
    /// The region is not served any more, because of a bug.
    #[error("the region is not served any more")]
    Failed(#[source] ThreadPanic),
    /// Not a budget.
    #[error("the new budget cannot be")]
    Config(#[from] ConfigError),
    /// Outside of the region.
    #[error("pages {start} to {end} are not inside of a region of {pages}")]
    OutOfRange {
        /// First page.
        start: u32,
        /// Behind the last page.
        end: u32,
        /// Of the region.
        pages: PageCount,
    },
    /// Pages are lost, and would read as zeros from then on.
    #[error("{pages} pages of the region are lost; it cannot become ordinary memory")]
    LostPages {
        /// How many.
        pages: u64,
    },
    /// No lane for the order.
    #[error("a lane to the memory nodes could not be opened")]
    Lane(#[from] LaneError),
    /// The state file.
    #[error("the region's state file cannot be written")]
    State(#[source] StateFileError),
    /// Pages could not be written to, or fetched from, their memory node.
    #[error("{failed} pages could not be moved; the first for this reason")]
    Pages {
        /// How many.
        failed: u64,
        /// Why the first one.
        #[source]
        source: PageError,
    },
}

/// A page that is gone for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostPage {
    /// Which.
    pub page: PageIndex,
    /// The memory node that held it; `None` for one whose content came back wrong twice.
    pub node: Option<String>,
}

/// What a region tells its owner without being asked. Told on a thread of the region's own, never on the
/// fault path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegionEvent {
    /// Pages were lost. At most one event a second; `total` counts all, `pages` holds up to 64 new ones.
    Lost {
        /// Some of the new ones.
        pages: Vec<LostPage>,
        /// All since the start.
        total: u64,
    },
    /// The target has exited or closed its userfaultfd: the region is over.
    TargetExited,
    /// Another owner with a higher epoch has the region: this one serves nothing more.
    Fenced,
    /// A thread of the region panicked, and nothing is served any more. What is resident stays so. Where a region
    /// may have a successor, the target waits for it at every other page, as it does when an agent was killed: drop
    /// the region, and take it over. Where not, an access to any other page raises SIGBUS.
    Failed(ThreadPanic),
}

/// Where a region's pages lie in its target.
#[derive(Clone)]
pub struct Places(Arc<Shared>);

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Places").field(&self.0.address).finish()
    }
}

impl Places {
    /// Address, first page and number of pages of every part, by page. A mremap or munmap that has returned
    /// is in it.
    #[must_use]
    pub fn parts(&self) -> Vec<(u64, PageIndex, PageCount)> {
        let part = |s: &Segment| (s.addr, PageIndex::new(s.page), PageCount::new(s.pages));
        self.0.gate.after_readers();
        self.0.address.segments().iter().map(part).collect()
    }
}

/// A region's figures, for somebody who does not keep it.
#[derive(Clone)]
pub struct Figures(Weak<Shared>);

impl std::fmt::Debug for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Figures")
    }
}

impl Figures {
    /// As of now; `None` once the region was ended.
    #[must_use]
    pub fn read(&self) -> Option<RegionStats> {
        Some(snapshot::take(&*self.shared()?))
    }

    /// Whether the region was not ended yet.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.shared().is_some()
    }

    fn shared(&self) -> Option<Arc<Shared>> {
        let shared = self.0.upgrade()?;
        (shared.standing() != Standing::Stopping).then_some(shared)
    }
}

/// Called with what happens to the region.
pub type EventHandler = Box<dyn FnMut(RegionEvent) + Send>;

/// A region that is being served. Dropping it stops serving and leaves everything for a successor, as a
/// killed agent would: the target waits at its next fault.
pub struct Region {
    shared: Arc<Shared>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    desk: Arc<Mutex<VictimDesk>>,
    advice: Vec<Sender<AdviceGiven>>,
    state: Arc<Mutex<StateFile>>,
    /// Orders that work on pages themselves go one after the other.
    orders: Mutex<()>,
    _locks: Vec<MemoryLock>,
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region")
            .field("name", &self.shared.config.name)
            .finish_non_exhaustive()
    }
}

impl Region {
    /// Starts serving `target` from `remote`. Pages that the file has already are resident; they may
    /// exceed the budget for as long as it takes to evict them.
    pub fn attach(
        target: Target,
        remote: Arc<dyn RemoteRegion>,
        owner: Owner,
        config: RegionConfig,
        events: EventHandler,
    ) -> Result<Self, AttachError> {
        attach::attach(target, remote, owner, config, events)
    }

    /// Starts serving private memory of this process. Its pages are moved, not copied, when they leave; what
    /// is pinned by direct IO stays. Nobody can take such a region over.
    pub fn attach_private(
        target: PrivateTarget,
        remote: Arc<dyn RemoteRegion>,
        owner: Owner,
        config: RegionConfig,
        events: EventHandler,
    ) -> Result<Self, AttachError> {
        attach::attach_private(target, remote, owner, config, events)
    }

    /// Goes on where the agent that wrote `saved` stopped. `remote` must have been opened with a higher epoch
    /// than `saved.owner().epoch`, so that nothing that agent sent can arrive any more.
    pub fn take_over(
        saved: SavedRegion,
        target: Target,
        remote: Arc<dyn RemoteRegion>,
        owner: Owner,
        config: RegionConfig,
        events: EventHandler,
    ) -> Result<Self, TakeOverError> {
        take_over::take_over(saved, target, remote, owner, config, events)
    }

    pub(crate) fn over(running: Running, locks: Vec<MemoryLock>) -> Self {
        Self {
            shared: running.shared,
            keeper: Mutex::new(Some(running.keeper)),
            desk: running.desk,
            advice: running.advice,
            state: running.state,
            orders: Mutex::new(()),
            _locks: locks,
        }
    }

    /// Where the region's pages lie, also after the target has moved or unmapped some.
    #[must_use]
    pub fn places(&self) -> Places {
        Places(Arc::clone(&self.shared))
    }

    /// Figures as of now.
    #[must_use]
    pub fn stats(&self) -> RegionStats {
        snapshot::take(&self.shared)
    }

    /// Who reads figures, also while the region ends.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures(Arc::downgrade(&self.shared))
    }

    fn alive(&self) -> Result<(), RegionError> {
        if self.shared.is_serving() {
            Ok(())
        } else {
            Err(self.shared.over())
        }
    }

    /// What panics in the middle of an order leaves pages as nobody else can.
    fn watched(
        &self,
        order: &str,
        body: impl FnOnce() -> Result<(), RegionError>,
    ) -> Result<(), RegionError> {
        failure::watch(&self.shared, order, body).unwrap_or_else(|| Err(self.shared.over()))
    }

    /// Counts what those went through that served the region before, after which it was taken over.
    pub fn after_panics(&self, times: u64) {
        count(&self.shared.counters.thread_panics, times);
    }

    /// Tells the policies about coming accesses.
    pub fn advise(&self, pages: Range<u32>, advice: Advice) -> Result<(), RegionError> {
        self.alive()?;
        let all = self.shared.pages.table.pages();
        let Some(count) = pages
            .end
            .checked_sub(pages.start)
            .filter(|_| pages.end <= all.get())
        else {
            return Err(RegionError::OutOfRange {
                start: pages.start,
                end: pages.end,
                pages: all,
            });
        };
        if advice == Advice::DontNeed {
            let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
            for page in pages {
                desk.not_soon(PageIndex::new(page));
            }
            return Ok(());
        }
        let given = AdviceGiven {
            page: PageIndex::new(pages.start),
            pages: PageCount::new(count),
            advice,
        };
        // What is needed soon is fetched once; a pattern is for every worker that may meet it. Advice
        // that finds its channel full is dropped: it is advice.
        let takers = if advice == Advice::WillNeed {
            1
        } else {
            self.advice.len()
        };
        for sender in &self.advice[..takers] {
            let _ = sender.try_send(given);
        }
        self.shared.ring_workers();
        Ok(())
    }

    /// Writes every page that differs from its remote copy. What was written to memory before this call
    /// is on the memory nodes when it returns. Resident pages stay.
    pub fn flush(&self) -> Result<(), RegionError> {
        self.alive()?;
        let _orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        self.watched("flush", || flush::flush(&self.shared))
    }

    /// Changes the local budget. Returns at once; a smaller one is reached by eviction.
    pub fn set_budget(&self, budget: ByteCount) -> Result<(), RegionError> {
        self.alive()?;
        check_budget(budget)?;
        let pages = budget.get() / PAGE_BYTES as u64;
        self.shared.pages.credits.set_budget(pages);
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        self.desk
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .set_budget(PageCount::new(pages));
        self.shared.ring_all();
        Ok(())
    }

    /// Brings every page home, unregisters the mapping and removes the state file: from then on the
    /// memory is ordinary memory of the target. Remote memory is released. Refused while pages are lost,
    /// because they would read as zeros; the region goes on then.
    pub fn detach(&self) -> Result<(), RegionError> {
        self.alive()?;
        let _orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        self.watched("detach", || orders::bring_home(&self.shared, &self.desk))?;
        self.stop();
        self.finish();
        Ok(())
    }

    /// The target has no more use for the region: stops serving, releases remote memory, removes the state
    /// file. Pages that are not resident are gone, so the mapping must not be read any more; it may be
    /// unmapped before or after.
    pub fn end(self) {
        self.stop();
        self.finish();
    }

    fn stop(&self) {
        self.shared.finish(Standing::Stopping);
        let keeper = self
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(keeper) = keeper {
            // Its panic was caught.
            let _ = keeper.join();
        }
    }

    /// Unregisters, so that nobody waits for an agent that is not there, and takes the traces away.
    fn finish(&self) {
        for segment in self.shared.address.segments() {
            if let Some(range) = self
                .shared
                .address
                .range_of(PageIndex::new(segment.page), segment.pages)
            {
                // Fails when the target has unmapped it, or has ended: then nobody waits.
                let _ = self.shared.userfault.unregister(range);
            }
        }
        self.shared.remote.release();
        let config = &self.shared.config;
        let _ = std::fs::remove_file(RegionStats::path(&config.state_dir, &config.name));
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove();
    }

    /// The directory of extents, kept for a successor, has changed.
    pub fn set_directory(&self, directory: &[u8]) -> Result<(), RegionError> {
        self.alive()?;
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .set_directory(directory)
            .map_err(RegionError::State)
    }

    /// Whether the target has exited, or the region was fenced or has failed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !self.shared.is_serving()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.stop();
    }
}

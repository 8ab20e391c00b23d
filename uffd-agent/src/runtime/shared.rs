//! What all threads of a region share, and how they speak to each other: atomics, bells, bounded channels.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use crossbeam_channel::Sender;
use hdrhistogram::Histogram;
use mycoram_fabric::pages::RemoteRegion;
use mycoram_fabric::units::{PAGE_BYTES, PageCount, PageIndex};

use super::address::AddressMap;
use super::bell::Bell;
use super::failure::ThreadPanic;
use super::flush::FlushLane;
use super::memory::RegionMemory;
use super::parking::Parking;
use super::region::RegionError;
use crate::config::RegionConfig;
use crate::engine::{Gate, Pages};
use crate::kernel::{CallFailed, Filled, Poisoned, SigbusStandIn, TargetRange, Userfault, Wake};
use crate::policy::HugeMap;

/// No page of an evictor is on its way out.
pub(crate) const NOTHING_LEAVES: u64 = u64::MAX;

/// Longest service time that is told apart, ns: a minute.
const LONGEST_SERVICE_NS: u64 = 60_000_000_000;

/// Pages of zeros that are copied in at once.
const ZERO_PAGES: usize = 16;
static ZEROS: [u8; ZERO_PAGES * PAGE_BYTES] = [0; ZERO_PAGES * PAGE_BYTES];

/// How a region stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Standing {
    /// Faults are served.
    Serving = 0,
    /// The owner has ordered its threads to stop.
    Stopping = 1,
    /// The target has gone.
    TargetGone = 2,
    /// Another owner has the region.
    Fenced = 3,
    /// A thread of the region panicked.
    Failed = 4,
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// Counts since the start. Each is written by many, rarely at once.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64),* }
    };
}

counters!(
    faults,
    majors,
    evictions,
    evictions_clean,
    evictions_zero,
    rescued,
    waited_for_budget,
    prefetch_issued,
    prefetch_used,
    huge_in,
    huge_out,
    discarded,
    checksum_mismatches,
    seals_broken,
    lost,
    stale,
    thread_panics,
);

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// A page that was lost, on its way to the keeper.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LossReport {
    pub(crate) page: PageIndex,
    pub(crate) node: Option<u16>,
}

/// Pages whose discard was announced, on their way to the keeper.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SuspectRange {
    pub(crate) page: PageIndex,
    pub(crate) pages: PageCount,
    pub(crate) at: u64,
}

/// Shared by all threads of a region.
pub(crate) struct Shared {
    pub(crate) config: RegionConfig,
    pub(crate) target_pid: i32,
    pub(crate) pages: Pages,
    pub(crate) gate: Gate,
    pub(crate) userfault: Userfault,
    pub(crate) memory: RegionMemory,
    pub(crate) address: AddressMap,
    pub(crate) parking: Vec<Parking>,
    /// Which huge pages are whole; none where pages come and go by themselves only.
    pub(crate) huge: Option<Arc<HugeMap>>,
    pub(crate) remote: Arc<dyn RemoteRegion>,
    pub(crate) sink: OwnedFd,
    pub(crate) counters: Counters,
    /// Of each fault worker.
    pub(crate) worker_bells: Vec<Bell>,
    /// Of each evictor.
    pub(crate) evictor_bells: Vec<Bell>,
    pub(crate) keeper_bell: Bell,
    /// Fault workers that have faults waiting for a credit.
    pub(crate) waiting: AtomicU32,
    /// Pages in parking pipes.
    pub(crate) held: AtomicI64,
    pub(crate) homeless: AtomicI64,
    pub(crate) losses: Sender<LossReport>,
    pub(crate) suspects: Sender<SuspectRange>,
    /// A suspect range did not fit into the channel: the whole table has to be looked at.
    pub(crate) suspects_missed: AtomicBool,
    /// Whether the kernel has poison.
    pub(crate) poison: bool,
    pub(crate) sigbus: Mutex<SigbusStandIn>,
    /// Service times, ns; workers add theirs when they have nothing else to do.
    pub(crate) service: Mutex<Histogram<u64>>,
    /// What evictors tell of their work.
    pub(crate) leaving: Leaving,
    pub(crate) flush_lane: FlushLane,
    pub(crate) life: Life,
}

/// How long pages take to leave.
#[derive(Debug)]
pub(crate) struct Leaving {
    /// Times of evictions that had to write, ns.
    pub(crate) took: Mutex<Histogram<u64>>,
    /// Of each evictor: since when the oldest of its evictions is under way, ns; [`NOTHING_LEAVES`].
    pub(crate) since: Vec<AtomicU64>,
}

impl Leaving {
    pub(crate) fn by(evictors: usize) -> Self {
        let since = (0..evictors).map(|_| AtomicU64::new(NOTHING_LEAVES));
        Self {
            took: Mutex::new(service_histogram()),
            since: since.collect(),
        }
    }
}

/// Since when a region is served, and whether it still is.
#[derive(Debug)]
pub(crate) struct Life {
    standing: AtomicU8,
    started: Instant,
    /// Set before the region stands as failed.
    failure: OnceLock<ThreadPanic>,
}

impl Life {
    /// It begins now.
    pub(crate) fn begin() -> Self {
        Self {
            standing: AtomicU8::new(Standing::Serving as u8),
            started: Instant::now(),
            failure: OnceLock::new(),
        }
    }
}

/// An empty histogram of service times. Never grows.
pub(crate) fn service_histogram() -> Histogram<u64> {
    // The bounds are constants that hdrhistogram accepts.
    Histogram::new_with_bounds(100, LONGEST_SERVICE_NS, 3)
        .unwrap_or_else(|_| unreachable!("constant bounds"))
}

impl Shared {
    /// ns since the region's start.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.life.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn standing(&self) -> Standing {
        match self.life.standing.load(Ordering::SeqCst) {
            0 => Standing::Serving,
            1 => Standing::Stopping,
            2 => Standing::TargetGone,
            3 => Standing::Fenced,
            _ => Standing::Failed,
        }
    }

    /// The region is over, for the first reason that is given; one that has failed can still be stopped. Wakes
    /// everybody.
    pub(crate) fn finish(&self, why: Standing) {
        let becomes = |from: Standing| {
            let standing = &self.life.standing;
            standing
                .compare_exchange(from as u8, why as u8, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        };
        if !becomes(Standing::Serving) && why == Standing::Stopping {
            becomes(Standing::Failed);
        }
        self.ring_all();
    }

    /// A thread of the region panicked: what it was about is done by nobody now, so the region is over. The first
    /// one is the reason.
    pub(crate) fn fail(&self, panic: ThreadPanic) {
        count(&self.counters.thread_panics, 1);
        tracing::error!(
            region = %self.config.name,
            thread = panic.thread,
            said = panic.said,
            "a thread of the region panicked: the region is not served any more"
        );
        let _ = self.life.failure.set(panic);
        self.finish(Standing::Failed);
    }

    /// The panic that the region is over for.
    pub(crate) fn failure(&self) -> Option<&ThreadPanic> {
        self.life.failure.get()
    }

    /// Why nothing can be asked of it any more.
    pub(crate) fn over(&self) -> RegionError {
        match self.failure() {
            Some(panic) => RegionError::Failed(panic.clone()),
            None => RegionError::Ended,
        }
    }

    /// The gate's number for orders of the owner.
    pub(crate) fn owner_thread(&self) -> usize {
        self.worker_bells.len() + self.evictor_bells.len()
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.life.standing.load(Ordering::Relaxed) == Standing::Serving as u8
    }

    pub(crate) fn ring_all(&self) {
        self.ring_workers();
        self.ring_evictors();
        self.keeper_bell.ring();
    }

    pub(crate) fn ring_workers(&self) {
        self.worker_bells.iter().for_each(Bell::ring);
    }

    pub(crate) fn ring_evictors(&self) {
        self.evictor_bells.iter().for_each(Bell::ring);
    }

    /// Credits have come back: faults may be waiting for them.
    pub(crate) fn credits_came(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.ring_workers();
        }
    }

    /// How long the oldest page that is leaving has been on its way, ns.
    pub(crate) fn writeback_lag(&self) -> u64 {
        let since = self.leaving.since.iter();
        let oldest = since.map(|since| since.load(Ordering::Relaxed)).min();
        match oldest {
            None | Some(NOTHING_LEAVES) => 0,
            Some(since) => self.now().saturating_sub(since),
        }
    }

    /// How many more pages should leave.
    pub(crate) fn eviction_need(&self) -> i64 {
        let credits = &self.pages.credits;
        credits.target() - credits.free() - self.held.load(Ordering::SeqCst)
    }

    /// Whether evictors have something to do: not for a page or two, unless that is all there is.
    pub(crate) fn wants_eviction(&self) -> bool {
        self.eviction_need() * 4 > self.pages.credits.target()
    }

    /// Pages that one eviction takes: enough to be worth its system calls, few enough for the budget.
    pub(crate) fn eviction_size(&self) -> usize {
        usize::try_from(self.pages.credits.budget() / 16)
            .unwrap_or(0)
            .clamp(4, usize::from(crate::target::SLOTS_PER_PIPE))
    }

    /// Whether the kernel has the page.
    pub(crate) fn has_data(&self, page: PageIndex) -> Result<bool, CallFailed> {
        self.memory.has_data(page, &self.address)
    }

    /// Wakes who waits in a range. That nobody is there any more is no failure.
    pub(crate) fn wake(&self, range: TargetRange) {
        let _ = self.userfault.wake(range);
    }

    /// Wakes everybody who waits anywhere in the region, to fault again.
    pub(crate) fn wake_all(&self) {
        for segment in self.address.segments() {
            let first = PageIndex::new(segment.page);
            if let Some(range) = self.address.range_of(first, segment.pages) {
                self.wake(range);
            }
        }
    }

    /// Wakes who waits for a page.
    pub(crate) fn wake_page(&self, page: PageIndex) {
        if let Some(range) = self.address.range_of(page, 1) {
            self.wake(range);
        }
    }

    /// Pages come or go by themselves.
    pub(crate) fn part_huge(&self, page: PageIndex, pages: u32) {
        if let Some(huge) = &self.huge {
            huge.part(page, pages);
        }
    }

    /// Makes a lost page raise SIGBUS. False: not now, an event waits to be read.
    pub(crate) fn poison(&self, page: PageIndex, tid: Option<i32>) -> bool {
        self.part_huge(page, 1);
        self.address
            .range_of(page, 1)
            .is_none_or(|range| self.poison_range(range, tid))
    }

    /// Makes a page's range raise SIGBUS. False: not now, an event waits to be read.
    pub(crate) fn poison_range(&self, range: TargetRange, tid: Option<i32>) -> bool {
        if self.poison {
            match self.userfault.poison(range) {
                Poisoned::Again => return false,
                Poisoned::Unsupported => {}
                Poisoned::Exists => {
                    self.wake(range);
                    return true;
                }
                Poisoned::Done | Poisoned::Gone(_) => return true,
            }
        }
        if let Some(tid) = tid {
            // A lost page is no longer on the fast path; and only here is this lock taken.
            let mut sigbus = self
                .sigbus
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Err(e) = sigbus.strike(Some(tid), range.start()) {
                tracing::error!(error = %e, "a thread waits for a lost page and cannot be told");
                return true;
            }
        }
        // Without a thread to tell: whoever waits faults again, and that fault names its thread.
        self.wake(range);
        true
    }

    /// Reports a loss to the keeper.
    pub(crate) fn report_loss(&self, page: PageIndex, node: Option<u16>) {
        count(&self.counters.lost, 1);
        // Full: the count is right, and the list is bounded anyway.
        let _ = self.losses.try_send(LossReport { page, node });
        self.keeper_bell.ring();
    }

    /// Fills one run of pages and says so in the page table. Inside the gate. `bytes` is where fetched
    /// content lies; without it, zeros. Answers how many of the `count` pages are in, and whether to try
    /// the rest again later.
    ///
    /// # Safety
    /// `bytes`, if any, is readable for `count` pages.
    pub(crate) unsafe fn fill(
        &self,
        page: PageIndex,
        count: u32,
        bytes: Option<*const u8>,
    ) -> (u32, Fill) {
        let Some(mut range) = self.address.range_of(page, count) else {
            return (0, Fill::Gone);
        };
        self.part_huge(page, count);
        let filled = match bytes {
            // SAFETY: the caller vouches for `bytes`; the range has at most `count` pages.
            Some(bytes) => unsafe { self.userfault.copy(range, bytes, Wake::Now) },
            // A zero page cannot be moved out again by every kernel that can move.
            None if self.memory.is_private() => {
                let few = count.min(ZERO_PAGES as u32);
                match self.address.range_of(page, few) {
                    Some(few) => {
                        range = few;
                        // SAFETY: that many pages of zeros.
                        unsafe { self.userfault.copy(few, ZEROS.as_ptr(), Wake::Now) }
                    }
                    None => Filled::Gone(crate::kernel::Gone::Range),
                }
            }
            None => self.userfault.zero(range, Wake::Now),
        };
        let (pages, then) = match filled {
            Filled::Done => (range.pages().get(), Fill::Done),
            Filled::Exists => (1, Fill::Done),
            Filled::Again { pages } if pages.get() > 0 => (pages.get(), Fill::Done),
            Filled::Again { .. } | Filled::NoSpace => (0, Fill::Later),
            Filled::Gone(_) => (0, Fill::Gone),
            Filled::Refused(error) => {
                tracing::error!(%error, page = page.get(), "the kernel refuses to fill a page");
                (0, Fill::Gone)
            }
        };
        let mut wake = filled == Filled::Exists;
        for at in 0..pages {
            if let Some(page) = page.checked_add(PageCount::new(at)) {
                wake |= self.pages.installed(page);
            }
        }
        if wake && let Some(range) = self.address.range_of(page, pages) {
            self.wake(range);
        }
        (pages, then)
    }
}

/// How a [`Shared::fill`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Go on with the next page.
    Done,
    /// An event waits to be read, or memory is short: try again later.
    Later,
    /// The page is not mapped in the target any more.
    Gone,
}

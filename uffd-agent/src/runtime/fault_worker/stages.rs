//! Huge pages on their way in: read into a stage of the lane, or left zero there, and moved in by one move.
//!
//! ```text
//!   wanted -> claimed, READ .. -> landed -> held until a page of it is asked for -> moved: resident as one
//!                                   '-> a page is wrong, lost, or the kernel refuses: parted, page by page
//! ```
//!
//! A huge page comes only where the kernel has nothing yet, and is claimed with its credits as a whole: until
//! there is room for it, it waits, and so does who asks for a page of it, for a while.

mod landing;

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use mycoram_fabric::pages::{FrameIndex, HUGE_PAGES, MAX_RUN_PAGES, PageLane};
use mycoram_fabric::units::{PAGE_BYTES, PageIndex};
use nix::sys::mman::{MmapAdvise, madvise};

use super::super::shared::count;
use super::{DEMAND_SLOTS, FREE, Fault, FaultWorker, HOLD_NS, Kind, Operation};
use crate::engine::FaultStep;
use crate::kernel::{TargetAddr, TargetRange, renew};
use crate::page_table::{PageState, Source};
use crate::policy::{FaultKind, HugeMap};

const BYTES: usize = HUGE_PAGES as usize * PAGE_BYTES;
/// Most operations that one huge page is read by; one that is more mixed comes page by page.
const MAX_OPERATIONS: usize = 64;
/// Huge pages that wait for room.
const MAX_WANTED: usize = 4;
/// How long the kernel is not asked for a huge page after it had none, ns: looking for one takes it long.
const NONE_NS: u64 = 100_000_000;
/// Resident pages before a huge page that let it be expected to be gone over as a whole.
const IN_USE_BEFORE: u32 = 8;

/// A huge page's way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Empty,
    /// Its READs are out.
    Filling,
    /// All is there, since then.
    Held {
        since: u64,
    },
    /// Its operations go in by themselves.
    Parted,
}

#[derive(Debug)]
struct Stage {
    frame: FrameIndex,
    first: PageIndex,
    phase: Phase,
    /// Somebody waits for a page of it.
    asked: bool,
    /// Nothing of it went another way.
    whole: bool,
    /// Operations that have not landed.
    flying: usize,
    landed: Vec<u32>,
    /// Operations that use its frames.
    left: usize,
}

impl Stage {
    fn holds(&self, page: PageIndex) -> bool {
        self.phase != Phase::Empty && HugeMap::first_of(page) == self.first
    }
}

/// Those of a worker, and what is to come to them.
#[derive(Debug)]
pub(super) struct Stages {
    stages: Vec<Stage>,
    wanted: Vec<PageIndex>,
    /// Until then, ns, the kernel is thought to have no huge pages.
    none_until: u64,
}

/// What became of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    Yes,
    /// There is no room for it now.
    Later,
    /// It cannot come as one.
    Never,
}

impl Stages {
    /// As many as the lane has, if huge pages are to come at all.
    pub(super) fn of(huge: Option<&HugeMap>, lane: &dyn PageLane) -> Self {
        let stage = |number| {
            Some(Stage {
                frame: lane.stage(number)?,
                first: PageIndex::new(0),
                phase: Phase::Empty,
                asked: false,
                whole: false,
                flying: 0,
                landed: Vec::with_capacity(MAX_OPERATIONS),
                left: 0,
            })
        };
        Self {
            stages: match huge {
                Some(_) => (0..).map_while(stage).collect(),
                None => Vec::new(),
            },
            wanted: Vec::with_capacity(MAX_WANTED),
            none_until: 0,
        }
    }

    /// Operations that they may need at once.
    pub(super) fn operations(&self) -> usize {
        self.stages.len() * MAX_OPERATIONS
    }

    pub(super) fn exist(&self) -> bool {
        !self.stages.is_empty()
    }

    pub(super) fn are_empty(&self) -> bool {
        self.wanted.is_empty() && self.stages.iter().all(|stage| stage.phase == Phase::Empty)
    }

    /// A huge page is wanted. With too many of them the oldest is forgotten.
    pub(super) fn want(&mut self, first: PageIndex) {
        if !self.exist() || self.wanted.contains(&first) {
            return;
        }
        if self.wanted.len() == MAX_WANTED {
            self.wanted.remove(0);
        }
        self.wanted.push(first);
    }

    pub(super) fn is_wanted(&self, first: PageIndex) -> bool {
        self.wanted.contains(&first)
    }

    /// Whether the page is on a stage; it is asked for then.
    pub(super) fn ask_for(&mut self, page: PageIndex) -> bool {
        let stage = self.stages.iter_mut().find(|stage| stage.holds(page));
        match stage {
            Some(stage) => {
                stage.asked = true;
                true
            }
            None => false,
        }
    }
}

impl FaultWorker {
    /// A fault where a huge page may come. False: it waits for room, and nothing more is to be done now.
    pub(super) fn serve_huge(&mut self, fault: Fault) -> bool {
        let first = HugeMap::first_of(fault.page);
        let state = self.shared.pages.table.word(fault.page).state();
        if !matches!(state, PageState::Remote | PageState::NeverWritten) {
            return true;
        }
        let begun = if self.stages.is_wanted(first) {
            let begun = self.begin_huge(first);
            if begun != Begun::Later {
                self.stages.wanted.retain(|page| *page != first);
            }
            begun
        } else if fault.page == first && self.is_asked_in_order(first) {
            let mut begun = self.begin_zeros(first);
            if begun == Begun::Yes {
                return false;
            }
            if begun == Begun::Never {
                begun = self.begin_huge(first);
                if begun == Begun::Yes {
                    self.hear(first, FaultKind::Huge);
                }
            }
            begun
        } else {
            return true;
        };
        // Somebody waits: not for ever, a single page is had with less.
        let patient = self.shared.now().saturating_sub(fault.since) < HOLD_NS;
        if begun == Begun::Later && patient {
            if !self.wants_credit {
                self.wants_credit = true;
                self.shared.pages.credits.was_short();
                self.shared.waiting.fetch_add(1, Ordering::SeqCst);
            }
            self.shared.ring_evictors();
            self.wait(fault);
            return false;
        }
        if begun != Begun::Yes {
            self.stages.wanted.retain(|page| *page != first);
            self.shared.part_huge(first, 1);
        }
        true
    }

    /// Begins what is wanted, as far as there is room.
    pub(super) fn fetch_wanted_huge(&mut self) -> bool {
        let mut any = false;
        while let Some(first) = self.stages.wanted.first().copied() {
            match self.begin_huge(first) {
                Begun::Later => break,
                Begun::Yes => any = true,
                Begun::Never => {}
            }
            self.stages.wanted.remove(0);
        }
        any
    }

    /// Where a huge page belongs, if one can be there.
    fn range_of_huge(&self, first: PageIndex) -> Option<TargetRange> {
        let range = self.shared.address.range_of(first, HUGE_PAGES)?;
        let fits = range.pages().get() == HUGE_PAGES && range.start().get() % BYTES as u64 == 0;
        fits.then_some(range)
    }

    fn states(&self, first: PageIndex) -> impl Iterator<Item = PageState> + '_ {
        let page = move |at| PageIndex::new(first.get() + at);
        let word = move |at| self.shared.pages.table.word(page(at));
        (0..HUGE_PAGES).map(move |at| word(at).state())
    }

    fn may_be_huge(&self, first: PageIndex) -> bool {
        let huge = self.shared.huge.as_ref();
        huge.is_some_and(|huge| huge.is_whole(first))
            && self.shared.now() >= self.stages.none_until
            && self.range_of_huge(first).is_some()
            && self.shared.pages.credits.budget() >= 8 * i64::from(HUGE_PAGES)
    }

    /// A stage with nothing on it. One that is held unasked gives way.
    fn free_stage(&mut self) -> Option<usize> {
        let is_empty = |stage: &Stage| stage.phase == Phase::Empty;
        if !self.stages.stages.iter().any(is_empty) {
            let held = |stage: &Stage| matches!(stage.phase, Phase::Held { .. });
            let at = self.stages.stages.iter().position(held)?;
            self.install_huge(at);
        }
        self.stages.stages.iter().position(is_empty)
    }

    /// Puts a huge page of zeros behind a stage that is empty. False: the kernel has none, and is not asked again
    /// for a while.
    fn prepare(&mut self, at: usize) -> bool {
        let range = self.range_of_stage(at);
        let one_huge_page = |range: &TargetRange| {
            let start = range.start().get() as *mut libc::c_void;
            NonNull::new(start).is_some_and(|start| {
                // SAFETY: a stage that is empty is this worker's alone; it becomes zeros, or stays zeros.
                unsafe { madvise(start, BYTES, MmapAdvise::MADV_POPULATE_WRITE) }.is_ok()
            }) && self.shared.memory.is_one_huge_page(*range)
        };
        let prepared = range.is_some_and(|range| {
            // SAFETY: as above.
            one_huge_page(&range) || (unsafe { renew(range) }.is_ok() && one_huge_page(&range))
        });
        if !prepared {
            self.stages.none_until = self.shared.now() + NONE_NS;
        }
        prepared
    }

    fn range_of_stage(&self, at: usize) -> Option<TargetRange> {
        let bytes = self.frame_bytes(self.stages.stages[at].frame);
        TargetRange::new(TargetAddr::new(bytes as u64), BYTES as u64).ok()
    }

    /// Reads a huge page, of which some pages may never have been written.
    fn begin_huge(&mut self, first: PageIndex) -> Begun {
        let mut remote = 0;
        for state in self.states(first) {
            match state {
                PageState::Remote => remote += 1,
                PageState::NeverWritten => {}
                _ => return Begun::Never,
            }
        }
        if remote == 0 {
            return Begun::Never;
        }
        let begun = self.bring(first);
        if begun == Begun::Yes {
            count(&self.shared.counters.prefetch_issued, remote);
        }
        begun
    }

    /// Whether a huge page may come, and what is before it is in use: somebody goes over all of it in order.
    fn is_asked_in_order(&self, first: PageIndex) -> bool {
        let word = |page: u32| self.shared.pages.table.word(PageIndex::new(page));
        let before = first.get().checked_sub(IN_USE_BEFORE);
        before.is_some_and(|from| {
            (from..first.get()).all(|page| word(page).state() == PageState::Resident)
        }) && self.may_be_huge(first)
    }

    /// Zeros, for whoever is about to write them.
    fn begin_zeros(&mut self, first: PageIndex) -> Begun {
        if !self
            .states(first)
            .all(|state| state == PageState::NeverWritten)
        {
            return Begun::Never;
        }
        let begun = self.bring(first);
        if begun == Begun::Yes {
            // It is new: what is written to it has to go somewhere before long.
            self.shared.remote.expect(first);
            self.stages.ask_for(first);
            self.look_at_stages();
        }
        begun
    }

    /// Claims a huge page and has it brought to a stage.
    fn bring(&mut self, first: PageIndex) -> Begun {
        if !self.may_be_huge(first) {
            return Begun::Never;
        }
        let credits = &self.shared.pages.credits;
        let there = credits.free() >= credits.reserve() + i64::from(HUGE_PAGES);
        if !there || self.lane.free_slots() < MAX_OPERATIONS + DEMAND_SLOTS {
            return Begun::Later;
        }
        let Some(stage) = self.free_stage() else {
            return Begun::Later;
        };
        if !self.prepare(stage) {
            return Begun::Never;
        }
        if !self.claim(first) {
            return Begun::Never;
        }
        let on = &mut self.stages.stages[stage];
        (on.first, on.phase, on.asked, on.whole) = (first, Phase::Filling, false, true);
        // One more, until all are begun.
        (on.flying, on.left) = (1, 1);
        let base = on.frame;
        let now = self.shared.now();
        let mut at = 0;
        while at < HUGE_PAGES {
            let source = self.source(first, at);
            let most = u32::from(MAX_RUN_PAGES) - at % u32::from(MAX_RUN_PAGES);
            let run = (at..at + most).take_while(|page| self.source(first, *page) == source);
            let part = Operation {
                kind: Kind::Ahead,
                page: PageIndex::new(first.get() + at),
                run: run.count() as u32,
                frame: FrameIndex(base.0 + at),
                since: now,
                stage: Some(stage as u8),
                ..FREE
            };
            self.begin_part(stage, part, source == Source::Remote);
            at += part.run;
        }
        self.stages.stages[stage].left -= 1;
        self.less_flying(stage);
        self.lane.ring();
        Begun::Yes
    }

    fn source(&self, first: PageIndex, at: u32) -> Source {
        let page = PageIndex::new(first.get() + at);
        self.shared.pages.table.word(page).source()
    }

    /// Takes a credit for each page and marks it as being fetched. False: none is.
    fn claim(&mut self, first: PageIndex) -> bool {
        let pages = &self.shared.pages;
        let mut parts = 0;
        let mut before = None;
        for at in 0..HUGE_PAGES {
            let page = PageIndex::new(first.get() + at);
            let state = pages.table.word(page).state();
            parts += usize::from(before != Some(state) || at % u32::from(MAX_RUN_PAGES) == 0);
            before = Some(state);
            let step = match state {
                PageState::Remote => pages.prefetch(page, 0),
                PageState::NeverWritten => pages.fault(page),
                _ => FaultStep::NotWanted,
            };
            let claimed = matches!(step, FaultStep::Read | FaultStep::Zero);
            if !claimed || parts > MAX_OPERATIONS {
                for before in 0..at + u32::from(claimed) {
                    self.drop_fetch(PageIndex::new(first.get() + before));
                }
                return false;
            }
        }
        true
    }

    fn begin_part(&mut self, stage: usize, part: Operation, is_remote: bool) {
        let on = &mut self.stages.stages[stage];
        (on.flying, on.left) = (on.flying + 1, on.left + 1);
        if is_remote {
            if self.read_into(part.frame, part) {
                return;
            }
        } else if let Some(id) = self.free.pop() {
            self.operations[id as usize] = part;
            self.landed(stage as u8, id);
            return;
        }
        // No room on the lane after all: whoever asks for these pages fetches them.
        for at in 0..part.run {
            self.drop_fetch(PageIndex::new(part.page.get() + at));
        }
        self.left_stage(stage as u8, part);
    }
}

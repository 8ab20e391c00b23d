//! Errands: what goes over all pages of a region, on the thread of who orders it. They have a lane of their own and
//! take part in the game like any worker: what they do to a page they say in its word first. One of them is here:
//! bringing everything home.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mycoram_fabric::pages::{
    Direction, FrameIndex, LaneConfig, MAX_RUN_PAGES, PageDone, PageError, PageLane, PageRequest,
    Which, await_answers,
};
use mycoram_fabric::units::{PAGE_BYTES, PageIndex};
use twox_hash::XxHash3_64;

use super::region::RegionError;
use super::shared::{Fill, Shared, Standing};
use super::victim_desk::VictimDesk;
use crate::engine::{Content, FaultStep};
use crate::page_table::PageState;

/// How long to wait before a page that somebody else is at is looked at again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_micros(200);
/// Longest wait for an answer before the region's standing is looked at again.
pub(super) const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// Frames of an errand that has one request under way.
pub(super) const FRAMES: u32 = 64;

/// A lane, and what failed on it.
pub(super) struct Errand<'a> {
    pub(super) shared: &'a Shared,
    lane: Box<dyn PageLane>,
    done: Vec<PageDone>,
    failed: u64,
    first_failure: Option<PageError>,
}

impl<'a> Errand<'a> {
    /// With so many frames.
    pub(super) fn new(shared: &'a Shared, frames: u32) -> Result<Self, RegionError> {
        let config = LaneConfig {
            frames,
            stages: 0,
            ..shared.config.lane
        };
        Ok(Self::over(shared, shared.remote.open_lane(&config)?))
    }

    /// On a lane that has nothing under way.
    pub(super) fn over(shared: &'a Shared, lane: Box<dyn PageLane>) -> Self {
        Self {
            shared,
            lane,
            done: Vec::with_capacity(64),
            failed: 0,
            first_failure: None,
        }
    }

    pub(super) fn bytes(&self, frame: u32) -> *mut u8 {
        let frames = self.lane.frames();
        let at = frame as usize * PAGE_BYTES;
        assert!(at < frames.len(), "a frame of the lane");
        // SAFETY: within the frames, as just seen.
        unsafe { frames.as_ptr().add(at) }
    }

    /// Takes a request, which goes out with the next [`Self::ring`]; false: the lane is full, something is to be
    /// answered first.
    pub(super) fn queue(&mut self, request: PageRequest) -> bool {
        self.lane.queue(request).is_ok()
    }

    /// Sends out what is queued.
    pub(super) fn ring(&mut self) {
        self.lane.ring();
    }

    /// What was answered, if something was.
    pub(super) fn answer(&mut self) -> Option<PageDone> {
        if self.done.is_empty() {
            self.lane.poll(&mut self.done);
        }
        self.done.pop()
    }

    /// Why it failed, if it did. An error only if the region ended by it.
    pub(super) fn failure(&self, done: &PageDone) -> Result<Option<PageError>, RegionError> {
        if done.result == Err(PageError::Fenced) {
            self.shared.finish(Standing::Fenced);
            return Err(RegionError::Ended);
        }
        Ok(done.result.err())
    }

    /// Until something may be answered, or `most` is over.
    pub(super) fn sleep(&mut self, most: Duration) {
        await_answers(&mut *self.lane, most);
    }

    /// Has writes answered that wait for a place.
    pub(super) fn give_up_unplaced(&mut self) {
        self.lane.give_up_unplaced();
    }

    /// Carries one request out and waits for it. Answers why it failed, if it did, and which pages of it are
    /// wrong (see [`PageDone::wrong`]).
    fn carry(
        &mut self,
        direction: Direction,
        page: PageIndex,
        run: u16,
    ) -> Result<(Option<PageError>, u16), RegionError> {
        self.carry_to(direction, page, run, Which::Live)
    }

    /// The same with these replicas.
    pub(super) fn carry_to(
        &mut self,
        direction: Direction,
        page: PageIndex,
        run: u16,
        which: Which,
    ) -> Result<(Option<PageError>, u16), RegionError> {
        let request = PageRequest {
            tag: 0,
            direction,
            page,
            run,
            frame: FrameIndex(0),
            which,
        };
        while !self.queue(request) {
            self.sleep(LONGEST_WAIT);
        }
        self.ring();
        loop {
            if let Some(done) = self.answer() {
                return Ok((self.failure(&done)?, done.wrong));
            }
            // A write waits for a place for as long as the region is served.
            still_serving(self.shared)?;
            if direction == Direction::Write && !self.shared.remote.has_room() {
                // Who asked is told so; the page stays here.
                self.give_up_unplaced();
                continue;
            }
            self.sleep(LONGEST_WAIT);
        }
    }

    pub(super) fn failed(&mut self, pages: u64, error: PageError) {
        self.failed += pages;
        self.first_failure.get_or_insert(error);
    }

    /// What came of it, and the lane, on which nothing is under way.
    pub(super) fn outcome(self) -> (Box<dyn PageLane>, Result<(), RegionError>) {
        let outcome = match self.first_failure {
            None => Ok(()),
            Some(source) => Err(RegionError::Pages {
                failed: self.failed,
                source,
            }),
        };
        (self.lane, outcome)
    }
}

pub(super) fn still_serving(shared: &Shared) -> Result<(), RegionError> {
    if shared.is_serving() {
        Ok(())
    } else {
        Err(shared.over())
    }
}

/// Makes every page resident. The budget is lifted for it and the desk closed, and both stays so when all are home.
pub(crate) fn bring_home(shared: &Shared, desk: &Mutex<VictimDesk>) -> Result<(), RegionError> {
    let lost = shared.pages.count(PageState::Lost);
    if lost > 0 {
        return Err(RegionError::LostPages { pages: lost });
    }
    let budget = u64::try_from(shared.pages.credits.budget()).unwrap_or(0);
    let all = shared.pages.table.pages().get();
    // So much that evictors see no reason to evict, with everything at home.
    shared
        .pages
        .credits
        .set_budget(2 * u64::from(all) + (1 << 16));
    shared.credits_came();
    let desk = || desk.lock().unwrap_or_else(PoisonError::into_inner);
    // One that saw the former budget may be about to choose pages that were already looked at here.
    desk().close();
    let brought = Errand::new(shared, FRAMES).and_then(|mut errand| {
        while pass(&mut errand, all)? {
            std::thread::sleep(LOOK_AGAIN);
        }
        errand.outcome().1
    });
    if brought.is_err() {
        shared.pages.credits.set_budget(budget);
        desk().open();
        shared.ring_evictors();
    }
    brought
}

/// One pass over all pages; whether something was not at home.
fn pass(errand: &mut Errand<'_>, all: u32) -> Result<bool, RegionError> {
    let shared = errand.shared;
    let mut abroad = false;
    let mut next = 0;
    while next < all {
        still_serving(shared)?;
        let first = PageIndex::new(next);
        let mut run = 0;
        while run < u32::from(MAX_RUN_PAGES)
            && next < all
            && shared.pages.prefetch(PageIndex::new(next), 0) == FaultStep::Read
        {
            run += 1;
            next += 1;
        }
        if run == 0 {
            abroad |= matches!(
                shared.pages.table.word(first).state(),
                PageState::Remote | PageState::Fetching | PageState::Leaving
            );
            next += 1;
            continue;
        }
        abroad = true;
        let (error, wrong) = errand.carry(Direction::Read, first, run as u16)?;
        for at in 0..run {
            let page = PageIndex::new(first.get() + at);
            let error = error.or((wrong & (1 << at) != 0).then_some(PageError::Lost { node: 0 }));
            bring_page(errand, page, at, error)?;
        }
    }
    Ok(abroad)
}

/// Puts one page that was read, or could not be, into the file.
fn bring_page(
    errand: &mut Errand<'_>,
    page: PageIndex,
    frame: u32,
    error: Option<PageError>,
) -> Result<(), RegionError> {
    let shared = errand.shared;
    let bytes = errand.bytes(frame).cast_const();
    // SAFETY: the READ is done; the frame is the errand's own.
    let content = unsafe { std::slice::from_raw_parts(bytes, PAGE_BYTES) };
    let checksum = XxHash3_64::oneshot(content);
    if error.is_none() && shared.pages.table.word(page).unseen() {
        shared.pages.table.set_checksum(page, checksum);
    }
    let right = error.is_none() && checksum == shared.pages.table.checksum(page);
    if !right {
        // Alone, and by a fault worker, it is tried again; here it stays where it is.
        if shared.pages.fetch_dropped(page) {
            shared.wake_page(page);
        }
        errand.failed(1, error.unwrap_or(PageError::Lost { node: 0 }));
        return errand_failed(errand);
    }
    loop {
        still_serving(shared)?;
        let section = shared.gate.change(shared.owner_thread());
        let bytes = (shared.pages.content(page) == Content::Fetched).then_some(bytes);
        // SAFETY: a page's bytes in the errand's frame.
        let (_, then) = unsafe { shared.fill(page, 1, bytes) };
        drop(section);
        match then {
            Fill::Done => return Ok(()),
            // A fault worker reads the event that stands in the way.
            Fill::Later => std::thread::yield_now(),
            Fill::Gone => {
                shared.pages.discard(page);
                shared.pages.fetch_dropped(page);
                return Ok(());
            }
        }
    }
}

fn errand_failed(errand: &Errand<'_>) -> Result<(), RegionError> {
    match errand.first_failure {
        Some(source) => Err(RegionError::Pages {
            failed: errand.failed,
            source,
        }),
        None => Ok(()),
    }
}

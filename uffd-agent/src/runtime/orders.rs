//! Orders that go over all pages of a region, on the thread of who gives them: flush, and bringing
//! everything home. They have a lane of their own and take part in the game like any worker: what they do
//! to a page they say in its word first.

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
use crate::engine::{Content, Event, FaultStep};
use crate::page_table::PageState;

/// How long to wait before a page that somebody else is at is looked at again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_micros(200);
/// Longest wait for an answer before the region's standing is looked at again.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// A lane and the run that is being gathered on it.
pub(super) struct Errand<'a> {
    pub(super) shared: &'a Shared,
    lane: Box<dyn PageLane>,
    done: Vec<PageDone>,
    failed: u64,
    first_failure: Option<PageError>,
}

impl<'a> Errand<'a> {
    pub(super) fn new(shared: &'a Shared) -> Result<Self, RegionError> {
        let config = LaneConfig {
            frames: 64,
            ..shared.config.lane
        };
        Ok(Self {
            shared,
            lane: shared.remote.open_lane(&config)?,
            done: Vec::with_capacity(64),
            failed: 0,
            first_failure: None,
        })
    }

    pub(super) fn bytes(&self, frame: u32) -> *mut u8 {
        // SAFETY: frames below MAX_RUN_PAGES, of at least 64.
        unsafe { self.lane.frames().as_ptr().add(frame as usize * PAGE_BYTES) }
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
        while self.lane.queue(request).is_err() {
            await_answers(&mut *self.lane, LONGEST_WAIT);
        }
        self.lane.ring();
        loop {
            self.lane.poll(&mut self.done);
            if let Some(done) = self.done.pop() {
                return match done.result {
                    Ok(()) => Ok((None, done.wrong)),
                    Err(PageError::Fenced) => {
                        self.shared.finish(Standing::Fenced);
                        Err(RegionError::Ended)
                    }
                    Err(error) => Ok((Some(error), 0)),
                };
            }
            // A write waits for a place for as long as the region is served.
            still_serving(self.shared)?;
            if direction == Direction::Write && !self.shared.remote.has_room() {
                // Who asked is told so; the page stays here.
                self.lane.give_up_unplaced();
                continue;
            }
            await_answers(&mut *self.lane, LONGEST_WAIT);
        }
    }

    fn failed(&mut self, pages: u64, error: PageError) {
        self.failed += pages;
        self.first_failure.get_or_insert(error);
    }

    fn outcome(self) -> Result<(), RegionError> {
        match self.first_failure {
            None => Ok(()),
            Some(source) => Err(RegionError::Pages {
                failed: self.failed,
                source,
            }),
        }
    }
}

pub(super) fn still_serving(shared: &Shared) -> Result<(), RegionError> {
    if shared.is_serving() {
        Ok(())
    } else {
        Err(RegionError::Ended)
    }
}

/// What flushing found a page to be.
enum Look {
    /// Nothing to write.
    Settled,
    /// Somebody is at it, and will be done.
    Busy,
    /// It was copied to its frame and is marked as being written; its checksum.
    Claimed(u64),
}

fn look(errand: &Errand<'_>, page: PageIndex, frame: u32) -> Look {
    let pages = &errand.shared.pages;
    let word = pages.table.word(page);
    match word.state() {
        PageState::NeverWritten | PageState::Remote | PageState::Lost => return Look::Settled,
        PageState::Fetching | PageState::Leaving => return Look::Busy,
        PageState::Resident if word.writing() => return Look::Busy,
        PageState::Resident => {}
    }
    let into = errand.bytes(frame);
    let shared = errand.shared;
    // SAFETY: the frame is a page of the errand's own lane.
    let read = unsafe { shared.memory.read_page_to(page, &shared.address, into) };
    if read.is_err() {
        return Look::Busy;
    }
    // SAFETY: written just now, and not changed until the WRITE is done.
    let bytes = unsafe { std::slice::from_raw_parts(into, PAGE_BYTES) };
    let checksum = XxHash3_64::oneshot(bytes);
    if word.synced() && pages.table.checksum(page) == checksum {
        return Look::Settled;
    }
    // The same word still: then what was read was the page's content at some moment since.
    match pages.try_apply(page, word, Event::WriteBegins) {
        Ok(_) => Look::Claimed(checksum),
        Err(_) => Look::Busy,
    }
}

/// See [`super::Region::flush`].
pub(crate) fn flush(shared: &Shared) -> Result<(), RegionError> {
    let mut errand = Errand::new(shared)?;
    let mut checksums = [0; MAX_RUN_PAGES as usize];
    let all = shared.pages.table.pages().get();
    let (mut next, mut run) = (0, 0);
    while next < all || run > 0 {
        if next < all && run < u32::from(MAX_RUN_PAGES) {
            match look(&errand, PageIndex::new(next), run) {
                Look::Claimed(checksum) => {
                    checksums[run as usize] = checksum;
                    run += 1;
                    next += 1;
                    continue;
                }
                Look::Settled if run == 0 => {
                    next += 1;
                    continue;
                }
                Look::Busy if run == 0 => {
                    still_serving(shared)?;
                    let page = PageIndex::new(next);
                    if !shared.remote.is_placed(page) && !shared.remote.has_room() {
                        // An evictor has it, and waits for room.
                        errand.failed(1, PageError::Unplaced);
                        next += 1;
                        continue;
                    }
                    std::thread::sleep(LOOK_AGAIN);
                    continue;
                }
                // Written first; then the page is looked at again.
                Look::Settled | Look::Busy => {}
            }
        }
        let first = PageIndex::new(next - run);
        write_run(&mut errand, first, &checksums[..run as usize])?;
        run = 0;
    }
    errand.outcome()
}

/// Writes pages that are marked as being written, out of the first frames.
fn write_run(
    errand: &mut Errand<'_>,
    first: PageIndex,
    checksums: &[u64],
) -> Result<(), RegionError> {
    let shared = errand.shared;
    let (error, _) = errand.carry(Direction::Write, first, checksums.len() as u16)?;
    for (at, checksum) in checksums.iter().enumerate() {
        let page = PageIndex::new(first.get() + at as u32);
        match error {
            None => {
                shared.pages.table.set_checksum(page, *checksum);
                shared.pages.apply(page, Event::Written);
            }
            Some(error) => {
                shared.pages.apply(page, Event::WriteFailed);
                errand.failed(1, error);
            }
        }
    }
    Ok(())
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
    let brought = Errand::new(shared).and_then(|mut errand| {
        while pass(&mut errand, all)? {
            std::thread::sleep(LOOK_AGAIN);
        }
        errand.outcome()
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

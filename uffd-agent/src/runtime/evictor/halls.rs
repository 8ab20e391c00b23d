//! Huge pages leave as one: into a hall, which is as many places as eight batches have.
//!
//! ```text
//!   choose 512 -> [gate: one move] -> eight batches go on by themselves -> all have left: the hall is emptied
//! ```
//!
//! What cannot be moved as one goes on page by page, batch by batch, in the same places.

use mycoram_fabric::pages::HUGE_PAGES;
use mycoram_fabric::units::PageIndex;

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::super::memory::RegionMemory;
use super::super::parking::{Parking, RoomParking};
use super::super::shared::count;
use super::Evictor;
use crate::engine::{BatchStep, Run};
use crate::kernel::Moved;
use crate::page_table::PageState;
use crate::target::SLOTS_PER_PIPE;

/// Batches of a hall.
pub(crate) const PARTS: usize = HUGE_PAGES as usize / SLOTS_PER_PIPE as usize;

/// The batches from `first` on, [`PARTS`] of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hall {
    first: usize,
}

impl Hall {
    /// The halls of the first `batches` batches.
    pub(super) fn all_of(batches: usize) -> Vec<Self> {
        let first = (0..batches / PARTS).map(|hall| hall * PARTS);
        first.map(|first| Self { first }).collect()
    }

    fn batches(self) -> std::ops::Range<usize> {
        self.first..self.first + PARTS
    }
}

impl Evictor {
    pub(super) fn hall_of(&self, at: usize) -> Option<Hall> {
        self.halls.get(at / PARTS).copied()
    }

    /// A hall with nothing in it, where huge pages come at all.
    pub(super) fn empty_one(&self) -> Option<Hall> {
        self.shared.huge.as_ref()?;
        let mut halls = self.halls.iter().copied();
        halls.find(|hall| self.is_empty(*hall))
    }

    /// Whether nothing is in a hall.
    fn is_empty(&self, hall: Hall) -> bool {
        let mut batches = self.batches[hall.batches()].iter();
        batches.all(|working| working.batch.is_idle())
    }

    /// Sends a huge page off, if one should leave and there is a hall for it.
    pub(super) fn start_huge(&mut self) -> bool {
        let Some(hall) = self.empty_one() else {
            return false;
        };
        let desk = Arc::clone(&self.desk);
        let mut desk = desk.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(first) = desk.pick_huge(&self.shared.pages) else {
            return false;
        };
        if !self.choose_huge(hall, first) {
            desk.part(&self.shared.pages, first);
        }
        drop(desk);
        self.move_huge(hall, first);
        !self.is_empty(hall)
    }

    /// Marks the pages as leaving. False: some of them do not.
    fn choose_huge(&mut self, hall: Hall, first: PageIndex) -> bool {
        let pages = &self.shared.pages;
        let page = |at: u32| PageIndex::new(first.get() + at);
        let may_leave = |page: PageIndex| {
            let word = pages.table.word(page);
            word.state() == PageState::Resident
                && !(word.suspect() || word.writing() || word.homeless())
        };
        let range = self.shared.address.range_of(first, HUGE_PAGES);
        let is_one = |range| self.shared.memory.is_one_huge_page(range);
        if !range.is_some_and(is_one) {
            self.shared.part_huge(first, 1);
            return false;
        }
        // A write that has no place yet is for batches of single pages.
        if !self.shared.remote.is_placed(first) || !(0..HUGE_PAGES).map(page).all(may_leave) {
            return false;
        }
        let now = self.shared.now();
        for at in 0..HUGE_PAGES {
            let working = &mut self.batches[hall.first + at as usize / usize::from(SLOTS_PER_PIPE)];
            (working.since, working.unplaced) = (now, false);
            (working.wrote, working.left) = (false, false);
            if !working.batch.choose(pages, page(at)) {
                // Those before it leave, in as many moves as it takes.
                return false;
            }
        }
        true
    }

    /// Moves what was chosen, by one move if it is all there.
    fn move_huge(&mut self, hall: Hall, first: PageIndex) {
        for at in hall.batches() {
            let (now, settle) = (self.shared.now(), 0);
            let step = self.batches[at].batch.step(&self.shared.pages, now, settle);
            if let BatchStep::Splice(run) = step {
                self.take_reference(at, run);
            }
        }
        let shared = Arc::clone(&self.shared);
        let _section = shared.gate.change(self.thread);
        let mut runs = [None; PARTS];
        for (run, at) in runs.iter_mut().zip(hall.batches()) {
            let batch = &mut self.batches[at].batch;
            let before = batch.held();
            *run = batch.next_punch(&shared.pages);
            let stayed = before - batch.held();
            shared.held.fetch_sub(stayed as i64, Ordering::SeqCst);
        }
        let all = |run: &Option<Run>| run.is_some_and(|run| run.count == u32::from(SLOTS_PER_PIPE));
        if !runs.iter().all(all) {
            return;
        }
        let mut moved = self.shift_huge(hall, first);
        for (run, at) in runs.into_iter().flatten().zip(hall.batches()) {
            let gone = run.split(moved).0;
            moved -= gone.count;
            self.batches[at].batch.punched(&shared.pages, gone, true);
        }
    }

    /// How many of the first pages were moved.
    fn shift_huge(&self, hall: Hall, first: PageIndex) -> u32 {
        let shared = &self.shared;
        let (RegionMemory::Private(_), Some(place)) = (&shared.memory, self.place(hall)) else {
            return 0;
        };
        let Some(from) = shared.address.range_of(first, HUGE_PAGES) else {
            return 0;
        };
        if from.pages().get() != HUGE_PAGES {
            return 0;
        }
        // SAFETY: whoever touches a page of the region that is not there waits for a fault worker.
        match unsafe { place.rooms().take(from, place.slot(0)) } {
            Moved::All => {
                count(&shared.counters.huge_out, 1);
                HUGE_PAGES
            }
            // The rest is tried page by page, and says why it stays.
            Moved::Some { pages, .. } => {
                shared.part_huge(first, HUGE_PAGES);
                pages.get()
            }
        }
    }

    /// The first part of a hall, from whose first slot on all of it lies.
    fn place(&self, hall: Hall) -> Option<&RoomParking> {
        let pipe = self.batches[hall.first].batch.pipe();
        match &self.shared.parking[usize::from(pipe)] {
            Parking::Rooms(place) => Some(place),
            Parking::Pipe(_) => None,
        }
    }

    /// Frees the pages and the credits of a hall, once nothing of it is on its way. False: not yet.
    pub(super) fn empty_hall(&mut self, hall: Hall) -> bool {
        let mut batches = self.batches[hall.batches()].iter();
        if !batches.all(|working| working.left || working.batch.is_idle()) {
            return false;
        }
        if let Some(place) = self.place(hall)
            && let Err(error) = place.rooms().empty(place.slot(0), HUGE_PAGES)
        {
            tracing::error!(%error, "huge pages that have left cannot be freed");
        }
        for at in hall.batches() {
            self.batches[at].left = false;
            self.drained(at);
        }
        true
    }
}

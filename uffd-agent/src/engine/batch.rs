//! An eviction, from choosing victims to draining the pipe, one step at a time.
//!
//! ```text
//!   choose -> Splice(run).. -> Punch(run).. -> Settle -> Read -> Write(run).. -> Wait -> Drain
//!     |           |               |                       |         |  failed: Home(slot)
//!     |           +- not taken    +- suspect: stays       +- clean, zero: nothing to write
//!     +- refused: stays resident
//! ```
//!
//! A batch belongs to one evictor and to one parking pipe; a page's place in the pipe is its slot here.
//! (Where pages are moved into rooms instead, splicing takes nothing, and punching is the move.) A slot whose page stayed, was discarded or was taken over by a fault is dead: its reference lies in the
//! pipe until the pipe is drained, which needs every slot to be done and every reader gone.

use mycoram_fabric::pages::MAX_RUN_PAGES;
use mycoram_fabric::units::PageIndex;

use super::{Action, Event, Pages};
use crate::page_table::{PageState, Word};

/// Neighbouring pages in neighbouring slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) slot: usize,
    pub(crate) page: PageIndex,
    pub(crate) count: u32,
}

impl Run {
    /// The first `count` pages, and the rest.
    pub(crate) fn split(self, count: u32) -> (Self, Self) {
        let count = count.min(self.count);
        let rest = Self {
            slot: self.slot + count as usize,
            page: PageIndex::new(self.page.get() + count),
            count: self.count - count,
        };
        (Self { count, ..self }, rest)
    }
}

/// What the evictor has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BatchStep {
    /// Nothing was chosen.
    Idle,
    /// Splice these pages into the pipe; then [`Batch::spliced`].
    Splice(Run),
    /// Inside the gate, punch what [`Batch::next_punch`] names until it names nothing.
    Punch,
    /// Come back at this time: DMA may still be writing.
    Settle {
        /// ns, on the evictor's clock.
        until: u64,
    },
    /// Copy the whole pipe, from slot 0 on, without emptying it; then [`Batch::judge`] each slot.
    Read,
    /// Write these slots out; then [`Batch::written`] or [`Batch::write_failed`].
    Write(Run),
    /// This page cannot be written out: [`Batch::bring_home`].
    Home(Run),
    /// Writes are in flight, or a fault worker copies out of the pipe.
    Wait,
    /// Empty the pipe; then [`Batch::drained`].
    Drain,
}

/// What [`Batch::judge`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// It has to be written.
    Dirty,
    /// The memory node holds the same.
    Clean,
    /// It is all zero.
    Zero,
    /// It is no longer leaving.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Chosen,
    Spliced,
    Parked,
    ToWrite { alone: bool },
    InFlight,
    Homeless,
    Done,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    page: PageIndex,
    generation: u32,
    fate: Fate,
    checksum: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Choosing,
    Punching,
    Settling { since: u64 },
    Writing,
}

/// One eviction.
#[derive(Debug)]
pub(crate) struct Batch {
    pipe: u8,
    capacity: usize,
    slots: Vec<Slot>,
    phase: Phase,
    /// Credits that lie in the pipe: one for each page that left the file.
    held: u64,
    /// Pages that were chosen and stay resident after all.
    stayed: Vec<PageIndex>,
}

impl Batch {
    /// For the parking pipe `pipe`, which is empty and has `capacity` places (at most 256).
    pub(crate) fn new(pipe: u8, capacity: usize) -> Self {
        let capacity = capacity.min(256);
        Self {
            pipe,
            capacity,
            slots: Vec::with_capacity(capacity),
            phase: Phase::Choosing,
            held: 0,
            stayed: Vec::with_capacity(capacity),
        }
    }

    pub(crate) fn pipe(&self) -> u8 {
        self.pipe
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.held == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.phase == Phase::Choosing && self.slots.len() < self.capacity
    }

    /// The page in a slot.
    pub(crate) fn page(&self, slot: usize) -> PageIndex {
        self.slots[slot].page
    }

    fn word_of(&self, pages: &Pages, slot: usize) -> Option<Word> {
        let slot = &self.slots[slot];
        let word = pages.table.word(slot.page);
        (word.state() == PageState::Leaving && word.generation() == slot.generation).then_some(word)
    }

    /// Chooses a page; neighbours should be chosen one after the other. False: it may not leave now.
    pub(crate) fn choose(&mut self, pages: &Pages, page: PageIndex) -> bool {
        let Ok(slot) = u8::try_from(self.slots.len()) else {
            return false;
        };
        if !self.has_room() {
            return false;
        }
        let batch = self.pipe;
        let applied = pages.apply(page, Event::Evict { batch, slot });
        if applied.action == Action::Refused {
            return false;
        }
        self.slots.push(Slot {
            page,
            generation: applied.after.generation(),
            fate: Fate::Chosen,
            checksum: 0,
        });
        true
    }

    /// What a successor finds: `parked` are the slots that count, of `held` pages in the pipe.
    pub(crate) fn adopt(&mut self, pages: &Pages, parked: &[(u8, PageIndex)], held: u64, now: u64) {
        self.held = held;
        self.slots.clear();
        for slot in 0..usize::try_from(held).unwrap_or(0).min(self.capacity) {
            let page = parked
                .iter()
                .find(|(place, _)| usize::from(*place) == slot)
                .map(|(_, page)| *page);
            self.slots.push(Slot {
                page: page.unwrap_or_default(),
                generation: page.map_or(0, |page| pages.table.word(page).generation()),
                fate: if page.is_some() {
                    Fate::Parked
                } else {
                    Fate::Done
                },
                checksum: 0,
            });
        }
        self.phase = Phase::Settling { since: now };
    }

    /// The run of slots from `start` on that have `fate` and neighbouring pages.
    fn run_from(&self, start: usize, most: usize, fits: impl Fn(&Slot) -> bool) -> Run {
        let first = self.slots[start].page;
        let count = self.slots[start..]
            .iter()
            .take(most)
            .enumerate()
            .take_while(|(i, slot)| fits(slot) && slot.page.distance_from(first) == *i as i64)
            .count();
        Run {
            slot: start,
            page: first,
            count: count as u32,
        }
    }

    /// Since when its pages have been parked, while they settle.
    pub(crate) fn settling_since(&self) -> Option<u64> {
        match self.phase {
            Phase::Settling { since } => Some(since),
            Phase::Choosing | Phase::Punching | Phase::Writing => None,
        }
    }

    /// What to do next. `settle` is how long parked pages wait before they are read, ns.
    pub(crate) fn step(&mut self, pages: &Pages, now: u64, settle: u64) -> BatchStep {
        if self.is_idle() {
            return BatchStep::Idle;
        }
        match self.phase {
            Phase::Choosing => match self.slots.iter().position(|s| s.fate == Fate::Chosen) {
                Some(start) => BatchStep::Splice(
                    self.run_from(start, self.capacity, |s| s.fate == Fate::Chosen),
                ),
                None => {
                    self.phase = Phase::Punching;
                    BatchStep::Punch
                }
            },
            Phase::Punching => {
                if self.slots.iter().any(|s| s.fate == Fate::Spliced) {
                    return BatchStep::Punch;
                }
                self.phase = Phase::Settling { since: now };
                self.step(pages, now, settle)
            }
            Phase::Settling { since } => {
                if self.slots.iter().all(|s| s.fate == Fate::Done) {
                    self.phase = Phase::Writing;
                    return self.step(pages, now, settle);
                }
                let until = since.saturating_add(settle);
                if now < until {
                    return BatchStep::Settle { until };
                }
                BatchStep::Read
            }
            Phase::Writing => self.next_write(pages),
        }
    }

    /// That many pages of the run that was to be spliced are in the pipe. Fewer than asked for: the
    /// rest stays resident.
    pub(crate) fn spliced(&mut self, pages: &Pages, run: Run, taken: u32) {
        self.held += u64::from(taken.min(run.count));
        let end = run.slot + taken.min(run.count) as usize;
        for slot in &mut self.slots[run.slot..end] {
            slot.fate = Fate::Spliced;
        }
        if taken < run.count {
            // Behind a gap no slot would match its place in the pipe.
            for slot in self.slots.drain(end..) {
                pages.apply(slot.page, Event::Stays);
                self.stayed.push(slot.page);
            }
        }
    }

    /// Inside the gate: the next run whose hole may be punched; then
    /// [`Self::punched`]. What the target discards at this moment stays.
    pub(crate) fn next_punch(&mut self, pages: &Pages) -> Option<Run> {
        loop {
            let start = self.slots.iter().position(|s| s.fate == Fate::Spliced)?;
            let suspect = |s: &Slot| pages.table.word(s.page).suspect();
            if suspect(&self.slots[start]) {
                // The pipe's reference is dead from here on; the page goes on living in the file.
                self.stays(pages, start);
                continue;
            }
            // However long: what a punch costs most is to make the other CPUs forget the pages, once a call.
            return Some(self.run_from(start, self.capacity, |s| {
                s.fate == Fate::Spliced && !suspect(s)
            }));
        }
    }

    /// Still inside the gate: the run is punched, or it could not be and stays.
    pub(crate) fn punched(&mut self, pages: &Pages, run: Run, done: bool) {
        for at in run.slot..run.slot + run.count as usize {
            if done {
                pages.apply(self.slots[at].page, Event::Parked);
                self.slots[at].fate = Fate::Parked;
            } else {
                self.stays(pages, at);
            }
        }
    }

    /// A page that was spliced stays resident, and its credit with it.
    fn stays(&mut self, pages: &Pages, slot: usize) {
        pages.apply(self.slots[slot].page, Event::Stays);
        self.slots[slot].fate = Fate::Done;
        self.stayed.push(self.slots[slot].page);
        self.held -= 1;
    }

    /// Pages that stay resident: their policy has to be told. Each is given once.
    pub(crate) fn stayed(&mut self) -> impl Iterator<Item = PageIndex> + '_ {
        self.stayed.drain(..)
    }

    /// Credits that lie in the pipe.
    pub(crate) fn held(&self) -> u64 {
        self.held
    }

    /// Whether a slot's content has to be looked at.
    pub(crate) fn wants_judgement(&self, slot: usize) -> bool {
        self.slots[slot].fate == Fate::Parked
    }

    /// The pipe was read and this is what slot `slot` holds.
    pub(crate) fn judge(
        &mut self,
        pages: &Pages,
        slot: usize,
        checksum: u64,
        zero: bool,
    ) -> Judgement {
        let page = self.slots[slot].page;
        // Each round something else has changed the word; at most a fault and a discard can.
        let judgement = loop {
            let Some(word) = self.word_of(pages, slot) else {
                break Judgement::Gone;
            };
            let clean = word.synced() && pages.table.checksum(page) == checksum;
            let (event, judgement) = if clean {
                (Event::FoundClean, Judgement::Clean)
            } else if zero && !word.synced() {
                (Event::FoundZero, Judgement::Zero)
            } else {
                // Zeros too, where the memory nodes have something else: an owner that knows nothing of this
                // page table would take that for the page.
                (Event::WriteBegins, Judgement::Dirty)
            };
            if pages.try_apply(page, word, event).is_ok() {
                break judgement;
            }
        };
        self.slots[slot].checksum = checksum;
        self.slots[slot].fate = if judgement == Judgement::Dirty {
            Fate::ToWrite { alone: false }
        } else {
            Fate::Done
        };
        judgement
    }

    /// Every slot was judged.
    pub(crate) fn judged(&mut self) {
        self.phase = Phase::Writing;
    }

    fn next_write(&mut self, pages: &Pages) -> BatchStep {
        let start = self
            .slots
            .iter()
            .position(|s| matches!(s.fate, Fate::ToWrite { .. } | Fate::Homeless));
        if let Some(start) = start {
            return match self.slots[start].fate {
                Fate::Homeless => BatchStep::Home(self.run_from(start, 1, |_| true)),
                Fate::ToWrite { alone: true } => {
                    BatchStep::Write(self.run_from(start, 1, |_| true))
                }
                _ => BatchStep::Write(self.run_from(start, usize::from(MAX_RUN_PAGES), |s| {
                    s.fate == Fate::ToWrite { alone: false }
                })),
            };
        }
        if self.slots.iter().any(|s| s.fate == Fate::InFlight) || pages.has_readers(self.pipe) {
            return BatchStep::Wait;
        }
        BatchStep::Drain
    }

    /// The run's WRITE was queued.
    pub(crate) fn writing(&mut self, run: Run) {
        for slot in &mut self.slots[run.slot..run.slot + run.count as usize] {
            slot.fate = Fate::InFlight;
        }
    }

    /// The run is on its memory nodes.
    pub(crate) fn written(&mut self, pages: &Pages, slot: usize, count: usize) {
        for slot in &mut self.slots[slot..slot + count] {
            // First the checksum, then the word that says that it holds.
            pages.table.set_checksum(slot.page, slot.checksum);
            pages.apply(slot.page, Event::Written);
            slot.fate = Fate::Done;
        }
    }

    /// The run could not be written. A page of a longer run is tried alone; a single one has no home.
    pub(crate) fn write_failed(&mut self, pages: &Pages, slot: usize, count: usize) {
        for slot in &mut self.slots[slot..slot + count] {
            if count > 1 {
                slot.fate = Fate::ToWrite { alone: true };
            } else {
                pages.apply(slot.page, Event::WriteFailed);
                slot.fate = Fate::Homeless;
            }
        }
    }

    /// A page without a home: back into the file if `keep`, else lost. Answers whether it has to be
    /// copied in (then [`Pages::installed`]) or poisoned; nothing if it is no longer leaving.
    pub(crate) fn bring_home(&mut self, pages: &Pages, slot: usize, keep: bool) -> Action {
        self.slots[slot].fate = Fate::Done;
        let page = self.slots[slot].page;
        let event = if keep {
            Event::BringHome
        } else {
            Event::Abandon
        };
        loop {
            let Some(word) = self.word_of(pages, slot) else {
                return Action::Nothing;
            };
            if keep {
                pages.credits.overdraw(1);
            }
            match pages.try_apply(page, word, event) {
                Ok(applied) => return applied.action,
                Err(_) if keep => pages.credits.give(1),
                Err(_) => {}
            }
        }
    }

    /// The pipe is empty: its credits are free. Answers how many.
    pub(crate) fn drained(&mut self, pages: &Pages) -> u64 {
        let held = std::mem::take(&mut self.held);
        self.slots.clear();
        self.phase = Phase::Choosing;
        pages.credits.give(held);
        held
    }
}

//! The transition function, applied: compare-and-swap on the page table, credits, readers of parked pages,
//! and counts of pages by state.

use std::sync::atomic::{AtomicU32, Ordering};

use mycoram_fabric::units::PageIndex;

use super::tally::Tally;
use super::{Action, Credits, Event, transition};
use crate::page_table::{PageState, PageTable, Source, Word};

/// What all threads of a region share about its pages.
#[derive(Debug)]
pub(crate) struct Pages {
    pub(crate) table: PageTable,
    pub(crate) credits: Credits,
    /// For each parking pipe, how many fault workers are copying out of it.
    readers: Box<[AtomicU32]>,
    tally: Tally,
}

/// What was done to a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) before: Word,
    pub(crate) after: Word,
    pub(crate) action: Action,
}

/// What a fault worker has to do about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultStep {
    /// Install zeros. A credit was taken.
    Zero,
    /// Read it from its memory node. A credit was taken.
    Read,
    /// Copy it out of the pipe `batch`, place `slot`; then say [`Pages::reader_done`]. A credit was taken.
    Parked { batch: u8, slot: u8 },
    /// Somebody is at it and will wake who waits.
    Wait,
    /// An evictor is between two steps: come back soon.
    Again,
    /// No credit is free: come back when there is one.
    NoCredit,
    /// It should be there: ask the file. There: wake. Not there: [`Pages::hole_found`], then again.
    LookForHole(Word),
    /// Raise SIGBUS.
    Poison,
    /// A prefetch of what is not remote.
    NotWanted,
}

/// What is to be put into the file for a page that was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// What was fetched.
    Fetched,
    /// Zeros: the target discarded the page meanwhile.
    Zero,
}

impl Pages {
    pub(crate) fn new(table: PageTable, credits: Credits, pipes: usize) -> Self {
        let pages = Self {
            table,
            credits,
            readers: (0..pipes).map(|_| AtomicU32::new(0)).collect(),
            tally: Tally::default(),
        };
        pages.recount();
        pages
    }

    /// Counts the whole table: at the start, and after whole ranges were set.
    pub(crate) fn recount(&self) {
        let mut counts = [0_i64; PageState::ALL.len()];
        for page in self.table.pages().indexes() {
            counts[self.table.word(page).state() as usize] += 1;
        }
        self.tally.set(counts);
    }

    /// How many pages are in a state, now.
    pub(crate) fn count(&self, state: PageState) -> u64 {
        self.tally.count(state)
    }

    /// Applies an event. An illegal one is a bug, and the only sound answer is to stop here.
    ///
    /// # Panics
    /// If `event` cannot happen to the page.
    pub(crate) fn apply(&self, page: PageIndex, event: Event) -> Applied {
        let mut before = self.table.word(page);
        loop {
            match self.try_apply(page, before, event) {
                Ok(applied) => return applied,
                Err(now) => before = now,
            }
        }
    }

    /// Applies an event if the word still is `before`; else answers what it is.
    pub(crate) fn try_apply(
        &self,
        page: PageIndex,
        before: Word,
        event: Event,
    ) -> Result<Applied, Word> {
        let (after, action) = match transition(before, event) {
            Ok(next) => next,
            Err(illegal) => panic!("{page}: {illegal}"),
        };
        if after != before {
            self.table.swap(page, before, after)?;
            if after.state() != before.state() {
                self.tally.moved(before.state(), after.state());
            }
        }
        Ok(Applied {
            before,
            after,
            action,
        })
    }

    /// A thread of the target waits for the page.
    pub(crate) fn fault(&self, page: PageIndex) -> FaultStep {
        self.begin(page, Event::Fault, 0)
    }

    /// The page may be wanted soon; `keep` credits stay free for faults.
    pub(crate) fn prefetch(&self, page: PageIndex, keep: i64) -> FaultStep {
        self.begin(page, Event::Prefetch, keep)
    }

    fn begin(&self, page: PageIndex, event: Event, keep: i64) -> FaultStep {
        let mut credit = false;
        let mut word = self.table.word(page);
        let step = loop {
            let parked = word.state() == PageState::Leaving && word.parked();
            let fetches = parked
                || match word.state() {
                    PageState::Remote => true,
                    PageState::NeverWritten => event == Event::Fault,
                    _ => false,
                };
            if fetches && (event == Event::Fault || !parked) && !credit {
                credit = self.credits.take(keep);
                if !credit {
                    break FaultStep::NoCredit;
                }
            }
            // Before the swap: an evictor that sees the page taken over must see its reader too.
            let reading = (parked && event == Event::Fault).then(|| word.batch());
            if let Some(batch) = reading {
                self.readers[usize::from(batch)].fetch_add(1, Ordering::SeqCst);
            }
            match self.try_apply(page, word, event) {
                Ok(applied) => match applied.action {
                    Action::InstallZero => return FaultStep::Zero,
                    Action::Read => return FaultStep::Read,
                    Action::ReadParked => {
                        return FaultStep::Parked {
                            batch: word.batch(),
                            slot: word.slot(),
                        };
                    }
                    Action::Wait => break FaultStep::Wait,
                    Action::Again => break FaultStep::Again,
                    Action::LookForHole => break FaultStep::LookForHole(word),
                    Action::Poison => break FaultStep::Poison,
                    _ => break FaultStep::NotWanted,
                },
                Err(now) => {
                    if let Some(batch) = reading {
                        self.reader_done(batch);
                    }
                    word = now;
                }
            }
        };
        if credit {
            self.credits.give(1);
        }
        step
    }

    /// A page was copied out of pipe `batch`, or will not be.
    pub(crate) fn reader_done(&self, batch: u8) {
        self.readers[usize::from(batch)].fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether somebody is copying out of pipe `batch`.
    pub(crate) fn has_readers(&self, batch: u8) -> bool {
        self.readers[usize::from(batch)].load(Ordering::SeqCst) > 0
    }

    /// What to install. Inside the gate: no discard may come between this answer and the copy.
    pub(crate) fn content(&self, page: PageIndex) -> Content {
        if self.table.word(page).source() == Source::Zero {
            Content::Zero
        } else {
            Content::Fetched
        }
    }

    /// The page is in the file; whether somebody has to be woken who came meanwhile.
    pub(crate) fn installed(&self, page: PageIndex) -> bool {
        self.apply(page, Event::Installed).action == Action::Wake
    }

    /// The page can be had from nowhere. False: it was discarded meanwhile, and is zeros now.
    pub(crate) fn fetch_failed(&self, page: PageIndex) -> bool {
        let lost = self.apply(page, Event::FetchFailed).action == Action::Poison;
        if lost {
            self.credits.give(1);
        }
        lost
    }

    /// A fetch was not begun after all; whether somebody has to be woken, to fault again.
    pub(crate) fn fetch_dropped(&self, page: PageIndex) -> bool {
        let wake = self.apply(page, Event::FetchDropped).action == Action::Wake;
        self.credits.give(1);
        wake
    }

    /// The page that was resident as `seen` is not in the file. False: it is another one meanwhile.
    pub(crate) fn hole_found(&self, page: PageIndex, seen: Word) -> bool {
        if seen.state() != PageState::Resident {
            return false;
        }
        let gone = self.try_apply(page, seen, Event::HoleFound).is_ok();
        if gone {
            self.credits.give(1);
        }
        gone
    }

    /// The discard that made the page suspect must be over, and the page `seen` is still there.
    pub(crate) fn data_found(&self, page: PageIndex, seen: Word) {
        // Changed meanwhile: then newer knowledge stands.
        let _ = self.try_apply(page, seen, Event::DataFound);
    }

    /// The target discards the page; whether the file has to be asked later.
    pub(crate) fn discard(&self, page: PageIndex) -> bool {
        self.apply(page, Event::Discard).action == Action::LookLater
    }
}

//! Comparing the replicas of a region with what was written last, while the region is in use, and writing wrong
//! ones again if that was ordered.
//!
//! ```text
//!   runs of 16 pages, from each live replica:  right --> next
//!                                              anything else --> the page alone:
//!     alone, up to TRIES times:  written meanwhile --> again
//!                                wrong twice while nobody wrote it --> wrong --> repaired, if ordered
//! ```
//!
//! A page counts while its entry says that the memory nodes hold what its checksum is of; the entry is looked at
//! before a replica is read and after. Repairs take part in the game of the page's states: a remote page is
//! marked as being fetched meanwhile, so that nobody writes it; a resident one is written out anew from here.
//! It goes one page after the other, on a thread and a lane of its own, and never holds a fault up.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mycoram_fabric::check::{CheckOrder, CheckReport, MAX_NAMED, WrongReplica};
use mycoram_fabric::pages::{Direction, MAX_RUN_PAGES, NodeSet, Which};
use mycoram_fabric::units::{PAGE_BYTES, PageIndex};
use nix::sys::signal::SigSet;
use twox_hash::XxHash3_64;

use super::failure;
use super::orders::{Errand, FRAMES, LOOK_AGAIN, still_serving};
use super::region::RegionError;
use super::shared::Shared;
use crate::engine::{Event, FaultStep};
use crate::page_table::PageState;

/// How often a page is compared that is being written at the same time.
const TRIES: u32 = 16;
/// How often it must be found wrong, with nobody writing it, before that is said.
const TIMES_WRONG: u32 = 2;
/// How often a page that is to be repaired is tried to be had alone; `LOOK_AGAIN` lies between.
const CLAIMS: u32 = 1000;
/// How often it is told how far it is.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// How often the last report is tried to be told, and how long lies between.
const LAST_TRIES: u32 = 60;
const LAST_AGAIN: Duration = Duration::from_millis(500);

/// Its thread.
const NAME: &str = "myco-check";

/// The check that is being made, if one is.
#[derive(Debug, Default)]
pub(super) struct Checks {
    thread: Option<JoinHandle<()>>,
    /// The last that was begun.
    number: u64,
}

impl Checks {
    /// Begins the check that is wanted, unless one is going on.
    pub(super) fn tend(&mut self, shared: &Arc<Shared>) {
        if self.thread.as_ref().is_some_and(|t| !t.is_finished()) {
            return;
        }
        let Some(order) = shared.remote.check_wanted() else {
            return;
        };
        if order.number == self.number {
            return;
        }
        self.end();
        let for_thread = Arc::clone(shared);
        let thread = std::thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || {
                // Its signals are the process's own, whose handlers may touch the region.
                let _ = SigSet::all().thread_block();
                failure::watch(&for_thread, NAME, || check(&for_thread, order));
            });
        match thread {
            Ok(thread) => {
                self.number = order.number;
                self.thread = Some(thread);
            }
            Err(error) => tracing::warn!(%error, "no thread to compare replicas; tried again"),
        }
    }

    /// Waits for it; it ends when the region does.
    pub(super) fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Its panic is the region's.
            let _ = thread.join();
        }
    }
}

fn check(shared: &Shared, order: CheckOrder) {
    let report = CheckReport {
        number: order.number,
        pages: u64::from(shared.pages.table.pages().get()),
        ..CheckReport::default()
    };
    let made = Errand::new(shared, FRAMES).and_then(|errand| {
        let mut check = Check {
            errand,
            repair: order.repair,
            report,
            told: Instant::now(),
        };
        check.all()?;
        Ok(check.report)
    });
    let mut report = match made {
        Ok(report) => report,
        // Whoever wants it finds a successor, or nobody.
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a check of the region's replicas was not brought to its end"
            );
            return;
        }
    };
    report.over = true;
    for _ in 0..LAST_TRIES {
        match shared.remote.check_told(&report) {
            Ok(()) => break,
            Err(error) => tracing::debug!(
                error = &error as &dyn std::error::Error,
                "the end of a check could not be told; tried again"
            ),
        }
        if !shared.is_serving() {
            break;
        }
        std::thread::sleep(LAST_AGAIN);
    }
}

/// How one replica of one page was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Right,
    Wrong,
    Unreadable,
    /// There is nothing to compare it with, now or any more.
    Moving,
}

struct Check<'a> {
    errand: Errand<'a>,
    repair: bool,
    report: CheckReport,
    told: Instant,
}

impl Check<'_> {
    fn shared(&self) -> &Shared {
        self.errand.shared
    }

    /// What the memory nodes hold of a page, if they hold its last write-back for sure.
    fn kept(&self, page: PageIndex) -> Option<u64> {
        let table = &self.shared().pages.table;
        let before = table.word(page);
        let kept = table.checksum(page);
        let steady =
            |word: crate::page_table::Word| word.synced() && !word.writing() && !word.unseen();
        (steady(before) && steady(table.word(page))).then_some(kept)
    }

    fn is_right(&self, frame: u32, wrong: u16, kept: u64) -> bool {
        // SAFETY: the READ is done; the frame is the errand's own.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.errand.bytes(frame).cast_const(), PAGE_BYTES)
        };
        wrong & (1 << frame) == 0 && XxHash3_64::oneshot(bytes) == kept
    }

    fn all(&mut self) -> Result<(), RegionError> {
        let all = self.shared().pages.table.pages().get();
        let mut next = 0;
        while next < all {
            still_serving(self.shared())?;
            let first = PageIndex::new(next);
            let nodes = self.shared().remote.replicas_of(first);
            let mut run = 0;
            let mut kept = [None; MAX_RUN_PAGES as usize];
            while run < MAX_RUN_PAGES && next < all {
                let page = PageIndex::new(next);
                if self.shared().remote.replicas_of(page) != nodes {
                    break;
                }
                kept[usize::from(run)] = self.kept(page);
                run += 1;
                next += 1;
            }
            self.run(first, &kept[..usize::from(run)], nodes)?;
            self.report.looked_at += u64::from(run);
            self.tell();
        }
        Ok(())
    }

    fn tell(&mut self) {
        if self.told.elapsed() < TELL_EVERY {
            return;
        }
        self.told = Instant::now();
        // The next one says it too.
        let _ = self.shared().remote.check_told(&self.report);
    }

    /// Compares neighbouring pages that have replicas on the same nodes.
    fn run(
        &mut self,
        first: PageIndex,
        kept: &[Option<u64>],
        mut nodes: NodeSet,
    ) -> Result<(), RegionError> {
        let page = |at: usize| PageIndex::new(first.get() + at as u32);
        let mut alone = 0_u16;
        let mut right_ones = [0; MAX_RUN_PAGES as usize];
        if kept.iter().all(Option::is_none) {
            return Ok(());
        }
        while let Some(node) = nodes.take_one() {
            let which = Which::Only(node);
            let run = kept.len() as u16;
            let (error, wrong) = self.errand.carry_to(Direction::Read, first, run, which)?;
            for (at, before) in kept.iter().enumerate() {
                let Some(before) = *before else { continue };
                let right = error.is_none() && self.is_right(at as u32, wrong, before);
                if right && self.kept(page(at)) == Some(before) {
                    right_ones[at] += 1;
                } else {
                    alone |= 1 << at;
                }
            }
        }
        for (at, right) in right_ones.into_iter().enumerate().take(kept.len()) {
            // Alone, all of its replicas are compared anew.
            match alone & (1 << at) != 0 {
                true => self.alone(page(at))?,
                false => self.report.compared += right,
            }
        }
        Ok(())
    }

    /// One replica of one page; its bytes are in the first frame then.
    fn look(&mut self, page: PageIndex, node: u16) -> Result<Found, RegionError> {
        let Some(kept) = self.kept(page) else {
            return Ok(Found::Moving);
        };
        let which = Which::Only(node);
        let (error, wrong) = self.errand.carry_to(Direction::Read, page, 1, which)?;
        let right = error.is_none() && self.is_right(0, wrong, kept);
        Ok(match self.kept(page) {
            after if after != Some(kept) => Found::Moving,
            _ if right => Found::Right,
            _ if error.is_some() => Found::Unreadable,
            _ => Found::Wrong,
        })
    }

    /// Looks at each replica of a page until nobody writes it meanwhile.
    fn alone(&mut self, page: PageIndex) -> Result<(), RegionError> {
        let mut times = 0;
        let mut before = NodeSet::NONE;
        for _ in 0..TRIES {
            still_serving(self.shared())?;
            let (mut moving, mut unreadable, mut right) = (false, 0, 0);
            let mut wrong = NodeSet::NONE;
            // As they are now: one that missed a write is not live any more.
            let mut nodes = self.shared().remote.replicas_of(page);
            while let Some(node) = nodes.take_one() {
                match self.look(page, node)? {
                    Found::Right => right += 1,
                    Found::Wrong => wrong.add(node),
                    Found::Unreadable => unreadable += 1,
                    Found::Moving => moving = true,
                }
            }
            if moving {
                times = 0;
                if self.settled_here(page) {
                    return Ok(());
                }
                std::thread::sleep(LOOK_AGAIN);
                continue;
            }
            times = if wrong == before { times + 1 } else { 1 };
            before = wrong;
            if wrong.is_empty() || times >= TIMES_WRONG {
                self.report.compared += right;
                self.report.unreadable += unreadable;
                return self.wrong(page, wrong);
            }
        }
        self.report.unsettled += 1;
        Ok(())
    }

    /// Its content is here, or nowhere: there is nothing to compare, until it is written back again.
    fn settled_here(&self, page: PageIndex) -> bool {
        let word = self.shared().pages.table.word(page);
        !word.writing()
            && !word.synced()
            && matches!(
                word.state(),
                PageState::NeverWritten | PageState::Resident | PageState::Lost
            )
    }

    fn wrong(&mut self, page: PageIndex, mut wrong: NodeSet) -> Result<(), RegionError> {
        if wrong.is_empty() {
            return Ok(());
        }
        let repaired = match self.repair {
            true => self.repair(page, wrong)?,
            false => NodeSet::NONE,
        };
        while let Some(node) = wrong.take_one() {
            let name = self.shared().remote.node_name(node);
            let repaired = repaired.contains(node);
            tracing::warn!(
                page = page.get(),
                node = name,
                repaired,
                "a replica of a page is wrong"
            );
            self.report.compared += 1;
            self.report.wrong += 1;
            self.report.repaired += u64::from(repaired);
            if self.report.named.len() < MAX_NAMED {
                self.report.named.push(WrongReplica {
                    page,
                    node: name,
                    repaired,
                });
            }
        }
        Ok(())
    }

    /// Writes a page again where it is wrong. Answers where that was done, and is right now.
    fn repair(&mut self, page: PageIndex, wrong: NodeSet) -> Result<NodeSet, RegionError> {
        for _ in 0..CLAIMS {
            still_serving(self.shared())?;
            let word = self.shared().pages.table.word(page);
            let state = word.state();
            if self.shared().pages.prefetch(page, 0) == FaultStep::Read {
                let repaired = self.write_remote(page, wrong);
                if self.shared().pages.fetch_dropped(page) {
                    // Who came meanwhile asks again.
                    self.shared().wake_page(page);
                }
                self.shared().credits_came();
                return repaired;
            }
            if state == PageState::Resident && !word.writing() && self.write_resident(page)? {
                return self.right_again(page, wrong);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(NodeSet::NONE)
    }

    /// While the page is marked as being fetched: from a right replica to the wrong ones.
    fn write_remote(
        &mut self,
        page: PageIndex,
        mut wrong: NodeSet,
    ) -> Result<NodeSet, RegionError> {
        let mut repaired = NodeSet::NONE;
        let Some(kept) = self.kept(page) else {
            return Ok(repaired);
        };
        let mut nodes = self.shared().remote.replicas_of(page);
        let mut source = None;
        while let Some(node) = nodes.take_one() {
            if !wrong.contains(node) && self.look(page, node)? == Found::Right {
                source = Some(node);
                break;
            }
        }
        let Some(source) = source else {
            return Ok(repaired);
        };
        while let Some(node) = wrong.take_one() {
            // The frame holds the right content: it was read last, or what was written was read back right.
            let which = Which::Only(node);
            let (error, _) = self.errand.carry_to(Direction::Write, page, 1, which)?;
            if error.is_none() && self.look(page, node)? == Found::Right {
                repaired.add(node);
            } else if !(self.kept(page) == Some(kept) && self.look(page, source)? == Found::Right) {
                break;
            }
        }
        Ok(repaired)
    }

    /// A resident page is written out as it is here now, to all replicas, as a flush does it. False: not now.
    fn write_resident(&mut self, page: PageIndex) -> Result<bool, RegionError> {
        let shared = self.errand.shared;
        let word = shared.pages.table.word(page);
        if word.state() != PageState::Resident || word.writing() {
            return Ok(false);
        }
        let into = self.errand.bytes(0);
        // SAFETY: the frame is a page of the errand's own lane.
        if unsafe { shared.memory.read_pages_to(page, 1, &shared.address, into) }.is_err() {
            return Ok(false);
        }
        // SAFETY: written just now, and not changed until the WRITE is done.
        let bytes = unsafe { std::slice::from_raw_parts(into.cast_const(), PAGE_BYTES) };
        let checksum = XxHash3_64::oneshot(bytes);
        if shared
            .pages
            .try_apply(page, word, Event::WriteBegins)
            .is_err()
        {
            return Ok(false);
        }
        let (error, _) = self
            .errand
            .carry_to(Direction::Write, page, 1, Which::Live)?;
        if error.is_some() {
            shared.pages.apply(page, Event::WriteFailed);
            return Ok(false);
        }
        shared.pages.table.set_checksum(page, checksum);
        shared.pages.apply(page, Event::Written);
        Ok(true)
    }

    /// Which of these are right now, or were overtaken by a newer write, which goes to all.
    fn right_again(&mut self, page: PageIndex, mut nodes: NodeSet) -> Result<NodeSet, RegionError> {
        let mut right = NodeSet::NONE;
        while let Some(node) = nodes.take_one() {
            if matches!(self.look(page, node)?, Found::Right | Found::Moving) {
                right.add(node);
            }
        }
        Ok(right)
    }
}

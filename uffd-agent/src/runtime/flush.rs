//! Flush: every page that differs from its remote copy is written to its replicas, several runs at once, on the
//! thread of who asks, while the program goes on.
//!
//! ```text
//!   claim   a block of neighbours, as far as they are resident and nobody is at them: copied to its frames; those
//!           with another checksum than at the last write-back are claimed, which their words say ("writing")
//!   send    each run of claimed pages of the block
//!   answer  of every live replica: the checksum is kept, the word says that it is written
//! ```

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mycoram_fabric::pages::{
    Direction, FrameIndex, MAX_RUN_PAGES, PageError, PageLane, PageRequest, Which,
};
use mycoram_fabric::transport::Armed;
use mycoram_fabric::units::{PAGE_BYTES, PageIndex};
use twox_hash::XxHash3_64;

use super::orders::{Errand, LONGEST_WAIT, LOOK_AGAIN, still_serving};
use super::region::RegionError;
use super::shared::Shared;
use crate::engine::Event;
use crate::page_table::{PageState, Word};

/// Pages of a block, which are one run if all of them are to be written.
const BLOCK_PAGES: u32 = MAX_RUN_PAGES as u32;
/// Blocks under way at most.
const BLOCKS: u32 = 16;
/// Blocks that go out together: a call to the kernel, and waking a node, take as long as some pages.
const TOGETHER: u32 = 4;
/// How long the lane stays open for the next flush, ns.
const RESTS_NS: u64 = 10_000_000_000;
/// How often a resting lane that says that it has something is looked at before others have their turn.
const LOOKS: u32 = 8;

/// See [`super::Region::flush`].
pub(crate) fn flush(shared: &Shared) -> Result<(), RegionError> {
    let all = shared.pages.table.pages().get();
    let blocks = all.div_ceil(BLOCK_PAGES).min(BLOCKS);
    let errand = match shared.flush_lane.take() {
        Some(lane) => Errand::over(shared, lane),
        None => Errand::new(shared, blocks * BLOCK_PAGES)?,
    };
    let mut flush = Flush {
        errand,
        blocks: vec![Block::default(); blocks as usize],
        free: (0..blocks).collect(),
        queued: 0,
    };
    let mut next = 0;
    while next < all {
        let Some(number) = flush.free.pop() else {
            flush.wait(LONGEST_WAIT)?;
            continue;
        };
        let looked = flush.claim(number, next..all.min(next + BLOCK_PAGES));
        flush.send(number)?;
        next += looked;
        if looked > 0 {
            continue;
        }
        // Somebody is at the page, and will be done.
        let page = PageIndex::new(next);
        if shared.remote.is_placed(page) || shared.remote.has_room() {
            flush.wait(LOOK_AGAIN)?;
        } else {
            // An evictor has it, and waits for room.
            flush.errand.failed(1, PageError::Unplaced);
            next += 1;
        }
    }
    while flush.is_under_way() {
        flush.wait(LONGEST_WAIT)?;
    }
    let (lane, outcome) = flush.errand.outcome();
    shared.flush_lane.rest(lane, shared.now());
    shared.keeper_bell.ring();
    outcome
}

/// The lane of flushes, between them: to open one takes as long as some dozen pages. The keeper has it answer
/// meanwhile, because who copies an extent waits for every lane to know.
#[derive(Default)]
pub(crate) struct FlushLane(Mutex<Rest>);

#[derive(Default)]
enum Rest {
    #[default]
    Empty,
    Lane {
        lane: Box<dyn PageLane>,
        /// Closed then, ns.
        until: u64,
    },
    /// The region is over: none is to stay open.
    Over,
}

impl FlushLane {
    fn lock(&self) -> MutexGuard<'_, Rest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Box<dyn PageLane>> {
        let mut rest = self.lock();
        if matches!(*rest, Rest::Over) {
            return None;
        }
        match std::mem::take(&mut *rest) {
            Rest::Lane { lane, .. } => Some(lane),
            Rest::Empty | Rest::Over => None,
        }
    }

    fn rest(&self, lane: Box<dyn PageLane>, now: u64) {
        let mut rest = self.lock();
        if !matches!(*rest, Rest::Over) {
            let until = now + RESTS_NS;
            *rest = Rest::Lane { lane, until };
        }
    }

    /// Has it answer what it is asked, and calls `each` with what to wait for until it is asked again.
    pub(super) fn tend(&self, now: u64, each: &mut dyn FnMut(BorrowedFd<'_>)) {
        let mut rest = self.lock();
        let Rest::Lane { lane, until } = &mut *rest else {
            return;
        };
        if now >= *until {
            *rest = Rest::Empty;
            return;
        }
        let mut nothing = Vec::with_capacity(1);
        for _ in 0..LOOKS {
            if lane.arm() == Armed::Waiting {
                break;
            }
            lane.poll(&mut nothing);
        }
        lane.readiness(each);
    }

    /// Closes it, for good.
    pub(super) fn close(&self) {
        *self.lock() = Rest::Over;
    }
}

/// Neighbours that are looked at together, in the frames of the block's number.
#[derive(Clone, Copy, Default)]
struct Block {
    first: u32,
    /// Of the pages that are claimed.
    checksums: [Option<u64>; BLOCK_PAGES as usize],
    /// Runs that are not answered yet.
    under_way: u32,
}

struct Flush<'a> {
    errand: Errand<'a>,
    blocks: Vec<Block>,
    /// Numbers of blocks of which nothing is under way.
    free: Vec<u32>,
    /// Blocks that were queued since it rang.
    queued: u32,
}

impl Flush<'_> {
    fn is_under_way(&self) -> bool {
        self.free.len() < self.blocks.len()
    }

    /// Claims those of a block's pages that are to be written; how many pages were looked at, up to one that
    /// somebody else is at.
    fn claim(&mut self, number: u32, pages: Range<u32>) -> u32 {
        let Range { start, end } = pages;
        let shared = self.errand.shared;
        let table = &shared.pages.table;
        self.blocks[number as usize] = Block {
            first: start,
            ..Block::default()
        };
        let mut next = start;
        while next < end {
            let mut words = [Word::default(); BLOCK_PAGES as usize];
            let mut resident = 0;
            for page in next..end {
                let word = table.word(PageIndex::new(page));
                if word.state() != PageState::Resident || word.writing() {
                    break;
                }
                words[resident as usize] = word;
                resident += 1;
            }
            if resident == 0 {
                let word = table.word(PageIndex::new(next));
                match word.state() {
                    // There is nothing to write.
                    PageState::NeverWritten | PageState::Remote | PageState::Lost => next += 1,
                    PageState::Fetching | PageState::Leaving => break,
                    PageState::Resident if word.writing() => break,
                    PageState::Resident => {}
                }
                continue;
            }
            let looked = self.claim_resident(number, next, &words[..resident as usize]);
            next += looked;
            if looked < resident {
                break;
            }
        }
        next - start
    }

    /// Those of neighbours that are resident by these words; how many were looked at.
    fn claim_resident(&mut self, number: u32, first: u32, words: &[Word]) -> u32 {
        let shared = self.errand.shared;
        let pages = &shared.pages;
        let block = &mut self.blocks[number as usize];
        let at = first - block.first;
        let into = self.errand.bytes(number * BLOCK_PAGES + at);
        let count = words.len() as u32;
        // SAFETY: the pages lie within the block, and its frames are the errand's own.
        let read = unsafe {
            let first = PageIndex::new(first);
            shared
                .memory
                .read_pages_to(first, count, &shared.address, into)
        };
        let Ok(read) = read else { return 0 };
        for (nth, word) in words.iter().enumerate().take(read as usize) {
            let page = PageIndex::new(first + nth as u32);
            // SAFETY: written just now, and not changed until the WRITE is done.
            let bytes = unsafe {
                std::slice::from_raw_parts(into.add(nth * PAGE_BYTES).cast_const(), PAGE_BYTES)
            };
            let checksum = XxHash3_64::oneshot(bytes);
            if word.synced() && pages.table.checksum(page) == checksum {
                continue;
            }
            // The same word still: then what was read was the page's content at some moment since.
            if pages.try_apply(page, *word, Event::WriteBegins).is_err() {
                return nth as u32;
            }
            block.checksums[at as usize + nth] = Some(checksum);
        }
        read
    }

    /// Sends what is claimed of a block, run by run.
    fn send(&mut self, number: u32) -> Result<(), RegionError> {
        let Block {
            first, checksums, ..
        } = self.blocks[number as usize];
        // Until it is sent as a whole, an answer does not free it.
        self.blocks[number as usize].under_way = 1;
        let mut at = 0;
        for run in checksums.chunk_by(|one, next| one.is_some() == next.is_some()) {
            let (from, pages) = (at, run.len() as u16);
            at += u32::from(pages);
            if run[0].is_none() {
                continue;
            }
            let request = PageRequest {
                tag: number.into(),
                direction: Direction::Write,
                page: PageIndex::new(first + from),
                run: pages,
                frame: FrameIndex(number * BLOCK_PAGES + from),
                which: Which::Live,
            };
            self.blocks[number as usize].under_way += 1;
            while !self.errand.queue(request) {
                self.wait(LONGEST_WAIT)?;
            }
        }
        self.queued += 1;
        if self.queued == TOGETHER {
            self.ring();
        }
        self.ended(number);
        Ok(())
    }

    fn ring(&mut self) {
        self.queued = 0;
        self.errand.ring();
    }

    fn ended(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        block.under_way -= 1;
        if block.under_way == 0 {
            self.free.push(number);
        }
    }

    /// Until a run was answered, or `most` is over.
    fn wait(&mut self, most: Duration) -> Result<(), RegionError> {
        let shared = self.errand.shared;
        self.ring();
        if self.answers()? {
            return Ok(());
        }
        // A write waits for a place for as long as the region is served.
        still_serving(shared)?;
        if !self.is_under_way() {
            std::thread::sleep(most);
            return Ok(());
        }
        if !shared.remote.has_room() {
            // Who asked is told so; the pages stay here.
            self.errand.give_up_unplaced();
            return self.answers().map(drop);
        }
        // The next answer is not far, and waking up takes as long.
        let spins = Duration::from_micros(shared.config.spin_us.into());
        let begun = Instant::now();
        while begun.elapsed() < spins.min(most) {
            std::thread::yield_now();
            if self.answers()? {
                return Ok(());
            }
        }
        self.errand.sleep(most);
        self.answers().map(drop)
    }

    /// Takes what was answered; whether there was something.
    fn answers(&mut self) -> Result<bool, RegionError> {
        let shared = self.errand.shared;
        let mut some = false;
        while let Some(done) = self.errand.answer() {
            some = true;
            // Tags are numbers of blocks.
            let number = done.tag as u32;
            let Block {
                first, checksums, ..
            } = self.blocks[number as usize];
            let error = self.errand.failure(&done)?;
            let at = (done.page.get() - first) as usize;
            let written = &checksums[at..at + usize::from(done.run)];
            for (nth, checksum) in written.iter().flatten().enumerate() {
                let page = PageIndex::new(done.page.get() + nth as u32);
                match error {
                    None => {
                        shared.pages.table.set_checksum(page, *checksum);
                        shared.pages.apply(page, Event::Written);
                    }
                    Some(error) => {
                        shared.pages.apply(page, Event::WriteFailed);
                        self.errand.failed(1, error);
                    }
                }
            }
            self.ended(number);
        }
        Ok(some)
    }
}

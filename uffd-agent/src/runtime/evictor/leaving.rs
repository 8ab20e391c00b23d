//! How pages leave, by what is behind the region.
//!
//! ```text
//!   File      splice into the pipe -> [gate: punch] -> settle -> tee, read into frames -> drop the pipe's
//!   Private                           [gate: move into the rooms]   the dirty into frames -> free the rooms
//! ```
//!
//! Either way the bytes that are looked at are the last ones: after the punch, or the move, nobody can reach
//! the page any more who did not have it pinned. A pipe's pages settle for that; a pinned page does not move.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use mycoram_fabric::pages::FrameIndex;
use mycoram_fabric::units::{PAGE_BYTES, PageCount, PageIndex};
use nix::errno::Errno;
use twox_hash::XxHash3_64;

use super::super::memory::{FileMemory, RegionMemory};
use super::super::parking::{Parking, PipeParking, RoomParking};
use super::super::shared::count;
use super::{Evictor, Working, is_zero};
use crate::engine::{Judgement, Run};
use crate::kernel::{Moved, Park};
use crate::target::SLOTS_PER_PIPE;

impl Evictor {
    /// Takes references to the pages of a run, where that has to come before taking them away.
    pub(super) fn take_reference(&mut self, at: usize, run: Run) {
        let shared = Arc::clone(&self.shared);
        let batch = &mut self.batches[at].batch;
        let taken = match (&shared.memory, &shared.parking[usize::from(batch.pipe())]) {
            (RegionMemory::File(file), Parking::Pipe(place)) => splice(file, place, run),
            _ => run.count,
        };
        let before = batch.held();
        batch.spliced(&shared.pages, run, taken);
        shared
            .held
            .fetch_add((batch.held() - before) as i64, Ordering::SeqCst);
    }

    /// Takes the pages away from the target.
    pub(super) fn take_away(&mut self, at: usize) {
        let shared = Arc::clone(&self.shared);
        let before = self.batches[at].batch.held();
        loop {
            // One system call a section: fault workers wait for it before they read events.
            let _section = shared.gate.change(self.thread);
            let batch = &mut self.batches[at].batch;
            let Some(run) = batch.next_punch(&shared.pages) else {
                break;
            };
            match (&shared.memory, &shared.parking[usize::from(batch.pipe())]) {
                (RegionMemory::File(file), _) => {
                    let punched = file.punch(run.page, run.count);
                    if let Err(error) = &punched {
                        tracing::error!(%error, page = run.page.get(), "a hole cannot be punched");
                    }
                    batch.punched(&shared.pages, run, punched.is_ok());
                }
                (RegionMemory::Private(_), Parking::Rooms(rooms)) => {
                    let moved = self.shift(rooms, run);
                    let batch = &mut self.batches[at].batch;
                    let (gone, stays) = run.split(moved);
                    batch.punched(&shared.pages, gone, true);
                    batch.punched(&shared.pages, stays.split(1).0, false);
                }
                (RegionMemory::Private(_), Parking::Pipe(_)) => {
                    batch.punched(&shared.pages, run, false);
                }
            }
        }
        let stayed = before - self.batches[at].batch.held();
        shared.held.fetch_sub(stayed as i64, Ordering::SeqCst);
        let desk = Arc::clone(&self.desk);
        let mut desk = desk.lock().unwrap_or_else(PoisonError::into_inner);
        for page in self.batches[at].batch.stayed() {
            desk.stays(page);
        }
    }

    /// Moves the first pages of a run into the rooms; how many.
    fn shift(&self, place: &RoomParking, run: Run) -> u32 {
        let Some(from) = self.shared.address.range_of(run.page, run.count) else {
            return 0;
        };
        self.shared.part_huge(run.page, run.count);
        // SAFETY: whoever touches a page of the region that is not there waits for a fault worker.
        match unsafe { place.rooms().take(from, place.slot(run.slot)) } {
            Moved::All => from.pages().get(),
            Moved::Some { pages, why } => {
                // Pinned, discarded or unmapped: it stays, or goes its own way.
                let expected = [Errno::EBUSY, Errno::ENOENT, Errno::EAGAIN, Errno::EINVAL];
                if pages.get() == 0 && !expected.contains(&why) {
                    tracing::error!(%why, page = run.page.get(), "a page cannot be moved");
                }
                pages.get()
            }
        }
    }

    /// Judges the pages that left, and has those that are to be written in frames. False: no frames are free.
    pub(super) fn look_at_pages(&mut self, at: usize) -> bool {
        let Some(block) = self.blocks.pop() else {
            return false;
        };
        self.batches[at].block = Some(block);
        let shared = Arc::clone(&self.shared);
        let place = &shared.parking[usize::from(self.batches[at].batch.pipe())];
        let slots = self.batches[at].batch.len();
        let there = match place {
            Parking::Pipe(pipe) => self.copy_out(pipe, block, slots),
            Parking::Rooms(_) => slots,
        };
        for slot in 0..slots {
            if !self.batches[at].batch.wants_judgement(slot) {
                continue;
            }
            let frame = self.bytes(FrameIndex(block.0 + slot as u32));
            let bytes = match place {
                Parking::Pipe(_) => frame.cast_const(),
                Parking::Rooms(rooms) => match rooms.rooms().page(rooms.slot(slot)) {
                    Some(bytes) => bytes,
                    None => continue,
                },
            };
            if slot >= there {
                // The pipe holds less than it was given: nobody can say what the page was.
                self.lose(at, slot, None);
                continue;
            }
            if let Parking::Rooms(rooms) = place {
                bring_near(rooms, slot + 1);
            }
            // SAFETY: a page that was copied out, or moved here, just above; it is read only, by us and by
            // fault workers, until the place is drained.
            let content = unsafe { std::slice::from_raw_parts(bytes, PAGE_BYTES) };
            let zero = is_zero(content);
            let checksum = XxHash3_64::oneshot(content);
            let judgement = self.batches[at]
                .batch
                .judge(&shared.pages, slot, checksum, zero);
            let counters = &shared.counters;
            match judgement {
                Judgement::Gone => continue,
                Judgement::Dirty if bytes != frame.cast_const() => {
                    // SAFETY: two pages, of the rooms and of a frame that is ours.
                    unsafe { std::ptr::copy_nonoverlapping(bytes, frame, PAGE_BYTES) };
                }
                Judgement::Dirty => {}
                Judgement::Clean => count(&counters.evictions_clean, 1),
                Judgement::Zero => count(&counters.evictions_zero, 1),
            }
            count(&counters.evictions, 1);
        }
        self.batches[at].batch.judged();
        true
    }

    /// Copies a pipe's pages into frames, where fault workers find them too; how many were in it.
    fn copy_out(&mut self, place: &PipeParking, block: FrameIndex, slots: usize) -> usize {
        let into = self.bytes(block);
        let copied = place
            .pipe
            .share_with(&self.scratch, PageCount::new(slots as u32))
            // SAFETY: a block has a pipe's worth of frames, and this one is ours alone until it is published.
            .and_then(|shared| unsafe { self.scratch.take_run_to(into, shared) });
        let copied = copied.unwrap_or_else(|error| {
            tracing::error!(%error, "a parking pipe cannot be read");
            PageCount::new(0)
        });
        place.publish(block.0);
        copied.as_usize()
    }

    /// Nothing of a batch is on its way any more. False: it waits for others that leave with it.
    pub(super) fn leave(&mut self, at: usize) -> bool {
        let Working {
            block,
            since,
            wrote,
            ..
        } = &mut self.batches[at];
        if let Some(block) = block.take() {
            self.blocks.push(block);
        }
        if std::mem::take(wrote) {
            let took = self.shared.now().saturating_sub(*since);
            let times = self.shared.leaving.took.lock();
            // A longer time than is told apart counts as the longest.
            times
                .unwrap_or_else(PoisonError::into_inner)
                .saturating_record(took);
        }
        match self.hall_of(at) {
            Some(hall) => {
                self.batches[at].left = true;
                self.empty_hall(hall)
            }
            None => {
                self.drain(at);
                true
            }
        }
    }

    /// Frees the pages and the credits of a batch.
    fn drain(&mut self, at: usize) {
        let batch = &mut self.batches[at].batch;
        match &self.shared.parking[usize::from(batch.pipe())] {
            Parking::Pipe(place) => {
                place.unpublish();
                let all = place.pipe.slots();
                if let Err(error) = place.pipe.drop_oldest(all, self.shared.sink.as_fd()) {
                    tracing::error!(%error, pipe = batch.pipe(), "a parking pipe cannot be emptied");
                }
            }
            Parking::Rooms(place) => {
                if let Err(error) = place.rooms().empty(place.slot(0), batch.len() as u32) {
                    tracing::error!(%error, "pages that have left cannot be freed");
                }
            }
        }
        self.drained(at);
    }

    /// The pages of a batch are freed: its credits are.
    pub(super) fn drained(&mut self, at: usize) {
        let freed = self.batches[at].batch.drained(&self.shared.pages);
        self.shared.held.fetch_sub(freed as i64, Ordering::SeqCst);
        self.shared.credits_came();
    }
}

/// Has the processor fetch a slot's page while it is still busy with another one: what leaves was not used for a
/// while, and by itself no processor reads ahead from one page into the next.
fn bring_near(place: &RoomParking, slot: usize) {
    #[cfg(target_arch = "x86_64")]
    if slot < usize::from(SLOTS_PER_PIPE)
        && let Some(page) = place.rooms().page(place.slot(slot))
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for line in (0..PAGE_BYTES).step_by(64) {
            // SAFETY: within the page; a prefetch of a hole reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(page.add(line).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (place, slot);
}

/// Splices a run into its pipe; how many of its pages are in.
fn splice(file: &FileMemory, place: &PipeParking, run: Run) -> u32 {
    let mut taken = 0;
    while taken < run.count {
        let page = PageIndex::new(run.page.get() + taken);
        match file.park(&place.pipe, page, run.count - taken) {
            Ok(Park::Pages(pages)) => taken += pages.get(),
            Ok(Park::Full) => break,
            Err(error) => {
                tracing::error!(%error, page = page.get(), "a page cannot be spliced into its pipe");
                break;
            }
        }
    }
    taken
}

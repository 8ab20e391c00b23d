//! What has arrived: each page is compared with what was written before anybody sees it.
//!
//! ```text
//!   right --> installed
//!   wrong --> read from another replica --> right: the wrong replica is written, then it is installed
//!                  |                    '-> wrong too: the next one
//!                  '-> no other: read once more from any; wrong again: lost
//! ```
//!
//! The replica is repaired while the page is still being fetched: nobody can evict it meanwhile, so no newer
//! content is on its way to the same place.

use mycoram_fabric::pages::{
    Direction, FrameIndex, NodeSet, PageDone, PageError, PageRequest, Which,
};
use mycoram_fabric::units::{PAGE_BYTES, PageIndex};
use twox_hash::XxHash3_64;

use super::super::shared::{Standing, count};
use super::{Fault, FaultWorker, Kind, NO_FRAME, Operation};
use crate::page_table::Source;

impl FaultWorker {
    pub(super) fn arrived(&mut self, done: PageDone) {
        let id = done.tag as u32;
        let Some(operation) = self.operations.get(id as usize).copied() else {
            return;
        };
        match done.result {
            Err(PageError::Fenced) => {
                self.shared.finish(Standing::Fenced);
                self.release(id);
            }
            // A repair; whether it was done, the lane counts. If not, it is found wrong again.
            _ if done.direction == Direction::Write => self.repair_or_install(id),
            Ok(()) => {
                self.verify(id, operation, done);
                self.repair_or_install(id);
            }
            Err(PageError::Lost { .. }) if operation.run > 1 => {
                for at in 0..operation.run {
                    self.read_alone(operation, at, NodeSet::NONE, false);
                }
                self.release(id);
            }
            Err(PageError::Lost { .. }) if !operation.wrong.is_empty() => {
                // Every replica that can be had was wrong. It may have been on the way.
                self.read_alone(operation, 0, NodeSet::NONE, true);
                self.release(id);
            }
            Err(PageError::Lost { node }) => {
                self.lose(operation.page, Some(node));
                self.release(id);
            }
            // No answer to a read.
            Err(PageError::Unplaced) => {
                self.lose(operation.page, None);
                self.release(id);
            }
        }
    }

    /// One page of an operation is read once more, alone.
    fn read_alone(&mut self, of: Operation, at: u32, wrong: NodeSet, last: bool) {
        let page = PageIndex::new(of.page.get() + at);
        let operation = Operation {
            page,
            run: 1,
            gone: 0,
            hold: None,
            wrong,
            last,
            stage: None,
            landed: false,
            ..of
        };
        if !self.read(operation) {
            // No room: whoever waits is woken and asks again.
            let waited = self.shared.pages.fetch_dropped(page);
            if waited || of.kind == Kind::Asked {
                self.shared.wake_page(page);
            }
        }
    }

    /// Compares what a node gave with what was written. Pages that differ leave the operation.
    fn verify(&mut self, id: u32, operation: Operation, done: PageDone) {
        let node = done.node;
        for at in 0..operation.run {
            let page = PageIndex::new(operation.page.get() + at);
            let word = self.shared.pages.table.word(page);
            if word.source() != Source::Remote {
                continue;
            }
            let bytes = self.frame_bytes(FrameIndex(operation.frame.0 + at));
            // SAFETY: the READ is done and the frame is this worker's alone until it is given back.
            let bytes = unsafe { std::slice::from_raw_parts(bytes, PAGE_BYTES) };
            let checksum = XxHash3_64::oneshot(bytes);
            let opened = done.wrong & (1 << at) == 0;
            if opened && word.unseen() {
                // Nobody knows what it was. From now on it is this, whichever replica is read.
                self.shared.pages.table.set_checksum(page, checksum);
                continue;
            }
            if opened && checksum == self.shared.pages.table.checksum(page) {
                continue;
            }
            if !opened {
                count(&self.shared.counters.seals_broken, 1);
            }
            count(&self.shared.counters.checksum_mismatches, 1);
            let gone = &mut self.operations[id as usize];
            gone.gone |= 1 << at;
            gone.wrong = NodeSet::NONE;
            if operation.last {
                self.lose(page, node);
                continue;
            }
            let mut wrong = operation.wrong;
            if let Some(node) = node {
                tracing::warn!(
                    page = page.get(),
                    node,
                    "a replica of a page is wrong; another one is read"
                );
                wrong.add(node);
            }
            self.read_alone(operation, at, wrong, wrong.is_empty());
        }
    }

    /// Writes the page to the next replica that was wrong; with none left, it goes in.
    fn repair_or_install(&mut self, id: u32) {
        let operation = &mut self.operations[id as usize];
        while let Some(node) = operation.wrong.take_one() {
            let repair = PageRequest {
                tag: u64::from(id),
                direction: Direction::Write,
                page: operation.page,
                run: 1,
                frame: operation.frame,
                which: Which::Only(node),
            };
            // No room: it is found wrong again, and repaired then.
            if self.lane.queue(repair).is_ok() {
                return;
            }
        }
        match self.operations[id as usize].stage {
            Some(stage) => self.landed(stage, id),
            None => self.ready.push(id),
        }
    }

    pub(super) fn lose(&mut self, page: PageIndex, node: Option<u16>) {
        if self.shared.pages.fetch_failed(page) {
            self.shared.report_loss(page, node);
            self.shared.credits_came();
            if !self.shared.poison(page, None) {
                // An event waits to be read: whoever waits faults again, and meets a lost page.
                self.shared.wake_page(page);
            }
        } else {
            // The target discarded it meanwhile: zeros are right.
            let fault = Fault {
                page,
                tid: 0,
                since: self.shared.now(),
            };
            self.begin(fault, Kind::Ahead, NO_FRAME);
        }
    }
}

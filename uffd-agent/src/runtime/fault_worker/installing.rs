//! Installing what has arrived, or was parked. What has to wait for an event to be read stays in the list.

use std::os::fd::AsFd;
use std::sync::Arc;

use mycoram_fabric::pages::FrameIndex;
use mycoram_fabric::units::PageIndex;

use super::super::parking::Parking;
use super::super::shared::Fill;
use super::{FaultWorker, Held, Kind, MAX_HELD, NO_FRAME, Operation};
use crate::engine::Content;
use crate::policy::{Admission, AdmissionKind};

impl FaultWorker {
    /// Installs what has arrived. What has to wait for an event to be read stays in the list.
    pub(super) fn install_ready(&mut self) -> bool {
        let mut any = false;
        let mut at = 0;
        while at < self.ready.len() {
            let id = self.ready[at];
            if self.install(id) {
                any = true;
                self.ready.swap_remove(at);
            } else {
                at += 1;
            }
        }
        any
    }

    /// False: later.
    pub(super) fn install(&mut self, id: u32) -> bool {
        let mut operation = self.operations[id as usize];
        if let Kind::Parked { batch, slot } = operation.kind {
            return self.install_parked(id, operation, batch, slot);
        }
        let hold = operation.hold.map(u32::from).filter(|_| {
            operation.kind == Kind::Ahead
                && self.held.len() < MAX_HELD
                && operation.frame != NO_FRAME
        });
        let section = self.shared.gate.change(self.index);
        let mut at = 0;
        let mut finished = true;
        while at < operation.run {
            if operation.gone & (1 << at) != 0 {
                at += 1;
                continue;
            }
            let page = PageIndex::new(operation.page.get() + at);
            if hold == Some(at) && !self.shared.pages.table.word(page).waiters() {
                at += 1;
                continue;
            }
            let content = self.content(page, operation.frame);
            let mut run = 1;
            while at + run < operation.run
                && operation.gone & (1 << (at + run)) == 0
                && hold != Some(at + run)
                && self.content(PageIndex::new(page.get() + run), operation.frame) == content
            {
                run += 1;
            }
            let bytes = (content == Content::Fetched).then(|| {
                self.frame_bytes(FrameIndex(operation.frame.0 + at))
                    .cast_const()
            });
            // SAFETY: the run's frames are this operation's, behind each other, `run` pages long.
            let (filled, then) = unsafe { self.shared.fill(page, run, bytes) };
            for i in 0..filled {
                operation.gone |= 1 << (at + i);
            }
            at += filled;
            match then {
                Fill::Done => {}
                Fill::Later => {
                    finished = false;
                    break;
                }
                Fill::Gone => {
                    self.shared.pages.discard(page);
                    self.drop_fetch(page);
                    operation.gone |= 1 << at;
                    at += 1;
                }
            }
        }
        drop(section);
        self.operations[id as usize].gone = operation.gone;
        if !finished {
            return false;
        }
        self.finished(id, operation, hold);
        true
    }

    pub(super) fn content(&self, page: PageIndex, frame: FrameIndex) -> Content {
        if frame == NO_FRAME {
            Content::Zero
        } else {
            self.shared.pages.content(page)
        }
    }

    /// Everything of the operation is in, save a page that is held.
    pub(super) fn finished(&mut self, id: u32, operation: Operation, hold: Option<u32>) {
        let now = self.shared.now();
        let kind = match operation.kind {
            Kind::Ahead => AdmissionKind::Ahead,
            Kind::Parked { .. } => AdmissionKind::Again,
            _ => AdmissionKind::Asked,
        };
        if kind != AdmissionKind::Ahead {
            self.service
                .saturating_record(now.saturating_sub(operation.since));
        }
        let mut kept = None;
        for i in 0..operation.run {
            let page = PageIndex::new(operation.page.get() + i);
            if hold == Some(i) && operation.gone & (1 << i) == 0 {
                let frame = FrameIndex(operation.frame.0 + i);
                self.held.push(Held {
                    page,
                    frame,
                    since: now,
                });
                kept = Some(i);
                continue;
            }
            self.admissions.push(Admission { page, kind });
        }
        if let Some(kept) = kept {
            // All frames but the held one go back here; release must not give them again.
            for i in (0..operation.run).filter(|i| *i != kept) {
                self.pool.give(FrameIndex(operation.frame.0 + i), 1);
            }
            self.operations[id as usize].frame = NO_FRAME;
        }
        self.release(id);
    }

    /// A page out of a parking pipe: from the evictor's frames if it has copied it out already.
    pub(super) fn install_parked(
        &mut self,
        id: u32,
        operation: Operation,
        batch: u8,
        slot: u8,
    ) -> bool {
        let shared = Arc::clone(&self.shared);
        let parking = &shared.parking[usize::from(batch)];
        let mut frame = None;
        let bytes = match (parking.bytes_of(slot), parking) {
            (Some(bytes), _) => bytes,
            // A page of the rooms has an address from the moment on that it left.
            (None, Parking::Rooms(_)) => {
                self.lose(operation.page, None);
                self.release(id);
                return true;
            }
            (None, Parking::Pipe(parking)) => {
                let Some(taken) = self.pool.take(1) else {
                    return false;
                };
                frame = Some(taken);
                let into = self.frame_bytes(taken);
                // SAFETY: the frame is ours, a page long, and nobody else writes to it.
                let peeked = unsafe {
                    parking
                        .pipe
                        .peek_to(slot.into(), &self.scratch, self.shared.sink.as_fd(), into)
                };
                if let Err(error) = peeked {
                    tracing::error!(%error, page = operation.page.get(), "a parked page is not in its pipe");
                    self.pool.give(taken, 1);
                    self.lose(operation.page, None);
                    self.release(id);
                    return true;
                }
                into.cast_const()
            }
        };
        let section = self.shared.gate.change(self.index);
        let bytes =
            (self.shared.pages.content(operation.page) == Content::Fetched).then_some(bytes);
        // SAFETY: a page's bytes, either in our frame or in the evictor's, which keeps them while we are
        // a reader of the pipe.
        let (filled, then) = unsafe { self.shared.fill(operation.page, 1, bytes) };
        drop(section);
        if let Some(frame) = frame {
            self.pool.give(frame, 1);
        }
        match (filled, then) {
            (_, Fill::Later) => return false,
            (0, _) => {
                self.shared.pages.discard(operation.page);
                self.drop_fetch(operation.page);
                self.release(id);
            }
            _ => self.finished(id, operation, None),
        }
        true
    }
}

//! Serving faults: what the page table says of a page decides what is begun.

use std::sync::atomic::Ordering;

use mycoram_fabric::pages::FrameIndex;

use super::super::shared::count;
use super::{FREE, Fault, FaultWorker, Kind, MAX_WAITING, NO_FRAME, Operation};
use crate::engine::FaultStep;
use crate::policy::FaultKind;

impl FaultWorker {
    pub(super) fn serve_faults(&mut self) -> bool {
        if self.faults.is_empty() {
            return false;
        }
        for at in 0..self.faults.len() {
            let fault = self.faults[at];
            count(&self.shared.counters.faults, 1);
            self.serve(fault);
        }
        // What is asked for goes out before anything is thought about what may be asked next.
        self.lane.ring();
        self.install_ready();
        self.faults.clear();
        self.think_ahead();
        true
    }

    /// One fault: begins what has to be done, or puts it on the waiting list.
    pub(super) fn serve(&mut self, fault: Fault) {
        if self.stages.exist() && !self.serve_huge(fault) {
            return;
        }
        // A stale word is looked at again; each round the target or an evictor has changed it.
        for _ in 0..4 {
            match self.shared.pages.fault(fault.page) {
                FaultStep::Zero => {
                    // It is new: what is written to it has to go somewhere before long.
                    self.shared.remote.expect(fault.page);
                    return self.begin(fault, Kind::Asked, NO_FRAME);
                }
                FaultStep::Read => {
                    return self.begin_read(fault);
                }
                FaultStep::Parked { batch, slot } => {
                    count(&self.shared.counters.rescued, 1);
                    return self.begin(fault, Kind::Parked { batch, slot }, NO_FRAME);
                }
                FaultStep::Wait => {
                    count(&self.shared.counters.prefetch_used, 1);
                    self.hear(fault.page, FaultKind::FetchedAhead);
                    self.ask_for_held(fault.page);
                    return;
                }
                FaultStep::Again => {
                    self.wants_soon = true;
                    return self.wait(fault);
                }
                FaultStep::NoCredit => {
                    count(&self.shared.counters.waited_for_budget, 1);
                    self.shared.pages.credits.was_short();
                    if !self.wants_credit {
                        self.wants_credit = true;
                        self.shared.waiting.fetch_add(1, Ordering::SeqCst);
                    }
                    self.shared.ring_evictors();
                    return self.wait(fault);
                }
                FaultStep::LookForHole(word) => match self.shared.has_data(fault.page) {
                    Ok(false) => {
                        self.shared.pages.hole_found(fault.page, word);
                    }
                    _ => {
                        // It is there: the event is older than the page.
                        count(&self.shared.counters.stale, 1);
                        self.shared.wake_page(fault.page);
                        return;
                    }
                },
                FaultStep::Poison => {
                    if !self.shared.poison(fault.page, Some(fault.tid)) {
                        self.wants_soon = true;
                        self.wait(fault);
                    }
                    return;
                }
                FaultStep::NotWanted => return,
            }
        }
        self.wants_soon = true;
        self.wait(fault);
    }

    pub(super) fn wait(&mut self, fault: Fault) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push(fault);
        } else {
            self.shared.wake_page(fault.page);
        }
    }

    pub(super) fn retry_waiting(&mut self) -> bool {
        let credit = self.wants_credit && self.shared.pages.credits.free() > 0;
        if self.waiting.is_empty() || !(credit || self.wants_soon) {
            return false;
        }
        if self.wants_credit {
            self.wants_credit = false;
            self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        self.wants_soon = false;
        std::mem::swap(&mut self.waiting, &mut self.retried);
        for at in 0..self.retried.len() {
            let fault = self.retried[at];
            self.serve(fault);
        }
        self.retried.clear();
        self.lane.ring();
        self.install_ready();
        self.think_ahead();
        // Only what went on counts as something done.
        self.waiting.is_empty()
    }

    pub(super) fn begin(&mut self, fault: Fault, kind: Kind, frame: FrameIndex) {
        // There are more operations than frames and events together.
        let Some(id) = self.free.pop() else {
            unreachable!("an operation for every frame and every event of a read")
        };
        self.operations[id as usize] = Operation {
            kind,
            page: fault.page,
            run: 1,
            frame,
            since: fault.since,
            ..FREE
        };
        self.ready.push(id);
    }

    pub(super) fn begin_read(&mut self, fault: Fault) {
        let operation = Operation {
            kind: Kind::Asked,
            page: fault.page,
            run: 1,
            since: fault.since,
            ..FREE
        };
        if self.read(operation) {
            count(&self.shared.counters.majors, 1);
            self.hear(fault.page, FaultKind::Missing);
        } else {
            // No room on the lane: as if it had not been looked at yet.
            if self.shared.pages.fetch_dropped(fault.page) {
                self.shared.wake_page(fault.page);
            }
            self.wants_soon = true;
            self.wait(fault);
        }
    }
}

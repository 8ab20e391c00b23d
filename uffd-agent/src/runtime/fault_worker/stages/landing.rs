//! What is on a stage: counted as it lands, held until it is asked for, then moved in; or parted.

use std::ptr::NonNull;

use mycoram_fabric::pages::HUGE_PAGES;
use mycoram_fabric::units::{PAGE_BYTES, PageIndex};
use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, madvise};

use super::super::super::shared::count;
use super::super::{FREE, FaultWorker, HOLD_NS, Operation};
use super::{BYTES, Phase};
use crate::kernel::Moved;
use crate::page_table::Source;
use crate::policy::{Admission, AdmissionKind};

impl FaultWorker {
    /// What an operation brings is on its stage.
    pub(in super::super) fn landed(&mut self, stage: u8, id: u32) {
        let stage = usize::from(stage);
        let operation = &mut self.operations[id as usize];
        operation.landed = true;
        let on = &mut self.stages.stages[stage];
        on.whole &= operation.gone == 0;
        on.landed.push(id);
        self.less_flying(stage);
    }

    /// An operation does not use its stage any more.
    pub(in super::super) fn left_stage(&mut self, stage: u8, operation: Operation) {
        let stage = usize::from(stage);
        let on = &mut self.stages.stages[stage];
        on.left -= 1;
        if !operation.landed {
            on.whole = false;
            self.less_flying(stage);
        } else if on.left == 0 {
            self.clear_stage(stage);
        }
    }

    pub(super) fn less_flying(&mut self, stage: usize) {
        let on = &mut self.stages.stages[stage];
        on.flying -= 1;
        if on.flying > 0 {
            return;
        }
        if on.whole {
            on.phase = Phase::Held {
                since: self.shared.now(),
            };
        } else {
            self.part_stage(stage);
        }
    }

    /// What landed goes in page by page.
    fn part_stage(&mut self, stage: usize) {
        let on = &mut self.stages.stages[stage];
        on.phase = Phase::Parted;
        self.shared.part_huge(on.first, 1);
        self.ready.append(&mut on.landed);
        if on.left == 0 {
            self.clear_stage(stage);
        }
    }

    /// Nothing refers to a stage: it becomes what a new one is.
    fn clear_stage(&mut self, stage: usize) {
        let on = &mut self.stages.stages[stage];
        on.phase = Phase::Empty;
        let bytes = self.frame_bytes(self.stages.stages[stage].frame);
        if let Some(start) = NonNull::new(bytes.cast()) {
            // SAFETY: this worker's alone, and nobody wants what is in it. If it fails, it is only not one
            // huge page, and moves in pieces.
            let _ = unsafe { madvise(start, BYTES, MmapAdvise::MADV_DONTNEED) };
        }
    }

    /// Gives huge pages that are asked for, or were held too long, to the target, and begins what is wanted.
    pub(in super::super) fn look_at_stages(&mut self) -> bool {
        let mut any = false;
        for at in 0..self.stages.stages.len() {
            let stage = &self.stages.stages[at];
            let Phase::Held { since } = stage.phase else {
                continue;
            };
            let first = stage.first;
            let asked = stage.asked || self.is_asked_elsewhere(first);
            if asked || self.shared.now().saturating_sub(since) > HOLD_NS {
                if !asked {
                    self.policy.wasted(first);
                }
                any |= self.install_huge(at);
            }
        }
        any | (!self.stages.wanted.is_empty() && self.fetch_wanted_huge())
    }

    /// Whether another worker has heard of somebody who waits for it.
    fn is_asked_elsewhere(&self, first: PageIndex) -> bool {
        let waiters = |at| {
            let page = PageIndex::new(first.get() + at);
            self.shared.pages.table.word(page).waiters()
        };
        self.shared.worker_bells.len() > 1 && (0..HUGE_PAGES).any(waiters)
    }

    /// Moves what is on a stage to where it belongs. False: later.
    pub(super) fn install_huge(&mut self, stage: usize) -> bool {
        let first = self.stages.stages[stage].first;
        let bytes = self.frame_bytes(self.stages.stages[stage].frame);
        let (Some(into), Some(from)) = (self.range_of_huge(first), self.range_of_stage(stage))
        else {
            self.part_stage(stage);
            return true;
        };
        let section = self.shared.gate.change(self.index);
        for at in 0..HUGE_PAGES {
            if self.source(first, at) != Source::Remote {
                // Never written, or discarded meanwhile.
                // SAFETY: a page of the stage, which is this worker's alone.
                unsafe {
                    bytes
                        .add(at as usize * PAGE_BYTES)
                        .write_bytes(0, PAGE_BYTES)
                };
            }
        }
        // SAFETY: what leaves the stage is looked for there by nobody.
        let moved = match unsafe { self.shared.userfault.move_pages(from, into.start()) } {
            Moved::All => HUGE_PAGES,
            Moved::Some { pages, why } if pages.get() == 0 && why == Errno::EAGAIN => {
                // An event waits to be read.
                return false;
            }
            Moved::Some { pages, .. } => pages.get(),
        };
        let mut wake = false;
        for at in 0..moved {
            wake |= self
                .shared
                .pages
                .installed(PageIndex::new(first.get() + at));
        }
        drop(section);
        if wake {
            self.shared.wake(into);
        }
        if !self.shared.memory.is_one_huge_page(into) {
            // The kernel had a table there already, and moved page by page.
            self.shared.part_huge(first, 1);
        }
        let on = &mut self.stages.stages[stage];
        if moved == HUGE_PAGES {
            for id in on.landed.drain(..) {
                self.operations[id as usize] = FREE;
                self.free.push(id);
            }
            (on.phase, on.left) = (Phase::Empty, 0);
            count(&self.shared.counters.huge_in, 1);
            let kind = AdmissionKind::Huge;
            self.admissions.push(Admission { page: first, kind });
            return true;
        }
        for id in &on.landed {
            let operation = &mut self.operations[*id as usize];
            let done = (first.get() + moved).saturating_sub(operation.page.get());
            let done = done.min(operation.run);
            operation.gone |= (1_u64 << done).wrapping_sub(1) as u32;
        }
        self.part_stage(stage);
        true
    }
}

//! Fetching ahead: the policy is told of faults and names runs; they are read as far as there is room.
//!
//! Of each window one page is held back in its frame until it is asked for: that fault tells the policy that
//! the stream goes on. One that nobody asks for goes in after a while.

use mycoram_fabric::pages::{FrameIndex, HUGE_PAGES, MAX_RUN_PAGES};
use mycoram_fabric::units::{PageCount, PageIndex};

use super::super::shared::count;
use super::{DEMAND_SLOTS, EVENTS, FREE, FaultWorker, HOLD_NS, Kind, Operation};
use crate::config::Advice;
use crate::engine::FaultStep;
use crate::policy::{FaultKind, FetchRun};

impl FaultWorker {
    /// Tells the policy of the faults that were served, and fetches what it names.
    pub(super) fn think_ahead(&mut self) {
        for at in 0..self.heard.len() {
            let (page, kind) = self.heard[at];
            self.policy.on_fault(page, kind, &mut self.plan);
        }
        self.heard.clear();
        self.fetch_ahead();
        self.plan.clear();
    }

    pub(super) fn hear(&mut self, page: PageIndex, kind: FaultKind) {
        if self.heard.len() < self.heard.capacity() {
            self.heard.push((page, kind));
        }
    }

    /// Fetches what is planned, as far as there is room; answers how many runs of the plan that was.
    pub(super) fn fetch_ahead(&mut self) -> usize {
        if self.plan.is_empty() {
            return 0;
        }
        let now = self.shared.now();
        let keep = self.shared.pages.credits.reserve();
        let most = self.pool.free().saturating_sub(self.demand_frames());
        let mut left = most as u32;
        let mut fetched = 0;
        while fetched < self.plan.len() {
            let plan = self.plan[fetched];
            if !self.fetch_run(plan, now, keep, &mut left) {
                break;
            }
            fetched += 1;
        }
        self.lane.ring();
        if self.shared.wants_eviction() {
            self.shared.ring_evictors();
        }
        fetched
    }

    pub(super) fn demand_frames(&self) -> usize {
        self.shared.config.lane.frames as usize / 4
    }

    /// False: there is no room for more.
    pub(super) fn fetch_run(
        &mut self,
        plan: FetchRun,
        now: u64,
        keep: i64,
        left: &mut u32,
    ) -> bool {
        if u32::from(plan.pages) == HUGE_PAGES {
            self.stages.want(plan.page);
            self.fetch_wanted_huge();
            if self.stages.is_wanted(plan.page) {
                self.shared.pages.credits.was_short();
            }
            return true;
        }
        let pages = self.shared.pages.table.pages().get();
        let mut at = 0;
        while at < u32::from(plan.pages) {
            let Some(first) = plan.page.checked_add(PageCount::new(at)) else {
                return true;
            };
            let want = (u32::from(plan.pages) - at)
                .min(u32::from(MAX_RUN_PAGES))
                .min(pages.saturating_sub(first.get()));
            if want == 0 {
                return true;
            }
            if *left < want || self.lane.free_slots() <= DEMAND_SLOTS || self.free.len() < EVENTS {
                return false;
            }
            let Some(frame) = self.pool.take(want) else {
                return false;
            };
            let mut claimed = 0;
            let mut room = true;
            while claimed < want {
                let page = PageIndex::new(first.get() + claimed);
                match self.shared.pages.prefetch(page, keep) {
                    FaultStep::Read => claimed += 1,
                    FaultStep::NoCredit => {
                        self.shared.pages.credits.was_short();
                        room = false;
                        break;
                    }
                    _ => break,
                }
            }
            if claimed < want {
                self.pool
                    .give(FrameIndex(frame.0 + claimed), want - claimed);
            }
            if claimed > 0 {
                let hold = plan
                    .held
                    .and_then(|h| u32::from(h).checked_sub(at))
                    .filter(|h| *h < claimed)
                    .map(|h| h as u16);
                let operation = Operation {
                    kind: Kind::Ahead,
                    page: first,
                    run: claimed,
                    since: now,
                    hold,
                    ..FREE
                };
                if !self.read_into(frame, operation) {
                    for i in 0..claimed {
                        self.drop_fetch(PageIndex::new(first.get() + i));
                    }
                    return false;
                }
                count(&self.shared.counters.prefetch_issued, u64::from(claimed));
                *left -= claimed;
            }
            if !room {
                return false;
            }
            // The page that was not remote is skipped.
            at += claimed + u32::from(claimed < want);
        }
        true
    }

    /// With nothing else to do: takes advice, and fetches what was advised as needed soon.
    pub(super) fn fetch_what_is_wanted(&mut self) -> bool {
        while let Ok(given) = self.advice.try_recv() {
            self.policy.advise(given.page, given.pages, given.advice);
        }
        let credits = &self.shared.pages.credits;
        let spare = u32::try_from(credits.free() - credits.reserve()).unwrap_or(0);
        let frames = self.pool.free().saturating_sub(self.demand_frames()) as u32;
        // No more than there is room for: the policy names each page once.
        let room = frames.min(spare);
        if room == 0 || self.lane.free_slots() <= DEMAND_SLOTS {
            return false;
        }
        self.policy.wanted(room, &mut self.plan);
        let fetched = self.fetch_ahead();
        // Faults were quicker to take the room: the rest is wanted still.
        for at in fetched..self.plan.len() {
            let rest = self.plan[at];
            let pages = PageCount::new(u32::from(rest.pages));
            self.policy.advise(rest.page, pages, Advice::WillNeed);
        }
        self.plan.clear();
        fetched > 0
    }

    /// A page that somebody fetches is asked for: if it is one that we hold, it goes in now.
    pub(super) fn ask_for_held(&mut self, page: PageIndex) {
        if let Some(at) = self.held.iter().position(|h| h.page == page) {
            self.install_held(at);
        } else if self.stages.ask_for(page) {
            self.look_at_stages();
        } else if self.shared.worker_bells.len() > 1 {
            // Another worker may hold it.
            self.shared.ring_workers();
        }
    }

    pub(super) fn install_held(&mut self, at: usize) {
        let held = self.held.swap_remove(at);
        let Some(id) = self.free.pop() else {
            self.held.push(held);
            return;
        };
        self.operations[id as usize] = Operation {
            kind: Kind::Ahead,
            page: held.page,
            run: 1,
            frame: held.frame,
            since: held.since,
            ..FREE
        };
        self.ready.push(id);
    }

    /// Held pages that are asked for, or too old, go in.
    pub(super) fn look_at_held(&mut self) {
        let now = self.shared.now();
        let mut at = 0;
        while at < self.held.len() {
            let held = self.held[at];
            let asked = self.shared.pages.table.word(held.page).waiters();
            if asked || now.saturating_sub(held.since) > HOLD_NS {
                if !asked {
                    self.policy.wasted(held.page);
                }
                let before = self.held.len();
                self.install_held(at);
                if self.held.len() == before {
                    return;
                }
            } else {
                at += 1;
            }
        }
    }
}

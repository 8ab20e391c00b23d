//! The victim policy and the news that reach it. Shared by evictors; fault workers only push news.

use mycoram_fabric::units::{PageCount, PageIndex};

use crate::engine::Pages;
use crate::page_table::PageState;
use crate::policy::{Admission, AdmissionKind, AdmissionReceiver, Victims};

/// Pages looked at in one walk when the policy knows too few.
const WALK: u32 = 1 << 16;

/// See the module.
pub(crate) struct VictimDesk {
    victims: Box<dyn Victims>,
    news: Vec<AdmissionReceiver>,
    /// Where the next walk over the page table begins.
    hand: u32,
    /// Nobody is to leave any more.
    closed: bool,
}

impl VictimDesk {
    pub(crate) fn new(victims: Box<dyn Victims>, news: Vec<AdmissionReceiver>) -> Self {
        Self {
            victims,
            news,
            hand: 0,
            closed: false,
        }
    }

    /// From now on nobody is picked: whoever holds the desk sees every page that was picked before on its way
    /// out. An evictor that found a reason to evict, and has not picked yet, finds nobody.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    pub(crate) fn open(&mut self) {
        self.closed = false;
    }

    /// Hears all news; walks the table for pages whose news was dropped.
    fn listen(&mut self, pages: &Pages) {
        let mut dropped = 0;
        for receiver in &mut self.news {
            dropped += receiver.dropped();
            while let Some(news) = receiver.pop() {
                self.victims.hear(news);
            }
        }
        if dropped > 0 {
            self.walk(pages, pages.table.pages().get());
        }
    }

    /// Admits up to `most` resident pages of the table that the policy does not know.
    fn walk(&mut self, pages: &Pages, most: u32) {
        let all = pages.table.pages().get();
        for _ in 0..most.min(all) {
            let page = PageIndex::new(self.hand);
            self.hand = (self.hand + 1) % all;
            let word = pages.table.word(page);
            if word.state() == PageState::Resident
                && !word.homeless()
                && !self.victims.contains(page)
            {
                self.victims.hear(Admission {
                    page,
                    kind: AdmissionKind::Asked,
                });
            }
        }
    }

    /// Everything that is resident at the start.
    pub(crate) fn admit_all(&mut self, pages: &Pages) {
        self.walk(pages, pages.table.pages().get());
    }

    /// Picks up to `count` victims; none while it is closed. The desk is held until they are marked as leaving.
    pub(crate) fn pick(&mut self, pages: &Pages, count: usize, out: &mut Vec<PageIndex>) {
        self.listen(pages);
        if self.closed {
            return;
        }
        self.victims.pick(count, out);
        if out.is_empty() {
            self.walk(pages, WALK);
            self.victims.pick(count, out);
        }
    }

    /// A page that was picked stays resident.
    pub(crate) fn stays(&mut self, page: PageIndex) {
        self.victims.hear(Admission {
            page,
            kind: AdmissionKind::Asked,
        });
    }

    pub(crate) fn not_soon(&mut self, page: PageIndex) {
        if self.victims.contains(page) {
            self.victims.hear(Admission {
                page,
                kind: AdmissionKind::NotSoon,
            });
        }
    }

    pub(crate) fn set_budget(&mut self, budget: PageCount) {
        self.victims.set_budget(Self::share_of(budget));
    }

    /// What a policy is told of a budget: what is resident while credits are kept free and pages are
    /// leaving. Told more, it would wait for its queues to fill in vain, and mix its queues page by page,
    /// so that neighbours would no longer leave together.
    pub(crate) fn share_of(budget: PageCount) -> PageCount {
        PageCount::new((budget.get() - budget.get() / 4).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::VictimDesk;
    use crate::config::VictimPolicy;
    use crate::engine::{Credits, Pages};
    use crate::page_table::PageTable;
    use crate::policy::{Admission, AdmissionKind, admission_ring, victims_for};
    use mycoram_fabric::units::{PageCount, PageIndex};

    #[test]
    fn while_it_is_closed_nobody_is_picked_and_nobody_is_forgotten() {
        let all = PageCount::new(16);
        let table = PageTable::anonymous(all).expect("memory");
        let pages = Pages::new(table, Credits::new(16), 1);
        let (mut sender, receiver) = admission_ring(16);
        let mut desk = VictimDesk::new(victims_for(VictimPolicy::S3Fifo, all), vec![receiver]);
        desk.close();
        for page in 0..8 {
            assert!(sender.push(Admission {
                page: PageIndex::new(page),
                kind: AdmissionKind::Asked,
            }));
        }
        let mut picked = Vec::new();
        desk.pick(&pages, 8, &mut picked);
        assert_eq!(picked, []);
        desk.open();
        desk.pick(&pages, 8, &mut picked);
        picked.sort_unstable();
        assert_eq!(picked, (0..8).map(PageIndex::new).collect::<Vec<_>>());
    }
}

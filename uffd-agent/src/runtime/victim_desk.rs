//! The victim policy and the news that reach it. Shared by evictors; fault workers only push news.
//!
//! Huge pages that came as one leave as one, the oldest first, before single pages as soon as they take more than
//! a tenth of the budget: they belong to scans, which are not to push out what is asked for by itself.

use std::collections::{HashSet, VecDeque};

use mycoram_fabric::pages::HUGE_PAGES;
use mycoram_fabric::units::{PageCount, PageIndex};

use crate::engine::Pages;
use crate::page_table::PageState;
use crate::policy::{Admission, AdmissionKind, AdmissionReceiver, HugeMap, Victims};

/// Share of the budget that huge pages get before they leave first: 1/10.
const HUGE_SHARE: u32 = 10;

/// Pages looked at in one walk when the policy knows too few.
const WALK: u32 = 1 << 16;

/// See the module.
pub(crate) struct VictimDesk {
    victims: Box<dyn Victims>,
    news: Vec<AdmissionReceiver>,
    /// First pages of huge pages, the oldest first.
    huge: VecDeque<PageIndex>,
    /// The same, to be found.
    in_huge: HashSet<PageIndex>,
    budget: PageCount,
    /// Where the next walk over the page table begins.
    hand: u32,
    /// Nobody is to leave any more.
    closed: bool,
}

impl VictimDesk {
    pub(crate) fn new(
        victims: Box<dyn Victims>,
        news: Vec<AdmissionReceiver>,
        budget: PageCount,
    ) -> Self {
        Self {
            victims,
            news,
            huge: VecDeque::new(),
            in_huge: HashSet::new(),
            budget,
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
                match news.kind {
                    AdmissionKind::Huge => {
                        self.in_huge.insert(news.page);
                        self.huge.push_back(news.page);
                    }
                    _ => self.victims.hear(news),
                }
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
                && !self.is_of_huge(page)
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
        if out.is_empty() && self.huge.is_empty() {
            self.walk(pages, WALK);
            self.victims.pick(count, out);
        }
    }

    /// Picks the huge page that leaves next, if one should before any single page.
    pub(crate) fn pick_huge(&mut self, pages: &Pages) -> Option<PageIndex> {
        self.listen(pages);
        let share = self.budget.get() / HUGE_SHARE;
        let many = self.huge.len() as u64 * u64::from(HUGE_PAGES) > u64::from(share);
        if self.closed || !(many || self.victims.is_empty()) {
            return None;
        }
        let first = self.huge.pop_front()?;
        self.in_huge.remove(&first);
        Some(first)
    }

    /// A huge page that was picked does not leave as one: its pages are single ones from now on.
    pub(crate) fn part(&mut self, pages: &Pages, first: PageIndex) {
        for at in 0..HUGE_PAGES {
            let page = PageIndex::new(first.get() + at);
            if pages.table.word(page).state() == PageState::Resident {
                self.stays(page);
            }
        }
    }

    fn is_of_huge(&self, page: PageIndex) -> bool {
        self.in_huge.contains(&HugeMap::first_of(page))
    }

    /// A page that was picked stays resident.
    pub(crate) fn stays(&mut self, page: PageIndex) {
        self.victims.hear(Admission {
            page,
            kind: AdmissionKind::Asked,
        });
    }

    pub(crate) fn not_soon(&mut self, page: PageIndex) {
        if self.in_huge.contains(&page)
            && let Some(at) = self.huge.iter().position(|first| *first == page)
            && let Some(first) = self.huge.remove(at)
        {
            self.huge.push_front(first);
        } else if self.victims.contains(page) {
            self.victims.hear(Admission {
                page,
                kind: AdmissionKind::NotSoon,
            });
        }
    }

    pub(crate) fn set_budget(&mut self, budget: PageCount) {
        self.budget = budget;
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
    use crate::page_table::{PageState, PageTable, Word};
    use crate::policy::{Admission, AdmissionKind, admission_ring, victims_for};
    use mycoram_fabric::units::{PageCount, PageIndex};

    #[test]
    fn while_it_is_closed_nobody_is_picked_and_nobody_is_forgotten() {
        let all = PageCount::new(16);
        let table = PageTable::anonymous(all).expect("memory");
        let pages = Pages::new(table, Credits::new(16), 1);
        let (mut sender, receiver) = admission_ring(16);
        let mut desk = VictimDesk::new(victims_for(VictimPolicy::S3Fifo, all), vec![receiver], all);
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

    #[test]
    fn huge_pages_leave_first_once_they_are_many_and_are_known_until_then() {
        let huge = 512;
        let all = PageCount::new(8 * huge);
        let table = PageTable::anonymous(all).expect("memory");
        let pages = Pages::new(table, Credits::new(u64::from(8 * huge)), 1);
        let resident = Word::NEVER_WRITTEN.with_state(PageState::Resident);
        for page in 0..3 * huge + 1 {
            pages.table.set(PageIndex::new(page), resident);
        }
        let (mut sender, receiver) = admission_ring(16);
        let victims = victims_for(VictimPolicy::S3Fifo, all);
        // A tenth of the budget is one huge page and a half.
        let budget = PageCount::new(15 * huge);
        let mut desk = VictimDesk::new(victims, vec![receiver], budget);
        let kind = AdmissionKind::Huge;
        let mut came = |page| {
            let page = PageIndex::new(page);
            assert!(sender.push(Admission { page, kind }));
        };
        came(0);
        // Nobody else is there.
        assert_eq!(desk.pick_huge(&pages), Some(PageIndex::new(0)));
        assert_eq!(desk.pick_huge(&pages), None);
        desk.stays(PageIndex::new(3 * huge));
        came(huge);
        assert_eq!(desk.pick_huge(&pages), None, "one is not many");
        came(2 * huge);
        desk.close();
        assert_eq!(desk.pick_huge(&pages), None);
        desk.open();
        // It will not be needed soon: it overtakes the older one.
        desk.not_soon(PageIndex::new(2 * huge));
        assert_eq!(desk.pick_huge(&pages), Some(PageIndex::new(2 * huge)));
        // A walk over the table admits no page of the one that is left.
        desk.admit_all(&pages);
        let mut picked = Vec::new();
        desk.pick(&pages, 4 * huge as usize, &mut picked);
        picked.sort_unstable();
        let singles = (0..huge).chain(2 * huge..3 * huge + 1);
        assert_eq!(picked, singles.map(PageIndex::new).collect::<Vec<_>>());
        // Parted, its pages are single ones.
        desk.part(&pages, PageIndex::new(huge));
        picked.clear();
        desk.pick(&pages, 4 * huge as usize, &mut picked);
        assert_eq!(picked.len(), huge as usize);
    }
}

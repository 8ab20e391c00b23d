//! Which huge pages of a region can still come and go as one.
//!
//! ```text
//!   whole   the kernel has nothing there, or one huge page: 512 pages arrive, and leave, by one move
//!   parted  a page was put in, or taken out, by itself: the kernel keeps a table of pages there from then on,
//!           and a huge page cannot take its place any more
//! ```
//!
//! A huge page is 512 pages from a multiple of 512 on.

use std::sync::atomic::{AtomicU64, Ordering};

use mycoram_fabric::pages::HUGE_PAGES;
use mycoram_fabric::units::{PageCount, PageIndex};

/// See the module. Shared by who puts pages in and who decides what is fetched.
#[derive(Debug)]
pub struct HugeMap {
    /// A bit for each huge page that lies in the region with all of its pages. Set: parted.
    parted: Box<[AtomicU64]>,
    count: u32,
}

impl HugeMap {
    /// For a region of so many pages, all whole.
    #[must_use]
    pub fn new(pages: PageCount) -> Self {
        let count = pages.get() / HUGE_PAGES;
        Self {
            parted: (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            count,
        }
    }

    /// The first page of the huge page that `page` lies in.
    #[must_use]
    pub fn first_of(page: PageIndex) -> PageIndex {
        PageIndex::new(page.get() - page.get() % HUGE_PAGES)
    }

    /// Whether the huge page that `page` lies in can come and go as one.
    #[must_use]
    pub fn is_whole(&self, page: PageIndex) -> bool {
        let huge = page.get() / HUGE_PAGES;
        huge < self.count
            && self.parted[huge as usize / 64].load(Ordering::Relaxed) & (1 << (huge % 64)) == 0
    }

    /// Some of these pages were put in, or taken out, by themselves.
    pub fn part(&self, page: PageIndex, pages: u32) {
        let end = page.get().saturating_add(pages);
        let mut at = Self::first_of(page);
        while at.get() < end {
            if self.is_whole(at) {
                let huge = at.get() / HUGE_PAGES;
                self.parted[huge as usize / 64].fetch_or(1 << (huge % 64), Ordering::Relaxed);
            }
            match at.checked_add(PageCount::new(HUGE_PAGES)) {
                Some(next) => at = next,
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::HugeMap;
    use mycoram_fabric::units::{PageCount, PageIndex};

    #[test]
    fn a_page_by_itself_parts_its_huge_page_and_no_other() {
        let map = HugeMap::new(PageCount::new(100 * 512 + 511));
        let is_whole = |huge: u32| map.is_whole(PageIndex::new(huge * 512 + 7));
        assert!((0..100).all(is_whole));
        // The last pages of the region are too few.
        assert!(!is_whole(100) && !is_whole(101));
        map.part(PageIndex::new(64 * 512), 1);
        map.part(PageIndex::new(3 * 512 - 1), 2);
        map.part(PageIndex::new(100 * 512), 16);
        map.part(PageIndex::new(9 * 512), 0);
        let parted: Vec<_> = (0..100).filter(|huge| !is_whole(*huge)).collect();
        assert_eq!(parted, [2, 3, 64]);
    }
}

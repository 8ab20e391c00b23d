//! Long streams go by huge pages, as far as these are whole.

use std::collections::HashSet;
use std::sync::Arc;

use mycoram_fabric::pages::{HUGE_PAGES, MAX_RUN_PAGES};
use mycoram_fabric::units::{PageCount, PageIndex};

use crate::policy::{FaultKind, FetchRun, HugeMap, Prefetch, StreamPrefetch, Strides};

const WINDOW: u32 = 256;
const HUGE: u32 = 24;

/// A scan, and what was fetched for it.
struct Scan {
    map: Arc<HugeMap>,
    policy: StreamPrefetch,
    there: HashSet<u32>,
    held: HashSet<u32>,
    faults: u32,
    huge: Vec<u32>,
    singles: Vec<FetchRun>,
}

impl Scan {
    fn new() -> Self {
        let pages = PageCount::new(HUGE * HUGE_PAGES + 100);
        let map = Arc::new(HugeMap::new(pages));
        let policy = StreamPrefetch::new(pages, WINDOW, Strides::Any);
        Self {
            policy: policy.with_huge_pages(Arc::clone(&map)),
            map,
            there: HashSet::new(),
            held: HashSet::new(),
            faults: 0,
            huge: Vec::new(),
            singles: Vec::new(),
        }
    }

    fn fault(&mut self, page: u32, kind: FaultKind) {
        self.faults += 1;
        let mut runs = Vec::with_capacity(64);
        self.policy.on_fault(PageIndex::new(page), kind, &mut runs);
        for run in runs {
            let first = run.page.get();
            if u32::from(run.pages) == HUGE_PAGES {
                assert!(self.map.is_whole(run.page), "{run:?}");
                assert_eq!(first % HUGE_PAGES, 0);
                let away = (first / HUGE_PAGES).abs_diff(page / HUGE_PAGES);
                assert!(away <= 2, "{run:?} at a fault on {page}");
                self.huge.push(first / HUGE_PAGES);
            } else {
                assert!(run.pages <= MAX_RUN_PAGES);
                self.singles.push(run);
            }
            let pages = first..first + u32::from(run.pages);
            for page in pages {
                assert!(self.there.insert(page), "{page} is named twice");
            }
            self.held
                .extend(run.held.map(|held| first + u32::from(held)));
        }
    }

    fn touch(&mut self, page: u32) {
        if self.held.remove(&page) {
            self.fault(page, FaultKind::FetchedAhead);
        } else if !self.there.contains(&page) {
            self.there.insert(page);
            self.map.part(PageIndex::new(page), 1);
            self.fault(page, FaultKind::Missing);
        }
    }
}

#[test]
fn upwards_and_downwards_each_is_fetched_once_and_costs_a_fault() {
    for down in [false, true] {
        let mut scan = Scan::new();
        let pages = HUGE * HUGE_PAGES + if down { 0 } else { 100 };
        for at in 0..pages {
            scan.touch(if down { pages - 1 - at } else { at });
        }
        let mut expected: Vec<u32> = (1..HUGE).collect();
        if down {
            expected = (0..HUGE - 1).rev().collect();
        }
        assert_eq!(scan.huge, expected, "down: {down}");
        assert!(scan.faults < HUGE + 40, "{} faults", scan.faults);
    }
}

#[test]
fn one_that_is_parted_is_fetched_in_runs_and_then_they_are_whole_again() {
    let mut scan = Scan::new();
    scan.map.part(PageIndex::new(7 * HUGE_PAGES + 300), 1);
    (0..HUGE * HUGE_PAGES).for_each(|page| scan.touch(page));
    assert!(!scan.huge.contains(&7));
    assert!(scan.huge.contains(&6) && scan.huge.contains(&9));
    let inside = |run: &&FetchRun| run.page.get() / HUGE_PAGES == 7;
    let pages = scan.singles.iter().filter(inside);
    let pages: u32 = pages.map(|run| u32::from(run.pages)).sum();
    assert!(pages > 400, "{pages} pages of it were fetched ahead");
}

#[test]
fn a_huge_page_that_was_asked_for_is_the_start_of_a_stream() {
    let mut scan = Scan::new();
    let first = 3 * HUGE_PAGES;
    scan.there.extend(first..first + HUGE_PAGES);
    scan.fault(first, FaultKind::Huge);
    assert_eq!(scan.huge, [4, 5]);
    scan.touch(4 * HUGE_PAGES);
    assert_eq!(scan.huge, [4, 5, 6]);
}

//! Prefetch against somebody who knows the future: who waits for no page and fetches none in vain.

use std::collections::{HashMap, HashSet};

use mycoram_fabric::pages::MAX_RUN_PAGES;
use mycoram_fabric::units::{PageCount, PageIndex};
use proptest::prelude::*;

use super::traces;
use crate::config::{Advice, PrefetchPolicy};
use crate::policy::{FaultKind, FetchRun, Prefetch, StreamPrefetch, Strides, prefetch_for};

const REGION: u32 = 1 << 20;
const WINDOW: u32 = 256;
/// How many accesses go by while a page is on its way.
const LATENCY: usize = 8;

#[derive(Debug)]
struct Verdict {
    accesses: usize,
    /// Accesses that waited for a whole round trip.
    waited: usize,
    /// Pages fetched ahead.
    fetched: usize,
    /// Of these, pages that nobody asked for.
    useless: usize,
}

/// Walks through a trace with an endless budget. Pages that are held are given at their fault.
fn judge(prefetch: &mut dyn Prefetch, trace: &[u32]) -> Verdict {
    let mut resident = HashSet::new();
    let mut held = HashSet::new();
    // Page -> the access at which it arrives.
    let mut coming: HashMap<u32, usize> = HashMap::new();
    let mut ahead = HashSet::new();
    let mut asked = HashSet::new();
    let mut waited = 0;
    let mut out = Vec::with_capacity(64);
    for (now, page) in trace.iter().enumerate() {
        asked.insert(*page);
        let arrived = coming.get(page).is_some_and(|at| *at <= now);
        if arrived && !held.contains(page) {
            coming.remove(page);
            resident.insert(*page);
        }
        if resident.contains(page) {
            continue;
        }
        let kind = if coming.remove(page).is_some() {
            FaultKind::FetchedAhead
        } else {
            waited += 1;
            FaultKind::Missing
        };
        held.remove(page);
        resident.insert(*page);
        out.clear();
        prefetch.on_fault(PageIndex::new(*page), kind, &mut out);
        for run in &out {
            check(run);
            for at in 0..run.pages {
                let page = run.page.get() + u32::from(at);
                if resident.contains(&page) || coming.contains_key(&page) {
                    continue;
                }
                ahead.insert(page);
                coming.insert(page, now + LATENCY);
                if run.held == Some(at) {
                    held.insert(page);
                }
            }
        }
    }
    Verdict {
        accesses: trace.len(),
        waited,
        fetched: ahead.len(),
        useless: ahead.difference(&asked).count(),
    }
}

fn check(run: &FetchRun) {
    assert!(run.pages > 0 && run.pages <= MAX_RUN_PAGES, "{run:?}");
    assert!(run.page.get() + u32::from(run.pages) <= REGION, "{run:?}");
    assert!(run.held.is_none_or(|held| held < run.pages), "{run:?}");
}

fn stride() -> StreamPrefetch {
    StreamPrefetch::new(PageCount::new(REGION), WINDOW, Strides::Any)
}

fn steps(start: i64, stride: i64, count: i64) -> Vec<u32> {
    (0..count).map(|at| (start + at * stride) as u32).collect()
}

#[test]
fn a_scan_waits_at_its_start_only() {
    for (start, direction) in [(1000, 1), (900_000, -1)] {
        let v = judge(&mut stride(), &steps(start, direction, 50_000));
        assert!(v.waited <= 4, "{v:?}");
        assert!(v.useless <= WINDOW as usize, "{v:?}");
    }
}

#[test]
fn strides_of_both_directions_are_found() {
    for (start, distance) in [
        (10, 2),
        (10, 17),
        (1_000_000, -3),
        (1_000_000, -513),
        (0, 1000),
    ] {
        let v = judge(&mut stride(), &steps(start, distance, 1000));
        assert!(v.waited <= 5, "stride {distance}: {v:?}");
        assert!(v.useless <= WINDOW as usize, "stride {distance}: {v:?}");
    }
    let mut sequential = StreamPrefetch::new(PageCount::new(REGION), WINDOW, Strides::One);
    assert_eq!(judge(&mut sequential, &steps(10, 17, 1000)).fetched, 0);
}

#[test]
fn streams_may_be_interleaved() {
    let streams = [
        steps(0, 1, 5000),
        steps(200_000, 1, 5000),
        steps(500_000, -1, 5000),
        steps(700_000, 7, 5000),
    ];
    let mut rng = traces::rng(11);
    let mut at = [0; 4];
    let mut trace = Vec::new();
    while trace.len() < 16_000 {
        let which = traces::below(&mut rng, 4) as usize;
        if let Some(page) = streams[which].get(at[which]) {
            trace.push(*page);
            at[which] += 1;
        }
    }
    let v = judge(&mut stride(), &trace);
    assert!(v.waited <= trace.len() / 200, "{v:?}");
    assert!(v.useless <= 4 * WINDOW as usize, "{v:?}");
}

#[test]
fn random_access_fetches_nothing() {
    for (seed, pages) in [(21, 1 << 20), (22, 1 << 16), (23, 1 << 13)] {
        let trace = traces::uniform(seed, pages, 20_000);
        let v = judge(&mut stride(), &trace);
        println!("random in {pages} pages: {v:?}");
        assert!(v.fetched * 100 <= v.waited, "seed {seed}: {v:?}");
    }
}

#[test]
fn a_scan_among_random_accesses_is_found() {
    let mut rng = traces::rng(31);
    let mut scan = steps(0, 1, 20_000).into_iter();
    let mut scanned = 0;
    let mut trace = Vec::new();
    loop {
        if traces::below(&mut rng, 4) == 0 {
            trace.push((1 << 19) + traces::below(&mut rng, 1 << 18));
        } else if let Some(page) = scan.next() {
            scanned += 1;
            trace.push(page);
        } else {
            break;
        }
    }
    let random = trace.len() - scanned;
    let v = judge(&mut stride(), &trace);
    assert!(v.waited <= random + scanned / 100, "{v:?}, {random} random");
    assert!(v.useless <= WINDOW as usize + random / 100, "{v:?}");
}

#[test]
fn short_runs_at_random_places_cost_little() {
    let mut rng = traces::rng(41);
    let trace: Vec<u32> = (0..20_000)
        .flat_map(|_| steps(i64::from(traces::below(&mut rng, REGION - 8)), 1, 4))
        .collect();
    let v = judge(&mut stride(), &trace);
    println!("short runs: {v:?}");
    assert!(v.useless * 20 <= v.accesses, "{v:?}");
}

#[test]
fn the_window_grows_and_shrinks_and_has_a_limit() {
    let mut prefetch = stride();
    let mut out = Vec::with_capacity(64);
    let mut ahead = Vec::new();
    let mut frontier = 0;
    for page in 0..2000_u32 {
        out.clear();
        let kind = if page < frontier {
            FaultKind::FetchedAhead
        } else {
            FaultKind::Missing
        };
        prefetch.on_fault(PageIndex::new(page), kind, &mut out);
        for run in &out {
            assert_eq!(run.page.get(), frontier.max(page + 1), "no page twice");
            frontier = run.page.get() + u32::from(run.pages);
        }
        ahead.push(frontier.saturating_sub(page + 1));
    }
    assert_eq!(ahead[1], 0);
    assert_eq!(ahead[2], 4);
    assert!(ahead[100] >= 64);
    assert_eq!(ahead.iter().max(), Some(&WINDOW));
    for _ in 0..3 {
        prefetch.wasted(PageIndex::new(2100));
    }
    out.clear();
    prefetch.on_fault(PageIndex::new(2000), FaultKind::FetchedAhead, &mut out);
    assert!(out.is_empty(), "a smaller window is still full: {out:?}");
}

#[test]
fn what_there_was_no_room_for_is_asked_for_again() {
    // An engine that has room for so many pages of each plan only.
    for room in [1, 5, 20, 100] {
        let mut prefetch = stride();
        let mut out = Vec::with_capacity(64);
        let mut here: HashSet<u32> = HashSet::new();
        let (mut waited, mut asked) = (0, 0);
        for page in 0..10_000_u32 {
            let kind = if here.contains(&page) {
                FaultKind::FetchedAhead
            } else {
                waited += 1;
                FaultKind::Missing
            };
            out.clear();
            prefetch.on_fault(PageIndex::new(page), kind, &mut out);
            let pages = out
                .iter()
                .flat_map(|run| (0..u32::from(run.pages)).map(move |at| run.page.get() + at));
            let new: Vec<u32> = pages.filter(|page| !here.contains(page)).collect();
            asked += new.len();
            here.extend(&new[..new.len().min(room)]);
        }
        assert!(
            waited <= 10_000 / (room + 1) + 10,
            "room for {room}: {waited} waited"
        );
        assert!(asked <= 20 * 10_000, "room for {room}: {asked} asked for");
    }
}

#[test]
fn advice_is_followed() {
    let mut out = Vec::with_capacity(64);
    let fault = |prefetch: &mut StreamPrefetch, page, out: &mut Vec<FetchRun>| {
        out.clear();
        prefetch.on_fault(PageIndex::new(page), FaultKind::Missing, out);
        out.iter().map(|run| usize::from(run.pages)).sum::<usize>()
    };
    let mut prefetch = stride();
    prefetch.advise(PageIndex::new(0), PageCount::new(1000), Advice::Random);
    for page in 0..1000 {
        assert_eq!(fault(&mut prefetch, page, &mut out), 0);
    }
    prefetch.advise(
        PageIndex::new(5000),
        PageCount::new(1000),
        Advice::Sequential,
    );
    assert_eq!(fault(&mut prefetch, 5000, &mut out), WINDOW as usize / 2);
    prefetch.advise(PageIndex::new(0), PageCount::new(1000), Advice::Normal);
    let fetched: usize = (100..104)
        .map(|page| fault(&mut prefetch, page, &mut out))
        .sum();
    assert!(fetched > 0);
}

#[test]
fn what_is_needed_soon_is_given_once_in_order() {
    let mut prefetch = stride();
    prefetch.advise(PageIndex::new(10), PageCount::new(40), Advice::WillNeed);
    prefetch.advise(
        PageIndex::new(REGION - 2),
        PageCount::new(40),
        Advice::WillNeed,
    );
    let mut pages = Vec::new();
    let mut out = Vec::with_capacity(2);
    loop {
        out.clear();
        prefetch.wanted(20, &mut out);
        if out.is_empty() {
            break;
        }
        for run in &out {
            check(run);
            pages.extend((0..u32::from(run.pages)).map(|at| run.page.get() + at));
        }
    }
    let all: Vec<u32> = (10..50).chain(REGION - 2..REGION).collect();
    assert_eq!(pages, all);
    prefetch.advise(PageIndex::new(10), PageCount::new(40), Advice::WillNeed);
    prefetch.advise(PageIndex::new(0), PageCount::new(100), Advice::DontNeed);
    prefetch.wanted(20, &mut out);
    assert!(out.is_empty());
}

#[test]
fn off_is_off() {
    for mut prefetch in [
        prefetch_for(PrefetchPolicy::Off, PageCount::new(REGION), WINDOW, None),
        prefetch_for(PrefetchPolicy::Stride, PageCount::new(REGION), 0, None),
    ] {
        assert_eq!(judge(&mut *prefetch, &steps(0, 1, 1000)).fetched, 0);
    }
}

proptest! {
    #[test]
    fn any_faults_give_runs_inside_of_the_region(
        faults in proptest::collection::vec((0_u32..300, any::<bool>(), any::<bool>()), 0..400),
        region in 1_u32..300,
        window in 0_u32..100,
        room in 1_usize..8,
    ) {
        let mut prefetch = prefetch_for(PrefetchPolicy::Stride, PageCount::new(region), window, None);
        let mut out = Vec::with_capacity(room);
        let room = out.capacity();
        for (page, ahead, wasted) in faults {
            let page = PageIndex::new(page % region);
            if wasted {
                prefetch.wasted(page);
                continue;
            }
            let kind = if ahead { FaultKind::FetchedAhead } else { FaultKind::Missing };
            out.clear();
            prefetch.on_fault(page, kind, &mut out);
            prop_assert_eq!(out.capacity(), room);
            let mut seen = HashSet::new();
            for run in &out {
                prop_assert!(run.pages > 0 && run.pages <= MAX_RUN_PAGES);
                for at in 0..u32::from(run.pages) {
                    let fetched = run.page.get() + at;
                    prop_assert!(fetched < region && fetched != page.get());
                    prop_assert!(seen.insert(fetched), "no page twice");
                }
            }
            prop_assert!(seen.len() <= window as usize);
        }
    }
}

//! What the owner can ask of a region: flush, budget, advice, remapping, bringing everything home.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mycoram_agent::{Advice, RegionError, RegionStats};
use mycoram_fabric::units::ByteCount;
use support::Dice;
use support::fake_remote::FakeRemote;
use support::local_target::{LocalTarget, attach, config, pattern};

const PAGES: u32 = 1024;

#[test]
fn what_was_written_before_a_flush_is_remote_after_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    let region = attach(&target, remote.clone(), config("flush", dir.path(), 256));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Somebody goes on writing elsewhere in the same pages.
        scope.spawn(|| {
            let mut dice = Dice::new(5);
            while !stop.load(Ordering::Relaxed) {
                let page = dice.below(u64::from(PAGES)) as u32;
                target.word(page, 77).fetch_add(1, Ordering::Relaxed);
            }
        });
        for value in 1..6 {
            for page in 0..PAGES {
                target
                    .word(page, 1)
                    .store(pattern(page, value, 1), Ordering::Relaxed);
            }
            region.flush().expect("flushed");
            let mut bytes = [0; 8];
            for page in 0..PAGES {
                remote.read(page, 8, &mut bytes);
                assert_eq!(
                    u64::from_le_bytes(bytes),
                    pattern(page, value, 1),
                    "page {page}"
                );
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    for page in 0..PAGES {
        assert_eq!(
            target.word(page, 1).load(Ordering::Relaxed),
            pattern(page, 5, 1)
        );
    }
    region.end();
    assert!(remote.store.released.load(Ordering::SeqCst));
}

#[test]
fn a_flush_sends_what_differs_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    let region = attach(&target, remote.clone(), config("part", dir.path(), 2048));
    for page in 0..PAGES {
        target.fill(page, 1);
    }
    region.flush().expect("flushed");
    let mut dice = Dice::new(11);
    let sent = || remote.store.bytes_written.load(Ordering::SeqCst);
    for one_in in [1, 2, 3, 17, 300, 5000] {
        let before = sent();
        let written: Vec<u32> = (0..PAGES).filter(|_| dice.below(one_in) == 0).collect();
        for page in &written {
            target.word(*page, 9).fetch_add(1, Ordering::Relaxed);
        }
        region.flush().expect("flushed");
        assert_eq!(
            sent() - before,
            4096 * written.len() as u64,
            "1 in {one_in}"
        );
        let mut bytes = [0; 8];
        for page in 0..PAGES {
            remote.read(page, 9 * 8, &mut bytes);
            let here = target.word(page, 9).load(Ordering::Relaxed);
            assert_eq!(u64::from_le_bytes(bytes), here, "page {page}");
        }
    }
    region.end();
}

#[test]
fn flushes_keep_their_lane_and_it_answers_between_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    let region = attach(&target, remote.clone(), config("lane", dir.path(), 256));
    target.fill(7, 1);
    region.flush().expect("flushed");
    let (open, opened) = remote.lanes();
    target.fill(7, 2);
    region.flush().expect("flushed");
    assert_eq!(remote.lanes(), (open, opened), "another lane was opened");

    // Who copies an extent waits for all of them.
    remote.tell();
    let since = Instant::now();
    while !remote.is_known() {
        assert!(since.elapsed() < Duration::from_secs(8), "a lane is deaf");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(remote.lanes(), (open, opened), "it was closed instead");
    region.end();
    assert_eq!(remote.lanes().0, 0, "a lane outlives the region");
}

#[test]
fn a_smaller_budget_is_reached_and_a_larger_one_used() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let region = attach(
        &target,
        FakeRemote::new(PAGES, 1),
        config("budget", dir.path(), 900),
    );
    for page in 0..PAGES {
        target.fill(page, 1);
    }
    assert!(target.resident_bytes() > 600 * 4096);
    region.set_budget(ByteCount::new(128 * 4096)).expect("set");
    let since = Instant::now();
    while target.resident_bytes() > 128 * 4096 {
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "{:?}",
            region.stats()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(region.set_budget(ByteCount::new(4096)).is_err());
    region.set_budget(ByteCount::new(2048 * 4096)).expect("set");
    for page in 0..PAGES {
        target.check(page, 1);
    }
    assert_eq!(target.resident_bytes(), u64::from(PAGES) * 4096);
    region.end();
}

#[test]
fn advice_brings_pages_in_and_lets_them_go_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let region = attach(
        &target,
        FakeRemote::new(PAGES, 1),
        config("advice", dir.path(), 512),
    );
    for page in 0..PAGES {
        target.fill(page, 1);
    }
    // The first pages have stayed, the last have not left yet: what is between is remote.
    region.advise(500..700, Advice::WillNeed).expect("advised");
    let since = Instant::now();
    while region.stats().prefetch_issued < 20 {
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "{:?}",
            region.stats()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    region.advise(0..PAGES, Advice::DontNeed).expect("advised");
    for page in 0..PAGES {
        target.check(page, 1);
    }
    assert!(matches!(
        region.advise(0..PAGES + 1, Advice::Random),
        Err(RegionError::OutOfRange { .. })
    ));
    region.end();
}

#[test]
fn a_detached_region_is_ordinary_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    let region = attach(&target, remote.clone(), config("detach", dir.path(), 128));
    for page in 0..PAGES - 100 {
        target.fill(page, 1);
    }
    region.detach().expect("detached");
    assert!(region.is_over());
    drop(region);
    remote.kill_node(0);
    for page in 0..PAGES - 100 {
        target.check(page, 1);
    }
    assert_eq!(target.word(PAGES - 1, 0).load(Ordering::Relaxed), 0);
    assert_eq!(
        std::fs::read_dir(dir.path()).expect("a directory").count(),
        0
    );
}

#[test]
fn figures_can_be_read_by_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let config = config("figures", dir.path(), 128);
    let path = RegionStats::path(dir.path(), &config.name);
    let region = attach(&target, FakeRemote::new(PAGES, 1), config);
    for page in 0..PAGES {
        target.fill(page, 1);
    }
    let since = Instant::now();
    let stats = loop {
        let read = RegionStats::read(&path);
        if let Ok(stats) = read
            && stats.faults > 0
            && stats.fault_p50_us > 0.0
        {
            break stats;
        }
        assert!(since.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(
        (stats.name.as_str(), stats.pages),
        ("figures", u64::from(PAGES))
    );
    assert_eq!(stats.peak_resident.max(128), 128);
    region.end();
    assert!(RegionStats::read(&path).is_err());
}

/// The whole mapping is moved, as a program may do with mremap.
#[test]
fn a_moved_mapping_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut target = LocalTarget::new(PAGES);
    let region = attach(
        &target,
        FakeRemote::new(PAGES, 1),
        config("move", dir.path(), 128),
    );
    for page in 0..PAGES {
        target.fill(page, 1);
    }
    target.move_mapping();
    for page in 0..PAGES {
        target.check(page, 1);
        target.fill(page, 2);
    }
    for page in 0..PAGES {
        target.check(page, 2);
    }
    region.end();
}

//! Remote pages that rot, owners that are fenced, nodes that die under a page on its way out.

mod support;

use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use mycoram_agent::{Region, RegionError, RegionEvent};
use mycoram_fabric::pages::PageError;
use support::fake_remote::FakeRemote;
use support::local_target::{LocalTarget, attach, config, owner, pattern};
use support::sigbus;

const PAGES: u32 = 1024;

#[test]
fn a_wrong_page_is_read_again_and_never_handed_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    let region = attach(&target, remote.clone(), config("rot", dir.path(), 128));
    for page in 0..PAGES {
        target.fill(page, 1);
    }
    remote
        .store
        .rot
        .lock()
        .expect("no panic")
        .extend((0..PAGES).step_by(3));
    for page in 0..PAGES {
        target.check(page, 1);
    }
    assert!(region.stats().checksum_mismatches > 100);
    assert_eq!(region.stats().lost, 0);
    region.end();
}

#[test]
fn a_wrong_replica_is_written_again_from_a_right_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    remote.store.second.store(1, Ordering::SeqCst);
    let region = attach(&target, remote.clone(), config("repair", dir.path(), 128));
    for page in 0..PAGES {
        target.fill(page, 1);
    }
    let rotten = || remote.store.rotten.lock().expect("no panic");
    rotten().extend((0..PAGES).step_by(5));
    // A page is read, and found to be wrong, once it has left; some stay for a round or two.
    let rounds = (1..=50).find(|_| {
        for page in 0..PAGES {
            target.check(page, 1);
        }
        rotten().is_empty()
    });
    assert!(rounds.is_some(), "{} are wrong still", rotten().len());
    assert!(remote.store.repairs.load(Ordering::SeqCst) > 50);
    // What was repaired is right without the other replica too.
    remote.kill_node(1);
    for page in 0..PAGES {
        target.check(page, 1);
    }
    assert_eq!(region.stats().lost, 0);
    region.end();
}

#[test]
fn a_page_that_stays_wrong_is_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    let region = attach(&target, remote.clone(), config("rotten", dir.path(), 128));
    for page in 0..PAGES {
        target.fill(page, 1);
    }
    let word: *const _ = target.word(5, 1);
    // Rots at every READ until it is given up.
    let seen = loop {
        remote.store.rot.lock().expect("no panic").insert(5);
        let before = region.stats().lost;
        let stop = std::sync::atomic::AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    remote.store.rot.lock().expect("no panic").insert(5);
                }
            });
            let seen = sigbus::read(word.cast());
            stop.store(true, Ordering::Relaxed);
            seen
        });
        match seen {
            Some(value) => assert_eq!(value, pattern(5, 1, 1)),
            None => break before,
        }
        for page in 200..800 {
            target.check(page, 1);
        }
    };
    assert_eq!((seen, region.stats().lost), (0, 1));
    region.end();
}

#[test]
fn a_fenced_owner_serves_nothing_more() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    let (tell, told) = mpsc::channel();
    let region = Region::attach(
        target.target(),
        remote.clone(),
        owner(1),
        config("fenced", dir.path(), 128),
        Box::new(move |event| {
            let _ = tell.send(event);
        }),
    )
    .expect("attached");
    for page in 0..PAGES / 2 {
        target.fill(page, 1);
    }
    remote.store.fenced.store(true, Ordering::SeqCst);
    assert!(region.flush().is_err());
    let event = told.recv_timeout(Duration::from_secs(5));
    assert_eq!(event, Ok(RegionEvent::Fenced));
    assert!(region.is_over());
}

#[test]
fn what_has_no_place_yet_stays_and_all_else_comes_and_goes() {
    const UNPLACED: std::ops::Range<u32> = 600..632;
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    remote.store.placed.store(512, Ordering::SeqCst);
    let region = attach(&target, remote.clone(), config("unplaced", dir.path(), 128));
    for page in (0..400).chain(UNPLACED) {
        target.fill(page, 1);
    }
    let expected = remote.store.expected.lock().expect("no panic").clone();
    assert!(UNPLACED.into_iter().all(|page| expected.contains(&page)));
    // Several times the budget goes through what is left of it.
    for page in (0..400).chain((0..400).rev()) {
        target.check(page, 1);
    }
    assert!(region.stats().evictions > 400);
    // Who wants to be sure that all is written is told.
    remote.store.full.store(true, Ordering::SeqCst);
    let error = region.flush().expect_err("there is no room");
    let RegionError::Pages { source, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(source, PageError::Unplaced);
    for page in (0..400).chain(UNPLACED) {
        target.check(page, 1);
    }
    // There is room.
    remote.store.placed.store(PAGES, Ordering::SeqCst);
    remote.store.full.store(false, Ordering::SeqCst);
    region.flush().expect("written");
    for page in UNPLACED {
        let mut word = [0; 8];
        remote.read(page, 8, &mut word);
        assert_eq!(u64::from_ne_bytes(word), pattern(page, 1, 1), "page {page}");
    }
    for page in (0..400).chain(UNPLACED) {
        target.check(page, 1);
    }
    let stats = region.stats();
    assert_eq!((stats.lost, stats.homeless), (0, 0));
    region.end();
}

#[test]
fn pages_without_a_home_stay_as_long_as_there_is_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    let region = attach(&target, remote.clone(), config("homeless", dir.path(), 256));
    for page in 0..100 {
        target.fill(page, 1);
    }
    remote.kill_node(0);
    // More than the budget: some must be lost, and whoever writes to them is told, not hung.
    let mut told = 0;
    for page in 100..PAGES {
        let word: *const _ = target.word(page, 1);
        match sigbus::read(word.cast()) {
            Some(_) => target.fill(page, 1),
            None => told += 1,
        }
    }
    let mut kept = 0;
    for page in 0..PAGES {
        let word: *const _ = target.word(page, 1);
        match sigbus::read(word.cast()) {
            Some(value) => {
                assert_eq!(value, pattern(page, 1, 1), "page {page}");
                kept += 1;
            }
            None => told += 1,
        }
    }
    let stats = region.stats();
    eprintln!("kept {kept}, told {told}: {stats:?}");
    assert!(kept >= 128, "{kept} pages were kept");
    assert!(stats.lost > 0 && stats.homeless > 0);
    region.end();
}

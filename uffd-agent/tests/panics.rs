//! A region one of whose threads panics. The panics come out of lanes, as a bug in a transport would.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use mycoram_agent::{Region, RegionConfig, RegionError, RegionEvent, SavedRegion, ThreadPanic};
use mycoram_fabric::pages::Direction;
use support::fake_remote::FakeRemote;
use support::local_target::{LocalTarget, attach, attach_private, config, owner, pattern};
use support::sigbus;

const PAGES: u32 = 1024;
const BUDGET: u64 = 128;
/// The page whose READ or WRITE is the end of a thread.
const TRAP: u32 = 300;
/// Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

fn lay_trap(remote: &FakeRemote, way: Direction) {
    *remote.store.trap.lock().expect("no panic") = Some((way, TRAP));
}

fn clear_trap(remote: &FakeRemote) {
    *remote.store.trap.lock().expect("no panic") = None;
}

fn word(target: &LocalTarget, page: u32) -> Option<u64> {
    let word: *const _ = target.word(page, 1);
    sigbus::read(word.cast())
}

/// What holds of a region that has failed and that nobody can take over.
fn is_given_up(target: &LocalTarget, region: Region, thread: &str) {
    let error = region.flush().expect_err("nobody serves it");
    let RegionError::Failed(panic) = error else {
        panic!("{error}");
    };
    let said = format!("page {TRAP} is a trap");
    let thread = thread.to_owned();
    assert_eq!(panic, ThreadPanic { thread, said });
    assert!(region.is_over());
    let stats = region.stats();
    assert_eq!(stats.thread_panics, 1);
    assert_eq!(stats.failure, Some(panic.to_string()));
    // A page has what was written to it last, or is a signal: nothing in between, and no hang.
    let (mut kept, mut gone) = (0, 0);
    for page in 0..PAGES {
        match word(target, page) {
            Some(value) => {
                assert_eq!(value, pattern(page, 1, 1), "page {page}");
                kept += 1;
            }
            None => gone += 1,
        }
    }
    assert!(kept > 0 && gone > PAGES / 2, "{kept} kept, {gone} gone");
    // The kernel waits here until the event is read.
    target.discard(0, PAGES);
    region.end();
}

/// Every page is written, and read until a lane panics; several threads wait for pages then.
fn read_until_it_fails(target: &LocalTarget, region: &Region) {
    let signals = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let signals = &signals;
            scope.spawn(move || {
                let mut page = thread;
                while signals.load(Ordering::SeqCst) == 0 {
                    match word(target, page) {
                        Some(value) => assert_eq!(value, pattern(page, 1, 1), "page {page}"),
                        None => {
                            signals.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    page = (page + 4) % PAGES;
                }
            });
        }
    });
    assert!(region.is_over());
}

#[test]
fn a_fault_worker_of_private_memory_panics() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::private(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    let mut config = config("private", dir.path(), BUDGET);
    config.fault_workers = 2;
    let Some(region) = attach_private(&target, remote.clone(), config) else {
        return;
    };
    (0..PAGES).for_each(|page| target.fill(page, 1));
    lay_trap(&remote, Direction::Read);
    read_until_it_fails(&target, &region);
    let thread = match region.flush() {
        Err(RegionError::Failed(panic)) => panic.thread,
        other => panic!("{other:?}"),
    };
    assert!(thread.starts_with("myco-fault-"), "{thread}");
    is_given_up(&target, region, &thread);
}

fn without_successor(name: &str, dir: &Path) -> RegionConfig {
    RegionConfig {
        has_successor: false,
        ..config(name, dir, BUDGET)
    }
}

#[test]
fn a_fault_worker_panics_where_the_kernel_has_no_poison() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    let mut config = without_successor("sigbus", dir.path());
    config.without_poison = true;
    let region = attach(&target, remote.clone(), config);
    (0..PAGES).for_each(|page| target.fill(page, 1));
    lay_trap(&remote, Direction::Read);
    read_until_it_fails(&target, &region);
    is_given_up(&target, region, "myco-fault-0");
}

#[test]
fn an_evictor_panics_and_the_region_beside_it_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let beside = LocalTarget::new(PAGES);
    let unhurt = attach(
        &beside,
        FakeRemote::new(PAGES, 1),
        config("beside", dir.path(), BUDGET),
    );
    (0..PAGES).for_each(|page| beside.fill(page, 1));
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    let config = without_successor("evictor", dir.path());
    let region = attach(&target, remote.clone(), config);
    (0..PAGES).for_each(|page| target.fill(page, 1));
    region.flush().expect("flushed");
    lay_trap(&remote, Direction::Write);
    // It leaves, and differs from what is at its node.
    let at: *const _ = target.word(TRAP, 2);
    // SAFETY: a word of the target, which everybody reaches by atomics.
    assert!(unsafe { sigbus::write(at.cast_mut().cast(), 7) });
    while (0..PAGES).all(|page| word(&target, page).is_some()) {}
    is_given_up(&target, region, "myco-evict-0");
    (0..PAGES).for_each(|page| beside.check(page, 1));
    assert_eq!(unhurt.stats().thread_panics, 0);
    unhurt.end();
}

#[test]
fn a_flush_panics_and_who_asked_for_it_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    // All that is written stays here.
    let config = RegionConfig {
        has_successor: false,
        ..config("flush", dir.path(), 2 * u64::from(PAGES))
    };
    let region = attach(&target, remote.clone(), config);
    (0..PAGES / 2).for_each(|page| target.fill(page, 1));
    lay_trap(&remote, Direction::Write);
    let error = region.flush().expect_err("it panics");
    assert!(
        matches!(&error, RegionError::Failed(panic) if panic.thread == "flush"),
        "{error}"
    );
    (0..PAGES / 2).for_each(|page| target.check(page, 1));
    assert_eq!(
        word(&target, PAGES - 1),
        None,
        "nobody would ever write it back"
    );
    region.end();
}

/// As for an agent that was killed: the target waits, and nothing is lost.
#[test]
fn a_region_that_may_have_a_successor_waits_for_it() {
    for way in [Direction::Read, Direction::Write] {
        let dir = tempfile::tempdir().expect("a directory");
        let target = LocalTarget::new(PAGES);
        let remote = FakeRemote::new(PAGES, 1);
        let (tell, told) = mpsc::channel();
        let region = Region::attach(
            target.target(),
            remote.clone(),
            owner(1),
            config("waits", dir.path(), BUDGET),
            Box::new(move |event| {
                let _ = tell.send(event);
            }),
        )
        .expect("attached");
        (0..PAGES).for_each(|page| target.fill(page, 1));
        lay_trap(&remote, way);
        std::thread::scope(|scope| {
            let target = &target;
            let worker = scope.spawn(move || {
                for round in 2..4 {
                    for page in 0..PAGES {
                        target.check(page, round - 1);
                        target.fill(page, round);
                    }
                }
            });
            let event = told.recv_timeout(PATIENCE).expect("it says so");
            let RegionEvent::Failed(panic) = event else {
                panic!("{event:?}");
            };
            let expected = match way {
                Direction::Read => "myco-fault-0",
                Direction::Write => "myco-evict-0",
            };
            assert_eq!(panic.thread, expected);
            assert!(!worker.is_finished());
            drop(region);
            clear_trap(&remote);
            let name = "waits".parse().expect("a name");
            let saved = SavedRegion::open(dir.path(), &name).expect("saved");
            let taken = saved.target().expect("ourselves");
            let config = config("waits", dir.path(), BUDGET);
            let remote = Arc::clone(&remote);
            let events = Box::new(|event: RegionEvent| eprintln!("event: {event:?}"));
            let region = Region::take_over(saved, taken, remote, owner(2), config, events)
                .expect("taken over");
            region.after_panics(1);
            worker.join().expect("it found what it wrote");
            (0..PAGES).for_each(|page| target.check(page, 3));
            assert_eq!(region.stats().thread_panics, 1);
            assert_eq!(region.stats().failure, None);
            region.end();
        });
    }
}

#[test]
fn a_listener_that_panics_does_no_harm() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 2);
    let (tell, told) = mpsc::channel();
    let region = Region::attach(
        target.target(),
        remote.clone(),
        owner(1),
        config("listener", dir.path(), BUDGET),
        Box::new(move |event| {
            let _ = tell.send(event);
            panic!("a listener's own bug");
        }),
    )
    .expect("attached");
    (0..PAGES).for_each(|page| target.fill(page, 1));
    remote.kill_node(1);
    for _ in 0..2 {
        // Some more each time, of which it is told.
        let lost = region.stats().lost;
        let mut pages = 0..PAGES;
        assert!(pages.any(|page| word(&target, page).is_none() && region.stats().lost > lost));
        let event = told.recv_timeout(PATIENCE).expect("told of the loss");
        assert!(matches!(event, RegionEvent::Lost { .. }), "{event:?}");
    }
    for page in (0..PAGES).filter(|page| remote.node_of(*page) == 0) {
        target.check(page, 1);
    }
    assert!(!region.is_over());
    region.end();
}

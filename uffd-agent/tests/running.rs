//! The agent on the running kernel: real faults, real evictions, a remote region in memory.

mod support;

use std::sync::atomic::Ordering;

use support::Dice;
use support::fake_remote::FakeRemote;
use support::local_target::{LocalTarget, attach, config};

#[test]
fn what_was_written_comes_back_within_the_budget() {
    let dir = tempfile::tempdir().expect("a directory");
    let pages = 4096;
    let budget = 512;
    let target = LocalTarget::new(pages);
    let remote = FakeRemote::new(pages, 2);
    let region = attach(&target, remote, config("fill", dir.path(), budget));
    let mut peak = 0;
    for page in 0..pages {
        target.fill(page, 1);
        peak = peak.max(target.resident_bytes());
    }
    let mut dice = Dice::new(1);
    for _ in 0..8192 {
        let page = dice.below(u64::from(pages)) as u32;
        target.check(page, 1);
        peak = peak.max(target.resident_bytes());
    }
    for page in 0..pages {
        target.check(page, 1);
    }
    let stats = region.stats();
    eprintln!("{stats:#?}");
    assert!(peak <= budget * 4096, "{} pages were resident", peak / 4096);
    assert!(stats.evictions > 3000 && stats.majors > 3000);
    assert!(stats.evictions_clean > 0);
    region.end();
}

#[test]
fn many_writers_lose_no_update() {
    let dir = tempfile::tempdir().expect("a directory");
    let pages = 1024;
    let target = LocalTarget::new(pages);
    let remote = FakeRemote::new(pages, 2);
    let mut config = config("writers", dir.path(), 128);
    config.fault_workers = 2;
    config.eviction_workers = 2;
    config.settle_ms = 0;
    let region = attach(&target, remote, config);
    let threads = 4;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let target = &target;
            scope.spawn(move || {
                let mut dice = Dice::new(thread);
                let mut counts = vec![0_u64; pages as usize];
                for _ in 0..20_000 {
                    let page = dice.below(u64::from(pages)) as u32;
                    // Each thread has a word of its own in every page: a lost update shows.
                    let word = target.word(page, 8 + thread as usize);
                    let before = word.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(before, counts[page as usize], "page {page}");
                    counts[page as usize] += 1;
                }
            });
        }
    });
    let stats = region.stats();
    eprintln!("{stats:#?}");
    assert!(stats.evictions > 1000);
    region.end();
}

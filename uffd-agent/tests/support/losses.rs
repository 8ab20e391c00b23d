//! What has to hold when a memory node dies, whatever the kernel has to say it with.

use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use mycoram_agent::{Region, RegionConfig, RegionEvent};

use super::fake_remote::FakeRemote;
use super::local_target::{LocalTarget, config, owner, pattern};
use super::sigbus;

/// One of two nodes dies: its pages raise SIGBUS, all others are as they were, and the region says so.
pub fn one_node_of_two_dies(name: &str, change: impl FnOnce(&mut RegionConfig)) {
    let dir = tempfile::tempdir().expect("a directory");
    let pages = 2048;
    let target = LocalTarget::new(pages);
    let remote = FakeRemote::new(pages, 2);
    let (tell, told) = mpsc::channel();
    let mut config = config(name, dir.path(), 256);
    change(&mut config);
    let region = Region::attach(
        target.target(),
        remote.clone(),
        owner(1),
        config,
        Box::new(move |event| {
            let _ = tell.send(event);
        }),
    )
    .expect("attached");
    for page in 0..pages {
        target.fill(page, 9);
    }
    remote.kill_node(1);
    let mut lost = 0;
    for page in 0..pages {
        let word: *const _ = target.word(page, 1);
        match sigbus::read(word.cast()) {
            Some(value) => assert_eq!(value, pattern(page, 9, 1), "page {page}"),
            None => {
                assert_eq!(
                    remote.node_of(page),
                    1,
                    "page {page} was on a node that lives"
                );
                lost += 1;
            }
        }
    }
    assert!(lost > 500, "{lost} pages were lost");
    let stats = region.stats();
    assert_eq!(stats.lost, lost);
    assert!(sigbus::CAUGHT.load(Ordering::SeqCst) >= lost);
    // It stays so, and what lives goes on to live.
    for page in (0..pages).rev() {
        let word: *const _ = target.word(page, 0);
        if let Some(value) = sigbus::read(word.cast()) {
            assert_eq!(value, pattern(page, 9, 0), "page {page}");
        }
        if remote.node_of(page) == 0 {
            target.fill(page, 10);
        }
    }
    for page in (0..pages).filter(|page| remote.node_of(*page) == 0) {
        target.check(page, 10);
    }
    let mut named = 0;
    let mut total = 0;
    while let Ok(event) = told.recv_timeout(Duration::from_secs(3)) {
        if let RegionEvent::Lost { pages, total: all } = event {
            for page in &pages {
                assert_eq!(page.node.as_deref(), Some("node-1"));
            }
            named += pages.len();
            total = all;
            if total == region.stats().lost {
                break;
            }
        }
    }
    assert!(named > 0 && total == region.stats().lost, "{named} {total}");
    assert!(
        region.detach().is_err(),
        "lost pages would have become zeros"
    );
    region.end();
}

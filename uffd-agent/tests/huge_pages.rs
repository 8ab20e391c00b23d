//! Huge pages of private memory come and leave as one, and whatever happens to a part of one, no byte is wrong.

mod support;

use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use io_uring::IoUring;
use mycoram_agent::Region;
use mycoram_fabric::pages::HUGE_PAGES;
use mycoram_fabric::units::PAGE_BYTES;
use support::Dice;
use support::fake_remote::FakeRemote;
use support::local_target::{LocalTarget, attach_with_halls, config};

const PAGES: u32 = 40 * HUGE_PAGES;
/// The least with which there are any.
const BUDGET: u64 = 16 * HUGE_PAGES as u64;

struct Served {
    target: LocalTarget,
    region: Region,
    remote: Arc<FakeRemote>,
    _dir: tempfile::TempDir,
}

/// `None`, said aloud, where the kernel cannot move pages or has no huge ones.
fn served(name: &str, workers: u8) -> Option<Served> {
    let huge = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if !huge.is_ok_and(|huge| !huge.contains("[never]")) {
        println!("skipped: this kernel has no transparent huge pages");
        return None;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::private(PAGES);
    let mut config = config(name, dir.path(), BUDGET);
    config.fault_workers = workers;
    config.eviction_workers = workers;
    let remote = FakeRemote::new(PAGES, 1);
    let region = attach_with_halls(&target, Arc::clone(&remote) as _, config, 2)?;
    Some(Served {
        target,
        region,
        remote,
        _dir: dir,
    })
}

#[test]
fn a_scan_goes_by_huge_pages_and_finds_what_was_written() {
    let Some(served) = served("scan", 1) else {
        return;
    };
    let Served { target, region, .. } = &served;
    for value in [1, 2] {
        (0..PAGES).for_each(|page| target.fill(page, value));
        (0..PAGES).for_each(|page| target.check(page, value));
        (0..PAGES).for_each(|page| target.check(page, value));
        let resident = target.private_bytes();
        assert!(resident <= BUDGET * PAGE_BYTES as u64, "{resident} bytes");
    }
    let stats = region.stats();
    // How many depends on what else the machine does: whoever waits for long is given single pages.
    assert!(stats.huge_in > 0 && stats.huge_out > 0, "{stats:?}");
    assert!(stats.evictions_clean > u64::from(PAGES), "{stats:?}");
    assert!(
        stats.peak_resident <= BUDGET && stats.lost == 0,
        "{stats:?}"
    );
    served.region.flush().expect("flushed");
    served.region.end();
}

#[test]
fn a_scan_downwards_and_pages_that_were_never_written_are_right() {
    let Some(served) = served("down", 1) else {
        return;
    };
    let Served { target, region, .. } = &served;
    // Runs with and without content, never a multiple of a huge page.
    let is_written = |page: u32| page / 100 % 3 != 1;
    let written = || (0..PAGES).filter(|page| is_written(*page));
    written().for_each(|page| target.fill(page, 5));
    for _ in 0..2 {
        for page in (0..PAGES).rev() {
            match is_written(page) {
                true => target.check(page, 5),
                false => assert_eq!(target.word(page, 1).load(Ordering::Relaxed), 0),
            }
        }
        written().for_each(|page| target.check(page, 5));
    }
    let stats = region.stats();
    assert!(
        stats.peak_resident <= BUDGET && stats.lost == 0,
        "{stats:?}"
    );
    served.region.end();
}

/// Four threads on parts of their own: in order and at random, reading, writing, throwing away.
#[test]
fn many_threads_in_and_out_of_order_find_what_they_wrote() {
    for workers in [1, 2] {
        let Some(served) = served("threads", workers) else {
            return;
        };
        served.remote.store.polls.store(3, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for thread in 0..4_u32 {
                let target = &served.target;
                scope.spawn(move || {
                    let mut dice = Dice::new(u64::from(thread) + 40);
                    let own = PAGES / 4;
                    let first = thread * own;
                    let mut values = vec![None; own as usize];
                    let look = |at: u32, value: Option<u64>| match value {
                        Some(value) => target.check(first + at, value),
                        None => {
                            let word = target.word(first + at, 1).load(Ordering::Relaxed);
                            assert_eq!(word, 0, "page {}", first + at);
                        }
                    };
                    for round in 0..24_u64 {
                        let from = dice.below(u64::from(own)) as u32;
                        let to = from + dice.below(u64::from(own - from)) as u32;
                        match dice.below(5) {
                            0 | 1 => (0..own).for_each(|at| look(at, values[at as usize])),
                            2 => {
                                for at in from..to {
                                    target.fill(first + at, round);
                                    values[at as usize] = Some(round);
                                }
                            }
                            3 => {
                                for _ in 0..400 {
                                    let at = dice.below(u64::from(own)) as u32;
                                    look(at, values[at as usize]);
                                    if dice.below(2) == 0 {
                                        target.fill(first + at, round);
                                        values[at as usize] = Some(round);
                                    }
                                }
                            }
                            _ => {
                                let pages = (to - from).min(700);
                                if pages > 0 {
                                    target.discard(first + from, pages);
                                    values[from as usize..][..pages as usize].fill(None);
                                }
                            }
                        }
                    }
                    (0..own).for_each(|at| look(at, values[at as usize]));
                });
            }
        });
        let stats = served.region.stats();
        assert!(stats.huge_in > 0 && stats.lost == 0, "{stats:?}");
        assert!(stats.peak_resident <= BUDGET, "{stats:?}");
        served.region.flush().expect("flushed");
        served.region.end();
    }
}

/// The next huge page is read while this one is gone through.
#[test]
fn what_is_thrown_away_on_its_way_in_reads_as_zeros() {
    let Some(served) = served("on-its-way", 1) else {
        return;
    };
    let Served { target, region, .. } = &served;
    (0..PAGES).for_each(|page| target.fill(page, 8));
    for round in 0..2 {
        let is_thrown = |page: u32| {
            let (huge, at) = (page / HUGE_PAGES, page % HUGE_PAGES);
            huge % 2 == round && huge > 1 && (100..105).contains(&at)
        };
        for page in 0..PAGES {
            let next = page + HUGE_PAGES + 100;
            if page % HUGE_PAGES == 0 && next < PAGES && is_thrown(next) {
                target.discard(next, 5);
            }
            match is_thrown(page) {
                true => assert_eq!(target.word(page, 1).load(Ordering::Relaxed), 0, "{page}"),
                false => target.check(page, 8),
            }
            if is_thrown(page) {
                target.fill(page, 8);
            }
        }
    }
    let stats = region.stats();
    assert!(stats.huge_in > 0 && stats.lost == 0, "{stats:?}");
    served.region.end();
}

#[test]
fn a_wrong_page_of_a_huge_page_is_read_again_and_nobody_sees_it() {
    let Some(served) = served("wrong", 1) else {
        return;
    };
    let Served {
        target,
        region,
        remote,
        ..
    } = &served;
    (0..PAGES).for_each(|page| target.fill(page, 3));
    (0..PAGES).for_each(|page| target.check(page, 3));
    // All of it is on its way through: every page is read at least once more.
    let wrong: Vec<u32> = (0..PAGES).step_by(777).collect();
    remote.store.rot.lock().expect("no panic").extend(&wrong);
    for _ in 0..2 {
        (0..PAGES).for_each(|page| target.check(page, 3));
    }
    let stats = region.stats();
    assert!(
        stats.checksum_mismatches >= wrong.len() as u64 / 2,
        "{stats:?}"
    );
    assert!(stats.huge_in > 0 && stats.lost == 0, "{stats:?}");
    served.region.end();
}

/// A page that is pinned, and one that a pipe refers to, each in the middle of a huge page.
#[test]
fn what_others_refer_to_in_a_huge_page_stays_what_it_was() {
    let Some(served) = served("pinned", 1) else {
        return;
    };
    let target = &served.target;
    let pass = |from: u32| (from..PAGES).for_each(|page| target.fill(page, 9));
    pass(0);
    pass(0);
    let (pinned, piped) = (3 * HUGE_PAGES + 77, 5 * HUGE_PAGES + 99);
    let iovec = |page| libc::iovec {
        iov_base: std::ptr::from_ref(target.word(page, 0)).cast_mut().cast(),
        iov_len: PAGE_BYTES,
    };
    target.check(pinned, 9);
    target.check(piped, 9);
    let ring = IoUring::new(4).expect("a ring");
    // SAFETY: a page of the target, which outlives the ring.
    unsafe { ring.submitter().register_buffers(&[iovec(pinned)]) }.expect("registered");
    let (read, write) = nix::unistd::pipe().expect("a pipe");
    let page = iovec(piped);
    // SAFETY: one page of the target.
    let given = unsafe { libc::vmsplice(write.as_raw_fd(), &raw const page, 1, 0) };
    assert_eq!(given, PAGE_BYTES as isize);
    pass(8 * HUGE_PAGES);
    pass(8 * HUGE_PAGES);
    assert!(target.is_present(pinned), "the pinned page has left");
    let mut bytes = [0; PAGE_BYTES];
    std::fs::File::from(read)
        .read_exact(&mut bytes)
        .expect("a page");
    for at in [0, 1, 255, 511] {
        let word = u64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("8 bytes"));
        assert_eq!(word, support::local_target::pattern(piped, 9, at));
    }
    drop(ring);
    (0..PAGES).for_each(|page| target.check(page, 9));
    served.region.end();
}

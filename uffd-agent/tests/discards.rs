//! Memory that the target gives back, and devices that write into pages on their way out.

mod support;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MmapAdvise, madvise};
use support::Dice;
use support::fake_remote::FakeRemote;
use support::local_target::{LocalTarget, attach, config};

const PAGES: u32 = 1024;

fn advise(target: &LocalTarget, page: u32, pages: u32, advice: MmapAdvise) {
    let at: *const AtomicU64 = target.word(page, 0);
    let at = NonNull::new(at.cast_mut().cast()).expect("mapped");
    // SAFETY: a part of the target's mapping, which all users reach by atomics.
    unsafe { madvise(at, pages as usize * 4096, advice) }.expect("madvise");
}

/// Each thread owns every fourth page: writes, discards, must read zeros, writes again.
fn discard_and_write(target: &LocalTarget, thread: u32, discard: impl Fn(u32)) {
    let mut dice = Dice::new(u64::from(thread));
    let mut values = vec![0_u64; PAGES as usize];
    for round in 1..6000_u64 {
        let page = dice.below(u64::from(PAGES / 4)) as u32 * 4 + thread;
        let word = target.word(page, 3);
        assert_eq!(
            word.load(Ordering::Relaxed),
            values[page as usize],
            "page {page} in round {round}"
        );
        if dice.below(3) == 0 {
            discard(page);
            assert_eq!(word.load(Ordering::Relaxed), 0, "page {page} was discarded");
            values[page as usize] = 0;
        }
        if dice.below(2) == 0 {
            word.store(round, Ordering::Relaxed);
            values[page as usize] = round;
        }
    }
}

fn discards(name: &str, workers: u8, discard: impl Fn(&LocalTarget, u32) + Sync) {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let mut config = config(name, dir.path(), 128);
    config.fault_workers = workers;
    config.settle_ms = 0;
    let region = attach(&target, FakeRemote::new(PAGES, 1), config);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (target, discard) = (&target, &discard);
            scope.spawn(move || discard_and_write(target, thread, |page| discard(target, page)));
        }
    });
    let stats = region.stats();
    assert!(stats.discarded > 1000 && stats.evictions > 500, "{stats:?}");
    region.end();
}

#[test]
fn removed_pages_read_as_zeros_with_one_worker() {
    discards("remove1", 1, |target, page| {
        advise(target, page, 1, MmapAdvise::MADV_REMOVE);
    });
}

#[test]
fn removed_pages_read_as_zeros_with_two_workers() {
    discards("remove2", 2, |target, page| {
        advise(target, page, 1, MmapAdvise::MADV_REMOVE);
    });
}

/// As QEMU's balloon does it: a punched hole first, then the advice.
#[test]
fn a_balloon_takes_pages_out() {
    discards("balloon", 2, |target, page| {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&target.memory, flags, i64::from(page) * 4096, 4096).expect("punched");
        advise(target, page, 1, MmapAdvise::MADV_DONTNEED);
    });
}

#[test]
fn what_is_given_back_no_longer_counts() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let region = attach(
        &target,
        FakeRemote::new(PAGES, 1),
        config("count", dir.path(), 512),
    );
    for page in 0..PAGES {
        target.fill(page, 1);
    }
    advise(&target, 0, PAGES, MmapAdvise::MADV_REMOVE);
    let since = Instant::now();
    while region.stats().never_written < u64::from(PAGES) {
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "{:?}",
            region.stats()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!((region.stats().resident, target.resident_bytes()), (0, 0));
    assert_eq!(target.word(77, 1).load(Ordering::Relaxed), 0);
    region.end();
}

/// MADV_DONTNEED keeps the pages of a shared file that are in memory; those must not be lost.
#[test]
fn what_dontneed_keeps_is_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let region = attach(
        &target,
        FakeRemote::new(PAGES, 1),
        config("keep", dir.path(), 512),
    );
    for page in 0..100 {
        target.fill(page, 1);
    }
    advise(&target, 0, 100, MmapAdvise::MADV_DONTNEED);
    for page in 0..100 {
        target.check(page, 1);
        target.fill(page, 2);
    }
    std::thread::sleep(Duration::from_millis(400));
    for page in 100..PAGES {
        target.fill(page, 1);
    }
    for page in 0..100 {
        target.check(page, 2);
    }
    region.end();
}

/// O_DIRECT reads into pages that are evicted meanwhile: what the device wrote is what is read.
#[test]
fn direct_io_into_leaving_pages_is_not_damaged() {
    let dir = tempfile::tempdir().expect("a directory");
    // Not tempdir: it may be a tmpfs, which has no direct IO.
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = disk.path().join("blocks");
    let blocks = 256_u64;
    let mut file = std::fs::File::create(&path).expect("a file");
    for block in 0..blocks {
        let words: Vec<u8> = (0..512_u64)
            .flat_map(|at| (block << 32 | at | 1 << 63).to_le_bytes())
            .collect();
        file.write_all(&words).expect("written");
    }
    file.sync_all().expect("on disk");
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    let Ok(direct) = direct else {
        assert!(
            std::env::var_os("CI").is_none(),
            "no O_DIRECT under {}",
            path.display()
        );
        eprintln!("SKIPPED: no O_DIRECT under {}", path.display());
        return;
    };
    let target = LocalTarget::new(PAGES);
    let mut config = config("direct", dir.path(), 128);
    config.settle_ms = 50;
    let region = attach(&target, FakeRemote::new(PAGES, 1), config);
    std::thread::scope(|scope| {
        for thread in 0..3_u32 {
            let (target, direct) = (&target, &direct);
            scope.spawn(move || {
                let mut dice = Dice::new(u64::from(thread));
                for _ in 0..700 {
                    let page = dice.below(u64::from(PAGES / 3)) as u32 * 3 + thread;
                    let block = dice.below(blocks);
                    let into: *const AtomicU64 = target.word(page.min(PAGES - 1), 0);
                    // SAFETY: a page of the mapping; the kernel writes it as a device would.
                    let got = unsafe {
                        libc::pread(
                            direct.as_raw_fd(),
                            into.cast_mut().cast(),
                            4096,
                            block as i64 * 4096,
                        )
                    };
                    assert_eq!(got, 4096, "{}", std::io::Error::last_os_error());
                    for at in [0, 1, 63, 511] {
                        let held = target.word(page.min(PAGES - 1), at).load(Ordering::Relaxed);
                        assert_eq!(held, block << 32 | at as u64 | 1 << 63, "page {page}");
                    }
                }
            });
        }
    });
    assert!(region.stats().evictions > 200, "{:?}", region.stats());
    region.end();
}

//! The path of a fault allocates nothing: counted in the fault worker's own thread, with the allocator of this
//! test.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use support::fake_remote::FakeRemote;
use support::local_target::{LocalTarget, attach, config};
use support::{Dice, key_file};

/// Whose allocations are counted; 0: nobody's.
static WATCHED: AtomicI64 = AtomicI64::new(0);
static COUNTED: AtomicU64 = AtomicU64::new(0);

struct Counting;

fn count() {
    let watched = WATCHED.load(Ordering::Relaxed);
    // SAFETY: gettid takes nothing and always succeeds.
    if watched != 0 && unsafe { libc::syscall(libc::SYS_gettid) } == watched {
        COUNTED.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is the system allocator's; counting touches atomics only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn thread_named(name: &str) -> i64 {
    std::fs::read_dir("/proc/self/task")
        .expect("proc")
        .flatten()
        .find(|task| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        })
        .and_then(|task| task.file_name().to_str()?.parse().ok())
        .expect("a thread of that name")
}

/// One after the other: threads are known by their names.
#[test]
fn a_fault_worker_allocates_nothing() {
    for sealed in [false, true] {
        allocates_nothing(sealed);
    }
}

fn allocates_nothing(sealed: bool) {
    const PAGES: u32 = 4096;
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    let mut config = config("alloc", dir.path(), 512);
    config.seal_key = sealed.then(|| key_file(dir.path()));
    let region = attach(&target, remote, config);
    // Once around, so that what grows once has grown.
    let touch_all = |dice: &mut Dice| {
        for page in 0..PAGES {
            target.word(page, 1).fetch_add(1, Ordering::Relaxed);
        }
        for _ in 0..PAGES {
            let page = dice.below(u64::from(PAGES)) as u32;
            target.word(page, 2).fetch_add(1, Ordering::Relaxed);
        }
    };
    let mut dice = Dice::new(11);
    touch_all(&mut dice);
    WATCHED.store(thread_named("myco-fault-0"), Ordering::SeqCst);
    let before = region.stats();
    touch_all(&mut dice);
    WATCHED.store(0, Ordering::SeqCst);
    let after = region.stats();
    let faults = after.faults - before.faults;
    assert!(faults > 2000, "{faults} faults");
    assert_eq!(COUNTED.load(Ordering::SeqCst), 0, "over {faults} faults");
    region.end();
    COUNTED.store(0, Ordering::SeqCst);
}

//! Sealed regions: what the memory node sees, what becomes of what it changes or brings back, and that nothing of
//! it allocates on the path of a fault is shown in `no_allocation`.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mycoram_agent::seal::SealError;
use mycoram_agent::{AttachError, Region, RegionConfig, SavedRegion, TakeOverError};
use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::PAGE_BYTES;
use support::fake_remote::FakeRemote;
use support::local_target::{LocalTarget, attach, config, owner, pattern};
use support::{key_file, sigbus};

const PAGES: u32 = 512;
const BUDGET: u64 = 128;

fn sealed(name: &str, dir: &Path) -> RegionConfig {
    RegionConfig {
        seal_key: Some(key_file(dir)),
        ..config(name, dir, BUDGET)
    }
}

/// A region's remote memory, and all that a memory node could do to it.
struct Node {
    memory: Arc<Mapping>,
    remote: Arc<FakeRemote>,
}

impl Node {
    fn new() -> Self {
        let memory = Mapping::anonymous(PAGES as usize * PAGE_BYTES).expect("memory");
        let memory = Arc::new(memory);
        let remote = FakeRemote::over(Arc::clone(&memory), PAGES, 1);
        Self { memory, remote }
    }

    fn all(&self) -> Vec<u8> {
        let mut all = vec![0; PAGES as usize * PAGE_BYTES];
        self.memory.copy_out(0, &mut all).expect("all of it");
        all
    }

    fn page(&self, page: u32) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        self.remote.read(page, 0, &mut bytes);
        bytes
    }

    fn put(&self, page: u32, bytes: &[u8]) {
        let at = page as usize * PAGE_BYTES;
        self.memory.copy_in(at, bytes).expect("inside");
    }
}

/// Whether a word of any page as the target has it is anywhere in `memory`.
fn has_plain_pages(memory: &[u8], value: u64) -> bool {
    let plain: std::collections::HashSet<u64> = (0..PAGES)
        .flat_map(|page| [1, 255, 511].map(|at| pattern(page, value, at)))
        .collect();
    memory
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")))
        .any(|word| plain.contains(&word))
}

/// Touches other pages until these are at the memory node only, as they were last written.
fn push_out(target: &LocalTarget, region: &Region, pages: &[u32], value: u64) {
    let since = Instant::now();
    loop {
        for other in (0..PAGES).filter(|other| !pages.contains(other)) {
            target.check(other, value);
        }
        // What is leaving still could be had without the node.
        let stats = region.stats();
        if stats.leaving == 0 && !pages.iter().any(|page| target.is_resident(*page)) {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "{stats:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_memory_node_sees_nothing_and_pages_come_back() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, config) in [
        ("open", config("open", dir.path(), BUDGET)),
        ("sealed", sealed("sealed", dir.path())),
    ] {
        let node = Node::new();
        let target = LocalTarget::new(PAGES);
        let region = attach(&target, node.remote.clone(), config);
        for page in 0..PAGES {
            target.fill(page, 1);
        }
        region.flush().expect("flushed");
        for page in 0..PAGES {
            target.check(page, 1);
        }
        let all = node.all();
        assert!(
            all.chunks_exact(PAGE_BYTES)
                .all(|page| page != [0; PAGE_BYTES])
        );
        assert_eq!(has_plain_pages(&all, 1), name == "open", "{name}");
        let stats = region.stats();
        assert!(stats.transport.bytes_read > 1 << 20, "{name}: {stats:?}");
        assert_eq!(
            (stats.checksum_mismatches, stats.seals_broken),
            (0, 0),
            "{name}"
        );
        // Home again, and out of it.
        region.detach().expect("detached");
        for page in 0..PAGES {
            target.check(page, 1);
        }
    }
}

#[test]
fn a_changed_replica_is_written_again_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let node = Node::new();
    let store = &node.remote.store;
    store.second.store(1, Ordering::SeqCst);
    let region = attach(&target, node.remote.clone(), sealed("repair", dir.path()));
    for page in 0..PAGES {
        target.fill(page, 1);
    }
    region.flush().expect("flushed");
    let before = node.all();
    let rotten = || store.rotten.lock().expect("no panic");
    rotten().extend((0..PAGES).step_by(5));
    let healed = (0..50).any(|_| {
        for page in 0..PAGES {
            target.check(page, 1);
        }
        rotten().is_empty()
    });
    assert!(healed, "{} are wrong still", rotten().len());
    let stats = region.stats();
    assert!(
        stats.seals_broken >= u64::from(PAGES.div_ceil(5)),
        "{stats:?}"
    );
    assert_eq!(stats.lost, 0);
    // The same version with the same content: a node that compares learns nothing from a repair.
    assert!(node.all() == before, "a repair sealed something else");
    region.end();
}

#[test]
fn an_old_page_brought_back_is_not_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let node = Node::new();
    let region = attach(&target, node.remote.clone(), sealed("replay", dir.path()));
    for page in 0..PAGES {
        target.fill(page, 1);
    }
    region.flush().expect("flushed");
    let old: Vec<Vec<u8>> = (0..PAGES).map(|page| node.page(page)).collect();
    for page in 0..PAGES {
        target.fill(page, 2);
    }
    region.flush().expect("flushed");
    // An old version of the page; the newest version of another page; a page of zeros; one bit.
    let victims = [7, 8, 9, 10];
    push_out(&target, &region, &victims, 2);
    for (nth, page) in victims.into_iter().enumerate() {
        let newest = node.page(page);
        assert_ne!(newest, old[page as usize]);
        let mut one_bit = newest;
        one_bit[4000] ^= 0x20;
        let forged = match nth {
            0 => old[page as usize].clone(),
            1 => node.page(page + 100),
            2 => vec![0; PAGE_BYTES],
            _ => one_bit,
        };
        node.put(page, &forged);
    }
    for (nth, page) in (1..).zip(victims) {
        let word: *const _ = target.word(page, 1);
        assert_eq!(sigbus::read(word.cast()), None, "page {page}");
        let stats = region.stats();
        // Neighbours may have been fetched ahead.
        assert!(stats.lost >= nth, "{stats:?}");
        assert!(stats.seals_broken >= 2 * nth, "{stats:?}");
    }
    // The others are as they were.
    for page in (0..PAGES).filter(|page| !victims.contains(page)) {
        target.check(page, 2);
    }
    assert_eq!(region.stats().lost, 4);
    region.end();
}

fn reopened(
    dir: &Path,
    remote: Arc<FakeRemote>,
    key: Option<PathBuf>,
) -> Result<Region, TakeOverError> {
    let saved = SavedRegion::open(dir, &"key".parse().expect("a name"))?;
    let target = saved.target().expect("ourselves");
    let config = RegionConfig {
        seal_key: key,
        ..config("key", dir, BUDGET)
    };
    Region::take_over(saved, target, remote, owner(2), config, Box::new(|_| {}))
}

#[test]
fn a_successor_needs_the_same_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let node = Node::new();
    let first = sealed("key", dir.path());
    let key = first.seal_key.clone();
    let region = attach(&target, node.remote.clone(), first);
    for page in 0..PAGES {
        target.fill(page, 3);
    }
    drop(region);
    let without = reopened(dir.path(), node.remote.clone(), None).expect_err("no key");
    assert!(
        matches!(
            without,
            TakeOverError::Attach(AttachError::Seal(SealError::KeyMissing))
        ),
        "{without}"
    );
    let elsewhere = tempfile::tempdir().expect("a directory");
    let other = Some(key_file(elsewhere.path()));
    let other = reopened(dir.path(), node.remote.clone(), other).expect_err("another key");
    assert!(
        matches!(
            other,
            TakeOverError::Attach(AttachError::Seal(SealError::OtherKey { .. }))
        ),
        "{other}"
    );
    let region = reopened(dir.path(), node.remote.clone(), key).expect("the same key");
    for page in 0..PAGES {
        target.check(page, 3);
        target.fill(page, 4);
    }
    for page in 0..PAGES {
        target.check(page, 4);
    }
    assert_eq!(region.stats().seals_broken, 0);
    region.end();
}

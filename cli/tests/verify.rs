//! `myco region verify`: corruption planted in the memory of real nodes is found, all of it and nothing else, and
//! healed, while the region's owner goes on.

mod control_process;
mod node_memory;
mod verify_report;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use control_process::{Cluster, Process, wait_until};
use mycoram::{FarMap, FarMemory};
use mycoram_fabric::units::PAGE_BYTES;
use node_memory::NodeMemory;
use serde_json::Value;
use verify_report::found;

const BYTES: usize = 4 << 20;
const PAGES: usize = BYTES / PAGE_BYTES;
const REGION: &str = "checked";

struct Place {
    cluster: Cluster,
    nodes: [Process; 2],
}

impl Place {
    fn new() -> Self {
        let cluster = Cluster::start();
        let nodes = ["n1", "n2"].map(|name| cluster.start_node(name));
        wait_until("both are up", || {
            cluster.must(&["cluster", "status"])["nodes_up"] == 2
        });
        Self { cluster, nodes }
    }

    /// A mapping of the region on both nodes, a quarter of which may be local.
    fn map(&self, more: &str) -> FarMap {
        let uri = format!(
            "{}?tls={}&region={REGION}&replicas=2&local=1MiB&extent=1MiB{more}",
            self.cluster.url(),
            self.cluster.tls().display()
        );
        let far = FarMemory::open(&uri).expect("opens");
        let mut memory = far.map(BYTES).expect("maps");
        for (page, bytes) in memory.chunks_exact_mut(PAGE_BYTES).enumerate() {
            bytes[..8].copy_from_slice(&stamp(page));
        }
        memory.flush().expect("written");
        memory
    }

    fn memory(&self) -> [NodeMemory; 2] {
        self.nodes
            .each_ref()
            .map(|node| NodeMemory::of(node.child.id()))
    }

    fn verify(&self, more: &[&str]) -> (i32, Value) {
        let words = [&["region", "verify", REGION][..], more].concat();
        self.cluster.myco(&words)
    }
}

fn stamp(page: usize) -> [u8; 8] {
    (0x5eed_0000_0000_0000 | page as u64).to_le_bytes()
}

/// Where a node keeps a page that is not sealed.
fn place_of(held: &[(usize, Vec<u8>)], page: usize) -> usize {
    let found = held.iter().find(|(_, bytes)| bytes[..8] == stamp(page));
    found.expect("the node has the page").0
}

fn flip(memory: &NodeMemory, place: usize) {
    let mut page = memory.page(place);
    page[77] ^= 0x10;
    memory.put(place, &page);
}

#[test]
fn what_was_planted_is_found_and_healed_and_nothing_else_is_said() {
    let place = Place::new();
    let created = [
        "region",
        "create",
        "idle",
        "--size",
        "1MiB",
        "--replicas",
        "2",
    ];
    place.cluster.must(&created);
    let (code, empty) = place.cluster.myco(&["region", "verify", "idle"]);
    assert_eq!((code, &empty["by"]), (0, &"each-other".into()), "{empty}");
    assert_eq!(empty["compared_replicas"], 0, "nothing of it is anywhere");
    assert_eq!(place.cluster.myco(&["region", "verify", "none"]).0, 8);

    let memory = place.map("");
    let (code, clean) = place.verify(&[]);
    assert_eq!(code, 0, "{clean}");
    assert_eq!(clean["schema"], "myco.region-verify");
    assert_eq!(clean["by"], "owner");
    assert_eq!(clean["pages"], PAGES);
    assert_eq!(clean["compared_replicas"], 2 * PAGES);
    assert_eq!(clean["wrong_replicas"], 0);

    let lent = place.memory();
    let before = lent.each_ref().map(NodeMemory::pages);
    let planted = [(0, 3), (0, 500), (0, PAGES - 1), (1, 77), (1, 501)];
    for (node, page) in planted {
        flip(&lent[node], place_of(&before[node], page));
    }
    let expected = |repaired: bool| -> BTreeSet<_> {
        planted
            .iter()
            .map(|(node, page)| (*page as u64, format!("n{}", node + 1), repaired))
            .collect()
    };
    let (code, report) = place.verify(&[]);
    assert_eq!(code, 10, "{report}");
    assert_eq!(found(&report), expected(false), "{report}");
    assert_eq!(report["repaired_replicas"], 0);
    assert_eq!(report["compared_replicas"], 2 * PAGES, "each counts once");

    let (code, report) = place.verify(&["--repair"]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(found(&report), expected(true), "{report}");
    assert_eq!(report["wrong_replicas"], planted.len());
    assert!(
        lent.each_ref().map(NodeMemory::pages) == before,
        "as it was"
    );
    let (code, report) = place.verify(&[]);
    assert_eq!(
        (code, &report["wrong_replicas"]),
        (0, &0.into()),
        "{report}"
    );

    // Both replicas of a page that is at the nodes only: said, and not repaired by either of them.
    let away = (0..PAGES).find(|page| !is_local(&memory, *page));
    let away = away.expect("three quarters are away");
    for (lent, before) in lent.iter().zip(&before) {
        flip(lent, place_of(before, away));
    }
    let (code, report) = place.verify(&["--repair"]);
    assert_eq!(code, 10, "{report}");
    let both = ["n1", "n2"].map(|node| (away as u64, node.to_owned(), false));
    assert_eq!(found(&report), both.into());
    drop(memory);
}

/// Whether the kernel has a page of the mapping.
fn is_local(memory: &FarMap, page: usize) -> bool {
    let mut there = 0_u8;
    let at = memory.as_ptr().wrapping_add(page * PAGE_BYTES);
    // SAFETY: one page of a mapping that lives; one byte is written, which is ours.
    let asked = unsafe { libc::mincore(at.cast(), PAGE_BYTES, &raw mut there) };
    assert_eq!(asked, 0);
    there & 1 == 1
}

#[test]
fn a_wrong_page_that_is_met_makes_its_node_suspect_at_the_control_plane() {
    let place = Place::new();
    let memory = place.map("");
    let lent = place.memory();
    let before = lent.each_ref().map(NodeMemory::pages);
    // Each page is wrong on one of the two, so that some are met whichever is nearer.
    for page in 0..PAGES {
        let node = page % 2;
        flip(&lent[node], place_of(&before[node], page));
    }
    wait_until("a node is suspect", || {
        for (page, bytes) in memory.chunks_exact(PAGE_BYTES).enumerate() {
            assert_eq!(bytes[..8], stamp(page));
            assert_eq!(bytes[77], 0, "page {page} was handed out as it is wrong");
        }
        let state = |name| place.cluster.state(name);
        ["n1", "n2"]
            .map(state)
            .iter()
            .flatten()
            .any(|state| state == "suspect")
    });
    // It is no more than a suspicion: both stay, and what was met is right again.
    wait_until("both count", || {
        let state = |name| place.cluster.state(name);
        ["n1", "n2"]
            .map(state)
            .iter()
            .flatten()
            .all(|state| state == "up")
    });
    let stats = memory.stats().expect("figures");
    assert_eq!(stats.lost_pages, 0);
    memory.unmap().expect("unmaps");
}

#[test]
fn sealed_replicas_are_compared_and_healed_too() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let dir = tempfile::tempdir().expect("a directory");
    let key = dir.path().join("seal.key");
    std::fs::write(&key, std::array::from_fn::<u8, 32, _>(|n| n as u8)).expect("written");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("set");
    let memory = place.map(&format!("&seal_key={}", key.display()));
    let (code, clean) = place.verify(&[]);
    assert_eq!((code, &clean["wrong_replicas"]), (0, &0.into()), "{clean}");
    assert_eq!(clean["compared_replicas"], 2 * PAGES);
    let lent = place.memory();
    let before = lent.each_ref().map(NodeMemory::pages);
    // Which pages these are, nobody can see here.
    for (place, _) in before[0].iter().step_by(100) {
        flip(&lent[0], *place);
    }
    let planted = PAGES.div_ceil(100);
    let (code, report) = place.verify(&[]);
    assert_eq!(
        (code, &report["wrong_replicas"]),
        (10, &planted.into()),
        "{report}"
    );
    assert!(found(&report).iter().all(|(_, node, _)| node == "n1"));
    let (code, report) = place.verify(&["--repair"]);
    assert_eq!(
        (code, &report["repaired_replicas"]),
        (0, &planted.into()),
        "{report}"
    );
    let (code, report) = place.verify(&[]);
    assert_eq!(
        (code, &report["wrong_replicas"]),
        (0, &0.into()),
        "{report}"
    );
    // What reads find wrong they heal; a check finds the rest, and nothing else. Some pages were written out anew
    // by the repair.
    let before = lent.each_ref().map(NodeMemory::pages);
    let planted = [0, 1].map(|node: usize| {
        let of_node = before[node]
            .iter()
            .filter(|(_, page)| page[0] & 1 == node as u8);
        of_node.step_by(2).collect::<Vec<_>>()
    });
    for (lent, planted) in lent.iter().zip(&planted) {
        planted.iter().for_each(|(place, _)| flip(lent, *place));
    }
    for (page, bytes) in memory.chunks_exact(PAGE_BYTES).enumerate() {
        assert_eq!(bytes[..8], stamp(page));
    }
    let left = [0, 1].map(|node: usize| {
        let is_wrong = |(place, page): &&&(usize, Vec<u8>)| lent[node].page(*place) != *page;
        planted[node].iter().filter(is_wrong).count()
    });
    let all = planted[0].len() + planted[1].len();
    assert!(left.iter().sum::<usize>() < all, "reads healed nothing");
    let (_, report) = place.verify(&["--repair"]);
    let found = found(&report);
    for (node, left) in ["n1", "n2"].into_iter().zip(left) {
        let of_node = found.iter().filter(|(_, name, _)| name == node).count();
        assert_eq!(of_node, left, "{node}: {report}");
    }
    assert_eq!(report["repaired_replicas"], report["wrong_replicas"]);
    let (_, report) = place.verify(&[]);
    assert_eq!(report["wrong_replicas"], 0, "{report}");
    assert_eq!(report["compared_replicas"], 2 * PAGES);
}

#[test]
fn a_busy_owner_gives_no_false_report_and_hides_none() {
    let place = Place::new();
    let memory = place.map("");
    let lent = place.memory();
    let held = lent[1].pages();
    let stop = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    // The first eighth stays as it is.
    let quiet = PAGES / 8;
    let base = memory.as_ptr() as usize;
    let word = |page: usize| {
        let at = base + page * PAGE_BYTES + 64;
        // SAFETY: inside of the mapping and aligned; all who use these words do so by atomics, and the mapping
        // outlives the threads.
        unsafe { &*(at as *const AtomicU64) }
    };
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (stop, rounds, word) = (&stop, &rounds, &word);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for page in (quiet + thread..PAGES).step_by(2) {
                        word(page).fetch_add(1, Ordering::Relaxed);
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for more in [&[][..], &["--repair"][..]] {
                let (code, report) = place.verify(more);
                assert_eq!(
                    (code, &report["wrong_replicas"]),
                    (0, &0.into()),
                    "{report}"
                );
            }
            flip(&lent[1], place_of(&held, 5));
            for (more, expected) in [(&[][..], 10), (&["--repair"][..], 0), (&[][..], 0)] {
                let (code, report) = place.verify(more);
                assert_eq!(code, expected, "{report}");
                if expected == 10 || more.contains(&"--repair") {
                    let only = (5, "n2".to_owned(), !more.is_empty());
                    assert_eq!(found(&report), [only].into());
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = checked {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(rounds.load(Ordering::Relaxed) > 0);
    // Each page was counted up once a round by one thread; none was set back.
    let counts: BTreeSet<u64> = (quiet..PAGES)
        .map(|page| word(page).load(Ordering::Relaxed))
        .collect();
    assert!(counts.len() <= 2, "{counts:?}");
}

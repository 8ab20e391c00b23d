//! Sealed replicas on a real RDMA device: what a memory node holds of them, what becomes of it when somebody there
//! changes it, and that `myco region verify` finds and heals it over verbs, while the region's owner goes on.

mod control_process;
mod node_memory;
#[path = "../../fabric/tests/rxe_place/mod.rs"]
mod rxe_place;

use std::os::unix::fs::PermissionsExt;

use control_process::{Cluster, Process, wait_until};
use mycoram::{FarMap, FarMemory};
use mycoram_fabric::units::PAGE_BYTES;
use node_memory::NodeMemory;
use serde_json::Value;

const BYTES: usize = 3 << 19;
const PAGES: usize = BYTES / PAGE_BYTES;
/// What a page begins with, before its number.
const TEXT: &[u8; 8] = b"in clear";

struct Place {
    cluster: Cluster,
    nodes: [Process; 2],
}

impl Place {
    /// `None`: there is no device, which was said.
    fn new() -> Option<Self> {
        let data = rxe_place::node_address_or_skip()?.to_string();
        let cluster = Cluster::start_emulated();
        let over = ["--transport", "verbs", "--data-listen", &data];
        let nodes = ["n1", "n2"].map(|name| cluster.start_node_with(name, &over));
        for node in &nodes {
            assert_eq!(node.ready["transport"], "verbs");
        }
        wait_until("both are up", || {
            cluster.must(&["cluster", "status"])["nodes_up"] == 2
        });
        Some(Self { cluster, nodes })
    }

    /// A mapping of a region on both nodes, two thirds of which may be local.
    fn map(&self, region: &str, more: &str) -> FarMap {
        let uri = format!(
            "{}?insecure=yes&region={region}&replicas=2&local=1MiB&extent=1MiB{more}",
            self.cluster.url()
        );
        let far = FarMemory::open(&uri).expect("opens");
        let mut memory = far.map(BYTES).expect("maps");
        for (page, bytes) in memory.chunks_exact_mut(PAGE_BYTES).enumerate() {
            bytes[..8].copy_from_slice(TEXT);
            bytes[8..16].copy_from_slice(&(page as u64).to_le_bytes());
        }
        memory.flush().expect("written");
        memory
    }

    fn lent(&self) -> [NodeMemory; 2] {
        self.nodes
            .each_ref()
            .map(|node| NodeMemory::of(node.child.id()))
    }

    /// The exit code, wrong replicas and repaired ones.
    fn verify(&self, region: &str, more: &[&str]) -> (i32, u64, u64) {
        let words = [&["region", "verify", region][..], more].concat();
        let (code, report) = self.cluster.myco(&words);
        assert_eq!(report["by"], "owner", "{report}");
        let compared = report["compared_replicas"].as_u64();
        assert_eq!(compared, Some(2 * PAGES as u64), "{report}");
        let count = |name: &str| report[name].as_u64().expect("a number");
        let named = |wrong: &Value| wrong["node"] == "n1";
        let wrong = report["wrong"].as_array().expect("a list");
        assert!(wrong.iter().all(named), "only n1 was touched: {report}");
        (code, count("wrong_replicas"), count("repaired_replicas"))
    }
}

fn is_in_clear(node: &NodeMemory) -> bool {
    node.pages().iter().any(|(_, page)| page.starts_with(TEXT))
}

fn check(memory: &FarMap) {
    for (page, bytes) in memory.chunks_exact(PAGE_BYTES).enumerate() {
        assert_eq!(&bytes[..8], TEXT, "page {page}");
        assert_eq!(bytes[8..16], (page as u64).to_le_bytes(), "page {page}");
    }
}

/// Changes every `step`th page that a node holds; gives how many these are.
fn harm(node: &NodeMemory, step: usize) -> u64 {
    let held = node.pages();
    let harmed = held.iter().step_by(step);
    for (place, page) in harmed.clone() {
        let mut page = page.clone();
        page[1000] ^= 0x10;
        node.put(*place, &page);
    }
    harmed.count() as u64
}

#[test]
fn replicas_are_compared_and_healed_over_rdma_sealed_or_not() {
    let Some(place) = Place::new() else {
        return;
    };
    let lent = place.lent();
    let dir = tempfile::tempdir().expect("a directory");
    let key = dir.path().join("seal.key");
    std::fs::write(&key, std::array::from_fn::<u8, 32, _>(|n| n as u8)).expect("written");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("set");

    // First, as in the other one's memory there are pages in clear.
    let memory = place.map("sealed", &format!("&seal_key={}", key.display()));
    for node in &lent {
        assert_eq!(node.pages().len(), PAGES);
        assert!(!is_in_clear(node));
    }
    let planted = harm(&lent[0], 30);
    assert_eq!(place.verify("sealed", &[]), (10, planted, 0));
    // Whatever a read finds there now, it is not believed.
    harm(&lent[0], 1);
    check(&memory);
    assert_eq!(memory.stats().expect("figures").lost_pages, 0);
    let (code, wrong, repaired) = place.verify("sealed", &["--repair"]);
    assert_eq!((code, wrong), (0, repaired));
    check(&memory);
    drop(memory);

    let memory = place.map("open", "");
    assert!(lent.iter().all(is_in_clear));
    let before = lent.each_ref().map(NodeMemory::pages);
    let planted = harm(&lent[0], 30);
    let repaired = (0, planted, planted);
    assert_eq!(place.verify("open", &["--repair"]), repaired);
    let now = lent.each_ref().map(NodeMemory::pages);
    assert!(now == before, "as it was");
    assert_eq!(place.verify("open", &[]), (0, 0, 0));
    drop(memory);
}

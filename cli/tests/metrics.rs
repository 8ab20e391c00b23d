//! The figures of every process: all that docs/metrics.md names are there, of their type, in the format that monitors
//! read, and move when something happens.

mod control_process;
mod exposition;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use control_process::{Cluster, HANG, Process, wait_until};
use exposition::{Page, fetch};
use mycoram::{FarMap, FarMemory};
use mycoram_fabric::session::{Dial, Identity, Session};
use mycoram_fabric::units::{Epoch, PAGE_BYTES, RegionId, TenantId};
use mycoram_fabric::wire::control::Token;

const BYTES: usize = 4 << 20;

/// A row of the table in docs/metrics.md.
struct Documented {
    process: &'static str,
    kind: &'static str,
    labels: Vec<&'static str>,
}

fn documented() -> BTreeMap<&'static str, Documented> {
    let text = include_str!("../../docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `mycoram_"));
    let row = |line: &'static str| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let labels = cells[4].split(", ").filter(|label| !label.is_empty());
        let documented = Documented {
            process: cells[2],
            kind: cells[3],
            labels: labels.collect(),
        };
        (cells[1].trim_matches('`'), documented)
    };
    rows.map(row).collect()
}

/// A page has what is documented of its process, and nothing else.
fn hold(page: &Page, process: &str) {
    for name in page.names() {
        assert!(
            documented().contains_key(name.as_str())
                || documented().contains_key(format!("{name}_total").as_str()),
            "{name} is not in docs/metrics.md"
        );
    }
    for (name, documented) in documented() {
        if documented.process != process {
            continue;
        }
        let family = page.family(name);
        let family = family.unwrap_or_else(|| panic!("{name} is not on the page of a {process}"));
        assert_eq!(family.kind, documented.kind, "{name}");
        for labels in family.label_names() {
            assert_eq!(labels, documented.labels, "{name}");
        }
    }
}

/// What has moved between the first page and a later one.
struct Moves {
    process: &'static str,
    first: Page,
    still: Vec<&'static str>,
}

impl Moves {
    fn of(process: &'static str, address: SocketAddr) -> Self {
        let all = documented().into_iter();
        let ours = all.filter(|(_, documented)| documented.process == process);
        Self {
            process,
            first: fetch(address),
            still: ours.map(|(name, _)| name).collect(),
        }
    }

    /// Looks again; what has not moved by now is in `still`. Gives what was seen.
    fn look(&mut self, address: SocketAddr) -> Page {
        let page = fetch(address);
        hold(&page, self.process);
        let samples = |page: &Page, name: &str| page.family(name).map(|f| f.samples.clone());
        let first = &self.first;
        self.still
            .retain(|name| samples(first, name) == samples(&page, name));
        page
    }

    /// Looks until all have moved but these, which nothing here moves: other tests do.
    fn all_but(&mut self, address: SocketAddr, never: &[&str]) {
        let until = Instant::now() + HANG;
        loop {
            self.look(address);
            let rest = self.still.iter().filter(|name| !never.contains(name));
            let rest: Vec<_> = rest.collect();
            if rest.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "they do not move: {rest:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

struct Place {
    cluster: Cluster,
    nodes: Vec<Process>,
}

impl Place {
    fn new() -> Self {
        let cluster = Cluster::start();
        let mut place = Self {
            cluster,
            nodes: Vec::new(),
        };
        place.start("n1");
        place.start("n2");
        place
    }

    fn start(&mut self, name: &str) {
        self.nodes.push(self.cluster.start_node(name));
        let up = self.nodes.len();
        wait_until("it is up", || {
            self.cluster.must(&["cluster", "status"])["nodes_up"] == up
        });
    }

    fn kill_last(&mut self) {
        self.nodes.pop().expect("one of them").kill();
    }

    fn control(&self) -> SocketAddr {
        self.cluster.control().address("metrics")
    }

    fn node(&self) -> SocketAddr {
        self.nodes[0].address("metrics")
    }

    /// Without a grant it lets nobody in.
    fn is_refused_by_the_node(&self) {
        let address = self.nodes[0].address("control");
        let channel = self.cluster.dial().dial(address).expect("alive");
        let identity = Identity {
            tenant: TenantId::new(1),
            region: RegionId::new(1),
            epoch: Epoch::new(1),
            token: Token([1; 16]),
            owner: 1,
        };
        assert!(Session::open(channel, identity, false).is_err());
    }

    fn far(&self) -> FarMemory {
        let uri = format!(
            "{}?tls={}&region=r&replicas=2&local=1MiB&extent=1MiB&metrics=127.0.0.1:0",
            self.cluster.url(),
            self.cluster.tls().display()
        );
        FarMemory::open(&uri).expect("opens")
    }
}

/// Every page gets something new, and every page is read back.
fn use_all(memory: &mut FarMap, what: u8) {
    for (page, bytes) in memory.chunks_exact_mut(PAGE_BYTES).enumerate() {
        bytes[0] = what;
        bytes[1] = page as u8;
    }
    for (page, bytes) in memory.chunks_exact(PAGE_BYTES).enumerate() {
        assert_eq!(bytes[..2], [what, page as u8]);
    }
}

/// Has all pages of `memory` written and read, over and over, while `what` is done.
fn in_use(memory: &mut FarMap, what: impl FnOnce()) {
    let ending = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stamp = 0_u8;
            while !ending.load(Ordering::Acquire) {
                stamp = stamp.wrapping_add(1);
                use_all(memory, stamp);
            }
        });
        // Also where `what` panics, or nobody would say so.
        let _end = EndAtDrop(&ending);
        what();
    });
}

struct EndAtDrop<'a>(&'a AtomicBool);

impl Drop for EndAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn what_is_documented_is_there_and_moves() {
    let mut place = Place::new();
    let mut control = Moves::of("control", place.control());
    let mut node = Moves::of("node", place.node());
    let far = place.far();
    let address = far.metrics().expect("served");
    let regions = || fetch(address).value("mycoram_agent_regions");
    assert_eq!(regions(), 0.0);
    let mut memory = far.map(BYTES).expect("maps");
    assert_eq!(regions(), 1.0);
    let mut agent = Moves::of("agent", address);
    // The mapping goes on, and so do its figures.
    drop(far);
    place.cluster.myco(&["region", "show", "no-such-region"]);
    place.is_refused_by_the_node();
    in_use(&mut memory, || {
        wait_until("pages have come and gone", || {
            fetch(address).value("mycoram_agent_moved_bytes_total") > 2.0 * BYTES as f64
        });
        node.all_but(place.node(), &NODE_STILL);
        control.look(place.control());
        // One of two goes, and nobody has room for its extents until a third one comes.
        place.kill_last();
        wait_until("extents are endangered, and wait", || {
            agent.look(address);
            let page = control.look(place.control());
            let waits = page.value("mycoram_rebuild_waiting_extents");
            waits > 0.0 && page.value("mycoram_extents_endangered") > 0.0
        });
        place.start("n3");
        wait_until("all is whole again", || {
            agent.look(address);
            let page = control.look(place.control());
            page.value("mycoram_extents_endangered") == 0.0
        });
        agent.all_but(address, &AGENT_STILL);
    });
    // All that had its pages go, and come back with nothing.
    place.nodes.drain(..).for_each(Process::kill);
    place.start("n1");
    place.start("n3");
    control.all_but(place.control(), &CONTROL_STILL);
}

/// 1 all the time; over in a moment; there is room; no read need be under way when a node goes; the budget is too small.
/// The page itself is tested with other values of these.
const AGENT_STILL: [&str; 5] = [
    "mycoram_agent_regions",
    "mycoram_agent_rebuild_left",
    "mycoram_agent_writes_unplaced",
    "mycoram_agent_reads_elsewhere_total",
    "mycoram_agent_huge_pages_total",
];
/// Given; over in a moment; the owner stays; nobody ends the node. The page itself is tested with other values.
const NODE_STILL: [&str; 4] = [
    "mycoram_node_pool_capacity_bytes",
    "mycoram_node_pool_unzeroed_bytes",
    "mycoram_node_orphans",
    "mycoram_node_draining",
];
/// The store takes what it is given, and there is one process, which leads.
const CONTROL_STILL: [&str; 4] = [
    "mycoram_control_store_failures_total",
    "mycoram_control_leader",
    "mycoram_control_terms_total",
    "mycoram_control_deposed_total",
];

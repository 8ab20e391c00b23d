//! Where extents live, while a program uses them: the copy in its zone is read, a node is emptied by
//! `myco node drain`, a node that comes is given its share. Processes of their own, killed in between.

mod control_process;
mod node_process;

use control_process::{Cluster, Process, wait_until};
use mycoram::{FarMap, FarMemory};
use mycoram_agent::daemon::RemoteSource;
use mycoram_control::client::ControlRegions;
use mycoram_fabric::pages::{Direction, LaneConfig, PageLane, RemoteRegion};
use mycoram_fabric::units::{ByteCount, PAGE_BYTES};
use node_process::{ask, carry_out};

const MIB: usize = 1 << 20;

fn all_up(cluster: &Cluster, count: usize) {
    wait_until("they are up", || {
        cluster.must(&["cluster", "status"])["nodes_up"] == count
    });
}

/// Which node a page came from.
fn read_from(region: &dyn RemoteRegion, lane: &mut dyn PageLane, page: u32) -> String {
    let done = carry_out(lane, Direction::Read, page);
    done.result.expect("both live");
    region.node_name(done.node.expect("one node has the page"))
}

#[test]
fn of_two_copies_the_one_in_the_owners_zone_is_read() {
    let cluster = Cluster::start();
    let _a = cluster.start_node_in("n1", "eu/a/r1/h1");
    let _b = cluster.start_node_in("n2", "eu/b/r2/h2");
    all_up(&cluster, 2);
    // Whichever of the two answers sooner, half of the owners are far from it.
    for owner in 0..6 {
        let (zone, near) = [("a", "n1"), ("b", "n2")][owner % 2];
        let url = format!(
            "{}?tls={}&replicas=2&region=of-{owner}&domain=eu/{zone}",
            cluster.url(),
            cluster.tls().display()
        );
        let regions = ControlRegions::open(&url.parse().expect("a URL")).expect("nodes");
        let (region, _) = regions
            .create(ByteCount::mib(2), ByteCount::mib(1))
            .expect("room");

        let mut lane = region.open_lane(&LaneConfig::default()).expect("a lane");
        for page in 0..64 {
            lane.frames().copy_in(0, &[7; PAGE_BYTES]).expect("a frame");
            ask(&mut *lane, Direction::Write, page).expect("written");
        }
        let mut elsewhere = 0;
        for _ in 0..4 {
            for page in 0..64 {
                elsewhere += u32::from(read_from(&*region, &mut *lane, page) != near);
            }
        }
        // A busy machine holds one up now and then; then the other one is asked, too.
        assert!(
            elsewhere <= 64,
            "{elsewhere} of 256 came from the other zone"
        );
        drop(lane);
        region.release();
    }
}

fn value(place: usize) -> u8 {
    (place / PAGE_BYTES + place) as u8
}

fn is_whole(memory: &[u8]) -> bool {
    memory
        .iter()
        .enumerate()
        .all(|(place, byte)| *byte == value(place))
}

fn fill(memory: &mut FarMap) {
    for (place, byte) in memory.iter_mut().enumerate() {
        *byte = value(place);
    }
    memory.flush().expect("on all replicas");
}

fn placed_on(cluster: &Cluster, name: &str) -> u64 {
    let list = cluster.must(&["node", "list"]);
    let nodes = list["nodes"].as_array().expect("a list");
    let node = nodes.iter().find(|node| node["name"] == name);
    node.expect("it is known")["placed_bytes"]
        .as_u64()
        .expect("a number")
}

#[test]
fn a_node_is_emptied_under_a_program_and_a_new_one_is_given_its_share() {
    let mut cluster = Cluster::start();
    let mut nodes: Vec<Process> = ["n1", "n2", "n3"]
        .map(|name| cluster.start_node(name))
        .into();
    all_up(&cluster, 3);
    let uri = format!(
        "{}?tls={}&replicas=2&region=vm&local=1MiB&extent=256KiB&ahead=1MiB",
        cluster.url(),
        cluster.tls().display()
    );
    let far = FarMemory::open(&uri).expect("opens");
    let mut memory = far.map(16 * MIB).expect("maps");
    fill(&mut memory);
    let shown = |cluster: &Cluster, field: &str| {
        let shown = cluster.must(&["region", "show", "vm"]);
        shown[field].as_u64().expect("a number")
    };
    assert!(placed_on(&cluster, "n1") > 0);
    // The order to empty it outlives the control plane that took it.
    let drained = cluster.must(&["node", "drain", "n1"]);
    assert_ne!(drained["state"], "up", "{drained}");
    cluster.kill_control();
    cluster.start_control();
    wait_until("it is empty", || {
        assert!(is_whole(&memory), "a page is wrong while it moves");
        cluster.state("n1").as_deref() == Some("left")
    });
    assert_eq!(placed_on(&cluster, "n1"), 0);
    assert_eq!(shown(&cluster, "lost_extents"), 0);
    let extents = shown(&cluster, "placed_extents");
    assert_eq!(shown(&cluster, "live_replicas"), 2 * extents);
    // Nobody misses it.
    nodes.remove(0).kill();
    assert!(
        is_whole(&memory),
        "a page is wrong without the node that left"
    );
    // Of the two that are left none can be missed: it is refused, and says why.
    let (code, _) = cluster.myco(&["node", "drain", "n2"]);
    assert_eq!(code, 5, "there is no room for two copies on one node");
    assert_eq!(cluster.state("n2").as_deref(), Some("up"));
    // One that comes gets its share of what is there, while all of it is used.
    nodes.push(cluster.start_node("n4"));
    wait_until("it has most of its share", || {
        assert!(is_whole(&memory), "a page is wrong while it moves");
        placed_on(&cluster, "n4") * 3
            >= shown(&cluster, "placed_extents") * 2 * (256 << 10) * 8 / 10
    });
    fill(&mut memory);
    // All that is on it is right: without it, and with nothing but it and one other, all is there.
    nodes.remove(0).kill();
    assert!(
        is_whole(&memory),
        "a page is wrong without one of those that were there"
    );
    assert_eq!(memory.stats().expect("figures").lost_pages, 0);
    memory.unmap().expect("unmaps");
}

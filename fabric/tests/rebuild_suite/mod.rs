//! Replicas that are rebuilt while their owner goes on writing: nodes that are killed processes, drains,
//! copies that fail, owners that are succeeded in the middle.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::cluster::{Cluster, Fabric, NodeProcess, Pages, TestNode, wait_until};
use crate::healer::Healer;
use mycoram_fabric::authority::RegionAuthority;
use mycoram_fabric::pages::{LaneConfig, RemoteRegion};
use mycoram_fabric::placement::RegionEntry;
use mycoram_fabric::rebuild::{Pace, RebuildConfig, Rebuilder};
use mycoram_fabric::remote::{Remote, RemoteOptions, Transports};
use mycoram_fabric::transfer::TransferConfig;
use mycoram_fabric::units::{ByteCount, Epoch, RegionId, TenantId};

const EXTENT: u64 = 512 << 10;
const EXTENTS: u32 = 8;
const BYTES: u64 = EXTENT * EXTENTS as u64;
/// What a node lends.
pub(crate) const NODE_BYTES: u64 = 2 * BYTES;
/// A region with two copies of each extent on the first two nodes, and its rebuilder.
struct Owner {
    healer: Arc<Healer>,
    transports: Transports,
    remote: Arc<Remote>,
    rebuilder: Rebuilder,
}

fn rebuild_config(pace: Pace) -> RebuildConfig {
    RebuildConfig {
        orders_every_ms: 20,
        pace,
        transfer: TransferConfig {
            endpoint_deadline_ms: 1000,
            ..TransferConfig::default()
        },
        ..RebuildConfig::default()
    }
}

impl Owner {
    fn new(fabric: Fabric, nodes: &[SocketAddr], pace: Pace) -> Self {
        let entries = (0..).zip(nodes).map(|(nth, at)| fabric.entry(nth, *at));
        let entries: Vec<_> = entries.collect();
        let transports = Transports::for_nodes(&entries).expect("a transport");
        let healer = Healer::new(entries, EXTENTS);
        let options = RemoteOptions {
            rebuild: None,
            ..RemoteOptions::system().expect("random numbers")
        };
        let region = RegionEntry {
            id: RegionId::new(options.owner),
            tenant: TenantId::new(1),
            epoch: Epoch::new(1),
            bytes: ByteCount::new(BYTES),
            extent_bytes: ByteCount::new(EXTENT),
            replicas: 2,
        };
        let authority = Arc::clone(&healer) as Arc<dyn RegionAuthority>;
        let remote = Remote::create(authority, &transports, &region, &options).expect("room");
        let rebuilder = Rebuilder::start(&remote, rebuild_config(pace)).expect("a thread");
        Self {
            healer,
            transports,
            remote,
            rebuilder,
        }
    }

    fn pages(&self) -> Pages {
        Pages::open(&*self.remote, &LaneConfig::default())
    }
}

fn of(cluster: &Cluster) -> Vec<SocketAddr> {
    cluster.nodes.iter().map(TestNode::control).collect()
}

/// Writes pages, one run after the other, until it is told to stop; then what it wrote is checked.
struct Writer {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Pages>,
}

impl Writer {
    fn start(mut pages: Pages, count: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            let mut at = 1_u32;
            while !stopped.load(Ordering::Relaxed) {
                at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let run = 1 + (at >> 28) as u16 % 8;
                let page = (at >> 4) % (count - 8);
                pages
                    .write(page, run)
                    .expect("two copies, and one at least lives");
                pages.read_back(page, run).expect("just written");
                counted.fetch_add(1, Ordering::Relaxed);
            }
            pages
        });
        Self {
            stop,
            rounds,
            thread,
        }
    }

    /// Waits until `more` more runs were written.
    fn go_on_for(&self, more: u64) {
        let goal = self.rounds.load(Ordering::Relaxed) + more;
        wait_until("the writer goes on", || {
            self.thread.is_finished() || self.rounds.load(Ordering::Relaxed) >= goal
        });
    }

    fn stop(self) -> Pages {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no write failed")
    }
}

fn fill(pages: &mut Pages, count: u32) {
    for page in (0..count).step_by(16) {
        pages.write(page, 16).expect("two nodes live");
    }
}

fn check(owner: &Owner, written: &Pages, count: u32) {
    let mut pages = owner.pages();
    pages.adopt(written);
    for page in (0..count).step_by(16) {
        pages.read_back(page, 16).expect("a replica lives");
    }
}

pub(crate) fn a_killed_nodes_extents_are_made_up_for_and_then_the_other_one_may_die(
    fabric: Fabric,
) {
    let mut nodes: Vec<_> = (0..3).map(|_| NodeProcess::start()).collect();
    let controls: Vec<_> = nodes.iter().map(|node| node.control).collect();
    let owner = Owner::new(fabric, &controls, Pace::default());
    let count = owner.remote.pages().get();
    let mut pages = owner.pages();
    fill(&mut pages, count);
    let writer = Writer::start(pages, count);
    writer.go_on_for(50);
    nodes[0].kill();
    wait_until("the third node has everything", || {
        owner.healer.all_live_on(2)
    });
    writer.go_on_for(50);
    nodes[1].kill();
    writer.go_on_for(50);
    let written = writer.stop();
    check(&owner, &written, count);
    wait_until("the thread says so", || {
        owner.rebuilder.progress().copied == u64::from(EXTENTS)
    });
}

pub(crate) fn a_copy_whose_target_dies_begins_again_elsewhere(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[NODE_BYTES; 4]);
    // Slow enough to be caught in the middle.
    let owner = Owner::new(fabric, &of(&cluster), Pace::Rate(ByteCount::mib(4)));
    let count = owner.remote.pages().get();
    let mut pages = owner.pages();
    fill(&mut pages, count);
    let writer = Writer::start(pages, count);
    cluster.nodes[0].kill();
    wait_until("copying has begun", || owner.rebuilder.progress().bytes > 0);
    cluster.nodes[2].kill();
    owner.rebuilder.set_pace(Pace::Unlimited);
    wait_until("the fourth node has everything", || {
        owner.healer.all_live_on(3)
    });
    cluster.nodes[1].kill();
    writer.go_on_for(20);
    let written = writer.stop();
    check(&owner, &written, count);
    assert!(owner.rebuilder.progress().failures > 0);
}

pub(crate) fn connections_that_break_and_an_authority_that_is_away_only_make_it_later(
    fabric: Fabric,
) {
    let mut cluster = Cluster::start(fabric, &[NODE_BYTES; 3]);
    let owner = Owner::new(fabric, &of(&cluster), Pace::Rate(ByteCount::mib(8)));
    let count = owner.remote.pages().get();
    let mut pages = owner.pages();
    fill(&mut pages, count);
    let writer = Writer::start(pages, count);
    cluster.nodes[0].kill();
    wait_until("copying has begun", || owner.rebuilder.progress().bytes > 0);
    owner.healer.be_away(true);
    for _ in 0..5 {
        for node in &cluster.nodes[1..] {
            node.break_data_connections();
        }
        writer.go_on_for(5);
    }
    let before = owner.healer.copied();
    writer.go_on_for(100);
    assert_eq!(owner.healer.copied(), before, "nobody to tell");
    owner.healer.be_away(false);
    owner.rebuilder.set_pace(Pace::Unlimited);
    wait_until("the third node has everything", || {
        owner.healer.all_live_on(2)
    });
    cluster.nodes[1].kill();
    writer.go_on_for(20);
    let written = writer.stop();
    check(&owner, &written, count);
}

pub(crate) fn a_drained_node_is_left_with_nothing_and_nothing_is_lost(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[NODE_BYTES; 3]);
    let owner = Owner::new(fabric, &of(&cluster), Pace::Unlimited);
    let count = owner.remote.pages().get();
    let mut pages = owner.pages();
    fill(&mut pages, count);
    let writer = Writer::start(pages, count);
    owner.healer.drain(0, 2);
    wait_until("everything was moved", || {
        owner.healer.dropped() == u64::from(EXTENTS)
    });
    assert_eq!(cluster.nodes[0].status().extents, 0);
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    writer.go_on_for(20);
    let written = writer.stop();
    check(&owner, &written, count);
}

pub(crate) fn a_successor_copies_what_its_predecessor_began(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[NODE_BYTES; 3]);
    let mut owner = Owner::new(fabric, &of(&cluster), Pace::Rate(ByteCount::mib(1)));
    let count = owner.remote.pages().get();
    let mut pages = owner.pages();
    fill(&mut pages, count);
    cluster.nodes[0].kill();
    wait_until("copying has begun", || {
        // Lanes hear of it when they are polled.
        pages.read_back(0, 1).expect("a replica lives");
        owner.rebuilder.progress().bytes > 0
    });
    // The owner ends as if it were killed: what it was copying is where it is.
    let directory = owner.remote.directory();
    drop(owner.rebuilder);
    let options = RemoteOptions {
        rebuild: None,
        ..RemoteOptions::system().expect("random numbers")
    };
    let authority = Arc::clone(&owner.healer) as Arc<dyn RegionAuthority>;
    let successor = Remote::reopen(&directory, authority, &owner.transports, &options);
    owner.remote = successor.expect("taken over");
    owner.rebuilder =
        Rebuilder::start(&owner.remote, rebuild_config(Pace::Unlimited)).expect("a thread");
    let mut after = owner.pages();
    after.adopt(&pages);
    let writer = Writer::start(after, count);
    wait_until("the third node has everything", || {
        owner.healer.all_live_on(2)
    });
    cluster.nodes[1].kill();
    writer.go_on_for(20);
    let written = writer.stop();
    check(&owner, &written, count);
}

pub(crate) fn a_rebuild_keeps_to_its_share(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[NODE_BYTES; 3]);
    let rate = ByteCount::mib(8);
    let owner = Owner::new(fabric, &of(&cluster), Pace::Rate(rate));
    let count = owner.remote.pages().get();
    let mut pages = owner.pages();
    fill(&mut pages, count);
    let begun = std::time::Instant::now();
    cluster.nodes[0].kill();
    wait_until("the third node has everything", || {
        pages.read_back(0, 1).expect("a replica lives");
        owner.healer.all_live_on(2)
    });
    // A lower bound of the time: no machine is too slow for it.
    let least = Duration::from_secs_f64((BYTES - (1 << 20)) as f64 / rate.get() as f64);
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
}

pub(crate) fn a_region_rebuilds_by_itself_where_its_authority_gives_orders(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[NODE_BYTES; 3]);
    let Owner {
        healer,
        transports,
        remote: former,
        rebuilder,
    } = Owner::new(fabric, &of(&cluster), Pace::default());
    drop(rebuilder);
    let count = former.pages().get();
    let mut pages = Pages::open(&*former, &LaneConfig::default());
    fill(&mut pages, count);
    let directory = former.directory();
    let authority = Arc::clone(&healer) as Arc<dyn RegionAuthority>;
    let options = RemoteOptions::system().expect("random numbers");
    let successor = Remote::reopen(&directory, authority, &transports, &options);
    let remote = successor.expect("taken over");
    let writer = {
        let mut after = Pages::open(&*remote, &LaneConfig::default());
        after.adopt(&pages);
        Writer::start(after, count)
    };
    cluster.nodes[1].kill();
    wait_until("the third node has everything", || healer.all_live_on(2));
    wait_until("the thread says so", || {
        let progress = remote.rebuilder().map(Rebuilder::progress);
        progress.expect("a thread").copied == u64::from(EXTENTS)
    });
    cluster.nodes[0].kill();
    writer.go_on_for(20);
    let pages = writer.stop();
    // The region ends with its thread, and the thread with the region.
    let left = Arc::downgrade(&remote);
    drop((pages, remote));
    wait_until("the region is gone", || left.strong_count() == 0);
}

/// The tests of this file over one fabric.
#[macro_export]
macro_rules! rebuild_suite {
    ($fabric:expr) => {
        #[test]
        #[ignore = "not a test: the process of a memory node that other tests kill"]
        fn node_process() {
            cluster::serve_as_node($fabric, rebuild_suite::NODE_BYTES);
        }

        $crate::rebuild_suite!(@each $fabric;
            a_killed_nodes_extents_are_made_up_for_and_then_the_other_one_may_die
            a_copy_whose_target_dies_begins_again_elsewhere
            connections_that_break_and_an_authority_that_is_away_only_make_it_later
            a_drained_node_is_left_with_nothing_and_nothing_is_lost
            a_successor_copies_what_its_predecessor_began
            a_rebuild_keeps_to_its_share
            a_region_rebuilds_by_itself_where_its_authority_gives_orders
        );
    };
    (@each $fabric:expr; $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                rebuild_suite::$check($fabric);
            }
        )*
    };
}

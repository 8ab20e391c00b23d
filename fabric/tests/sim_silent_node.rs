//! Reads while a node says nothing, in simulated time: in the time before its queue pair counts as broken.

mod sim_cluster;

use std::sync::Arc;
use std::time::Duration;

use mycoram_fabric::authority::StaticAuthority;
use mycoram_fabric::pages::{
    Direction, FrameIndex, LaneConfig, PageLane, PageRequest, RemoteRegion, Which,
};
use mycoram_fabric::placement::RoundRobin;
use mycoram_fabric::remote::{Remote, Transports};
use mycoram_fabric::transport::sim::{SimConfig, SimNetwork};
use mycoram_fabric::units::PageIndex;
use sim_cluster::region::{entries, options, region};
use sim_cluster::{Machines, fate, machines};

const EXTENT_PAGES: u32 = 4;
/// Reads at once: more than may be asked for twice in a row.
const STUCK: u32 = 32;
const CUT: Duration = Duration::from_secs(10);
/// Before this has passed, a silent peer's queue pair does not count as broken.
const BEFORE_IT_BREAKS: Duration = Duration::from_millis(250);
/// Virtual time after which a read must have been answered.
const PATIENCE: Duration = Duration::from_secs(60);

/// A region with two replicas, and a lane to read page after page.
struct Reader {
    network: SimNetwork,
    machines: Machines,
    remote: Arc<Remote>,
    lane: Box<dyn PageLane>,
}

impl Reader {
    fn open() -> Self {
        let network = SimNetwork::new(SimConfig::seeded(1));
        let machines = machines(&network);
        let transports = Transports::new().with(Arc::new(network.transport()));
        let authority = StaticAuthority::new(Arc::new(RoundRobin(entries())));
        let region = region(4 * EXTENT_PAGES, EXTENT_PAGES, 2);
        let options = options(&network, &machines);
        let remote = Remote::create(Arc::new(authority), &transports, &region, &options);
        let remote = remote.expect("room");
        let config = LaneConfig {
            depth: STUCK,
            frames: STUCK,
            ..LaneConfig::default()
        };
        let lane = remote.open_lane(&config).expect("a lane");
        let mut reader = Self {
            network,
            machines,
            remote,
            lane,
        };
        // Until it is known how long reads take.
        for _ in 0..400 {
            reader.read(1, PATIENCE);
        }
        reader
    }

    /// Reads so many pages of the first extent at once, within a time; who gave the first that came.
    fn read(&mut self, count: u32, within: Duration) -> usize {
        for nth in 0..count {
            let request = PageRequest {
                tag: nth.into(),
                direction: Direction::Read,
                page: PageIndex::new(nth % EXTENT_PAGES),
                run: 1,
                frame: FrameIndex(nth),
                which: Which::Live,
            };
            self.lane.queue(request).expect("room");
        }
        self.lane.ring();
        let network = &self.network;
        let until = network.now() + within;
        let (mut done, mut left) = (Vec::with_capacity(count as usize), count);
        while left > 0 {
            assert!(network.now() < until, "{left} reads are not answered");
            network.advance(Duration::from_micros(50));
            done.clear();
            left -= self.lane.poll(&mut done) as u32;
            assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
        }
        usize::from(done[0].node.expect("from one node"))
    }

    /// Cuts whoever is nearest now off, for long; who that is.
    fn cut_the_nearest(&mut self) -> usize {
        let nearest = self.read(1, PATIENCE);
        fate::cut(&self.network, &self.machines, nearest, CUT);
        nearest
    }
}

/// More reads wait for a node that says nothing than may be asked for twice in a row. Each is, all the same,
/// when it has waited for long enough, and none waits until its queue pair counts as broken.
#[test]
fn reads_that_a_silent_node_holds_up_are_asked_for_elsewhere_however_many_they_are() {
    let mut reader = Reader::open();
    let nearest = reader.cut_the_nearest();
    let before = reader.remote.stats();
    let other = reader.read(STUCK, BEFORE_IT_BREAKS);
    let after = reader.remote.stats();
    assert_ne!(nearest, other);
    assert_eq!(after.hedges_won - before.hedges_won, u64::from(STUCK));
    assert_eq!(after.nodes_lost, 0);
}

/// A node that owes an answer is not asked for more while others can be: however often it might be tried
/// again, in the time until its queue pair breaks, it costs the one read that it had.
#[test]
fn a_silent_node_is_asked_for_one_page_and_no_more() {
    let mut reader = Reader::open();
    let nearest = reader.cut_the_nearest();
    let before = reader.remote.stats();
    let until = reader.network.now() + BEFORE_IT_BREAKS;
    let mut reads = 0;
    while reader.network.now() < until {
        let other = reader.read(1, Duration::from_millis(20));
        assert_ne!(nearest, other);
        reads += 1;
    }
    let asked_twice = reader.remote.stats().hedges_won - before.hedges_won;
    assert!(reads > 100, "{reads}");
    assert_eq!(asked_twice, 1, "of {reads}");
}

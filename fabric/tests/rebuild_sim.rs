//! Rebuilds in simulated time, under everything that can happen to them.
//!
//! Each seed is a story: an owner writes and reads pages with two replicas of each extent, while nodes are cut
//! off, die as processes or with their machine and come back empty, the control plane is away, and owners
//! are succeeded; and all the time replicas are made up for. A node dies only when every extent has a
//! live replica elsewhere. Whatever happens, no page is lost and each is as it was last written; and in the
//! end every extent has its two replicas again. A failure prints its seed:
//! `SIM_SEED=n cargo test -p mycoram-fabric --test rebuild_sim` tells that story again.

mod healer;
mod sim_cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use healer::Healer;
use mycoram_fabric::authority::RegionAuthority;
use mycoram_fabric::pages::{
    Direction, FrameIndex, LaneConfig, PageDone, PageLane, PageRequest, RemoteRegion, Which,
};
use mycoram_fabric::rebuild::{Pace, Rebuild, RebuildConfig};
use mycoram_fabric::remote::{Remote, RemoteOptions, ReplicaState, Transports};
use mycoram_fabric::transfer::TransferConfig;
use mycoram_fabric::transport::sim::{SimConfig, SimNetwork};
use mycoram_fabric::units::{ByteCount, ExtentIndex, PAGE_BYTES, PageIndex};
use sim_cluster::region::{contents, entries, options, region};
use sim_cluster::{Dice, Machine, Machines, NODES, SimClock, fate, index_of, machines};

const EXTENT_PAGES: u32 = 8;
const EXTENTS: u32 = 6;
const PAGES: u32 = EXTENT_PAGES * EXTENTS;
const FRAMES: u32 = 16;
const STEPS: u32 = 700;
const CUT: Duration = Duration::from_millis(700);
/// Virtual time after which everything must have come to rest.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Clone, Debug, Default)]
struct PageModel {
    version: u64,
    busy: bool,
    /// A write was never answered: replicas may differ until the next one.
    unsettled: bool,
}

struct Story {
    dice: Dice,
    network: SimNetwork,
    machines: Machines,
    transports: Transports,
    options: RemoteOptions,
    healer: Arc<Healer>,
    remote: Arc<Remote>,
    lane: Box<dyn PageLane>,
    rebuild: Rebuild,
    pages: Vec<PageModel>,
    outstanding: BTreeMap<u64, (PageRequest, u64)>,
    free_frames: Vec<u32>,
    next_tag: u64,
    /// Nodes that died, and that the control plane has not noticed.
    unnoticed: BTreeSet<usize>,
    deaths: u64,
}

fn lane_config() -> LaneConfig {
    LaneConfig {
        frames: FRAMES,
        depth: 8,
        node_deadline_ms: 2000,
        ..LaneConfig::default()
    }
}

fn rebuild(remote: &Arc<Remote>, network: &SimNetwork, pace: Pace) -> Rebuild {
    let config = RebuildConfig {
        runs: 4,
        pace,
        orders_every_ms: 20,
        transfer: TransferConfig {
            depth: 2,
            endpoint_deadline_ms: 2000,
            response_timeout_ms: 300,
            clock: Arc::new(SimClock(network.clone())),
            threads: false,
            ..TransferConfig::default()
        },
        ..RebuildConfig::default()
    };
    Rebuild::new(Arc::downgrade(remote), config).expect("memory")
}

impl Story {
    fn begin(seed: u64) -> Self {
        let network = SimNetwork::new(SimConfig {
            loss_per_million: 2000,
            ..SimConfig::seeded(seed)
        });
        let machines = machines(&network);
        let options = options(&network, &machines);
        let healer = Healer::new(entries(), EXTENTS);
        let transports = Transports::new().with(Arc::new(network.transport()));
        let region = region(PAGES, EXTENT_PAGES, 2);
        let authority = Arc::clone(&healer) as Arc<dyn RegionAuthority>;
        let remote = Remote::create(authority, &transports, &region, &options).expect("room");
        let lane = remote.open_lane(&lane_config()).expect("a lane");
        let pace = match seed % 4 {
            0 => Pace::Rate(ByteCount::mib(4)),
            1 => Pace::Unlimited,
            _ => Pace::default(),
        };
        Self {
            dice: Dice(seed ^ 0x1717),
            rebuild: rebuild(&remote, &network, pace),
            network,
            machines,
            transports,
            options,
            healer,
            remote,
            lane,
            pages: vec![PageModel::default(); PAGES as usize],
            outstanding: BTreeMap::new(),
            free_frames: (0..FRAMES).collect(),
            next_tag: 0,
            unnoticed: BTreeSet::new(),
            deaths: 0,
        }
    }

    fn machine<T>(&self, index: usize, change: impl FnOnce(&mut Machine) -> T) -> T {
        change(&mut self.machines[index].lock().expect("no panic"))
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            self.heal_in_time();
            match self.dice.roll(1000) {
                0..350 => self.ask(),
                350..550 => self.poll(),
                550..750 => {
                    self.rebuild.step();
                }
                750..940 => {
                    let us = 1 + self.dice.roll(3000);
                    self.network.advance(Duration::from_micros(us));
                }
                940..955 => {
                    let ms = 1 + self.dice.roll(300);
                    self.network.advance(Duration::from_millis(ms));
                }
                955..965 => self.cut(),
                965..975 => self.kill(),
                975..985 => {
                    let index = self.dice.roll(NODES as u64) as usize;
                    self.restart(index);
                }
                985..990 => self.notice(),
                990..994 => self.healer.be_away(true),
                994..998 => self.healer.be_away(false),
                _ => self.succeed(),
            }
        }
        self.come_to_rest();
        self.check();
    }

    /// Asks for a page that is not under way.
    fn ask(&mut self) {
        let page = self.dice.roll(u64::from(PAGES)) as u32;
        if self.pages[page as usize].busy || self.lane.free_slots() == 0 {
            return;
        }
        let Some(frame) = self.free_frames.pop() else {
            return;
        };
        let write = self.pages[page as usize].unsettled || self.dice.roll(2) == 0;
        self.next_tag += 1;
        let version = self.next_tag;
        let filled = match write {
            true => contents(page, version),
            false => vec![0xee; PAGE_BYTES],
        };
        let frames = self.lane.frames();
        frames
            .copy_in(frame as usize * PAGE_BYTES, &filled)
            .expect("frames");
        self.pages[page as usize].busy = true;
        let request = PageRequest {
            tag: self.next_tag,
            direction: match write {
                true => Direction::Write,
                false => Direction::Read,
            },
            page: PageIndex::new(page),
            run: 1,
            frame: FrameIndex(frame),
            which: Which::Live,
        };
        self.lane.queue(request).expect("there was room");
        self.lane.ring();
        self.outstanding.insert(self.next_tag, (request, version));
    }

    fn poll(&mut self) {
        let mut done: Vec<PageDone> = Vec::with_capacity(8);
        while self.lane.poll(&mut done) > 0 {
            for done in done.drain(..) {
                let asked = self.outstanding.remove(&done.tag);
                let (request, version) = asked.expect("answered twice, or never asked");
                let page = request.page.get();
                assert_eq!(done.result, Ok(()), "page {page} has a live replica");
                self.free_frames.push(request.frame.0);
                let model = &mut self.pages[page as usize];
                model.busy = false;
                if request.direction == Direction::Write {
                    (model.version, model.unsettled) = (version, false);
                } else {
                    let mut found = vec![0; PAGE_BYTES];
                    let at = request.frame.0 as usize * PAGE_BYTES;
                    self.lane.frames().copy_out(at, &mut found).expect("frames");
                    let right = found == contents(page, model.version);
                    assert!(right, "page {page} is not as it was last written");
                }
            }
        }
    }

    fn cut(&mut self) {
        let index = self.dice.roll(NODES as u64) as usize;
        fate::cut(&self.network, &self.machines, index, CUT);
    }

    fn heal_in_time(&self) {
        fate::heal_in_time(&self.network, &self.machines);
    }

    /// Whether every extent has a live replica left without this node.
    fn can_spare(&self, index: usize) -> bool {
        (0..EXTENTS).all(|extent| {
            let replicas = self.remote.replicas(ExtentIndex::new(extent));
            replicas.iter().any(|replica| {
                let node = index_of(&replica.name);
                let alive = self.machine(node, |machine| machine.core.is_some());
                let live = replica.state == ReplicaState::Live && !replica.lost;
                node != index && alive && live
            })
        })
    }

    fn kill(&mut self) {
        let index = self.dice.roll(NODES as u64) as usize;
        if !self.can_spare(index) {
            return;
        }
        let whole_machine = self.dice.roll(2) == 0;
        let killed = fate::kill(&self.network, &self.machines, index, whole_machine);
        if killed {
            self.deaths += 1;
            self.unnoticed.insert(index);
        }
    }

    /// The control plane misses the heartbeats of the dead.
    fn notice(&mut self) {
        while let Some(node) = self.unnoticed.pop_first() {
            self.healer.node_down(node);
        }
    }

    /// A node comes back, empty, when its owner knows that it had died.
    fn restart(&mut self, index: usize) {
        let known = (0..EXTENTS).all(|extent| {
            let replicas = self.remote.replicas(ExtentIndex::new(extent));
            let mut counted = replicas.iter().filter(|replica| !replica.lost);
            !counted.any(|replica| index_of(&replica.name) == index)
        });
        let restarted = known && fate::restart(&self.network, &self.machines, index);
        if restarted {
            self.unnoticed.remove(&index);
            self.healer.node_up(index);
        }
    }

    /// The owner dies as it is, and another one takes over, when every node answers, or is known to be dead.
    fn succeed(&mut self) {
        let silent = |machine: &mut Machine| machine.core.is_none() && machine.machine_died;
        if (0..NODES).any(|index| self.machine(index, silent)) {
            return;
        }
        self.network.advance(CUT);
        self.heal_in_time();
        let mut options = self.options.clone();
        options.owner += 1;
        let directory = self.remote.directory();
        let authority = Arc::clone(&self.healer) as Arc<dyn RegionAuthority>;
        let remote = Remote::reopen(&directory, authority, &self.transports, &options);
        self.remote = remote.expect("everybody answers");
        self.lane = self.remote.open_lane(&lane_config()).expect("a lane");
        self.options = options;
        self.rebuild = rebuild(&self.remote, &self.network, Pace::default());
        for (request, _) in std::mem::take(&mut self.outstanding).into_values() {
            let model = &mut self.pages[request.page.get() as usize];
            model.busy = false;
            model.unsettled |= request.direction == Direction::Write;
        }
        self.free_frames = (0..FRAMES).collect();
    }

    /// Nothing bad happens any more, and all is made up for.
    fn come_to_rest(&mut self) {
        self.notice();
        self.healer.be_away(false);
        let until = self.network.now() + PATIENCE;
        while !self.is_at_rest() || !self.outstanding.is_empty() {
            assert!(
                self.network.now() < until,
                "it never comes to rest: {:?}, {:?}, {:?}",
                self.rebuild,
                self.healer,
                (0..EXTENTS)
                    .map(|extent| self.remote.replicas(ExtentIndex::new(extent)))
                    .collect::<Vec<_>>()
            );
            self.heal_in_time();
            (0..NODES).for_each(|index| self.restart(index));
            // Nodes that nobody speaks to are not missed.
            self.ask();
            self.poll();
            self.rebuild.step();
            self.network.advance(Duration::from_millis(1));
            if self.is_at_rest() {
                self.free_frames.clear();
            }
        }
        self.free_frames = (0..FRAMES).collect();
    }

    /// Nodes that are alive and have a live replica of an extent.
    fn live_on(&self, extent: u32) -> Vec<u16> {
        let replicas = self.remote.replicas(ExtentIndex::new(extent));
        let live = replicas.iter().filter(|replica| {
            let alive = self.machine(index_of(&replica.name), |machine| machine.core.is_some());
            replica.state == ReplicaState::Live && !replica.lost && alive
        });
        live.map(|replica| replica.node).collect()
    }

    fn is_at_rest(&self) -> bool {
        self.healer.is_content() && (0..EXTENTS).all(|extent| self.live_on(extent).len() == 2)
    }

    /// All replicas of all pages are as they were last written.
    fn check(&mut self) {
        for extent in 0..EXTENTS {
            let nodes = self.live_on(extent);
            assert_eq!(nodes.len(), 2, "extent {extent}");
            for node in nodes {
                for page in extent * EXTENT_PAGES..(extent + 1) * EXTENT_PAGES {
                    if !self.pages[page as usize].unsettled {
                        self.check_page(page, node);
                    }
                }
            }
        }
    }

    fn check_page(&mut self, page: u32, node: u16) {
        let request = PageRequest {
            tag: 0,
            direction: Direction::Read,
            page: PageIndex::new(page),
            run: 1,
            frame: FrameIndex(0),
            which: Which::Only(node),
        };
        self.lane.queue(request).expect("room");
        self.lane.ring();
        let mut done: Vec<PageDone> = Vec::with_capacity(1);
        let until = self.network.now() + PATIENCE;
        while self.lane.poll(&mut done) == 0 {
            assert!(self.network.now() < until, "page {page} is never read");
            self.network.advance(Duration::from_micros(100));
        }
        assert_eq!(done[0].result, Ok(()));
        let mut found = vec![0; PAGE_BYTES];
        self.lane.frames().copy_out(0, &mut found).expect("frames");
        let version = self.pages[page as usize].version;
        let right = found == contents(page, version);
        assert!(right, "page {page} on node {node} is not as it was written");
    }
}

#[test]
fn whatever_dies_replicas_are_made_up_for_and_no_page_is_lost() {
    let seeds: Vec<u64> = match std::env::var("SIM_SEED") {
        Ok(seed) => vec![seed.parse().expect("a seed is a number")],
        Err(_) => {
            let seeds = std::env::var("SIM_SEEDS");
            (0..seeds.map_or(60, |seeds| seeds.parse().expect("a number"))).collect()
        }
    };
    let (mut deaths, mut copied) = (0, 0);
    for seed in &seeds {
        println!("SIM_SEED={seed}");
        let mut story = Story::begin(*seed);
        story.run();
        deaths += story.deaths;
        copied += story.healer.copied();
    }
    println!("{deaths} deaths, {copied} replicas copied");
    let stories = seeds.len() as u64;
    assert!(stories == 1 || (deaths > stories && copied > 4 * stories));
}

/// Replicas that are dropped together take no longer than one: each waits until lanes have heard of itself,
/// and none until they have heard of the others, or as after a failure.
#[test]
fn replicas_that_are_dropped_together_do_not_wait_for_each_other() {
    let mut story = Story::begin(1);
    let go_on_until = |story: &mut Story, ends: &dyn Fn(&Healer) -> bool| {
        let begun = story.network.now();
        while !ends(&story.healer) {
            story.poll();
            story.rebuild.step();
            story.network.advance(Duration::from_millis(1));
            assert!(story.network.now() - begun < PATIENCE, "{:?}", story.healer);
        }
        story.network.now() - begun
    };
    story.healer.copy_all_to(2);
    go_on_until(&mut story, &|healer| healer.all_live_on(2));
    story.healer.drop_all_on(0);
    let took = go_on_until(&mut story, &|healer| healer.dropped() == u64::from(EXTENTS));
    // One look for orders, and a few for the lane.
    assert!(took < Duration::from_millis(100), "{took:?}");
    assert_eq!(story.rebuild.progress().failures, 0);
}

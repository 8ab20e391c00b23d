//! Nodes, sessions and lanes in simulated time, under everything that can happen to them.
//!
//! Each seed is a story: pages are read and written in runs, while nodes are cut off, die as processes
//! or with their machine, are started again, replicas are copied and dropped, and owners are succeeded. Half of
//! the regions are thin: their extents are placed as they are used, by an authority that is away or has no
//! room now and then.
//! Whatever happens, each request is answered exactly once; a page that is read is as it was last
//! written; with one replica a page is lost only if its node died, with several only if all that had it
//! did; and an owner that was succeeded changes nothing any more. A failure prints its seed:
//! `SIM_SEED=n cargo test -p mycoram-fabric --test sim_remote` tells that story again.

mod sim_cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mycoram_fabric::pages::{
    Direction, FrameIndex, LaneConfig, PageDone, PageError, PageLane, PageRequest, RemoteRegion,
    Which,
};
use mycoram_fabric::placement::{NodeEntry, RoundRobin};
use mycoram_fabric::remote::{Ahead, Remote, RemoteOptions, ReplicaState, Transports};
use mycoram_fabric::transport::sim::{SimConfig, SimNetwork};
use mycoram_fabric::units::{ByteCount, ExtentIndex, PAGE_BYTES, PageIndex};
use sim_cluster::authority::Throne;
use sim_cluster::copier::Copier;
use sim_cluster::region::{contents, entries, options, region};
use sim_cluster::{Dice, Machine, Machines, NODES, fate, machines};

const EXTENT_PAGES: u32 = 4;
const EXTENT_BYTES: u64 = EXTENT_PAGES as u64 * PAGE_BYTES as u64;
const EXTENTS: u32 = 24;
const PAGES: u32 = EXTENT_PAGES * EXTENTS;
const FRAMES: u32 = 64;
/// Frames of one request; requests have frames of their own.
const RUN: u16 = 4;
/// A node is cut off for no longer than this, and then left alone for as long: far below the deadline.
const CUT: Duration = Duration::from_millis(900);
const STEPS: u32 = 600;
/// Virtual time after which every request must have been answered.
const PATIENCE: Duration = Duration::from_secs(600);
/// What a fenced owner writes. No page ever contains it.
const POISON: u64 = (1 << 40) - 1;

/// With several replicas a node is cut off for so long now and then, where others have all that it has: it
/// is given up meanwhile, and comes back with pages that it missed.
const CUT_FOR_LONG: Duration = Duration::from_secs(10);

fn is_cut_for_long(machine: &Machine) -> bool {
    machine.cut_since.is_some() && machine.cut_for == CUT_FOR_LONG
}

/// The network of a story.
#[derive(Clone, Copy, PartialEq)]
enum Weather {
    /// A little loss.
    Fair,
    /// Messages take up to 0.6 s: queue pairs break while their work is still under way.
    Foul,
}

impl Weather {
    fn config(self, seed: u64) -> SimConfig {
        match self {
            Self::Fair => SimConfig {
                loss_per_million: 2000,
                ..SimConfig::seeded(seed)
            },
            Self::Foul => SimConfig {
                max_delay_us: 600_000,
                ..SimConfig::seeded(seed)
            },
        }
    }

    /// In foul weather a queue pair may break many times before a request gets through.
    fn deadline_ms(self) -> u32 {
        match self {
            Self::Fair => 3000,
            Self::Foul => 500_000,
        }
    }

    /// Kinds of steps, of a thousand. Death is left out of foul weather, where nobody hears of it.
    fn step(self, dice: &mut Dice) -> u64 {
        match self {
            Self::Fair => dice.roll(1000),
            Self::Foul => match dice.roll(1000) {
                975..996 => 997,
                other => other,
            },
        }
    }
}

/// What a page may contain: one version, or several while a write is under way or has been fenced.
#[derive(Clone, Debug)]
struct PageModel {
    versions: BTreeSet<u64>,
    busy: bool,
    lost: bool,
    /// A write was never answered: replicas may differ until the next one.
    unsettled: bool,
}

struct Outstanding {
    request: PageRequest,
    version: u64,
}

struct Story {
    weather: Weather,
    dice: Dice,
    network: SimNetwork,
    machines: Machines,
    transports: Transports,
    options: RemoteOptions,
    remote: Arc<Remote>,
    replicas: u8,
    throne: Throne,
    entries: Vec<NodeEntry>,
    copier: Option<Copier>,
    copied: u64,
    /// In which life of its node a replica of an extent came to be.
    lives: BTreeMap<(u32, usize), u64>,
    /// Extents that are placed.
    placed: BTreeSet<u32>,
    /// How often writes were seen to wait for a place, and places refused.
    held: u64,
    refused: u64,
    /// Successions without anything of the former owner's.
    adopted: u64,
    lane: Box<dyn PageLane>,
    /// The former owner's lane, and what it still waits for.
    former: Option<(Box<dyn PageLane>, BTreeSet<u64>)>,
    pages: Vec<PageModel>,
    outstanding: BTreeMap<u64, Outstanding>,
    free_frames: Vec<u32>,
    next_tag: u64,
    /// Nodes that have died since the region was made.
    died: BTreeSet<usize>,
    answered: u64,
    lost: u64,
    long_cuts: u64,
    fenced: bool,
}

/// The first of each request's frames.
fn frames() -> Vec<u32> {
    (0..FRAMES / u32::from(RUN))
        .map(|n| n * u32::from(RUN))
        .collect()
}

fn lane_config(weather: Weather) -> LaneConfig {
    LaneConfig {
        frames: FRAMES,
        depth: 8,
        node_deadline_ms: weather.deadline_ms(),
        ..LaneConfig::default()
    }
}

impl Story {
    fn begin(seed: u64, weather: Weather, replicas: u8) -> Self {
        let network = SimNetwork::new(weather.config(seed));
        let machines = machines(&network);
        let options = RemoteOptions {
            ahead: (seed % 2 == 1).then_some(Ahead {
                low: ByteCount::new(2 * EXTENT_BYTES),
                high: ByteCount::new(4 * EXTENT_BYTES),
            }),
            ..options(&network, &machines)
        };
        let transports = Transports::new().with(Arc::new(network.transport()));
        let region = region(PAGES, EXTENT_PAGES, replicas);
        let entries = entries();
        let throne = Throne::new(RoundRobin(entries.clone()), &machines, seed);
        let mut made = None;
        // The authority is away at times.
        for _ in 0..100 {
            made = Remote::create(throne.authority(), &transports, &region, &options).ok();
            if made.is_some() {
                break;
            }
        }
        let remote = made.expect("room");
        throne.keep_directory_of(&*remote);
        let lane = remote.open_lane(&lane_config(weather)).expect("a lane");
        let page = PageModel {
            versions: BTreeSet::from([0]),
            busy: false,
            lost: false,
            unsettled: false,
        };
        let mut story = Self {
            replicas,
            throne,
            entries,
            copier: None,
            copied: 0,
            lives: BTreeMap::new(),
            placed: BTreeSet::new(),
            held: 0,
            refused: 0,
            adopted: 0,
            weather,
            dice: Dice(seed ^ 0x5151),
            network,
            machines,
            transports,
            options,
            remote,
            lane,
            former: None,
            pages: vec![page; PAGES as usize],
            outstanding: BTreeMap::new(),
            free_frames: (0..FRAMES / u32::from(RUN))
                .map(|n| n * u32::from(RUN))
                .collect(),
            next_tag: 0,
            died: BTreeSet::new(),
            answered: 0,
            lost: 0,
            long_cuts: 0,
            fenced: false,
        };
        story.note_places();
        story
    }

    /// Notes in which lives of their nodes replicas of extents came to be that were just placed.
    fn note_places(&mut self) {
        let stats = self.remote.stats();
        self.held += u64::from(stats.writes_unplaced > 0);
        self.refused += stats.places_refused;
        if stats.extents_placed == self.placed.len() as u64 {
            return;
        }
        for extent in (0..EXTENTS).filter(|extent| !self.placed.contains(extent)) {
            for replica in self.remote.replicas(ExtentIndex::new(extent)) {
                let node = sim_cluster::index_of(&replica.name);
                let life = self.machine(node, |machine| machine.incarnation);
                self.lives.insert((extent, node), life);
            }
        }
        let placed = |extent: &u32| {
            let replicas = self.remote.replicas(ExtentIndex::new(*extent));
            !replicas.is_empty()
        };
        self.placed = (0..EXTENTS).filter(placed).collect();
    }

    /// Whether an extent's replica was on a life of this node that was given up.
    fn died_on(&self, page: u32, node: usize) -> bool {
        let extent = ExtentIndex::new(page / EXTENT_PAGES);
        let mut replicas = self.remote.replicas(extent).into_iter();
        replicas.any(|replica| replica.lost && sim_cluster::index_of(&replica.name) == node)
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            self.heal_in_time();
            match self.weather.step(&mut self.dice) {
                0..500 => self.ask(),
                500..600 => self.lane.ring(),
                600..800 => {
                    let us = 1 + self.dice.roll(2000);
                    self.network.advance(Duration::from_micros(us));
                }
                800..830 => {
                    let ms = 1 + self.dice.roll(400);
                    self.network.advance(Duration::from_millis(ms));
                }
                830..965 => self.poll(),
                965..975 => {
                    let full = self.dice.roll(3) == 0;
                    self.throne.set_full(full);
                }
                975..990 => self.cut(),
                990..994 => self.kill(),
                994..996 => self.restart(),
                996..998 => self.succeed(),
                _ => self.begin_copy(),
            }
            self.go_on_copying();
        }
        self.end_former();
        self.finish();
        self.check_what_is_left();
    }

    /// Asks for a run of pages of which none is under way, as an agent does.
    fn ask(&mut self) {
        let run = 1 + self.dice.roll(u64::from(RUN)) as u16;
        let page = self.dice.roll(u64::from(PAGES - u32::from(run) + 1)) as u32;
        let range = page as usize..(page + u32::from(run)) as usize;
        if self.pages[range.clone()].iter().any(|page| page.busy) || self.lane.free_slots() == 0 {
            return;
        }
        let Some(frame) = self.free_frames.pop() else {
            return;
        };
        let write = self.dice.roll(2) == 0;
        self.next_tag += 1;
        let version = self.next_tag;
        for (nth, page) in (page..page + u32::from(run)).enumerate() {
            let at = (frame as usize + nth) * PAGE_BYTES;
            let bytes = if write {
                contents(page, version)
            } else {
                vec![0xee; PAGE_BYTES]
            };
            self.lane.frames().copy_in(at, &bytes).expect("frames");
            let model = &mut self.pages[page as usize];
            model.busy = true;
            if write {
                model.versions.insert(version);
            }
        }
        let request = PageRequest {
            tag: self.next_tag,
            direction: if write {
                Direction::Write
            } else {
                Direction::Read
            },
            page: PageIndex::new(page),
            run,
            frame: FrameIndex(frame),
            which: Which::Live,
        };
        self.lane.queue(request).expect("there was room");
        self.outstanding
            .insert(self.next_tag, Outstanding { request, version });
    }

    fn poll(&mut self) {
        self.poll_former();
        let mut done = Vec::with_capacity(8);
        while self.lane.poll(&mut done) > 0 {
            self.note_places();
            for done in done.drain(..) {
                self.answer(&done);
            }
        }
        self.note_places();
    }

    fn answer(&mut self, done: &PageDone) {
        let asked = self.outstanding.remove(&done.tag);
        let Outstanding { request, version } = asked.expect("answered twice, or never asked");
        assert_eq!(
            (done.page, done.run, done.frame),
            (request.page, request.run, request.frame)
        );
        self.answered += 1;
        self.free_frames.push(request.frame.0);
        for nth in 0..u32::from(request.run) {
            let page = request.page.get() + nth;
            let model = &mut self.pages[page as usize];
            model.busy = false;
            match done.result {
                Ok(()) if request.direction == Direction::Write => {
                    assert!(!model.lost, "page {page} was lost, and is written");
                    model.versions = BTreeSet::from([version]);
                    model.unsettled = false;
                }
                Ok(()) => {
                    assert!(!model.lost, "page {page} was lost, and is read");
                    let mut bytes = vec![0; PAGE_BYTES];
                    let at = (request.frame.0 + nth) as usize * PAGE_BYTES;
                    self.lane.frames().copy_out(at, &mut bytes).expect("frames");
                    let found = model
                        .versions
                        .iter()
                        .copied()
                        .find(|v| contents(page, *v) == bytes);
                    let found = found.unwrap_or_else(|| panic!("page {page} is as it never was"));
                    if !model.unsettled {
                        // From now on it is this.
                        model.versions = BTreeSet::from([found]);
                    }
                }
                Err(PageError::Lost { .. }) if self.replicas > 1 => {
                    panic!("page {page} is lost, and has a live replica");
                }
                Err(PageError::Lost { node }) => {
                    self.lost += 1;
                    let node = sim_cluster::index_of(&self.remote.node_name(node));
                    assert!(self.died.contains(&node), "n{node} is given up, and lives");
                    // The run may have pages on other nodes, whose writes may have been carried out.
                    self.pages[page as usize].lost |= self.died_on(page, node);
                }
                Err(PageError::Unplaced) => panic!("page {page} was not given up"),
                Err(PageError::Fenced) => {
                    assert!(self.fenced, "fenced, and nobody came");
                    model.unsettled |= self.replicas > 1 && request.direction == Direction::Write;
                }
            }
        }
    }

    fn machine<T>(&self, index: usize, change: impl FnOnce(&mut Machine) -> T) -> T {
        change(&mut self.machines[index].lock().expect("no panic"))
    }

    /// Cuts a node off: mostly for a while, now and then until long after it was given up.
    fn cut(&mut self) {
        let index = self.dice.roll(NODES as u64) as usize;
        let replicated = self.replicas > 1 && self.weather == Weather::Fair;
        let length = match replicated && self.dice.roll(4) == 0 && self.can_spare(index) {
            true => CUT_FOR_LONG,
            false => CUT,
        };
        let struck = fate::cut(&self.network, &self.machines, index, length);
        self.long_cuts += u64::from(struck && length == CUT_FOR_LONG);
    }

    fn heal_in_time(&self) {
        fate::heal_in_time(&self.network, &self.machines);
    }

    /// Whether every extent has a live replica left without this node.
    fn can_spare(&self, index: usize) -> bool {
        let machines = (0..NODES).filter(|other| *other != index);
        let there = |machine: &mut Machine| machine.core.is_some() && !is_cut_for_long(machine);
        let left = machines.filter(|other| self.machine(*other, there));
        if left.count() < usize::from(self.replicas) {
            // What is not placed yet needs so many.
            return false;
        }
        if self.replicas == 1 {
            // One of them always lives.
            return self.died.len() + 1 < NODES || self.died.contains(&index);
        }
        self.placed.iter().copied().all(|extent| {
            let replicas = self.remote.replicas(ExtentIndex::new(extent));
            replicas.iter().any(|replica| {
                let node = sim_cluster::index_of(&replica.name);
                let lives = self.machine(node, |machine| {
                    machine.core.is_some()
                        && !is_cut_for_long(machine)
                        && self.lives.get(&(extent, node)) == Some(&machine.incarnation)
                });
                node != index && lives && !replica.lost && replica.state == ReplicaState::Live
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
            self.died.insert(index);
        }
    }

    fn restart(&mut self) {
        let index = self.dice.roll(NODES as u64) as usize;
        fate::restart(&self.network, &self.machines, index);
    }

    /// Begins one more replica of an extent, where there are several.
    fn begin_copy(&mut self) {
        if self.replicas == 1 || self.copier.is_some() {
            return;
        }
        let extent = ExtentIndex::new(self.dice.roll(u64::from(EXTENTS)) as u32);
        let node = self.dice.roll(NODES as u64) as usize;
        if let Ok(lane) = self.remote.open_lane(&lane_config(self.weather)) {
            self.copier = Copier::begin(
                &self.remote,
                lane,
                extent,
                &self.entries[node],
                self.machine(node, |machine| machine.incarnation),
            );
        }
    }

    fn go_on_copying(&mut self) {
        let Some(copier) = &mut self.copier else {
            return;
        };
        if !copier.go_on(&self.remote) {
            return;
        }
        if let Some((extent, node, life)) = copier.finished() {
            self.copied += 1;
            self.lives.insert((extent.get(), node), life);
        }
        self.copier = None;
    }

    /// A successor takes over, whatever the owner is doing. The former owner goes on as if nothing were.
    fn succeed(&mut self) {
        self.end_former();
        self.copier = None;
        let mut options = self.options.clone();
        options.owner += 1;
        let directory = self.throne.directory();
        let authority = self.throne.successor();
        // With what the former one kept, or, as if its machine were gone, with what the authority knows.
        let adopts = self.dice.roll(2) == 0;
        let opened = match adopts {
            true => Remote::adopt(self.remote.entry(), authority, &self.transports, &options),
            false => Remote::reopen(&directory, authority, &self.transports, &options),
        };
        let opened = opened.ok().and_then(|successor| {
            self.throne.keep_directory_of(&*successor);
            let lane = successor.open_lane(&lane_config(self.weather)).ok()?;
            Some((successor, lane))
        });
        let Some((successor, lane)) = opened else {
            // A node does not answer now. Some of the others may have let the successor in.
            self.fenced = true;
            return;
        };
        let mut former = std::mem::replace(&mut self.lane, lane);
        self.remote = successor;
        self.options = options;
        self.fenced = false;
        self.adopted += u64::from(adopts);
        self.note_places();
        let outstanding = std::mem::take(&mut self.outstanding);
        let mut waits: BTreeSet<u64> = outstanding.keys().copied().collect();
        for outstanding in outstanding.into_values() {
            let request = outstanding.request;
            let first = request.page.get() as usize;
            for page in &mut self.pages[first..first + usize::from(request.run)] {
                page.busy = false;
                page.unsettled |= self.replicas > 1 && request.direction == Direction::Write;
            }
        }
        // Frames that nothing of the former owner's is under way in.
        while let Some(frame) = self.free_frames.pop().filter(|_| former.free_slots() > 0) {
            let page = self.dice.roll(u64::from(PAGES)) as u32;
            let at = frame as usize * PAGE_BYTES;
            former
                .frames()
                .copy_in(at, &contents(page, POISON))
                .expect("frames");
            self.next_tag += 1;
            waits.insert(self.next_tag);
            former
                .queue(PageRequest {
                    tag: self.next_tag,
                    direction: Direction::Write,
                    page: PageIndex::new(page),
                    run: 1,
                    frame: FrameIndex(frame),
                    which: Which::Live,
                })
                .expect("there was room");
        }
        former.ring();
        self.free_frames = frames();
        self.former = Some((former, waits));
    }

    /// The former owner, too, hears of each of its requests once, and of none that came too late that it
    /// was done.
    fn poll_former(&mut self) {
        if let Some((lane, waits)) = &mut self.former {
            let mut done = Vec::with_capacity(64);
            lane.poll(&mut done);
            for done in done {
                assert!(waits.remove(&done.tag), "answered twice, or never asked");
            }
        }
    }

    fn end_former(&mut self) {
        let until = self.network.now() + PATIENCE;
        while self
            .former
            .as_ref()
            .is_some_and(|(_, waits)| !waits.is_empty())
        {
            assert!(
                self.network.now() < until,
                "the former owner is never answered"
            );
            self.heal_in_time();
            self.network.advance(Duration::from_millis(5));
            self.poll_former();
        }
        self.former = None;
    }

    /// Lets time pass until every request is answered.
    fn finish(&mut self) {
        let until = self.network.now() + PATIENCE;
        self.throne.set_full(false);
        self.lane.ring();
        while !self.outstanding.is_empty() {
            assert!(
                self.network.now() < until,
                "never answered: {:?}",
                self.outstanding.keys()
            );
            self.heal_in_time();
            self.network.advance(Duration::from_millis(5));
            self.poll();
        }
        assert_eq!(self.free_frames.len() as u32, FRAMES / u32::from(RUN));
    }

    /// Every page of a node that has never died is there.
    fn check_what_is_left(&mut self) {
        if self.fenced {
            return;
        }
        for page in 0..PAGES {
            let frame = self.free_frames.pop().expect("nothing is under way");
            self.next_tag += 1;
            let request = PageRequest {
                tag: self.next_tag,
                direction: Direction::Read,
                page: PageIndex::new(page),
                run: 1,
                frame: FrameIndex(frame),
                which: Which::Live,
            };
            let version = self.next_tag;
            self.lane.queue(request).expect("room");
            self.outstanding
                .insert(self.next_tag, Outstanding { request, version });
            self.finish();
            let on_dead = self.died.iter().any(|node| self.died_on(page, *node));
            assert!(
                (self.replicas == 1 && on_dead) || !self.pages[page as usize].lost,
                "page {page} is lost, and its node lives"
            );
        }
        assert!(self.answered >= u64::from(PAGES));
    }
}

/// What stories were about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    digest: u64,
    answered: u64,
    lost: u64,
    failovers: u64,
    stale: u64,
    copied: u64,
    hedged: u64,
    held: u64,
    refused: u64,
    adopted: u64,
    long_cuts: u64,
}

fn tell(seed: u64, weather: Weather, replicas: u8) -> Told {
    let mut story = Story::begin(seed, weather, replicas);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| story.run()));
    if let Err(panic) = result {
        eprintln!("the story of SIM_SEED={seed} with {replicas} replicas fails");
        std::panic::resume_unwind(panic);
    }
    let stats = story.remote.stats();
    Told {
        digest: story.network.digest(),
        answered: story.answered,
        lost: story.lost,
        failovers: stats.failovers,
        stale: stats.replicas_stale,
        copied: story.copied,
        hedged: stats.hedges_won,
        held: story.held,
        refused: story.refused,
        adopted: story.adopted,
        long_cuts: story.long_cuts,
    }
}

/// Tells many stories, and adds up what they were about. Or the one of SIM_SEED, and no more.
fn tell_all(seeds: u64, weather: Weather, replicas: u8) -> Option<Told> {
    if let Ok(seed) = std::env::var("SIM_SEED") {
        tell(seed.parse().expect("a number"), weather, replicas);
        return None;
    }
    let mut all = Told::default();
    let seeds = std::env::var("SIM_SEEDS").map_or(seeds, |more| more.parse().expect("a number"));
    for seed in 0..seeds {
        let told = tell(seed, weather, replicas);
        all.answered += told.answered;
        all.lost += told.lost;
        all.failovers += told.failovers;
        all.stale += told.stale;
        all.copied += told.copied;
        all.hedged += told.hedged;
        all.held += told.held;
        all.refused += told.refused;
        all.adopted += told.adopted;
        all.long_cuts += told.long_cuts;
    }
    Some(all)
}

#[test]
fn whatever_happens_every_request_is_answered_once_and_pages_are_as_written() {
    let Some(told) = tell_all(150, Weather::Fair, 1) else {
        return;
    };
    // The stories are about something: work was done, and some of it met death.
    assert!(told.answered > 2000, "{told:?}");
    assert!(told.lost > 0, "{told:?}");
    assert!(told.held > 0 && told.refused > 0, "{told:?}");
    assert!(told.adopted > 0, "{told:?}");
}

#[test]
fn with_two_replicas_no_page_is_lost_when_any_node_dies() {
    let Some(told) = tell_all(150, Weather::Fair, 2) else {
        return;
    };
    assert_eq!(told.lost, 0);
    assert!(told.answered > 2000, "{told:?}");
    assert!(told.failovers > 0 && told.stale > 0, "{told:?}");
    assert!(told.copied > 0 && told.long_cuts > 0, "{told:?}");
    assert!(told.held > 0 && told.refused > 0, "{told:?}");
    assert!(told.adopted > 0, "{told:?}");
}

#[test]
fn with_three_replicas_no_page_is_lost_when_any_two_nodes_die() {
    let Some(told) = tell_all(100, Weather::Fair, 3) else {
        return;
    };
    assert_eq!(told.lost, 0);
    assert!(told.failovers > 0 && told.stale > 0, "{told:?}");
}

#[test]
fn nodes_that_are_slow_are_asked_again_until_they_answer() {
    for replicas in [1, 2, 3] {
        let Some(told) = tell_all(25, Weather::Foul, replicas) else {
            continue;
        };
        assert!(told.answered > 2000, "{told:?}");
        assert_eq!(told.lost, 0, "nobody died");
        assert!(replicas == 1 || told.hedged > 0, "{told:?}");
    }
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for (seed, replicas) in [(3, 1), (77, 2)] {
        for weather in [Weather::Fair, Weather::Foul] {
            let told = tell(seed, weather, replicas);
            assert_eq!(told, tell(seed, weather, replicas));
        }
    }
}

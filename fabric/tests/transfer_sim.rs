//! Parallel transfer in simulated time, under loss, cuts and death.
//!
//! Each seed is a story: pieces go from here to nodes, from nodes to here and from node to node, while
//! nodes are cut off and die. Each piece is answered once; what is said to have arrived is there; what
//! did not arrive touches a node that died, or is handed in again and arrives. A failure prints its seed:
//! `SIM_SEED=n cargo test -p mycoram-fabric --test transfer_sim` tells that story again.

mod sim_cluster;
mod transfer_places;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mycoram_fabric::session::Identity;
use mycoram_fabric::transfer::{
    Endpoint, NodeAccess, NodeEndpoint, Piece, Place, Transfer, TransferConfig, Why,
};
use mycoram_fabric::transport::sim::{SimConfig, SimNetwork};
use mycoram_fabric::transport::{Mapping, Transport};
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, RegionId, TenantId};
use mycoram_fabric::wire::control::Token;
use sim_cluster::region::{dial, entry};
use sim_cluster::{Dice, Machines, NODE_BYTES, NODES, SimClock, fate, machines};
use transfer_places::Places;

const EXTENT: u64 = NODE_BYTES / 2;
/// The upper half of each memory is where pieces go, a slot each.
const SLOT: u64 = 24 << 10;
const SLOTS: u64 = EXTENT / 2 / SLOT;
const STEPS: u32 = 300;
const CUT: Duration = Duration::from_millis(700);
/// Virtual time after which everything must have been answered.
const PATIENCE: Duration = Duration::from_secs(120);

fn source(node: usize) -> Vec<u8> {
    let mut dice = Dice(node as u64 + 77);
    let words = (0..EXTENT / 16).flat_map(|_| dice.roll(u64::MAX).to_le_bytes());
    words.collect()
}

struct Story {
    dice: Dice,
    network: SimNetwork,
    machines: Machines,
    transfer: Transfer,
    places: Places,
    memory: Arc<Mapping>,
    queued: BTreeMap<u64, Piece>,
    again: Vec<Piece>,
    arrived: Vec<Piece>,
    died: BTreeSet<usize>,
}

impl Story {
    fn begin(seed: u64) -> Self {
        let network = SimNetwork::new(SimConfig {
            loss_per_million: 3000,
            ..SimConfig::seeded(seed)
        });
        let machines = machines(&network);
        let transport: Arc<dyn Transport> = Arc::new(network.transport());
        let mut transfer = Transfer::open(TransferConfig {
            rails: 2,
            depth: 4,
            chunk_bytes: ByteCount::new(4096),
            frames: 8,
            pieces: 32,
            tries: 6,
            response_timeout_ms: 300,
            rate: (seed.is_multiple_of(3)).then_some(ByteCount::mib(20)),
            clock: Arc::new(SimClock(network.clone())),
            threads: false,
            ..TransferConfig::default()
        })
        .expect("memory");
        let mut ends = Vec::new();
        for node in 0..NODES {
            let identity = Identity {
                tenant: TenantId::new(1),
                region: RegionId::new(1),
                epoch: Epoch::new(1),
                token: Token([3; 16]),
                owner: 1,
            };
            let access = NodeAccess {
                dial: dial(&network, &machines),
                identity,
                authority: None,
                keep_alive: false,
            };
            let end = NodeEndpoint::open(&entry(node), Arc::clone(&transport), &access, true);
            let end = Arc::new(end.expect("alive"));
            let extent = [ExtentIndex::new(0)];
            let grants = end.allocate(ByteCount::new(EXTENT), &extent).expect("room");
            let index = transfer
                .add_endpoint(end as Arc<dyn Endpoint>)
                .expect("rails");
            ends.push((index, grants[0].clone()));
        }
        let memory = Arc::new(Mapping::anonymous(EXTENT as usize).expect("memory"));
        let here = transfer.register(Arc::clone(&memory)).expect("registered");
        let mut story = Self {
            dice: Dice(seed ^ 0x77),
            network,
            machines,
            transfer,
            places: Places { here, ends },
            memory,
            queued: BTreeMap::new(),
            again: Vec::new(),
            arrived: Vec::new(),
            died: BTreeSet::new(),
        };
        // Each node's lower half is full before anything happens; then our own.
        for node in 0..NODES {
            story.memory.copy_in(0, &source(node)).expect("inside");
            let piece = Piece {
                tag: u64::MAX,
                from: story.places.local(0),
                into: story.places.remote(node, 0),
                bytes: EXTENT / 2,
            };
            story.queue(piece);
            story.play_out();
            assert_eq!(story.arrived.pop(), Some(piece));
        }
        story.memory.copy_in(0, &source(NODES)).expect("inside");
        story
    }

    /// `NODES` stands for our own memory.
    fn place(&self, node: usize, offset: u64) -> Place {
        if node == NODES {
            self.places.local(offset)
        } else {
            self.places.remote(node, offset)
        }
    }

    fn queue(&mut self, piece: Piece) {
        assert_eq!(self.transfer.queue(&[piece]).expect("a piece"), 1);
        assert_eq!(self.queued.insert(piece.tag, piece), None);
    }

    /// A piece with a slot of its own where it goes.
    fn ask(&mut self, tag: u64) {
        let into = self.dice.roll(NODES as u64 + 1) as usize;
        let from = match self.dice.roll(NODES as u64 + 1) as usize {
            from if into == NODES && from == NODES => 0,
            from => from,
        };
        let bytes = 1 + self.dice.roll(SLOT);
        let at = self.dice.roll(EXTENT / 2 - SLOT);
        let piece = Piece {
            tag,
            from: self.place(from, at),
            into: self.place(into, EXTENT / 2 + tag * SLOT),
            bytes,
        };
        self.queue(piece);
    }

    fn drive(&mut self) {
        self.transfer.drive();
        while let Some(finished) = self.transfer.take_finished() {
            let queued = self.queued.remove(&finished.piece.tag);
            assert_eq!(queued, Some(finished.piece), "answered twice, or not asked");
            match finished.result {
                Ok(()) => self.arrived.push(finished.piece),
                Err(not) if not.why == Why::TriedTooOften => {
                    self.arrived.push(Piece {
                        bytes: finished.piece.bytes - not.rest.bytes,
                        ..finished.piece
                    });
                    self.again.push(not.rest);
                }
                Err(not) => {
                    let dead = self.died.iter().map(|node| self.places.ends[*node].0);
                    let mut dead = dead.filter(|end| *end == not.endpoint);
                    assert!(
                        not.why == Why::Lost && dead.next().is_some(),
                        "{not}, and its node lives"
                    );
                }
            }
        }
    }

    fn play_out(&mut self) {
        let until = self.network.now() + PATIENCE;
        while !self.transfer.is_idle() || !self.queued.is_empty() {
            assert!(self.network.now() < until, "never over: {:?}", self.queued);
            self.heal_in_time();
            self.drive();
            self.network.advance(Duration::from_micros(200));
        }
    }

    fn heal_in_time(&self) {
        fate::heal_in_time(&self.network, &self.machines);
    }

    fn cut_off(&mut self) {
        let node = self.dice.roll(NODES as u64) as usize;
        fate::cut(&self.network, &self.machines, node, CUT);
    }

    fn kill(&mut self) {
        let node = self.dice.roll(NODES as u64) as usize;
        if self.died.len() + 1 >= NODES && !self.died.contains(&node) {
            return;
        }
        let whole_machine = self.dice.roll(2) == 0;
        if fate::kill(&self.network, &self.machines, node, whole_machine) {
            self.died.insert(node);
        }
    }

    fn run(&mut self) {
        let mut tag = 0;
        for _ in 0..STEPS {
            self.heal_in_time();
            match self.dice.roll(100) {
                0..20 if tag < SLOTS => {
                    self.ask(tag);
                    tag += 1;
                }
                20..24 => self.cut_off(),
                24 if self.dice.roll(3) == 0 => self.kill(),
                25..60 => self.drive(),
                60..65 => {
                    let ms = 1 + self.dice.roll(300);
                    self.network.advance(Duration::from_millis(ms));
                }
                _ => {
                    let us = 1 + self.dice.roll(300);
                    self.network.advance(Duration::from_micros(us));
                }
            }
        }
        self.play_out();
        // Nothing is cut off any more, so whatever is left arrives, or its node is dead.
        self.network.advance(CUT);
        self.heal_in_time();
        for _ in 0..3 {
            for piece in std::mem::take(&mut self.again) {
                self.queue(piece);
            }
            self.play_out();
        }
        assert!(self.again.is_empty(), "tried too often with nothing wrong");
        self.check();
    }

    /// Reads what has arrived back, from nodes that live.
    fn check(&mut self) {
        let lives = |story: &Self, place: Place| {
            !story
                .died
                .iter()
                .any(|node| place.endpoint() == Some(story.places.ends[*node].0))
        };
        for piece in std::mem::take(&mut self.arrived) {
            if !lives(self, piece.into) || piece.bytes == 0 {
                continue;
            }
            let (from, offset) = match piece.from {
                Place::Local { offset, .. } => (NODES, offset),
                Place::Remote { endpoint, at } => {
                    let mut ends = self.places.ends.iter();
                    let node = ends.position(|(end, _)| *end == endpoint).expect("known");
                    (node, at.addr.get() - self.places.ends[node].1.addr.get())
                }
            };
            let expected = &source(from)[offset as usize..(offset + piece.bytes) as usize];
            let mut found = vec![0; piece.bytes as usize];
            let at = match piece.into {
                Place::Local { offset, .. } => offset,
                remote @ Place::Remote { .. } => {
                    // The first part of our own memory is not needed any more.
                    let back = Piece {
                        tag: u64::MAX,
                        from: remote,
                        into: self.places.local(0),
                        bytes: piece.bytes,
                    };
                    self.queue(back);
                    self.play_out();
                    0
                }
            };
            self.memory
                .copy_out(at as usize, &mut found)
                .expect("inside");
            assert!(found == expected, "{piece:?} is not as it was sent");
        }
    }
}

#[test]
fn whatever_happens_pieces_arrive_or_their_node_is_dead() {
    let seeds: Vec<u64> = match std::env::var("SIM_SEED") {
        Ok(seed) => vec![seed.parse().expect("a seed is a number")],
        Err(_) => (0..60).collect(),
    };
    let (mut arrived, mut died) = (0, 0);
    for seed in seeds {
        println!("SIM_SEED={seed}");
        let mut story = Story::begin(seed);
        story.run();
        arrived += story.transfer.progress().pieces_done;
        died += story.died.len();
    }
    println!("{arrived} pieces arrived, {died} nodes died");
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let digest = |seed| {
        let mut story = Story::begin(seed);
        story.run();
        story.network.digest()
    };
    assert_eq!(digest(5), digest(5));
}

//! Virtual time, the network, and who lives.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use mycoram_control::store::Disk;

use crate::control::Control;
use crate::dice::Dice;
use crate::faults::Fault;
use crate::memory_node::MemoryNode;
use crate::message::{Actor, Message};
use crate::owner::Owner;
use crate::truth::Truth;

pub(crate) const NODES: usize = 64;
pub(crate) const REGIONS: usize = 3;
/// Most processes of the control plane.
pub(crate) const CONTROLS: usize = 3;
pub(crate) const EXTENTS: u32 = 10;
pub(crate) const PAGES: u8 = 2;
/// Faults happen until then, ms.
pub(crate) const STORM_MS: u64 = 30_000;
/// Everything must be healed then, ms.
pub(crate) const CALM_MS: u64 = 150_000;
/// Steps of one run, at most.
const MAX_STEPS: u64 = 3_000_000;

/// A bug that is planted, so that it is seen that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    /// The new owner is told to go on before its predecessor is fenced.
    EarlyGoOn,
    /// Memory nodes take every epoch.
    DeafNodes,
    /// A stale mark is confirmed before it is durable.
    LazyMark,
    /// A copy is called done before all its pages are there.
    HastyCopy,
    /// A write is called done although a replica missed it.
    CarelessWrite,
    /// The store takes what a deposed leader writes.
    NoGuard,
    /// The store takes a commit that comes late, whatever was written since.
    NoRevision,
    /// A leader answers out of what it remembers, without asking whether that still holds.
    FromMemory,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Deliver {
        from: Actor,
        to: Actor,
        life: u64,
        message: Message,
    },
    /// A timer of an actor's own.
    Timer {
        of: Actor,
        life: u64,
        timer: Timer,
    },
    Fault(Fault),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Timer {
    /// Heartbeats, ticks, work.
    Beat,
    /// Nothing came of a task's request.
    Task { task: u64, stamp: u64 },
    /// Nothing came of a question.
    Question { number: u64 },
}

struct Queued {
    at: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// What actors may use: time, randomness, the network, the truth.
pub(crate) struct Sphere {
    pub(crate) now: u64,
    pub(crate) dice: Dice,
    pub(crate) truth: Truth,
    pub(crate) planted: Option<Planted>,
    queue: BinaryHeap<Reverse<Queued>>,
    sequence: u64,
    /// Lost of a thousand messages.
    pub(crate) loss_permille: u64,
    /// Late of a thousand messages.
    pub(crate) late_permille: u64,
    /// Pairs that do not hear each other.
    pub(crate) parted: Vec<(Actor, Actor)>,
    /// The life of each actor; messages to a former one are lost.
    lives: BTreeMap<Actor, u64>,
    /// Data between an owner and a node arrives in order.
    arrivals: BTreeMap<(Actor, Actor), u64>,
    /// Not before then does an actor take anything.
    pub(crate) paused: BTreeMap<Actor, u64>,
    /// Processes of the control plane.
    pub(crate) controls: usize,
    /// Which one an actor asks, and how often in vain.
    asked: Vec<(usize, u32)>,
    /// A node to drain, or to take back; by whoever leads.
    pub(crate) drain: Option<(usize, bool)>,
}

impl Sphere {
    pub(crate) fn life(&self, actor: Actor) -> u64 {
        self.lives.get(&actor).copied().unwrap_or(0)
    }

    /// A new life of an actor: nothing that was meant for the former one reaches it.
    pub(crate) fn begin_life(&mut self, actor: Actor) -> u64 {
        let life = self.lives.entry(actor).or_insert(0);
        *life += 1;
        *life
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.queue.push(Reverse(Queued {
            at,
            sequence,
            event,
        }));
    }

    pub(crate) fn timer(&mut self, of: Actor, in_ms: u64, timer: Timer) {
        let life = self.life(of);
        self.at(self.now + in_ms, Event::Timer { of, life, timer });
    }

    pub(crate) fn send(&mut self, from: Actor, to: Actor, message: Message) {
        let parted = self
            .parted
            .iter()
            .any(|pair| *pair == (from, to) || *pair == (to, from));
        if parted {
            return self.truth.figures.met(Trouble::Parted);
        }
        if self.dice.permille(self.loss_permille) {
            return self.truth.figures.met(Trouble::MessageLost);
        }
        let mut at = self.now + self.dice.within(1, 6);
        if self.dice.permille(self.late_permille) {
            at += self.dice.within(50, 2_000);
            self.truth.figures.met(Trouble::MessageLate);
        }
        if matches!(message, Message::Request(_) | Message::Outcome { .. }) {
            let last = self.arrivals.entry((from, to)).or_insert(0);
            at = at.max(*last);
            *last = at;
        }
        let life = self.life(to);
        self.at(
            at,
            Event::Deliver {
                from,
                to,
                life,
                message,
            },
        );
    }

    /// To the process of the control plane that answered last; another one after two that were not answered.
    pub(crate) fn ask_control(&mut self, from: Actor, message: Message) {
        let (control, in_vain) = &mut self.asked[from.asks_as()];
        if *in_vain == 2 {
            (*control, *in_vain) = ((*control + 1) % self.controls, 0);
        }
        *in_vain += 1;
        let control = Actor::Control(*control);
        self.send(from, control, message);
    }
}

pub(crate) struct World {
    pub(crate) sphere: Sphere,
    pub(crate) controls: Vec<Control>,
    pub(crate) nodes: Vec<MemoryNode>,
    pub(crate) owners: Vec<Owner>,
}

impl World {
    pub(crate) fn new(seed: u64, planted: Option<Planted>) -> Self {
        let mut dice = Dice::new(seed);
        let (loss_permille, late_permille) = match dice.below(3) {
            0 => (0, 0),
            1 => (2, 5),
            _ => (10, 20),
        };
        let controls = 1 + dice.below(CONTROLS);
        let disk = Disk::default();
        if planted == Some(Planted::NoGuard) {
            disk.leave_out_the_guard();
        }
        if planted == Some(Planted::NoRevision) {
            disk.leave_out_the_revision();
        }
        let sphere = Sphere {
            now: 0,
            truth: Truth::new(),
            dice,
            planted,
            queue: BinaryHeap::new(),
            sequence: 0,
            loss_permille,
            late_permille,
            parted: Vec::new(),
            lives: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            paused: BTreeMap::new(),
            controls,
            asked: vec![(0, 0); NODES + 2 * REGIONS],
            drain: None,
        };
        let mut world = Self {
            sphere,
            controls: (0..controls)
                .map(|index| Control::new(index, controls > 1, disk.clone(), planted))
                .collect(),
            nodes: (0..NODES).map(MemoryNode::new).collect(),
            owners: (0..2 * REGIONS).map(Owner::new).collect(),
        };
        for control in &mut world.controls {
            control.start(&mut world.sphere);
        }
        for node in &mut world.nodes {
            node.start(&mut world.sphere);
        }
        for region in 0..REGIONS {
            let delay = world.sphere.dice.within(2_500, 4_000);
            world
                .sphere
                .at(delay, Event::Fault(Fault::OwnerStarts(region)));
        }
        world.plan_faults();
        world
    }

    /// Runs until everything is healed; an `Err` says what was broken, and when.
    pub(crate) fn run(mut self) -> Result<Figures, String> {
        let mut steps = 0;
        while let Some(Reverse(queued)) = self.sphere.queue.pop() {
            self.sphere.now = queued.at;
            self.step(queued.event);
            steps += 1;
            if let Some(broken) = &self.sphere.truth.broken {
                return Err(format!("at {} ms: {broken}", self.sphere.now));
            }
            if self.sphere.now > STORM_MS + 5_000 && steps % 64 == 0 && self.is_healed() {
                return Ok(self.sphere.truth.figures);
            }
            if self.sphere.now > CALM_MS || steps > MAX_STEPS {
                return Err(format!("it never heals: {}", self.what_is_ill()));
            }
        }
        Err("nothing happens any more".to_owned())
    }

    fn step(&mut self, event: Event) {
        let (to, life) = match &event {
            Event::Deliver { to, life, .. } => (*to, *life),
            Event::Timer { of, life, .. } => (*of, *life),
            Event::Fault(fault) => return self.happen(*fault),
        };
        if life != self.sphere.life(to) {
            return;
        }
        let paused = self.sphere.paused.get(&to).copied().unwrap_or(0);
        if paused > self.sphere.now {
            self.sphere.truth.figures.met(match to {
                Actor::Node(_) => Trouble::NodePaused,
                Actor::Owner(_) => Trouble::OwnerPaused,
                Actor::Control(_) => Trouble::ControlPaused,
            });
            return self.sphere.at(paused, event);
        }
        if let Event::Deliver {
            from: Actor::Control(control),
            ..
        } = &event
        {
            self.sphere.asked[to.asks_as()] = (*control, 0);
        }
        match (to, event) {
            (Actor::Control(control), Event::Deliver { message, .. }) => {
                self.controls[control].take(&mut self.sphere, message);
            }
            (Actor::Control(control), _) => self.controls[control].beat(&mut self.sphere),
            (Actor::Node(node), Event::Deliver { message, .. }) => {
                self.nodes[node].take(&mut self.sphere, message);
            }
            (Actor::Node(node), _) => self.nodes[node].beat(&mut self.sphere),
            (Actor::Owner(owner), Event::Deliver { message, .. }) => {
                self.owners[owner].take(&mut self.sphere, message);
            }
            (Actor::Owner(owner), Event::Timer { timer, .. }) => {
                self.owners[owner].timer(&mut self.sphere, timer);
            }
            (Actor::Owner(_), Event::Fault(_)) => {}
        }
        self.sphere.truth.look(&self.nodes);
    }

    fn is_healed(&self) -> bool {
        self.ill().is_none()
    }

    fn what_is_ill(&self) -> String {
        self.ill().unwrap_or_default()
    }

    fn ill(&self) -> Option<String> {
        let restless = self.owners.iter().find(|owner| !owner.is_at_rest());
        if let Some(owner) = restless {
            return Some(format!(
                "the owner of region {} is busy: {}",
                owner.region,
                owner.what()
            ));
        }
        for region in 0..REGIONS {
            let slots = [&self.owners[region], &self.owners[region + REGIONS]];
            if !slots.iter().any(|owner| owner.is_running()) {
                return Some(format!("region {region} has no owner"));
            }
        }
        self.sphere.truth.ill(&self.nodes)
    }
}

/// What goes wrong by itself or is done; that it did is counted, or nobody would notice that it never does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    MessageLost,
    MessageLate,
    Parted,
    NodePaused,
    OwnerPaused,
    ControlPaused,
    NodeStarted,
    DiskFull,
    ClockSet,
    CutOff,
    Drained,
}

impl Trouble {
    const COUNT: usize = Self::Drained as usize + 1;
}

/// What happened in a run, to see that a simulation does simulate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) writes: u64,
    pub(crate) reads: u64,
    pub(crate) stale_marks: u64,
    pub(crate) copies: u64,
    pub(crate) takeovers: u64,
    pub(crate) refused_epochs: u64,
    pub(crate) node_deaths: u64,
    pub(crate) control_deaths: u64,
    pub(crate) terms: u64,
    pub(crate) deposed: u64,
    pub(crate) failed_commits: u64,
    /// Commits that came late and were done, and those that were not.
    pub(crate) late_commits: u64,
    pub(crate) too_late_commits: u64,
    pub(crate) lost_extents: u64,
    pub(crate) steps: u64,
    /// By [`Trouble`].
    pub(crate) troubles: [u64; Trouble::COUNT],
}

impl Figures {
    pub(crate) fn add(&mut self, other: &Self) {
        self.writes += other.writes;
        self.reads += other.reads;
        self.stale_marks += other.stale_marks;
        self.copies += other.copies;
        self.takeovers += other.takeovers;
        self.refused_epochs += other.refused_epochs;
        self.node_deaths += other.node_deaths;
        self.control_deaths += other.control_deaths;
        self.terms += other.terms;
        self.deposed += other.deposed;
        self.failed_commits += other.failed_commits;
        self.late_commits += other.late_commits;
        self.too_late_commits += other.too_late_commits;
        self.lost_extents += other.lost_extents;
        self.steps += other.steps;
        for (sum, more) in self.troubles.iter_mut().zip(other.troubles) {
            *sum += more;
        }
    }

    pub(crate) fn met(&mut self, trouble: Trouble) {
        self.troubles[trouble as usize] += 1;
    }
}

//! What goes wrong, and when. Drawn from the seed before the run.

use mycoram_control::store::Fault as StoreFault;

use crate::message::Actor;
use crate::world::{Event, NODES, REGIONS, STORM_MS, Trouble, World};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    NodeDies(usize),
    NodeStarts,
    Pause(Actor, u64),
    Part(Actor, Actor),
    Heal,
    ControlDies(usize),
    ControlStarts(usize),
    Store(StoreFault),
    /// Commits that were delayed come to the store.
    CommitsArrive,
    /// A process of the control plane does not reach the store, or does again.
    CutOff(usize, bool),
    /// A machine's clock is set: forward, or back.
    Clock {
        control: usize,
        ms: u64,
        back: bool,
    },
    OwnerStarts(usize),
    OwnerDies(usize),
    /// There must be an owner.
    Supervise,
    Drain(usize, bool),
    Calm,
}

const SUPERVISE_MS: u64 = 1_500;

impl World {
    pub(crate) fn plan_faults(&mut self) {
        let begin = 5_000;
        let count = self.sphere.dice.within(4, 26);
        for _ in 0..count {
            let at = self.sphere.dice.within(begin, STORM_MS);
            self.plan_one(at);
        }
        self.sphere
            .at(SUPERVISE_MS + 4_000, Event::Fault(Fault::Supervise));
        self.sphere.at(STORM_MS, Event::Fault(Fault::Calm));
    }

    fn plan_one(&mut self, at: u64) {
        let dice = &mut self.sphere.dice;
        let lasting = dice.within(200, 12_000);
        let until = (at + lasting).min(STORM_MS - 1);
        // Most of what happens is to happen to nodes that hold something: those are drawn when it happens.
        let (node, region) = (dice.below(NODES), dice.below(REGIONS));
        let owner = dice.below(2 * REGIONS);
        let control = dice.below(self.sphere.controls);
        let pair = match dice.below(3) {
            0 => (Actor::Control(control), Actor::Node(node)),
            1 => (Actor::Control(control), Actor::Owner(owner)),
            _ => (Actor::Owner(owner), Actor::Node(node)),
        };
        let (first, second) = match dice.below(15) {
            0 | 1 => (Fault::NodeDies(node), Some(Fault::NodeStarts)),
            2 => (Fault::Pause(Actor::Node(node), lasting), None),
            3 => (Fault::Pause(Actor::Owner(owner), lasting), None),
            4 => (Fault::Pause(Actor::Control(control), lasting), None),
            5 | 6 => (Fault::Part(pair.0, pair.1), Some(Fault::Heal)),
            7 => (
                Fault::ControlDies(control),
                Some(Fault::ControlStarts(control)),
            ),
            8 => (
                Fault::Store(StoreFault::Full),
                Some(Fault::Store(StoreFault::None)),
            ),
            9 => {
                let fault = if dice.permille(500) {
                    StoreFault::LoseNext
                } else {
                    StoreFault::KeepNext
                };
                (Fault::Store(fault), None)
            }
            13 | 14 => (
                Fault::Store(StoreFault::DelayNext),
                Some(Fault::CommitsArrive),
            ),
            10 => match dice.below(3) {
                0 => (
                    Fault::Clock {
                        control,
                        ms: dice.within(1, 1 << 36),
                        back: dice.permille(500),
                    },
                    None,
                ),
                1 => (Fault::Drain(node, true), Some(Fault::Drain(node, false))),
                _ => (Fault::OwnerDies(owner), None),
            },
            11 => (
                Fault::CutOff(control, true),
                Some(Fault::CutOff(control, false)),
            ),
            // Also while the former one lives.
            _ => (Fault::OwnerStarts(region), None),
        };
        self.sphere.at(at, Event::Fault(first));
        if let Some(second) = second {
            self.sphere.at(until, Event::Fault(second));
        }
    }

    /// A node that holds something, in most cases: there most goes wrong.
    fn aim(&mut self, node: usize) -> usize {
        let holders: Vec<usize> = self
            .nodes
            .iter()
            .filter(|node| !node.memory.is_empty())
            .map(|node| node.index)
            .collect();
        if holders.is_empty() || self.sphere.dice.permille(100) {
            node
        } else {
            holders[self.sphere.dice.below(holders.len())]
        }
    }

    fn aim_actor(&mut self, actor: Actor) -> Actor {
        match actor {
            Actor::Node(node) => Actor::Node(self.aim(node)),
            other => other,
        }
    }

    pub(crate) fn happen(&mut self, fault: Fault) {
        match fault {
            Fault::NodeDies(node) => {
                let node = self.aim(node);
                if self.nodes[node].alive {
                    self.sphere.truth.figures.node_deaths += 1;
                    self.nodes[node].die(&mut self.sphere);
                }
            }
            Fault::NodeStarts => {
                // Some stay dead until the end.
                let dead: Vec<usize> = self
                    .nodes
                    .iter()
                    .filter(|node| !node.alive)
                    .map(|node| node.index)
                    .collect();
                if !dead.is_empty() {
                    let node = dead[self.sphere.dice.below(dead.len())];
                    self.nodes[node].start(&mut self.sphere);
                    self.sphere.truth.figures.met(Trouble::NodeStarted);
                }
            }
            Fault::Pause(actor, ms) => {
                let actor = self.aim_actor(actor);
                let until = self.sphere.now + ms;
                self.sphere.paused.insert(actor, until);
            }
            Fault::Part(a, b) => {
                let pair = (self.aim_actor(a), self.aim_actor(b));
                self.sphere.parted.push(pair);
            }
            Fault::Heal => {
                if !self.sphere.parted.is_empty() {
                    self.sphere.parted.remove(0);
                }
            }
            Fault::ControlDies(control) => {
                self.sphere.truth.figures.control_deaths += 1;
                self.controls[control].die(&mut self.sphere);
            }
            Fault::ControlStarts(control) => {
                if !self.controls[control].is_alive() {
                    self.controls[control].start(&mut self.sphere);
                }
            }
            Fault::Store(fault) => self.controls[0].disk.set_fault(fault),
            Fault::CommitsArrive => self.commits_arrive(),
            Fault::CutOff(control, cut_off) => {
                // The file of a store of one process is where the process is.
                self.controls[control].set_cut_off(cut_off && self.sphere.controls > 1);
            }
            Fault::Clock { control, ms, back } => {
                self.sphere.truth.figures.met(Trouble::ClockSet);
                let clock = &mut self.controls[control].clock_ahead_ms;
                *clock = if back {
                    clock.saturating_sub(ms)
                } else {
                    clock.saturating_add(ms)
                };
            }
            Fault::OwnerStarts(region) => {
                let slot = if self.owners[region].is_alive() {
                    region + REGIONS
                } else {
                    region
                };
                self.owners[slot].start(&mut self.sphere);
            }
            Fault::OwnerDies(owner) => self.owners[owner].die(&mut self.sphere),
            Fault::Supervise => {
                for region in 0..REGIONS {
                    let alive = |slot: usize| self.owners[slot].is_alive();
                    if !alive(region) && !alive(region + REGIONS) {
                        let slot = region + REGIONS * self.sphere.dice.below(2);
                        self.owners[slot].start(&mut self.sphere);
                    }
                }
                self.sphere.at(
                    self.sphere.now + SUPERVISE_MS,
                    Event::Fault(Fault::Supervise),
                );
            }
            Fault::Drain(node, begin) => self.sphere.drain = Some((node, begin)),
            Fault::Calm => self.calm(),
        }
    }

    fn commits_arrive(&mut self) {
        let disk = self.controls[0].disk.clone();
        disk.set_time(self.sphere.now);
        let (came, done) = disk.arrive();
        let truth = &mut self.sphere.truth;
        truth.figures.late_commits += done.len() as u64;
        truth.figures.too_late_commits += (came - done.len()) as u64;
        done.iter().for_each(|batch| truth.see_batch(batch));
        truth.look(&self.nodes);
    }

    /// All faults are over.
    fn calm(&mut self) {
        self.sphere.parted.clear();
        self.sphere.paused.clear();
        self.sphere.loss_permille = 0;
        self.sphere.late_permille = 0;
        self.controls[0].disk.set_fault(StoreFault::None);
        self.commits_arrive();
        for control in &mut self.controls {
            control.set_cut_off(false);
            if !control.is_alive() {
                control.start(&mut self.sphere);
            }
        }
        for node in &mut self.nodes {
            if !node.alive {
                node.start(&mut self.sphere);
            }
        }
    }
}

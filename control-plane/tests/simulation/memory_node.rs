//! A memory node: it keeps pages, and refuses epochs that are over.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mycoram_control::cluster::{Confirm, Heartbeat, NodeAddress, NodeId, NodeOrder, Register};
use mycoram_fabric::placement::FailureDomain;
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, Incarnation, RegionId};

use crate::message::{Actor, Message, Outcome, Request, Verb, Version};
use crate::world::{PAGES, Planted, Sphere, Timer};

const HEARTBEAT_MS: u64 = 1_000;
/// Extents that fit on a node.
pub(crate) const ROOM: u64 = 24;
pub(crate) const EXTENT: ByteCount = ByteCount::mib(16);

pub(crate) type Pages = [Option<Version>; PAGES as usize];

pub(crate) struct MemoryNode {
    pub(crate) index: usize,
    pub(crate) alive: bool,
    id: Option<NodeId>,
    /// The least that is served: epoch, and the session of its owner.
    floors: BTreeMap<RegionId, (Epoch, u64)>,
    pub(crate) memory: BTreeMap<(RegionId, ExtentIndex), Pages>,
}

impl MemoryNode {
    pub(crate) fn new(index: usize) -> Self {
        Self {
            index,
            alive: false,
            id: None,
            floors: BTreeMap::new(),
            memory: BTreeMap::new(),
        }
    }

    pub(crate) fn actor(&self) -> Actor {
        Actor::Node(self.index)
    }

    pub(crate) fn life(&self, sphere: &Sphere) -> u64 {
        sphere.life(self.actor())
    }

    /// Its process starts, with empty memory.
    pub(crate) fn start(&mut self, sphere: &mut Sphere) {
        let life = sphere.begin_life(self.actor());
        sphere.truth.set_life(self.index, Some(life));
        self.alive = true;
        let delay = sphere.dice.within(0, HEARTBEAT_MS);
        sphere.timer(self.actor(), delay, Timer::Beat);
    }

    /// Its process is killed.
    pub(crate) fn die(&mut self, sphere: &mut Sphere) {
        sphere.begin_life(self.actor());
        sphere.truth.set_life(self.index, None);
        *self = Self::new(self.index);
    }

    pub(crate) fn beat(&mut self, sphere: &mut Sphere) {
        let message = match self.id {
            None => Message::Register(self.register(sphere)),
            Some(node) => Message::Heartbeat(Heartbeat {
                node,
                incarnation: Incarnation::new(self.life(sphere)),
                load_percent: 10,
            }),
        };
        sphere.ask_control(self.actor(), message);
        sphere.timer(self.actor(), HEARTBEAT_MS, Timer::Beat);
    }

    fn register(&self, sphere: &Sphere) -> Register {
        Register {
            name: format!("n{}", self.index),
            addresses: vec![NodeAddress {
                transport: TransportKind::Sim,
                control: SocketAddr::from(([10, 0, 0, 1], self.index as u16)),
            }],
            domain: FailureDomain {
                rack: format!("rack{}", self.index / 4),
                host: format!("h{}", self.index),
                ..FailureDomain::default()
            },
            capacity: ByteCount::new(EXTENT.get() * ROOM),
            incarnation: Incarnation::new(self.life(sphere)),
        }
    }

    pub(crate) fn take(&mut self, sphere: &mut Sphere, message: Message) {
        match message {
            Message::Registered(id) => self.id = Some(id),
            Message::RegisterAgain => self.id = None,
            Message::NodeOrders(orders) => {
                for order in orders {
                    self.obey(sphere, order);
                }
            }
            Message::Request(request) => {
                let outcome = self.serve(sphere, &request);
                let answer = Message::Outcome {
                    task: request.task,
                    node: self.index,
                    session: request.session,
                    outcome,
                };
                sphere.send(self.actor(), Actor::Owner(request.owner), answer);
            }
            _ => {}
        }
    }

    fn obey(&mut self, sphere: &mut Sphere, order: NodeOrder) {
        match order {
            NodeOrder::Fence { region, epoch, .. } => {
                let floor = self.floors.entry(region).or_insert((epoch, 0));
                *floor = (*floor).max((epoch, 0));
            }
            NodeOrder::Release { region, .. } => self.memory.retain(|(of, _), _| *of != region),
        }
        if let Some(node) = self.id {
            let incarnation = Incarnation::new(self.life(sphere));
            let confirm = Message::Confirm(Confirm {
                node,
                incarnation,
                order,
            });
            sphere.ask_control(self.actor(), confirm);
        }
    }

    fn serve(&mut self, sphere: &mut Sphere, request: &Request) -> Outcome {
        if request.life != self.life(sphere) {
            return Outcome::Failed;
        }
        let asked = (request.epoch, request.session);
        let floor = self.floors.entry(request.region).or_insert(asked);
        if request.epoch < floor.0 && sphere.planted != Some(Planted::DeafNodes) {
            sphere.truth.figures.refused_epochs += 1;
            return Outcome::EpochTooLow;
        }
        if request.epoch == floor.0 && request.session < floor.1 {
            return Outcome::Failed;
        }
        *floor = (*floor).max(asked);
        let key = (request.region, request.extent);
        match request.verb {
            Verb::Read { page } => {
                let pages = self.memory.get(&key);
                Outcome::Page(pages.and_then(|pages| pages[usize::from(page)]))
            }
            Verb::Drop => {
                self.memory.remove(&key);
                sphere.truth.touched(request.region, request.extent);
                Outcome::Ok
            }
            Verb::Write { page, version } => {
                let pages = self.memory.entry(key).or_default();
                pages[usize::from(page)] = Some(version);
                sphere.truth.accepted(self.index, request);
                Outcome::Ok
            }
        }
    }
}

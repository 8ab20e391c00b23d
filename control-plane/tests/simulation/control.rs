//! The control plane's process: the state machine, its store, and its death.

use mycoram_control::cluster::{
    Acquire, Acquired, BeginTerm, Cluster, Command, Copied, CreateRegion, Drain, Dropped, EndDrain,
    Homes, LeaseRefusal, Limits, Locality, MarkStale, NodeRefusal, OwnerId, Place, PriorityClass,
    RegionPolicy, RegionRefusal, Renew, ReplicaRefusal, Report, Seen, Tick,
};
use mycoram_control::cluster::{Order, ReplicaState};
use mycoram_control::store::{Disk, Fault, MemoryStore, Revision, Store, StoreError};
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, RegionId, TenantId};

use crate::memory_node::EXTENT;
use crate::message::{self, Actor, Ask, Message, Reply};
use crate::world::{EXTENTS, Planted, REGIONS, Sphere, Timer};

const TICK_MS: u64 = 500;

pub(crate) fn region_id(region: usize) -> RegionId {
    RegionId::new(region as u64 + 1)
}

pub(crate) fn replicas_of(region: usize) -> u8 {
    [2, 2, 3][region % 3]
}

struct Running {
    cluster: Cluster,
    store: MemoryStore,
    revision: Revision,
}

pub(crate) struct Control {
    pub(crate) disk: Disk,
    running: Option<Running>,
    /// What the machine's clock shows more than the time.
    pub(crate) clock_ahead_ms: u64,
    pub(crate) drain: Option<(usize, bool)>,
}

/// Why there is no answer.
enum Silence {
    /// The step was undone.
    NotDurable,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self {
            disk: Disk::default(),
            running: None,
            clock_ahead_ms: 1 << 40,
            drain: None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(crate) fn start(&mut self, sphere: &mut Sphere) {
        sphere.begin_life(Actor::Control);
        self.load(sphere);
        sphere.timer(Actor::Control, TICK_MS, Timer::Beat);
    }

    pub(crate) fn die(&mut self, sphere: &mut Sphere) {
        sphere.begin_life(Actor::Control);
        self.running = None;
    }

    /// What is durable is all it knows.
    fn load(&mut self, sphere: &mut Sphere) {
        let mut store = MemoryStore::new(self.disk.clone());
        let loaded = store.load().expect("the disk can be read");
        sphere.truth.see_disk(&loaded);
        let cluster = Cluster::load(Limits::default(), loaded.records).expect("its own records");
        self.running = Some(Running {
            cluster,
            store,
            revision: loaded.revision,
        });
        // With a full disk it leads all the same, and changes nothing.
        let _ = self.apply(sphere, &BeginTerm);
    }

    /// `Err`: nothing may be said, it was not made durable.
    fn apply<C: Command>(
        &mut self,
        sphere: &mut Sphere,
        command: &C,
    ) -> Result<Result<C::Answer, C::Refusal>, Silence> {
        let now = sphere.now + self.clock_ahead_ms;
        let running = self.running.as_mut().ok_or(Silence::NotDurable)?;
        let step = match running.cluster.apply(now, command) {
            Ok(step) => step,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if step.changes.batch().is_empty() {
            return Ok(Ok(step.answer));
        }
        match running.store.commit(running.revision, step.changes.batch()) {
            Ok(revision) => {
                running.revision = revision;
                sphere.truth.see_batch(step.changes.batch());
                Ok(Ok(step.answer))
            }
            Err(StoreError::Full(_)) => {
                sphere.truth.figures.failed_commits += 1;
                running.cluster.undo(step.changes);
                Err(Silence::NotDurable)
            }
            Err(StoreError::Failed(_)) => {
                sphere.truth.figures.failed_commits += 1;
                // Done or not: the store knows.
                let loaded = running.store.load().expect("the disk can be read");
                sphere.truth.see_disk(&loaded);
                running.revision = loaded.revision;
                running.cluster =
                    Cluster::load(Limits::default(), loaded.records).expect("its own records");
                Err(Silence::NotDurable)
            }
            Err(other) => panic!("one control plane writes this disk: {other}"),
        }
    }

    pub(crate) fn beat(&mut self, sphere: &mut Sphere) {
        for region in 0..REGIONS {
            self.create(sphere, region);
        }
        if let Some((node, begin)) = self.drain {
            let node = format!("n{node}");
            let done = if begin {
                self.apply(sphere, &Drain { node }).is_ok()
            } else {
                self.apply(sphere, &EndDrain { node }).is_ok()
            };
            if done {
                self.drain = None;
            }
        }
        if let Ok(Err(illegal)) = self.apply(sphere, &Tick) {
            sphere
                .truth
                .break_with(format!("a tick is refused: {illegal}"));
        }
        sphere.timer(Actor::Control, TICK_MS, Timer::Beat);
    }

    fn create(&mut self, sphere: &mut Sphere, region: usize) {
        let known = self
            .running
            .as_ref()
            .is_some_and(|running| running.cluster.region(region_id(region)).is_some());
        if known {
            return;
        }
        let create = CreateRegion {
            id: region_id(region),
            name: format!("region{region}"),
            tenant: TenantId::new(1),
            bytes: ByteCount::new(EXTENT.get() * u64::from(EXTENTS)),
            extent_bytes: EXTENT,
            replicas: replicas_of(region),
            policy: RegionPolicy::default(),
            class: PriorityClass::Normal,
            locality: Locality::anywhere(),
            reservation: None,
            secret: [region as u8; 16],
        };
        // Too few nodes have registered: at the next beat.
        let _ = self.apply(sphere, &create);
    }

    pub(crate) fn take(&mut self, sphere: &mut Sphere, message: Message) {
        match message {
            Message::Register(register) => {
                let node = index_of(&register.name);
                if let Ok(Ok(registered)) = self.apply(sphere, &register) {
                    sphere.send(
                        Actor::Control,
                        Actor::Node(node),
                        Message::Registered(registered.node),
                    );
                }
            }
            Message::Heartbeat(heartbeat) => {
                let Some(node) = self.index(heartbeat.node) else {
                    return;
                };
                match self.apply(sphere, &heartbeat) {
                    Ok(Ok(heard)) if heard.state == mycoram_control::cluster::NodeState::Left => {
                        sphere.send(Actor::Control, Actor::Node(node), Message::RegisterAgain);
                    }
                    Ok(Ok(heard)) => {
                        sphere.send(
                            Actor::Control,
                            Actor::Node(node),
                            Message::NodeOrders(heard.orders),
                        );
                    }
                    Ok(Err(NodeRefusal::Unknown { .. } | NodeRefusal::Replaced { .. })) => {
                        sphere.send(Actor::Control, Actor::Node(node), Message::RegisterAgain);
                    }
                    Ok(Err(other)) => sphere
                        .truth
                        .break_with(format!("a heartbeat is refused: {other}")),
                    Err(Silence::NotDurable) => {}
                }
            }
            Message::Confirm(confirm) => {
                let _ = self.apply(sphere, &confirm);
            }
            Message::Ask {
                owner,
                life,
                number,
                epoch,
                ask,
            } => {
                if let Ok(reply) = self.answer(sphere, owner, life, number, epoch, ask) {
                    sphere.send(
                        Actor::Control,
                        Actor::Owner(owner),
                        Message::Reply { number, reply },
                    );
                }
            }
            _ => {}
        }
    }

    fn answer(
        &mut self,
        sphere: &mut Sphere,
        owner: usize,
        life: u64,
        number: u64,
        epoch: Epoch,
        ask: Ask,
    ) -> Result<Reply, Silence> {
        let region = region_id(owner % REGIONS);
        match ask {
            Ask::Acquire { waiting_for } => {
                let acquire = Acquire {
                    region,
                    owner: OwnerId::new(life << 8 | owner as u64),
                    take_over: true,
                    waiting_for,
                };
                let early = sphere.planted == Some(Planted::EarlyGoOn);
                Ok(match self.apply(sphere, &acquire)? {
                    Ok(Acquired::GoOn {
                        epoch,
                        region: record,
                        ..
                    }) => {
                        sphere.truth.go_on(owner, epoch, record.lease.unfenced());
                        Reply::GoOn { epoch }
                    }
                    Ok(Acquired::Wait { epoch, .. }) if early => {
                        sphere.truth.go_on(owner, epoch, &[]);
                        Reply::GoOn { epoch }
                    }
                    Ok(Acquired::Wait { epoch, .. }) => Reply::Wait { epoch: Some(epoch) },
                    Err(LeaseRefusal::UnknownRegion(_)) => Reply::Wait { epoch: None },
                    Err(LeaseRefusal::EpochTooLow { .. }) => Reply::Fenced,
                    Err(other) => {
                        sphere
                            .truth
                            .break_with(format!("a take-over is refused: {other}"));
                        Reply::Refused
                    }
                })
            }
            Ask::Directory => {
                let first = ExtentIndex::new(0);
                let running = self.running.as_ref().ok_or(Silence::NotDurable)?;
                Ok(match running.cluster.directory(region, epoch, first) {
                    Ok(homes) => self.homes(homes),
                    Err(refusal) => lease(&refusal),
                })
            }
            Ask::Place { extents } => {
                let place = Place {
                    region,
                    epoch,
                    round: number,
                    extents,
                    without: Vec::new(),
                };
                Ok(match self.apply(sphere, &place)? {
                    Ok(homes) => self.homes(homes),
                    Err(RegionRefusal::Lease(refusal)) => lease(&refusal),
                    Err(_) => Reply::Refused,
                })
            }
            Ask::MarkStale { replicas, .. } => {
                let mark = MarkStale {
                    region,
                    epoch,
                    replicas,
                };
                if sphere.planted == Some(Planted::LazyMark) && sphere.dice.permille(300) {
                    // Said first, and then the process dies.
                    return Ok(Reply::Done);
                }
                let marked = self.apply(sphere, &mark)?;
                if marked.is_ok() {
                    sphere.truth.figures.stale_marks += 1;
                }
                Ok(replica(marked))
            }
            Ask::Report { node } => {
                let report = Report {
                    node: format!("n{node}"),
                    seen: Seen::Unreachable,
                };
                let _ = self.apply(sphere, &report)?;
                Ok(Reply::Done)
            }
            Ask::Orders => self.orders(region, epoch),
            Ask::Renew => Ok(match self.apply(sphere, &Renew { region, epoch })? {
                Ok(_) => Reply::Done,
                Err(refusal) => lease(&refusal),
            }),
            Ask::Copied { extent, to, order } => {
                let copied = Copied {
                    region,
                    epoch,
                    extent,
                    node: to.id,
                    order,
                };
                let copied = self.apply(sphere, &copied)?;
                if copied.is_ok() {
                    sphere.truth.figures.copies += 1;
                }
                Ok(replica(copied))
            }
            Ask::Dropped { extent, node } => {
                let dropped = Dropped {
                    region,
                    epoch,
                    extent,
                    node,
                };
                Ok(replica(self.apply(sphere, &dropped)?))
            }
        }
    }

    fn orders(&self, region: RegionId, epoch: Epoch) -> Result<Reply, Silence> {
        let running = self.running.as_ref().ok_or(Silence::NotDurable)?;
        let orders = match running.cluster.orders(region, epoch) {
            Ok(orders) => orders,
            Err(refusal) => return Ok(lease(&refusal)),
        };
        let (mut copies, mut drops) = (Vec::new(), Vec::new());
        for order in orders {
            match order {
                Order::Copy {
                    extent, to, order, ..
                } => copies.extend(self.place(to).map(|place| (extent, place, order))),
                Order::Drop { extent, node, .. } => {
                    drops.extend(self.place(node).map(|place| (extent, place)))
                }
            }
        }
        Ok(Reply::Orders { copies, drops })
    }

    fn homes(&self, homes: Vec<(ExtentIndex, Homes)>) -> Reply {
        let live = |homes: &Homes| {
            let live = homes
                .replicas
                .iter()
                .filter(|replica| replica.state == ReplicaState::Live);
            live.filter_map(|replica| self.place(replica.node))
                .collect()
        };
        Reply::Homes {
            homes: homes
                .iter()
                .map(|(extent, homes)| (*extent, live(homes)))
                .collect(),
        }
    }

    fn place(&self, id: mycoram_control::cluster::NodeId) -> Option<message::Place> {
        let node = self.running.as_ref()?.cluster.node(id)?;
        Some(message::Place {
            id,
            node: index_of(&node.name),
            life: node.incarnation.get(),
        })
    }

    fn index(&self, id: mycoram_control::cluster::NodeId) -> Option<usize> {
        self.place(id).map(|place| place.node)
    }

    pub(crate) fn set_fault(&self, fault: Fault) {
        self.disk.set_fault(fault);
    }
}

fn lease(refusal: &LeaseRefusal) -> Reply {
    match refusal {
        LeaseRefusal::EpochTooLow { .. } => Reply::Fenced,
        _ => Reply::Refused,
    }
}

fn replica(outcome: Result<(), ReplicaRefusal>) -> Reply {
    match outcome {
        Ok(()) => Reply::Done,
        Err(ReplicaRefusal::Lease(refusal)) => lease(&refusal),
        Err(_) => Reply::Refused,
    }
}

fn index_of(name: &str) -> usize {
    name[1..]
        .parse()
        .expect("nodes are called n0, n1 and so on")
}

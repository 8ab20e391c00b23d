//! A process of the control plane: the state machine, its store, and its death. Where there are several, they
//! share the store, and one leads.

use mycoram_control::cluster::{
    Acquire, Acquired, BeginTerm, Cluster, Command, Copied, CreateRegion, Drain, Dropped, EndDrain,
    Homes, LeaseRefusal, Limits, Locality, MarkStale, NodeRefusal, OwnerId, Place, PriorityClass,
    RegionPolicy, RegionRefusal, Renew, ReplicaRefusal, Report, Seen, Tick,
};
use mycoram_control::cluster::{Order, ReplicaState};
use mycoram_control::store::{Disk, Lead, MemoryStore, Revision, Store, StoreError};
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
    guard: u64,
    cluster: Cluster,
    revision: Revision,
    term: u64,
}

pub(crate) struct Control {
    index: usize,
    shared: bool,
    pub(crate) disk: Disk,
    alive: bool,
    cut_off: bool,
    store: MemoryStore,
    /// While it leads.
    running: Option<Running>,
    /// What the machine's clock shows more than the time.
    pub(crate) clock_ahead_ms: u64,
}

/// Why there is no answer.
enum Silence {
    /// The step was undone, or what is remembered could not be confirmed.
    NotDurable,
}

impl Control {
    pub(crate) fn new(index: usize, shared: bool, disk: Disk) -> Self {
        Self {
            index,
            shared,
            alive: false,
            cut_off: false,
            store: open(&disk, shared),
            disk,
            running: None,
            clock_ahead_ms: 1 << 40,
        }
    }

    fn actor(&self) -> Actor {
        Actor::Control(self.index)
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive
    }

    pub(crate) fn set_cut_off(&mut self, cut_off: bool) {
        self.cut_off = cut_off;
        self.store.set_cut_off(cut_off);
    }

    pub(crate) fn start(&mut self, sphere: &mut Sphere) {
        sphere.begin_life(self.actor());
        self.alive = true;
        self.store = open(&self.disk, self.shared);
        self.store.set_cut_off(self.cut_off);
        self.lead(sphere);
        sphere.timer(self.actor(), TICK_MS, Timer::Beat);
    }

    pub(crate) fn die(&mut self, sphere: &mut Sphere) {
        sphere.begin_life(self.actor());
        self.alive = false;
        self.running = None;
    }

    /// Leads if it can. What is durable is all that it then knows.
    fn lead(&mut self, sphere: &mut Sphere) {
        self.disk.set_time(sphere.now);
        match self.store.lead(&self.index.to_string()) {
            Ok(Lead::Ours { guard }) => {
                // Lost and taken again between two looks: others may have led.
                self.running.take_if(|running| running.guard != guard);
                if self.running.is_none() {
                    self.load(sphere, guard);
                }
            }
            _ => self.running = None,
        }
    }

    fn load(&mut self, sphere: &mut Sphere, guard: u64) {
        let Ok(loaded) = self.store.load() else {
            return;
        };
        sphere.truth.see_disk(&loaded);
        let cluster = Cluster::load(Limits::default(), loaded.records).expect("its own records");
        self.running = Some(Running {
            guard,
            cluster,
            revision: loaded.revision,
            term: u64::MAX,
        });
        match self.apply(sphere, &BeginTerm) {
            Ok(Ok(term)) => {
                sphere.truth.begins(term);
                if let Some(running) = &mut self.running {
                    running.term = term;
                }
            }
            // With a full disk it leads all the same, and changes nothing: nobody else can.
            _ if !self.shared => {}
            _ => self.running = None,
        }
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
            Err(refusal) => {
                self.confirm(sphere)?;
                return Ok(Err(refusal));
            }
        };
        if step.changes.batch().is_empty() {
            self.confirm(sphere)?;
            return Ok(Ok(step.answer));
        }
        self.disk.set_time(sphere.now);
        match self.store.commit(running.revision, step.changes.batch()) {
            Ok(revision) => {
                running.revision = revision;
                sphere.truth.decides(running.term);
                sphere.truth.see_batch(step.changes.batch());
                Ok(Ok(step.answer))
            }
            Err(StoreError::Full(_)) => {
                sphere.truth.figures.failed_commits += 1;
                running.cluster.undo(step.changes);
                Err(Silence::NotDurable)
            }
            Err(error) => {
                self.refused(sphere, &error);
                Err(Silence::NotDurable)
            }
        }
    }

    /// What is remembered holds, or nothing may be said.
    fn confirm(&mut self, sphere: &mut Sphere) -> Result<(), Silence> {
        let running = self.running.as_ref().ok_or(Silence::NotDurable)?;
        self.disk.set_time(sphere.now);
        if sphere.planted != Some(Planted::FromMemory)
            && let Err(error) = self.store.confirm(running.revision)
        {
            self.refused(sphere, &error);
            return Err(Silence::NotDurable);
        }
        sphere.truth.decides(running.term);
        Ok(())
    }

    fn refused(&mut self, sphere: &mut Sphere, error: &StoreError) {
        match error {
            StoreError::Deposed { .. } => {
                sphere.truth.figures.deposed += 1;
                self.running = None;
            }
            StoreError::Failed(_) => {
                sphere.truth.figures.failed_commits += 1;
                // Done or not: the store knows, as soon as it can be asked.
                let Some(before) = self.running.take() else {
                    return;
                };
                let Ok(loaded) = self.store.load() else {
                    return;
                };
                sphere.truth.see_disk(&loaded);
                let cluster =
                    Cluster::load(Limits::default(), loaded.records).expect("its own records");
                self.running = Some(Running {
                    cluster,
                    revision: loaded.revision,
                    ..before
                });
            }
            other => sphere
                .truth
                .break_with(format!("promise 3: who leads writes alone: {other}")),
        }
    }

    pub(crate) fn beat(&mut self, sphere: &mut Sphere) {
        sphere.timer(self.actor(), TICK_MS, Timer::Beat);
        self.lead(sphere);
        if self.running.is_none() {
            return;
        }
        for region in 0..REGIONS {
            self.create(sphere, region);
        }
        if let Some((node, begin)) = sphere.drain {
            let node = format!("n{node}");
            let done = if begin {
                self.apply(sphere, &Drain { node }).is_ok()
            } else {
                self.apply(sphere, &EndDrain { node }).is_ok()
            };
            if done {
                sphere.drain = None;
            }
        }
        if let Ok(Err(illegal)) = self.apply(sphere, &Tick) {
            sphere
                .truth
                .break_with(format!("a tick is refused: {illegal}"));
        }
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
                        self.actor(),
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
                        sphere.send(self.actor(), Actor::Node(node), Message::RegisterAgain);
                    }
                    Ok(Ok(heard)) => {
                        sphere.send(
                            self.actor(),
                            Actor::Node(node),
                            Message::NodeOrders(heard.orders),
                        );
                    }
                    Ok(Err(NodeRefusal::Unknown { .. } | NodeRefusal::Replaced { .. })) => {
                        sphere.send(self.actor(), Actor::Node(node), Message::RegisterAgain);
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
                        self.actor(),
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
                // Now and then: if always, nobody would ever get beyond the first answer.
                let early = sphere.planted == Some(Planted::EarlyGoOn) && sphere.dice.permille(300);
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
                self.confirm(sphere)?;
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
            Ask::Orders => {
                self.confirm(sphere)?;
                self.orders(region, epoch)
            }
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
}

fn open(disk: &Disk, shared: bool) -> MemoryStore {
    if shared {
        MemoryStore::shared(disk.clone())
    } else {
        MemoryStore::new(disk.clone())
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

//! A process of the control plane: what the service's keeper does, on virtual time, and its death. Where there are
//! several, they share the store, and one leads.

use mycoram_control::cluster::{
    Acquire, Acquired, Cluster, Command, Copied, CreateRegion, Drain, Dropped, EndDrain, Homes,
    LeaseRefusal, Limits, Locality, MarkStale, NodeId, NodeRefusal, Order, OwnerId, Place,
    PriorityClass, RegionPolicy, RegionRefusal, Renew, ReplicaRefusal, ReplicaState, Report, Seen,
};
use mycoram_control::reign::{self, Answers, Job, NotDone, Seat};
use mycoram_control::store::Disk;
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, RegionId, TenantId};

use crate::hold::{Hold, Note};
use crate::memory_node::EXTENT;
use crate::message::{self, Actor, Ask, Message, Reply};
use crate::world::{EXTENTS, Planted, REGIONS, Sphere, Timer, Trouble};

const TICK_MS: u64 = 500;

pub(crate) fn region_id(region: usize) -> RegionId {
    RegionId::new(region as u64 + 1)
}

pub(crate) fn replicas_of(region: usize) -> u8 {
    [2, 2, 3][region % 3]
}

pub(crate) struct Control {
    index: usize,
    shared: bool,
    pub(crate) disk: Disk,
    alive: bool,
    hold: Hold,
    /// What the process is, but for its threads. None: it could not begin, and is started again and again.
    seat: Option<Seat>,
    /// Of the reign that was seen last.
    term: Option<u64>,
    /// What the machine's clock shows more than the time.
    pub(crate) clock_ahead_ms: u64,
}

impl Control {
    pub(crate) fn new(index: usize, shared: bool, disk: Disk, planted: Option<Planted>) -> Self {
        Self {
            index,
            shared,
            alive: false,
            hold: Hold::new(&disk, shared, planted),
            disk,
            seat: None,
            term: None,
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
        self.hold.set_cut_off(cut_off);
    }

    pub(crate) fn start(&mut self, sphere: &mut Sphere) {
        sphere.begin_life(self.actor());
        self.alive = true;
        self.sit_down(sphere);
        self.tick(sphere);
        sphere.timer(self.actor(), TICK_MS, Timer::Beat);
    }

    pub(crate) fn die(&mut self, sphere: &mut Sphere) {
        sphere.begin_life(self.actor());
        self.alive = false;
        self.seat = None;
        self.term = None;
    }

    /// The process begins. What is durable is all that it then knows.
    fn sit_down(&mut self, sphere: &mut Sphere) {
        self.disk.set_time(sphere.now);
        self.hold = self.hold.again(&self.disk, self.shared);
        let now_ms = sphere.now + self.clock_ahead_ms;
        let store = Box::new(self.hold.clone());
        let seat = Seat::take(now_ms, Limits::default(), store, self.index.to_string());
        self.seat = seat.ok();
        self.tell(sphere);
    }

    fn tick(&mut self, sphere: &mut Sphere) {
        self.disk.set_time(sphere.now);
        let now_ms = sphere.now + self.clock_ahead_ms;
        match &mut self.seat {
            Some(seat) => seat.tick(now_ms),
            None => self.sit_down(sphere),
        }
        self.tell(sphere);
    }

    /// Tells the truth what came of what was done last.
    fn tell(&mut self, sphere: &mut Sphere) {
        let term = self.seat.as_ref().and_then(Seat::term);
        if term.is_none() && self.term.is_some() {
            sphere.truth.figures.deposed += 1;
        }
        if let Some(term) = term.filter(|term| self.term != Some(*term)) {
            sphere.truth.begins(term);
        }
        let decided = term.or(self.term);
        self.term = term;
        for note in self.hold.take_notes() {
            match note {
                Note::Wrote(batch) => sphere.truth.see_batch(&batch),
                Note::Failed => sphere.truth.figures.failed_commits += 1,
                Note::Full => sphere.truth.figures.met(Trouble::DiskFull),
                Note::OutOfReach => sphere.truth.figures.met(Trouble::CutOff),
                Note::Decided => {
                    if let Some(term) = decided {
                        sphere.truth.decides(term);
                    }
                }
            }
        }
    }

    /// `Err`: nothing may be said, it was not made durable, or somebody else leads.
    fn ask<T>(
        &mut self,
        sphere: &mut Sphere,
        (job, mut answer): (Box<dyn Job>, Answers<T>),
    ) -> Result<T, NotDone> {
        self.disk.set_time(sphere.now);
        let now_ms = sphere.now + self.clock_ahead_ms;
        let seat = self.seat.as_mut().ok_or(NotDone::Ending)?;
        seat.group(now_ms, vec![job]);
        self.tell(sphere);
        answer.try_recv().expect("a job is answered with its group")
    }

    fn apply<C>(
        &mut self,
        sphere: &mut Sphere,
        command: C,
    ) -> Result<Result<C::Answer, C::Refusal>, NotDone>
    where
        C: Command + Send + 'static,
        C::Answer: Send + 'static,
        C::Refusal: Send + 'static,
    {
        self.ask(sphere, reign::apply(command))
    }

    fn look<T: Send + 'static>(
        &mut self,
        sphere: &mut Sphere,
        look: impl FnOnce(&Cluster) -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        self.ask(sphere, reign::look(false, look))
    }

    pub(crate) fn beat(&mut self, sphere: &mut Sphere) {
        sphere.timer(self.actor(), TICK_MS, Timer::Beat);
        self.tick(sphere);
        if self.term.is_none() {
            return;
        }
        for region in 0..REGIONS {
            self.create(sphere, region);
        }
        if let Some((node, begin)) = sphere.drain {
            let node = format!("n{node}");
            let done = if begin {
                self.apply(sphere, Drain { node }).is_ok()
            } else {
                self.apply(sphere, EndDrain { node }).is_ok()
            };
            if done {
                sphere.truth.figures.met(Trouble::Drained);
                sphere.drain = None;
            }
        }
    }

    fn create(&mut self, sphere: &mut Sphere, region: usize) {
        let known = self.look(sphere, move |cluster| {
            cluster.region(region_id(region)).is_some()
        });
        if known != Ok(false) {
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
        let _ = self.apply(sphere, create);
    }

    pub(crate) fn take(&mut self, sphere: &mut Sphere, message: Message) {
        match message {
            Message::Register(register) => {
                let node = index_of(&register.name);
                if let Ok(Ok(registered)) = self.apply(sphere, register) {
                    sphere.send(
                        self.actor(),
                        Actor::Node(node),
                        Message::Registered(registered.node),
                    );
                }
            }
            Message::Heartbeat(heartbeat) => {
                let Some(node) = self.index(sphere, heartbeat.node) else {
                    return;
                };
                match self.apply(sphere, heartbeat) {
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
                    Err(_) => {}
                }
            }
            Message::Confirm(confirm) => {
                let _ = self.apply(sphere, confirm);
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
    ) -> Result<Reply, NotDone> {
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
                Ok(match self.apply(sphere, acquire)? {
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
                let look = move |cluster: &Cluster| cluster.directory(region, epoch, first);
                match self.look(sphere, look)? {
                    Ok(homes) => self.homes(sphere, homes),
                    Err(refusal) => Ok(lease(&refusal)),
                }
            }
            Ask::Place { extents } => {
                let place = Place {
                    region,
                    epoch,
                    round: number,
                    extents,
                    without: Vec::new(),
                };
                match self.apply(sphere, place)? {
                    Ok(homes) => self.homes(sphere, homes),
                    Err(RegionRefusal::Lease(refusal)) => Ok(lease(&refusal)),
                    Err(_) => Ok(Reply::Refused),
                }
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
                let marked = self.apply(sphere, mark)?;
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
                let _ = self.apply(sphere, report)?;
                Ok(Reply::Done)
            }
            Ask::Orders => self.orders(sphere, region, epoch),
            Ask::Renew => Ok(match self.apply(sphere, Renew { region, epoch })? {
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
                let copied = self.apply(sphere, copied)?;
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
                Ok(replica(self.apply(sphere, dropped)?))
            }
        }
    }

    fn orders(
        &mut self,
        sphere: &mut Sphere,
        region: RegionId,
        epoch: Epoch,
    ) -> Result<Reply, NotDone> {
        self.look(sphere, move |cluster| {
            let orders = match cluster.orders(region, epoch) {
                Ok(orders) => orders,
                Err(refusal) => return lease(&refusal),
            };
            let (mut copies, mut drops) = (Vec::new(), Vec::new());
            for order in orders {
                match order {
                    Order::Copy {
                        extent, to, order, ..
                    } => copies.extend(place(cluster, to).map(|place| (extent, place, order))),
                    Order::Drop { extent, node, .. } => {
                        drops.extend(place(cluster, node).map(|place| (extent, place)))
                    }
                }
            }
            Reply::Orders { copies, drops }
        })
    }

    fn homes(
        &mut self,
        sphere: &mut Sphere,
        homes: Vec<(ExtentIndex, Homes)>,
    ) -> Result<Reply, NotDone> {
        self.look(sphere, move |cluster| {
            let live = |homes: &Homes| {
                let live = homes
                    .replicas
                    .iter()
                    .filter(|replica| replica.state == ReplicaState::Live);
                live.filter_map(|replica| place(cluster, replica.node))
                    .collect()
            };
            Reply::Homes {
                homes: homes
                    .iter()
                    .map(|(extent, homes)| (*extent, live(homes)))
                    .collect(),
            }
        })
    }

    fn index(&mut self, sphere: &mut Sphere, id: NodeId) -> Option<usize> {
        let found = self.look(sphere, move |cluster| place(cluster, id));
        Some(found.ok()??.node)
    }
}

fn place(cluster: &Cluster, id: NodeId) -> Option<message::Place> {
    let node = cluster.node(id)?;
    Some(message::Place {
        id,
        node: index_of(&node.name),
        life: node.incarnation.get(),
    })
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

//! An owner's process: it writes and reads pages, copies and drops as it is told, and is fenced.
//!
//! A page has one task at a time. A write goes to every replica that is live or being made; it is done when
//! all have it, or when those that missed it are durably stale.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mycoram_control::cluster::OrderId;
use mycoram_fabric::units::{Epoch, ExtentIndex};

use crate::control::region_id;
use crate::message::{Actor, Ask, Message, Outcome, Place, Reply, Request, Verb};
use crate::task::{Phase, Replica, Step, Task};
use crate::world::{EXTENTS, PAGES, Planted, REGIONS, STORM_MS, Sphere, Timer};

const BEAT_MS: u64 = 50;
const TASK_MS: u64 = 150;
const QUESTION_MS: u64 = 300;
const RETRY_MS: u64 = 300;
/// Work at once.
const MAX_TASKS: usize = 6;

pub(crate) struct Owner {
    index: usize,
    pub(crate) region: usize,
    phase: Phase,
    epoch: Epoch,
    waiting_for: Option<Epoch>,
    homes: BTreeMap<ExtentIndex, Vec<Replica>>,
    tasks: BTreeMap<u64, Task>,
    locks: BTreeSet<(ExtentIndex, u8)>,
    sessions: BTreeMap<usize, u64>,
    asks: VecDeque<Ask>,
    asking: Option<(u64, Ask)>,
    /// Grows: tasks, stamps, versions, questions.
    count: u64,
    beats: u64,
}

impl Owner {
    pub(crate) fn new(index: usize) -> Self {
        Self {
            index,
            region: index % REGIONS,
            phase: Phase::Dead,
            epoch: Epoch::new(0),
            waiting_for: None,
            homes: BTreeMap::new(),
            tasks: BTreeMap::new(),
            locks: BTreeSet::new(),
            sessions: BTreeMap::new(),
            asks: VecDeque::new(),
            asking: None,
            count: 0,
            beats: 0,
        }
    }

    fn actor(&self) -> Actor {
        Actor::Owner(self.index)
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.phase != Phase::Dead
    }

    pub(crate) fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    pub(crate) fn start(&mut self, sphere: &mut Sphere) {
        let life = sphere.begin_life(self.actor());
        *self = Self::new(self.index);
        self.phase = Phase::Acquiring;
        // No number is used twice, in no life.
        self.count = life << 32;
        sphere.truth.figures.takeovers += 1;
        sphere.timer(self.actor(), 1, Timer::Beat);
    }

    pub(crate) fn die(&mut self, sphere: &mut Sphere) {
        sphere.begin_life(self.actor());
        *self = Self::new(self.index);
    }

    /// Whether nothing is under way that changes anything.
    pub(crate) fn is_at_rest(&self) -> bool {
        let reads = |task: &Task| matches!(task, Task::Read { .. });
        self.phase == Phase::Dead
            || (self.phase == Phase::Running && self.tasks.values().all(reads))
    }

    pub(crate) fn what(&self) -> String {
        format!(
            "{:?} {:?} {:?} {:?}",
            self.phase, self.tasks, self.asking, self.asks
        )
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn ask(&mut self, ask: Ask) {
        if !self.asks.contains(&ask) {
            self.asks.push_back(ask);
        }
    }

    fn ask_next(&mut self, sphere: &mut Sphere) {
        if self.asking.is_some() {
            return;
        }
        if let Some(ask) = self.asks.pop_front() {
            let number = self.next();
            self.asking = Some((number, ask));
            self.put_question(sphere);
        }
    }

    fn put_question(&mut self, sphere: &mut Sphere) {
        let fresh = self.next();
        let Some((number, ask)) = &mut self.asking else {
            return;
        };
        *number = fresh;
        let message = Message::Ask {
            owner: self.index,
            life: sphere.life(Actor::Owner(self.index)),
            number: fresh,
            epoch: self.epoch,
            ask: ask.clone(),
        };
        sphere.ask_control(self.actor(), message);
        sphere.timer(self.actor(), QUESTION_MS, Timer::Question { number: fresh });
    }

    pub(crate) fn timer(&mut self, sphere: &mut Sphere, timer: Timer) {
        match timer {
            Timer::Beat => self.beat(sphere),
            Timer::Question { number } => {
                if self
                    .asking
                    .as_ref()
                    .is_some_and(|(asked, _)| *asked == number)
                {
                    self.put_question(sphere);
                }
            }
            Timer::Task { task, stamp } => self.late(sphere, task, stamp),
        }
        self.ask_next(sphere);
    }

    fn beat(&mut self, sphere: &mut Sphere) {
        self.beats += 1;
        match self.phase {
            Phase::Dead => return,
            Phase::Acquiring if self.beats % 4 == 1 => self.ask(Ask::Acquire {
                waiting_for: self.waiting_for,
            }),
            Phase::Acquiring | Phase::Loading => {}
            Phase::Running => {
                if self.beats.is_multiple_of(10) {
                    self.ask(Ask::Orders);
                }
                if self.beats.is_multiple_of(40) {
                    self.ask(Ask::Renew);
                }
                self.work(sphere);
                self.wake_copies(sphere);
            }
        }
        sphere.timer(self.actor(), BEAT_MS, Timer::Beat);
    }

    fn work(&mut self, sphere: &mut Sphere) {
        if self.tasks.len() >= MAX_TASKS || sphere.dice.permille(300) {
            return;
        }
        let extent = ExtentIndex::new(sphere.dice.below(EXTENTS as usize) as u32);
        let page = sphere.dice.below(usize::from(PAGES)) as u8;
        if self.locks.contains(&(extent, page)) {
            return;
        }
        let live = self.live(extent);
        let writes = sphere.now < STORM_MS + 2_000 && sphere.dice.permille(600);
        if writes && live.is_empty() {
            self.ask(Ask::Place {
                extents: vec![extent],
            });
        } else if writes {
            let task = self.next();
            let version = (self.epoch, task);
            self.locks.insert((extent, page));
            sphere.truth.attempt(self.region, extent, page, version);
            self.tasks.insert(
                task,
                Task::Write {
                    extent,
                    page,
                    version,
                    acks: Vec::new(),
                    marking: false,
                    stamp: 0,
                },
            );
            self.send_write(sphere, task);
        } else if !live.is_empty() {
            let from = live[sphere.dice.below(live.len())];
            let (task, stamp) = (self.next(), self.next());
            self.locks.insert((extent, page));
            let read = Task::Read {
                extent,
                page,
                from,
                since: sphere.truth.last(self.region, extent, page),
                stamp,
            };
            self.tasks.insert(task, read);
            self.request(sphere, task, stamp, from, extent, Verb::Read { page });
        }
    }

    fn live(&self, extent: ExtentIndex) -> Vec<Place> {
        let replicas = self.homes.get(&extent).into_iter().flatten();
        replicas
            .filter(|replica| replica.copying.is_none())
            .map(|replica| replica.place)
            .collect()
    }

    fn request(
        &mut self,
        sphere: &mut Sphere,
        task: u64,
        stamp: u64,
        to: Place,
        extent: ExtentIndex,
        verb: Verb,
    ) {
        let request = Request {
            owner: self.index,
            task,
            session: *self.sessions.entry(to.node).or_insert(1),
            region: region_id(self.region),
            epoch: self.epoch,
            life: to.life,
            extent,
            verb,
        };
        sphere.send(
            self.actor(),
            Actor::Node(to.node),
            Message::Request(request),
        );
        sphere.timer(self.actor(), TASK_MS, Timer::Task { task, stamp });
    }

    /// To all replicas that do not have it yet.
    fn send_write(&mut self, sphere: &mut Sphere, id: u64) {
        let fresh = self.next();
        let Some(Task::Write {
            extent,
            page,
            version,
            acks,
            marking,
            stamp,
        }) = self.tasks.get_mut(&id)
        else {
            return;
        };
        *stamp = fresh;
        *marking = false;
        let replicas = self.homes.get(extent).into_iter().flatten();
        let mut targets = Vec::new();
        for replica in replicas {
            let acked = acks
                .iter_mut()
                .find(|(serial, ..)| *serial == replica.serial);
            match acked {
                Some((_, _, Some(true))) => {}
                Some((_, place, ack)) => {
                    *ack = None;
                    targets.push(*place);
                }
                None => {
                    acks.push((replica.serial, replica.place, None));
                    targets.push(replica.place);
                }
            }
        }
        let (extent, verb) = (
            *extent,
            Verb::Write {
                page: *page,
                version: *version,
            },
        );
        if targets.is_empty() {
            sphere.timer(
                self.actor(),
                RETRY_MS,
                Timer::Task {
                    task: id,
                    stamp: fresh,
                },
            );
        }
        for place in targets {
            self.request(sphere, id, fresh, place, extent, verb);
        }
        self.resolve_write(sphere, id);
    }

    fn resolve_write(&mut self, sphere: &mut Sphere, id: u64) {
        let Some(Task::Write {
            extent,
            page,
            version,
            acks,
            marking,
            ..
        }) = self.tasks.get_mut(&id)
        else {
            return;
        };
        let replicas = self.homes.get(extent).map_or(&[][..], Vec::as_slice);
        let here = |serial: &u64| replicas.iter().find(|replica| replica.serial == *serial);
        let open =
            |(serial, _, ack): &(u64, Place, Option<bool>)| ack.is_none() && here(serial).is_some();
        if acks.iter().any(open) || *marking {
            return;
        }
        let missed: Vec<Place> = acks
            .iter()
            .filter(|(serial, _, ack)| *ack == Some(false) && here(serial).is_some())
            .map(|(_, place, _)| *place)
            .collect();
        let live = acks.iter().any(|(serial, _, ack)| {
            *ack == Some(true) && here(serial).is_some_and(|replica| replica.copying.is_none())
        });
        let careless = sphere.planted == Some(Planted::CarelessWrite);
        if live && (missed.is_empty() || careless) {
            let (extent, page, version) = (*extent, *page, *version);
            self.tasks.remove(&id);
            self.locks.remove(&(extent, page));
            sphere
                .truth
                .acknowledged(self.region, extent, page, version);
        } else if !missed.is_empty() {
            *marking = true;
            let extent = *extent;
            let replicas = missed.iter().map(|place| (extent, place.id)).collect();
            self.ask(Ask::MarkStale { replicas, task: id });
            for place in missed {
                self.ask(Ask::Report { node: place.node });
            }
            self.ask_next(sphere);
        }
        // Else nobody is left who has it: it is sent again when somebody is.
    }

    /// Nothing came of a request in time.
    fn late(&mut self, sphere: &mut Sphere, id: u64, stamp: u64) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        match task {
            Task::Write {
                acks,
                marking,
                stamp: current,
                ..
            } if *current == stamp => {
                let mut broken = Vec::new();
                for (_, place, ack) in acks.iter_mut().filter(|(.., ack)| ack.is_none()) {
                    *ack = Some(false);
                    broken.push(place.node);
                }
                let again = broken.is_empty() && !*marking;
                broken.into_iter().for_each(|node| self.reconnect(node));
                if again {
                    self.send_write(sphere, id);
                } else {
                    self.resolve_write(sphere, id);
                    self.send_if_nobody_is_left(sphere, id);
                }
            }
            Task::Read {
                from,
                stamp: current,
                ..
            } if *current == stamp => {
                let node = from.node;
                self.reconnect(node);
                self.end_read(id);
            }
            Task::Copy {
                to,
                step,
                stamp: current,
                ..
            } if *current == stamp => match *step {
                Step::Reading(from) => {
                    self.reconnect(from.node);
                    self.end_copy(id);
                }
                Step::Writing => {
                    let node = to.node;
                    self.reconnect(node);
                    self.fail_copy(sphere, id);
                }
                Step::Waiting | Step::Telling => {}
            },
            Task::Drop {
                place,
                stamp: current,
                ..
            } if *current == stamp => {
                let node = place.node;
                self.reconnect(node);
                self.tasks.remove(&id);
            }
            _ => {}
        }
    }

    /// What is still under way on the former connection never arrives.
    fn reconnect(&mut self, node: usize) {
        *self.sessions.entry(node).or_insert(1) += 1;
    }

    fn end_read(&mut self, id: u64) {
        if let Some(Task::Read { extent, page, .. }) = self.tasks.remove(&id) {
            self.locks.remove(&(extent, page));
        }
    }

    /// It may be begun again when it is ordered again.
    fn end_copy(&mut self, id: u64) {
        if let Some(Task::Copy {
            extent, page, step, ..
        }) = self.tasks.remove(&id)
            && matches!(step, Step::Reading(_) | Step::Writing)
        {
            self.locks.remove(&(extent, page));
        }
    }

    fn fail_copy(&mut self, sphere: &mut Sphere, id: u64) {
        if let Some(Task::Copy { extent, to, .. }) = self.tasks.get(&id) {
            let (extent, to) = (*extent, *to);
            self.ask(Ask::MarkStale {
                replicas: vec![(extent, to.id)],
                task: 0,
            });
            self.ask(Ask::Report { node: to.node });
            self.ask_next(sphere);
        }
        self.end_copy(id);
    }

    fn wake_copies(&mut self, sphere: &mut Sphere) {
        let waiting = |task: &Task| {
            matches!(
                task,
                Task::Copy {
                    step: Step::Waiting,
                    ..
                }
            )
        };
        let ids: Vec<u64> = self
            .tasks
            .iter()
            .filter(|(_, task)| waiting(task))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.copy_page(sphere, id);
        }
    }

    fn copy_page(&mut self, sphere: &mut Sphere, id: u64) {
        let fresh = self.next();
        let Some(Task::Copy {
            extent, to, page, ..
        }) = self.tasks.get(&id)
        else {
            return;
        };
        let (extent, to, page) = (*extent, *to, *page);
        let live: Vec<_> = self
            .live(extent)
            .into_iter()
            .filter(|place| *place != to)
            .collect();
        let hasty = sphere.planted == Some(Planted::HastyCopy) && page > 0;
        if page == PAGES || hasty {
            let Some(Task::Copy { step, order, .. }) = self.tasks.get_mut(&id) else {
                return;
            };
            *step = Step::Telling;
            let order = *order;
            self.ask(Ask::Copied { extent, to, order });
            return self.ask_next(sphere);
        }
        if self.locks.contains(&(extent, page)) {
            return;
        }
        if live.is_empty() {
            return self.end_copy(id);
        }
        let from = live[sphere.dice.below(live.len())];
        self.locks.insert((extent, page));
        if let Some(Task::Copy { step, stamp, .. }) = self.tasks.get_mut(&id) {
            *step = Step::Reading(from);
            *stamp = fresh;
        }
        self.request(sphere, id, fresh, from, extent, Verb::Read { page });
    }

    pub(crate) fn take(&mut self, sphere: &mut Sphere, message: Message) {
        match message {
            Message::Reply { number, reply } => {
                let answer = self.asking.take_if(|(asked, _)| *asked == number);
                answer
                    .into_iter()
                    .for_each(|(_, ask)| self.answered(sphere, ask, reply.clone()));
            }
            Message::Outcome {
                task,
                node,
                session,
                outcome,
            } if self.sessions.get(&node) == Some(&session) => {
                self.came(sphere, task, node, outcome);
            }
            _ => {}
        }
        if self.is_alive() {
            self.ask_next(sphere);
        }
    }

    fn came(&mut self, sphere: &mut Sphere, id: u64, node: usize, outcome: Outcome) {
        if outcome == Outcome::EpochTooLow {
            return self.die(sphere);
        }
        let fresh = self.next();
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        match task {
            Task::Write { acks, .. } => {
                if let Some((.., ack)) = acks
                    .iter_mut()
                    .find(|(_, place, ack)| place.node == node && ack.is_none())
                {
                    *ack = Some(outcome == Outcome::Ok);
                }
                self.resolve_write(sphere, id);
            }
            Task::Read {
                extent,
                page,
                from,
                since,
                ..
            } if from.node == node => {
                if let Outcome::Page(version) = outcome {
                    let reader = (self.region, self.epoch);
                    sphere
                        .truth
                        .was_read(reader, node, (*extent, *page), *since, version);
                }
                self.end_read(id);
            }
            Task::Copy {
                extent,
                to,
                page,
                step,
                stamp,
                ..
            } => match (*step, outcome) {
                (Step::Reading(from), Outcome::Page(version)) if from.node == node => {
                    let (extent, page, to) = (*extent, *page, *to);
                    *stamp = fresh;
                    *step = Step::Writing;
                    match version {
                        Some(version) => {
                            let verb = Verb::Write { page, version };
                            self.request(sphere, id, fresh, to, extent, verb);
                        }
                        None => self.page_copied(sphere, id),
                    }
                }
                (Step::Reading(from), _) if from.node == node => self.end_copy(id),
                (Step::Writing, Outcome::Ok) if to.node == node => self.page_copied(sphere, id),
                (Step::Writing, _) if to.node == node => self.fail_copy(sphere, id),
                _ => {}
            },
            Task::Drop { extent, place, .. } if place.node == node => {
                let (extent, place) = (*extent, *place);
                self.tasks.remove(&id);
                // Another life of the node has nothing of it.
                self.ask(Ask::Dropped {
                    extent,
                    node: place.id,
                });
            }
            _ => {}
        }
    }

    fn page_copied(&mut self, sphere: &mut Sphere, id: u64) {
        if let Some(Task::Copy {
            extent, page, step, ..
        }) = self.tasks.get_mut(&id)
        {
            self.locks.remove(&(*extent, *page));
            *page += 1;
            *step = Step::Waiting;
        }
        self.copy_page(sphere, id);
    }

    fn answered(&mut self, sphere: &mut Sphere, ask: Ask, reply: Reply) {
        if matches!(reply, Reply::Fenced) {
            return self.die(sphere);
        }
        match (ask, reply) {
            (Ask::Acquire { .. }, Reply::Wait { epoch }) => self.waiting_for = epoch,
            (Ask::Acquire { .. }, Reply::GoOn { epoch }) => {
                self.epoch = epoch;
                self.phase = Phase::Loading;
                self.ask(Ask::Directory);
            }
            (Ask::Directory, Reply::Homes { homes }) => {
                self.learn(homes);
                self.phase = Phase::Running;
            }
            // Not granted to it after all: from the beginning.
            (Ask::Directory | Ask::Renew, Reply::Refused) => self.die(sphere),
            (Ask::Place { .. }, Reply::Homes { homes }) => self.learn(homes),
            (Ask::MarkStale { replicas, task }, Reply::Done) => {
                for (extent, id) in replicas {
                    if let Some(homes) = self.homes.get_mut(&extent) {
                        homes.retain(|replica| replica.place.id != id);
                    }
                }
                if let Some(Task::Write { marking, .. }) = self.tasks.get_mut(&task) {
                    *marking = false;
                }
                self.resolve_write(sphere, task);
                self.send_if_nobody_is_left(sphere, task);
            }
            (Ask::MarkStale { replicas, task }, _) => {
                // Too few would be left: what does the control plane know, and again.
                for (extent, _) in replicas {
                    self.ask(Ask::Place {
                        extents: vec![extent],
                    });
                }
                self.send_later(sphere, task);
            }
            (Ask::Orders, Reply::Orders { copies, drops }) => self.obey(sphere, copies, drops),
            (Ask::Copied { extent, to, order }, reply) => {
                let done = matches!(reply, Reply::Done);
                if let Some(homes) = self.homes.get_mut(&extent) {
                    let at = homes
                        .iter()
                        .position(|r| r.place == to && r.copying == Some(order));
                    match at {
                        Some(at) if done => homes[at].copying = None,
                        Some(at) => drop(homes.remove(at)),
                        None => {}
                    }
                }
                let told = |task: &Task| matches!(task, Task::Copy { extent: e, order: o, .. } if *e == extent && *o == order);
                self.tasks.retain(|_, task| !told(task));
            }
            _ => {}
        }
    }

    fn send_if_nobody_is_left(&mut self, sphere: &mut Sphere, task: u64) {
        if matches!(
            self.tasks.get(&task),
            Some(Task::Write { marking: false, .. })
        ) {
            self.send_later(sphere, task);
        }
    }

    fn send_later(&mut self, sphere: &mut Sphere, task: u64) {
        let fresh = self.next();
        if let Some(Task::Write { stamp, marking, .. }) = self.tasks.get_mut(&task) {
            *stamp = fresh;
            *marking = false;
            sphere.timer(self.actor(), RETRY_MS, Timer::Task { task, stamp: fresh });
        }
    }

    /// These are the live ones; those being made stay.
    fn learn(&mut self, homes: Vec<(ExtentIndex, Vec<Place>)>) {
        for (extent, live) in homes {
            let known = self.homes.entry(extent).or_default();
            known.retain(|replica| {
                replica.copying.is_some() && !live.contains(&replica.place)
                    || live.contains(&replica.place)
            });
            for place in live {
                match known.iter_mut().find(|replica| replica.place == place) {
                    Some(replica) => replica.copying = None,
                    None => {
                        self.count += 1;
                        known.push(Replica {
                            place,
                            copying: None,
                            serial: self.count,
                        });
                    }
                }
            }
        }
    }

    fn obey(
        &mut self,
        sphere: &mut Sphere,
        copies: Vec<(ExtentIndex, Place, OrderId)>,
        drops: Vec<(ExtentIndex, Place)>,
    ) {
        for (extent, to, order) in copies {
            let begun = |task: &Task| matches!(task, Task::Copy { extent: e, order: o, .. } if *e == extent && *o == order);
            let dropping = |task: &Task| matches!(task, Task::Drop { extent: e, place, .. } if *e == extent && place.id == to.id);
            if self
                .tasks
                .values()
                .any(|task| begun(task) || dropping(task))
            {
                continue;
            }
            let serial = self.next();
            let homes = self.homes.entry(extent).or_default();
            homes.retain(|replica| replica.place.id != to.id);
            homes.push(Replica {
                place: to,
                copying: Some(order),
                serial,
            });
            let (task, stamp) = (self.next(), self.next());
            let copy = Task::Copy {
                extent,
                to,
                order,
                page: 0,
                step: Step::Waiting,
                stamp,
            };
            self.tasks.insert(task, copy);
            self.copy_page(sphere, task);
        }
        for (extent, place) in drops {
            let begun = |task: &Task| matches!(task, Task::Drop { extent: e, place: p, .. } if *e == extent && *p == place);
            if self.tasks.values().any(begun) {
                continue;
            }
            if let Some(homes) = self.homes.get_mut(&extent) {
                homes.retain(|replica| replica.place.id != place.id);
            }
            // A copy there is over: nothing more is written.
            let copies = |task: &Task| matches!(task, Task::Copy { extent: e, to, .. } if *e == extent && to.id == place.id);
            let over: Vec<u64> = self
                .tasks
                .iter()
                .filter(|(_, task)| copies(task))
                .map(|(id, _)| *id)
                .collect();
            over.into_iter().for_each(|id| self.end_copy(id));
            let (task, stamp) = (self.next(), self.next());
            let drop = Task::Drop {
                extent,
                place,
                stamp,
            };
            self.tasks.insert(task, drop);
            self.request(sphere, task, stamp, place, extent, Verb::Drop);
        }
    }
}

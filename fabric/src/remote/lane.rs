//! A lane: one thread's queue pairs to all nodes of a region, driven by [`LaneQueue`].

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::bell::Bell;
use super::frames::{Frames, Layout};
use super::link::{Cause, Death, NodeLink, Trouble};
use super::queue::{Fill, LANDINGS, LaneQueue, LinkState, QueueConfig};
use super::redial::{ByWatches, Inline, Job, Outcome, Redial};
use super::region::Shared;
use super::waits::LanePost;
use crate::pages::{
    Direction, FrameIndex, LaneConfig, LaneError, LaneFull, MAX_RUN_PAGES, PageDone, PageError,
    PageLane, PageRequest, Which,
};
use crate::placement;
use crate::transport::{
    Armed, Completion, LocalMemory, MAX_QUEUE_DEPTH, Mapping, PostError, QueuePair,
    QueuePairConfig, Ticket, TransportKind, WorkRequest,
};
use crate::units::{ExtentIndex, PAGE_BYTES, PageIndex};

/// Completions that are taken at a time.
const BATCH: usize = 64;
/// How often a batch is taken from one queue pair before the others get their turn.
const BATCHES: usize = 4;

/// How long a lane sleeps at most before a read is looked at that may be asked for twice.
const LEAST_SLEEP: Duration = Duration::from_micros(20);

/// What is read of an extent that is not placed.
const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

struct Connection {
    link: Arc<NodeLink>,
    queue_pair: Option<Box<dyn QueuePair>>,
    /// Of the queue pair, or of the one that broke.
    ticket: Option<Ticket>,
    /// `None` where the node was lost before the lane heard of it.
    memory: Option<LocalMemory>,
}

/// See the module.
pub(super) struct Lane {
    queue: LaneQueue,
    /// One a node. Dropped before the frames.
    connections: Vec<Connection>,
    redial: Box<dyn Redial>,
    chain: Vec<WorkRequest>,
    completions: Vec<Completion>,
    frames: Arc<Frames>,
    config: QueuePairConfig,
    deadline_ms: u64,
    /// Wakes the lane when a read is to be looked at. None where there is one replica, or simulated time.
    timer: Option<Timer>,
    post: Arc<LanePost>,
    /// Writes that are held, as the region was told.
    held: u64,
    shared: Arc<Shared>,
}

struct Timer {
    descriptor: TimerFd,
    /// When it fires.
    set_us: Option<u64>,
}

impl Lane {
    /// Connects to every node that still counts. Blocks.
    pub(super) fn open(shared: Arc<Shared>, config: &LaneConfig) -> Result<Self, LaneError> {
        let watched = shared.options.watched;
        let bell = match watched {
            true => Some(Bell::new().map_err(|errno| LaneError::Bell(errno.into()))?),
            false => None,
        };
        let bell = bell.map(Arc::new);
        // First, so that no change is made behind this lane's back.
        let post = Arc::new(LanePost::new(bell.clone()));
        shared.lanes.add(&post);
        let snapshot = shared.published.newest();
        post.hear(snapshot.homes.version());

        let nodes = snapshot.links.len();
        let frames = config.frames.max(u32::from(MAX_RUN_PAGES));
        let depth = config.depth.clamp(1, MAX_QUEUE_DEPTH);
        let requests = u32::try_from(nodes)
            .unwrap_or(1)
            .saturating_mul(depth)
            .min(frames);
        let deadline_ms = u64::from(config.node_deadline_ms);
        let pair = QueuePairConfig {
            depth,
            ..QueuePairConfig::default()
        };
        let replicated = shared.region.replicas > 1;
        let landings = if replicated { LANDINGS } else { 0 };
        // Memory that a device knows stays where it is.
        let movable = |link: &Arc<NodeLink>| link.transport.kind() == TransportKind::Tcp;
        let stages = match snapshot.links.iter().all(movable) {
            true => config.stages,
            false => 0,
        };
        let layout = Layout {
            frames,
            stages,
            landings,
        };
        let memory = shared.frames.take(layout)?;
        let redial: Box<dyn Redial> = match bell {
            Some(bell) => Box::new(ByWatches::new(bell)),
            None => Box::new(Inline::new(Arc::clone(&shared.options.clock))),
        };
        let queue = LaneQueue::new(
            Arc::clone(&snapshot.homes),
            QueueConfig {
                pages: shared.pages(),
                frames: layout.usable(),
                requests,
                deadline_ms,
                replicated,
            },
        );
        let timer = match replicated && watched {
            true => Some(Timer::new().map_err(|errno| LaneError::Bell(errno.into()))?),
            false => None,
        };
        let mut lane = Self {
            queue,
            connections: Vec::with_capacity(nodes),
            redial,
            chain: Vec::with_capacity(depth as usize),
            completions: Vec::with_capacity(BATCH),
            frames: Arc::new(memory),
            config: pair,
            deadline_ms,
            timer,
            post,
            held: 0,
            shared,
        };
        for (index, link) in snapshot.links.iter().enumerate() {
            let watch = snapshot
                .watches
                .as_ref()
                .map(|watches| watches[index].clone());
            lane.redial.add(link, watch);
            lane.connect(link, replicated)?;
        }
        Ok(lane)
    }

    /// A queue pair to one more node. With `later` one that does not answer now is dialed again meanwhile.
    fn connect(&mut self, link: &Arc<NodeLink>, later: bool) -> Result<(), LaneError> {
        let mut ticket = None;
        let connected = link.connect(&mut ticket, &self.config);
        let (state, queue_pair) = match connected {
            Ok(queue_pair) => (LinkState::Up, Some(queue_pair)),
            Err(Trouble::Dead(death)) => {
                link.give_up(death);
                (LinkState::Lost, None)
            }
            Err(Trouble::Fenced) => {
                link.fence();
                return Err(LaneError::Fenced);
            }
            Err(Trouble::Again(_)) if later => (LinkState::Away, None),
            Err(Trouble::Again(Cause::Connect(error))) => return Err(error.into()),
            Err(Trouble::Again(Cause::Session(error))) => return Err(error.into()),
            Err(Trouble::Again(Cause::Grant(error))) => return Err(error.into()),
        };
        self.add_connection(link, state, queue_pair, ticket)
    }

    fn add_connection(
        &mut self,
        link: &Arc<NodeLink>,
        state: LinkState,
        queue_pair: Option<Box<dyn QueuePair>>,
        ticket: Option<Ticket>,
    ) -> Result<(), LaneError> {
        let memory = match state {
            LinkState::Lost => None,
            LinkState::Up | LinkState::Away => Some(self.frames.registered(&*link.transport)?),
        };
        let shared = self
            .shared
            .options
            .domain
            .shared_with(&link.record.entry.domain);
        self.queue
            .add_link(state, shared >= placement::Shared::Zone);
        self.connections.push(Connection {
            link: Arc::clone(link),
            queue_pair,
            ticket,
            memory,
        });
        if state == LinkState::Away {
            self.redial(link.index, None);
        }
        Ok(())
    }

    /// Homes have changed, or nodes: goes by the newest.
    fn adopt(&mut self) {
        let snapshot = self.shared.published.newest();
        for index in self.connections.len()..snapshot.links.len() {
            let link = &snapshot.links[index];
            let watch = snapshot
                .watches
                .as_ref()
                .map(|watches| watches[index].clone());
            self.redial.add(link, watch);
            let state = match link.is_lost() {
                true => LinkState::Lost,
                false => LinkState::Away,
            };
            if let Err(error) = self.add_connection(link, state, None, None) {
                tracing::error!(
                    node = %link.record.entry.name,
                    error = &error as &dyn std::error::Error,
                    "a memory node cannot be used from here"
                );
                link.give_up(Death::Refuses);
                // A lost node needs no memory registered.
                let _ = self.add_connection(link, LinkState::Lost, None, None);
            }
        }
        self.queue.adopt(snapshot.homes);
        for node in 0..self.connections.len() as u16 {
            // Lost for one lane is lost for all.
            if self.connections[usize::from(node)].link.is_lost() {
                self.hand_over(node);
            }
        }
        self.hear();
    }

    /// Says which homes all work that is under way knows of.
    fn hear(&self) {
        let oldest = self.queue.oldest_version();
        if self.post.heard() != oldest {
            self.post.hear(oldest);
        }
    }

    fn adopt_if_changed(&mut self) {
        if self.shared.published.version() != self.queue.version() {
            self.adopt();
        }
    }

    /// Takes completions from one queue pair; if it broke, hands it over to be replaced.
    fn collect(&mut self, node: u16, now_us: u64) {
        let Some(queue_pair) = &mut self.connections[usize::from(node)].queue_pair else {
            return;
        };
        let mut broken = false;
        for _ in 0..BATCHES {
            self.completions.clear();
            let count = queue_pair.poll(&mut self.completions);
            for completion in &self.completions {
                let result = completion.result.map_err(|error| error.kind);
                broken |= self.queue.completed(node, completion.id, result, now_us);
            }
            if count == 0 {
                broken |= queue_pair.broken().is_some();
            }
            if count < BATCH {
                break;
            }
        }
        if broken {
            self.hand_over(node);
        }
    }

    fn hand_over(&mut self, node: u16) {
        let Some(broken) = self.connections[usize::from(node)].queue_pair.take() else {
            return;
        };
        self.queue.away(node);
        if !self.queue.is_replicated() {
            self.redial(node, Some(broken));
            return;
        }
        // When it is gone it touches no frame, and other replicas are asked at once.
        drop(broken);
        let now_ms = self.shared.options.clock.now_ms();
        if self.queue.quiet(node, now_ms) {
            self.connections[usize::from(node)]
                .link
                .give_up(Death::Refuses);
        }
        self.redial(node, None);
    }

    /// Has the queue pair to a node replaced.
    fn redial(&mut self, node: u16, broken: Option<Box<dyn QueuePair>>) {
        let job = Job::new(
            broken,
            Arc::clone(&self.frames),
            self.connections[usize::from(node)].ticket,
            self.config,
            self.shared.options.clock.now_ms(),
            self.deadline_ms,
        );
        self.redial.start(node, job);
    }

    fn take_back(&mut self, now_us: u64) {
        while let Some((node, outcome)) = self.redial.finished() {
            match outcome {
                Outcome::Up(queue_pair, ticket) => {
                    self.shared.counters.reconnected();
                    let connection = &mut self.connections[usize::from(node)];
                    connection.queue_pair = Some(queue_pair);
                    connection.ticket = Some(ticket);
                    let now_ms = self.shared.options.clock.now_ms();
                    if self.queue.up(node, now_ms) {
                        connection.link.give_up(Death::Refuses);
                    }
                    if connection.link.is_lost() {
                        self.hand_over(node);
                    } else {
                        self.post(node, now_us);
                    }
                }
                Outcome::Lost => self.queue.lost(node),
                Outcome::Fenced => self.queue.lost_by_fence(node),
            }
        }
    }

    /// Posts what waits for `node`, as far as there is room.
    fn post(&mut self, node: u16, now_us: u64) {
        let connection = &mut self.connections[usize::from(node)];
        let (Some(queue_pair), Some(memory)) = (&mut connection.queue_pair, &connection.memory)
        else {
            return;
        };
        let room = queue_pair.free_slots();
        self.chain.clear();
        let sliced = self
            .queue
            .chain(node, room, memory, &mut self.chain, now_us);
        debug_assert!(
            sliced.is_ok(),
            "frames are checked when a request is queued"
        );
        if self.chain.is_empty() {
            return;
        }
        match queue_pair.post(&self.chain) {
            Ok(()) => {}
            Err(PostError::Full { .. }) => self.queue.not_taken(node, self.chain.len()),
            Err(PostError::Broken { .. } | PostError::Invalid { .. }) => {
                // Not posted; it goes out on the next queue pair, or is given up with the node.
                self.queue.not_taken(node, self.chain.len());
                self.collect(node, now_us);
                self.hand_over(node);
            }
        }
    }

    fn post_all(&mut self, now_us: u64) {
        // A queue pair that breaks gives its reads to others: these get a turn, too.
        for _ in 0..2 {
            for node in 0..self.connections.len() as u16 {
                if self.queue.state(node) == LinkState::Up && self.queue.has_waiting(node) {
                    self.post(node, now_us);
                }
            }
            if !self.queue.is_replicated() {
                break;
            }
        }
    }

    /// Tells the region how many writes wait for a place.
    fn count_held(&mut self) {
        let held = self.queue.held() as u64;
        if let Some(thin) = &self.shared.thin
            && held != self.held
        {
            // Wraps where there are fewer now.
            thin.held
                .fetch_add(held.wrapping_sub(self.held), Ordering::Relaxed);
            self.held = held;
        }
    }

    /// The time, where it is used.
    fn now_us(&self) -> u64 {
        match self.queue.is_replicated() {
            true => self.shared.options.clock.now_us(),
            false => 0,
        }
    }
}

impl Timer {
    fn new() -> nix::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let descriptor = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        Ok(Self {
            descriptor,
            set_us: None,
        })
    }

    /// Makes the descriptor readable at `at_us`, or soon after.
    fn set(&mut self, at_us: u64, now_us: u64) {
        if self.set_us.is_some_and(|set| set <= at_us && set > now_us) {
            return;
        }
        let left = Duration::from_micros(at_us.saturating_sub(now_us)).max(LEAST_SLEEP);
        let once = Expiration::OneShot(TimeSpec::from_duration(left));
        // Fails for times that cannot be only.
        if self
            .descriptor
            .set(once, TimerSetTimeFlags::empty())
            .is_ok()
        {
            self.set_us = Some(now_us + left.as_micros() as u64);
        }
    }

    /// Makes the descriptor unreadable, if it has fired.
    fn silence(&mut self, now_us: u64) {
        if self.set_us.is_some_and(|set| set <= now_us) {
            let _ = self.descriptor.unset();
            self.set_us = None;
        }
    }
}

impl PageLane for Lane {
    fn frames(&self) -> &Arc<Mapping> {
        self.frames.mapping()
    }

    fn stage(&self, number: u32) -> Option<FrameIndex> {
        self.frames.layout().stage(number).map(FrameIndex)
    }

    fn free_slots(&self) -> usize {
        self.queue.free_slots()
    }

    fn queue(&mut self, request: PageRequest) -> Result<(), LaneFull> {
        self.adopt_if_changed();
        if let (Some(thin), Direction::Write) = (&self.shared.thin, request.direction) {
            let last = PageIndex::new(request.page.get() + u32::from(request.run) - 1);
            let (first, last) = (request.page, last);
            for extent in self.shared.extent_of(first).get()..=self.shared.extent_of(last).get() {
                thin.touch(ExtentIndex::new(extent));
            }
        }
        if let Which::Except(mut wrong) = request.which {
            while let Some(node) = wrong.take_one() {
                if let Some(connection) = self.connections.get(usize::from(node)) {
                    connection.link.gave_wrong_page();
                }
            }
        }
        let queued = self.queue.queue(request);
        self.count_held();
        queued
    }

    fn ring(&mut self) {
        self.post_all(self.now_us());
    }

    fn poll(&mut self, into: &mut Vec<PageDone>) -> usize {
        if !self.queue.is_fenced() && self.shared.is_fenced() {
            self.queue.fence();
        }
        if self.shared.losses.any_news() && !self.shared.options.watched {
            // In simulated time there is no keeper.
            self.shared.tend();
        }
        if let Some(thin) = &self.shared.thin
            && !self.shared.options.watched
            && thin.is_stirred()
        {
            self.shared.place_more();
        }
        self.adopt_if_changed();
        let now_us = self.now_us();
        for node in 0..self.connections.len() as u16 {
            self.collect(node, now_us);
        }
        self.take_back(now_us);
        self.queue.ask_twice(now_us);
        if let Some(timer) = &mut self.timer {
            timer.silence(now_us);
        }
        self.post_all(now_us);
        if self.post.was_rung() {
            self.redial.silence();
        }
        if self.post.heard() != self.queue.version() {
            self.hear();
        }
        let moved = self.queue.take_moved();
        self.shared.counters.add(moved);
        self.count_held();
        let frames = self.frames.mapping();
        self.queue.take_done(into, |fill| {
            let filled = match fill {
                Fill::Copy { from, to } => frames.copy_within(from, to, PAGE_BYTES),
                Fill::Zero { at } => frames.copy_in(at, &ZEROS),
            };
            debug_assert!(filled.is_ok(), "these are frames of the lane");
        })
    }

    fn give_up_unplaced(&mut self) {
        self.queue.answer_held(PageError::Unplaced);
        self.count_held();
    }

    fn arm(&mut self) -> Armed {
        let fenced = !self.queue.is_fenced() && self.shared.is_fenced();
        let changed = self.shared.published.version() != self.queue.version();
        if fenced || changed || self.queue.has_done() || self.redial.has_finished() {
            return Armed::Ready;
        }
        for connection in &mut self.connections {
            if let Some(queue_pair) = &mut connection.queue_pair
                && queue_pair.arm() == Armed::Ready
            {
                return Armed::Ready;
            }
        }
        if let Some(timer) = &mut self.timer
            && let Some(look_us) = self.queue.look_us()
        {
            timer.set(look_us, self.shared.options.clock.now_us());
        }
        Armed::Waiting
    }

    fn readiness<'a>(&'a self, each: &mut dyn FnMut(BorrowedFd<'a>)) {
        if let Some(bell) = self.redial.bell() {
            each(bell.as_fd());
        }
        if let Some(timer) = &self.timer {
            each(timer.descriptor.as_fd());
        }
        for connection in &self.connections {
            if let Some(readiness) = connection.queue_pair.as_ref().and_then(|qp| qp.readiness()) {
                each(readiness);
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.queue.answer_held(PageError::Unplaced);
        self.count_held();
        while self.redial.has_finished() {
            if let Some((node, Outcome::Up(queue_pair, ticket))) = self.redial.finished() {
                drop(queue_pair);
                self.redial.dismiss(node, ticket);
            }
        }
        for (node, connection) in self.connections.iter_mut().enumerate() {
            // One that is being replaced is the watch thread's to end.
            if connection.queue_pair.take().is_some()
                && let Some(ticket) = connection.ticket
            {
                self.redial.dismiss(node as u16, ticket);
            }
        }
    }
}

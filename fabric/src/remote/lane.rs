//! A lane: one thread's queue pairs to all nodes of a region, driven by [`LaneQueue`].

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::frames::Frames;
use super::link::{Cause, NodeLink, Trouble};
use super::queue::{LaneQueue, LinkState};
use super::redial::{ByWatches, Inline, Job, Outcome, Redial};
use super::region::Shared;
use crate::pages::{
    LaneConfig, LaneError, LaneFull, MAX_RUN_PAGES, PageDone, PageLane, PageRequest,
};
use crate::transport::{
    Armed, Completion, LocalMemory, MAX_QUEUE_DEPTH, Mapping, PostError, QueuePair,
    QueuePairConfig, Ticket, WorkRequest,
};
use crate::units::PAGE_BYTES;

/// Completions that are taken at a time.
const BATCH: usize = 64;
/// How often a batch is taken from one queue pair before the others get their turn.
const BATCHES: usize = 4;

struct Connection {
    queue_pair: Option<Box<dyn QueuePair>>,
    ticket: Ticket,
    memory: LocalMemory,
}

/// See the module.
pub(super) struct Lane {
    queue: LaneQueue,
    /// One a node; `None` where the node was lost before the lane came to be. Dropped before the frames.
    connections: Vec<Option<Connection>>,
    redial: Box<dyn Redial>,
    chain: Vec<WorkRequest>,
    completions: Vec<Completion>,
    frames: Arc<Frames>,
    config: QueuePairConfig,
    deadline_ms: u64,
    shared: Arc<Shared>,
}

impl Lane {
    /// Connects to every node that still counts. Blocks.
    pub(super) fn open(shared: Arc<Shared>, config: &LaneConfig) -> Result<Self, LaneError> {
        let nodes = shared.links.len();
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
        let mut memory = shared.frames.take(frames as usize * PAGE_BYTES)?;
        let redial: Box<dyn Redial> = match shared.watches() {
            Some(watches) => {
                Box::new(ByWatches::new(watches).map_err(|errno| LaneError::Bell(errno.into()))?)
            }
            None => Box::new(Inline::new(
                Arc::clone(&shared.links),
                Arc::clone(&shared.clock),
            )),
        };
        let mut queue = LaneQueue::new(
            Arc::clone(&shared.homes),
            shared.pages(),
            nodes,
            frames,
            requests,
            deadline_ms,
        );
        let mut connections = Vec::with_capacity(nodes);
        for link in shared.links.iter() {
            let connection = match connect(link, &pair)? {
                Some((queue_pair, ticket)) => Some(Connection {
                    queue_pair: Some(queue_pair),
                    ticket,
                    memory: memory.registered(&*link.transport)?,
                }),
                None => None,
            };
            if connection.is_none() {
                queue.lost(link.index);
            }
            connections.push(connection);
        }
        Ok(Self {
            queue,
            connections,
            redial,
            chain: Vec::with_capacity(depth as usize),
            completions: Vec::with_capacity(BATCH),
            frames: Arc::new(memory),
            config: pair,
            deadline_ms,
            shared,
        })
    }

    /// Takes completions from one queue pair; if it broke, hands it over to be replaced.
    fn collect(&mut self, node: u16) {
        let Some(connection) = &mut self.connections[usize::from(node)] else {
            return;
        };
        let Some(queue_pair) = &mut connection.queue_pair else {
            return;
        };
        let mut broken = false;
        for _ in 0..BATCHES {
            self.completions.clear();
            let count = queue_pair.poll(&mut self.completions);
            for completion in &self.completions {
                let result = completion.result.map_err(|error| error.kind);
                broken |= self.queue.completed(node, completion.id, result);
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
        if let Some(connection) = &mut self.connections[usize::from(node)]
            && let Some(broken) = connection.queue_pair.take()
        {
            self.queue.away(node);
            let now_ms = self.shared.clock.now_ms();
            let job = Job::new(
                broken,
                Arc::clone(&self.frames),
                connection.ticket,
                self.config,
                now_ms,
                self.deadline_ms,
            );
            self.redial.start(node, job);
        }
    }

    fn take_back(&mut self) {
        while let Some((node, outcome)) = self.redial.finished() {
            match outcome {
                Outcome::Up(queue_pair, ticket) => {
                    self.shared.counters.reconnected();
                    if let Some(connection) = &mut self.connections[usize::from(node)] {
                        connection.queue_pair = Some(queue_pair);
                        connection.ticket = ticket;
                    }
                    self.queue.up(node, self.shared.clock.now_ms());
                    self.post(node);
                }
                Outcome::Lost => self.queue.lost(node),
                Outcome::Fenced => self.queue.lost_by_fence(node),
            }
        }
    }

    /// Posts what waits for `node`, as far as there is room.
    fn post(&mut self, node: u16) {
        let Some(connection) = &mut self.connections[usize::from(node)] else {
            return;
        };
        let Some(queue_pair) = &mut connection.queue_pair else {
            return;
        };
        let room = queue_pair.free_slots();
        self.chain.clear();
        let sliced = self
            .queue
            .chain(node, room, &connection.memory, &mut self.chain);
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
                self.collect(node);
                self.hand_over(node);
            }
        }
    }

    fn post_all(&mut self) {
        for node in 0..self.connections.len() as u16 {
            if self.queue.state(node) == LinkState::Up && self.queue.has_waiting(node) {
                self.post(node);
            }
        }
    }
}

type Connected = (Box<dyn QueuePair>, Ticket);

/// A queue pair to a node, or none if the node does not count any more.
fn connect(link: &NodeLink, config: &QueuePairConfig) -> Result<Option<Connected>, LaneError> {
    let mut ticket = None;
    match (link.connect(&mut ticket, config), ticket) {
        (Ok(queue_pair), Some(ticket)) => Ok(Some((queue_pair, ticket))),
        (Ok(_), None) => Ok(None),
        (Err(Trouble::Dead(death)), _) => {
            link.give_up(death);
            Ok(None)
        }
        (Err(Trouble::Fenced), _) => {
            link.fence();
            Err(LaneError::Fenced)
        }
        (Err(Trouble::Again(Cause::Connect(error))), _) => Err(error.into()),
        (Err(Trouble::Again(Cause::Session(error))), _) => Err(error.into()),
    }
}

impl PageLane for Lane {
    fn frames(&self) -> &Arc<Mapping> {
        self.frames.mapping()
    }

    fn free_slots(&self) -> usize {
        self.queue.free_slots()
    }

    fn queue(&mut self, request: PageRequest) -> Result<(), LaneFull> {
        self.queue.queue(request)
    }

    fn ring(&mut self) {
        self.post_all();
    }

    fn poll(&mut self, into: &mut Vec<PageDone>) -> usize {
        if !self.queue.is_fenced() && self.shared.is_fenced() {
            self.queue.fence();
        }
        for node in 0..self.connections.len() as u16 {
            self.collect(node);
        }
        self.take_back();
        self.post_all();
        let moved = self.queue.take_moved();
        self.shared.counters.add(moved);
        self.queue.take_done(into)
    }

    fn arm(&mut self) -> Armed {
        let fenced = !self.queue.is_fenced() && self.shared.is_fenced();
        if fenced || self.queue.has_done() || self.redial.has_finished() {
            return Armed::Ready;
        }
        for connection in self.connections.iter_mut().flatten() {
            if let Some(queue_pair) = &mut connection.queue_pair
                && queue_pair.arm() == Armed::Ready
            {
                return Armed::Ready;
            }
        }
        Armed::Waiting
    }

    fn readiness<'a>(&'a self, each: &mut dyn FnMut(BorrowedFd<'a>)) {
        if let Some(bell) = self.redial.bell() {
            each(bell.as_fd());
        }
        for connection in self.connections.iter().flatten() {
            if let Some(readiness) = connection.queue_pair.as_ref().and_then(|qp| qp.readiness()) {
                each(readiness);
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        while self.redial.has_finished() {
            if let Some((node, Outcome::Up(queue_pair, ticket))) = self.redial.finished() {
                drop(queue_pair);
                self.redial.dismiss(node, ticket);
            }
        }
        for (node, connection) in self.connections.iter_mut().enumerate() {
            // One that is being replaced is the watch thread's to end.
            if let Some(Connection {
                queue_pair: queue_pair @ Some(_),
                ticket,
                ..
            }) = connection
            {
                *queue_pair = None;
                self.redial.dismiss(node as u16, *ticket);
            }
        }
    }
}

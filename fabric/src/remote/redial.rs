//! Replacing queue pairs that broke, beside the path of pages.
//!
//! ```text
//!   lane --Job: the broken queue pair--> watch thread of its node: drop it, ticket, connect, again ...
//!        <--Redialed: up, lost, fenced-- mailbox and bell of the lane
//! ```
//!
//! A node's watch thread serves all lanes, so a node that does not answer holds up nobody else's pages.
//! In a simulation the lane does the same steps itself, in simulated time.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};

use super::bell::Bell;
use super::clock::Clock;
use super::frames::Frames;
use super::link::{Death, NodeLink, Trouble};
use super::watch::{Message, WatchHandle};
use crate::transport::{QueuePair, QueuePairConfig, Ticket};

/// How long after a failed try the next one comes, at first, ms; it doubles up to [`RETRY_MOST_MS`].
const RETRY_FIRST_MS: u64 = 20;
/// See [`RETRY_FIRST_MS`].
const RETRY_MOST_MS: u64 = 320;

/// How it went.
pub(super) enum Outcome {
    /// The old queue pair is gone, here is a new one.
    Up(Box<dyn QueuePair>, Ticket),
    /// The old queue pair is gone, and the node is given up.
    Lost,
    /// The old queue pair is gone, and this owner was fenced.
    Fenced,
}

/// A queue pair that is to be replaced.
pub(super) struct Job {
    /// Dropped before anything else: when that is done it touches no frame any more.
    broken: Option<Box<dyn QueuePair>>,
    /// Held until then, also when the lane has been dropped meanwhile.
    frames: Option<Arc<Frames>>,
    ticket: Option<Ticket>,
    config: QueuePairConfig,
    next_try_ms: u64,
    retry_ms: u64,
    give_up_ms: u64,
}

impl Job {
    /// `broken` is dropped first, if there is one; `ticket` is its ticket.
    pub(super) fn new(
        broken: Option<Box<dyn QueuePair>>,
        frames: Arc<Frames>,
        ticket: Option<Ticket>,
        config: QueuePairConfig,
        now_ms: u64,
        deadline_ms: u64,
    ) -> Self {
        Self {
            broken,
            frames: Some(frames),
            ticket,
            config,
            next_try_ms: now_ms,
            retry_ms: RETRY_FIRST_MS,
            give_up_ms: now_ms.saturating_add(deadline_ms),
        }
    }

    /// When it wants to be tried next.
    pub(super) fn next_try_ms(&self) -> u64 {
        self.next_try_ms
    }

    /// One try, if it is time for one. `None`: to be tried again at [`Self::next_try_ms`].
    pub(super) fn attempt(&mut self, link: &NodeLink, clock: &dyn Clock) -> Option<Outcome> {
        self.broken = None;
        self.frames = None;
        let now = clock.now_ms();
        if now < self.next_try_ms && !link.is_lost() && !link.is_fenced() {
            return None;
        }
        // A try may take no longer than there is time left.
        let left = self.give_up_ms.saturating_sub(now).max(1);
        let mut config = self.config;
        config.connect_timeout_ms = config
            .connect_timeout_ms
            .min(u32::try_from(left).unwrap_or(u32::MAX));
        match (link.connect(&mut self.ticket, &config), self.ticket) {
            (Ok(queue_pair), Some(ticket)) => Some(Outcome::Up(queue_pair, ticket)),
            (Err(Trouble::Dead(death)), _) => {
                link.give_up(death);
                Some(Outcome::Lost)
            }
            (Err(Trouble::Fenced), _) => {
                link.fence();
                Some(Outcome::Fenced)
            }
            (Err(Trouble::Again(_)) | Ok(_), _) => {
                let now = clock.now_ms();
                if now >= self.give_up_ms {
                    link.give_up(Death::NoAnswer);
                    return Some(Outcome::Lost);
                }
                self.next_try_ms = (now + self.retry_ms).min(self.give_up_ms);
                self.retry_ms = (2 * self.retry_ms).min(RETRY_MOST_MS);
                None
            }
        }
    }
}

/// A lane's way to new queue pairs. Neither call blocks on a peer.
pub(super) trait Redial: Send {
    /// Begins to replace the queue pair to `node`.
    fn start(&mut self, node: u16, job: Job);
    /// What has been finished.
    fn finished(&mut self) -> Option<(u16, Outcome)>;
    /// Whether [`Self::finished`] has something.
    fn has_finished(&self) -> bool;
    /// The queue pair of `ticket` is no more, and not wanted again.
    fn dismiss(&mut self, node: u16, ticket: Ticket);
    /// One more node.
    fn add(&mut self, link: &Arc<NodeLink>, watch: Option<WatchHandle>);
    /// Where to wait for something to be finished.
    fn bell(&self) -> Option<&Arc<Bell>>;
    /// Whatever the bell was rung for has been seen.
    fn silence(&self);
}

/// Where a watch thread puts what it has finished.
#[derive(Clone)]
pub(super) struct Mailbox {
    sender: Sender<(u16, Outcome)>,
    bell: Arc<Bell>,
}

impl Mailbox {
    /// Gives the outcome back if the lane is gone.
    pub(super) fn put(&self, node: u16, outcome: Outcome) -> Result<(), Outcome> {
        let sent = self.sender.send((node, outcome));
        self.bell.ring();
        sent.map_err(|unsent| unsent.into_inner().1)
    }
}

/// Has the watch threads do it.
pub(super) struct ByWatches {
    watches: Vec<WatchHandle>,
    mailbox: Mailbox,
    finished: Receiver<(u16, Outcome)>,
}

impl ByWatches {
    /// `bell` is the lane's.
    pub(super) fn new(bell: Arc<Bell>) -> Self {
        // Bounded by the nodes: each has at most one job of this lane.
        let (sender, finished) = unbounded();
        Self {
            watches: Vec::new(),
            mailbox: Mailbox { sender, bell },
            finished,
        }
    }
}

impl Redial for ByWatches {
    fn start(&mut self, node: u16, job: Job) {
        self.watches[usize::from(node)].send(Message::Redial(job, self.mailbox.clone()));
    }

    fn finished(&mut self) -> Option<(u16, Outcome)> {
        match self.finished.try_recv() {
            Ok(finished) => {
                self.silence();
                Some(finished)
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }

    fn has_finished(&self) -> bool {
        !self.finished.is_empty()
    }

    fn dismiss(&mut self, node: u16, ticket: Ticket) {
        self.watches[usize::from(node)].send(Message::Dismiss(ticket));
    }

    fn add(&mut self, _link: &Arc<NodeLink>, watch: Option<WatchHandle>) {
        self.watches.extend(watch);
    }

    fn bell(&self) -> Option<&Arc<Bell>> {
        Some(&self.mailbox.bell)
    }

    fn silence(&self) {
        self.mailbox.bell.silence();
        // Silencing may have swallowed the ring for something that was finished.
        if !self.finished.is_empty() {
            self.mailbox.bell.ring();
        }
    }
}

/// Does it itself, when it is asked what has been finished: for simulated time.
pub(super) struct Inline {
    links: Vec<Arc<NodeLink>>,
    clock: Arc<dyn Clock>,
    jobs: Vec<(u16, Job)>,
}

impl Inline {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            links: Vec::new(),
            clock,
            jobs: Vec::new(),
        }
    }
}

impl Redial for Inline {
    fn start(&mut self, node: u16, job: Job) {
        self.jobs.push((node, job));
    }

    fn finished(&mut self) -> Option<(u16, Outcome)> {
        for at in 0..self.jobs.len() {
            let (node, job) = &mut self.jobs[at];
            let node = *node;
            if let Some(outcome) = job.attempt(&self.links[usize::from(node)], &*self.clock) {
                self.jobs.remove(at);
                return Some((node, outcome));
            }
        }
        None
    }

    fn has_finished(&self) -> bool {
        false
    }

    fn dismiss(&mut self, node: u16, ticket: Ticket) {
        self.links[usize::from(node)].dismiss(ticket);
    }

    fn add(&mut self, link: &Arc<NodeLink>, _watch: Option<WatchHandle>) {
        self.links.push(Arc::clone(link));
    }

    fn bell(&self) -> Option<&Arc<Bell>> {
        None
    }

    fn silence(&self) {}
}

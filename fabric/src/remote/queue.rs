//! The bookkeeping of a lane. Pure: requests in, chains of work out, completions in, answers out.
//!
//! ```text
//!   PageRequest --cut at extents; a write to all replicas, a read to the nearest--> parts
//!      parts --> waiting --chain--> posted --done--> the request is answered with its last part
//!        ^         |                  |
//!        |         |                  +-- slow: a second part to another replica; the first wins
//!        |         |                  +-- its queue pair broke --+
//!        |         |                                             |
//!        +---------+-- a read: on to another replica <-----------+
//!        +---------+-- a write: again, when there is a new queue pair;
//!                      on a node that was given up: held, until its replica does not count any more
//!
//!   an extent that is not placed yet:   a read is zeros; a write is held until there are homes for it
//!
//!   a link (a queue pair to one node):   Up --broke--> Away --connected again--> Up
//!                                                        '----given up---------> Lost
//! ```
//!
//! Work on one queue pair is done in order, so the completion of a part settles all that were posted
//! before it. When a queue pair breaks, what it had posted stays posted until somebody says that it is
//! gone for good and touches no frame any more; only then are its parts tried again or given up.
//! Reads and writes of pages are idempotent, so whatever is uncertain is simply done again.
//!
//! A read that may be asked for twice lands in a frame of the lane's own, and so does the second one: the
//! loser may still be under way when the request has been answered, and must touch no frame but its own.
//!
//! `requests` begins and answers, `reads` chooses replicas, `failures` is what follows when one is gone.

mod failures;
mod latency;
mod reads;
mod requests;

use std::collections::VecDeque;
use std::sync::Arc;

use self::latency::{Average, Tail};
use self::requests::{Held, Tracked};
use super::homes::Homes;
use crate::pages::{Direction, MAX_RUN_PAGES, NodeSet, PageError, PageRequest};
use crate::transport::{
    ErrorKind, LocalMemory, Operation, OutOfBounds, RemoteSlice, WorkId, WorkRequest,
};
use crate::units::{ExtentIndex, PAGE_BYTES, PageCount};

/// Of writes that go out in one chain, one in so many is signaled, and the last. Writes are eviction,
/// whose frames are not waited for one by one. Reads are faults: each is signaled.
///
/// So is each write behind a queue pair that broke, until all that was posted came through: where few queue pairs
/// live for a whole chain, what they do before they break would not count, and would be done again and again.
const SIGNAL_EVERY: usize = 8;
/// Frames of a lane in which reads land that may be asked for twice. They lie behind the owner's frames.
pub(super) const LANDINGS: u32 = 64;
/// No slot, part or landing.
const NONE: u32 = u32::MAX;

/// What has been moved since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) bytes_read: u64,
    pub(super) bytes_written: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) failovers: u64,
    pub(super) hedges_won: u64,
    pub(super) hedges_lost: u64,
    pub(super) repairs: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkState {
    /// There is a queue pair.
    Up,
    /// It broke; a new one is being connected.
    Away,
    /// The node was given up.
    Lost,
}

/// What a lane is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueConfig {
    pub(super) pages: PageCount,
    /// The owner's frames.
    pub(super) frames: u32,
    /// Most requests in flight.
    pub(super) requests: u32,
    pub(super) deadline_ms: u64,
    /// Whether extents are meant to have several replicas: reads are measured, and may be sent twice.
    pub(super) replicated: bool,
}

#[derive(Debug)]
struct Link {
    state: LinkState,
    waiting: VecDeque<u32>,
    posted: VecDeque<u32>,
    /// Its queue pair broke, and not all that was posted came through since.
    shaky: bool,
    average: Average,
    /// In the zone of the owner, as far as that is known.
    near: bool,
}

/// From which node a request was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    Nobody,
    One(u16),
    Several,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    request: PageRequest,
    parts: u16,
    error: Option<PageError>,
    served: Served,
    /// The page is in this landing, and has to be copied.
    landing: u32,
    /// Some of its pages are followed by a tracker.
    tracked: bool,
    /// One bit a page: it is read from an extent that is not placed.
    zeros: u16,
}

/// What an answer needs done to frames before it counts; places in bytes from the start of the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// Move a page.
    Copy {
        /// From here.
        from: usize,
        /// To here.
        to: usize,
    },
    /// Make a page zeros.
    Zero {
        /// It begins here.
        at: usize,
    },
}

// A bit for each page of a run.
const _: () = assert!(MAX_RUN_PAGES as u32 <= u16::BITS);

#[derive(Clone, Copy, Debug)]
struct Part {
    /// [`NONE`]: nobody waits for it any more.
    slot: u32,
    direction: Direction,
    node: u16,
    extent: ExtentIndex,
    /// Bytes from the extent's start.
    offset: u64,
    /// Bytes from the start of the frames.
    local: usize,
    bytes: usize,
    remote: RemoteSlice,
    /// It is for this replica and no other.
    only: bool,
    /// [`NONE`], or the landing that it reads into.
    landing: u32,
    /// [`NONE`], or the other part that was sent for the same page.
    twin: u32,
    /// It is the second one.
    second: bool,
    posted: bool,
    posted_us: u64,
    /// Of the homes that it was made by.
    version: u64,
    /// Nodes that it was tried on in vain.
    tried: NodeSet,
    failed: Option<ErrorKind>,
    failing_since_ms: Option<u64>,
}

/// See the module. After it is made it allocates nothing, save when a node is added.
#[derive(Debug)]
pub(super) struct LaneQueue {
    homes: Arc<Homes>,
    config: QueueConfig,
    slots: Vec<Option<Slot>>,
    free_slots: Vec<u32>,
    parts: Vec<Option<Part>>,
    free_parts: Vec<u32>,
    links: Vec<Link>,
    /// Slots whose request is settled; freed when the answer is taken.
    done: VecDeque<u32>,
    fenced: bool,
    moved: Moved,
    /// Which part has which landing; [`NONE`]: it is free, [`NONE`] - 1: it waits to be copied.
    landings: Vec<u32>,
    free_landings: Vec<u32>,
    tail: Tail,
    /// When the next read has to be looked at, whether another replica is to be asked.
    look_us: u64,
    /// Requests that touch an extent that is being copied.
    tracked: Vec<Tracked>,
    /// Pieces of writes to extents that are not placed.
    held: Vec<Held>,
}

impl LaneQueue {
    /// A lane without links.
    pub(super) fn new(homes: Arc<Homes>, config: QueueConfig) -> Self {
        let slots = config.requests as usize;
        let landings = if config.replicated { LANDINGS } else { 0 };
        let parts = slots * homes.most_parts(MAX_RUN_PAGES) + landings as usize;
        let pieces = slots * homes.most_pieces(MAX_RUN_PAGES);
        let indexes = |count: usize| (0..count as u32).rev().collect::<Vec<_>>();
        Self {
            homes,
            config,
            slots: vec![None; slots],
            free_slots: indexes(slots),
            parts: vec![None; parts],
            free_parts: indexes(parts),
            links: Vec::new(),
            done: VecDeque::with_capacity(slots),
            fenced: false,
            moved: Moved::default(),
            landings: vec![NONE; landings as usize],
            free_landings: indexes(landings as usize),
            tail: Tail::new(),
            look_us: u64::MAX,
            tracked: Vec::with_capacity(pieces),
            held: Vec::with_capacity(pieces),
        }
    }

    /// One more node. Allocates.
    pub(super) fn add_link(&mut self, state: LinkState, near: bool) {
        self.links.push(Link {
            state,
            waiting: VecDeque::with_capacity(self.parts.len()),
            posted: VecDeque::with_capacity(self.parts.len()),
            shaky: false,
            average: Average::default(),
            near,
        });
    }

    pub(super) fn free_slots(&self) -> usize {
        self.free_slots.len()
    }

    pub(super) fn state(&self, node: u16) -> LinkState {
        self.links[usize::from(node)].state
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fenced
    }

    pub(super) fn is_replicated(&self) -> bool {
        self.config.replicated
    }

    pub(super) fn has_waiting(&self, node: u16) -> bool {
        !self.links[usize::from(node)].waiting.is_empty()
    }

    pub(super) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Pieces of writes that wait for a place.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// The homes that requests are made by.
    pub(super) fn version(&self) -> u64 {
        self.homes.version()
    }

    /// All parts that there are were made by these homes, or later ones.
    pub(super) fn oldest_version(&self) -> u64 {
        let parts = self.parts.iter().flatten();
        // One that nobody waits for and that is not posted does nothing any more.
        let parts = parts.filter(|part| part.posted || part.slot != NONE);
        let oldest = parts.map(|part| part.version).min();
        oldest.unwrap_or_else(|| self.homes.version())
    }

    /// What was moved since the last call.
    pub(super) fn take_moved(&mut self) -> Moved {
        std::mem::take(&mut self.moved)
    }

    fn part(&mut self, index: u32) -> &mut Part {
        match &mut self.parts[index as usize] {
            Some(part) => part,
            None => unreachable!("a part that is settled is used"),
        }
    }

    fn link(&mut self, node: u16) -> &mut Link {
        &mut self.links[usize::from(node)]
    }

    /// Moves up to `room` waiting parts of `node` into `chain`, which they fit; they count as posted.
    /// `now_us` counts where the queue is replicated.
    pub(super) fn chain(
        &mut self,
        node: u16,
        room: usize,
        memory: &LocalMemory,
        chain: &mut Vec<WorkRequest>,
        now_us: u64,
    ) -> Result<(), OutOfBounds> {
        let room = room.min(chain.capacity() - chain.len());
        let before = chain.len();
        let mut look_us = self.look_us;
        let delay_us = self.tail.delay_us();
        let shaky = self.link(node).shaky;
        while chain.len() - before < room {
            let Some(index) = self.link(node).waiting.pop_front() else {
                break;
            };
            let part = self.part(index);
            if part.slot == NONE {
                self.free_part(index);
                continue;
            }
            part.posted = true;
            part.posted_us = now_us;
            if part.landing != NONE && part.twin == NONE {
                look_us = look_us.min(now_us.saturating_add(delay_us));
            }
            let local = memory.slice(part.local, part.bytes)?;
            let read = part.direction == Direction::Read;
            let operation = match part.direction {
                Direction::Read => Operation::Read {
                    into: local,
                    from: part.remote,
                },
                Direction::Write => Operation::Write {
                    from: local,
                    into: part.remote,
                },
            };
            let nth = chain.len() - before;
            chain.push(WorkRequest {
                id: WorkId(u64::from(index)),
                operation,
                signaled: read || shaky || nth % SIGNAL_EVERY == SIGNAL_EVERY - 1,
            });
            self.link(node).posted.push_back(index);
        }
        if chain.len() > before
            && let Some(last) = chain.last_mut()
        {
            last.signaled = true;
        }
        self.look_us = look_us;
        Ok(())
    }

    /// The last `count` parts that [`Self::chain`] gave were not taken by the queue pair.
    pub(super) fn not_taken(&mut self, node: u16, count: usize) {
        for _ in 0..count {
            if let Some(index) = self.link(node).posted.pop_back() {
                self.part(index).posted = false;
                self.link(node).waiting.push_front(index);
            }
        }
    }

    /// A completion came. True if the link must be given up: it broke.
    pub(super) fn completed(
        &mut self,
        node: u16,
        id: WorkId,
        result: Result<(), ErrorKind>,
        now_us: u64,
    ) -> bool {
        let posted = u32::try_from(id.0).ok().filter(|part| {
            let part = self.parts.get(*part as usize).and_then(Option::as_ref);
            part.is_some_and(|part| part.node == node && part.posted)
        });
        // A completion of something that is not posted can only be the provider's fault; taking the
        // queue pair down is the one answer that cannot harm a page.
        let Some(id) = posted else { return true };
        if let Err(kind) = result {
            self.part(id).failed = Some(kind);
            return true;
        }
        while let Some(part) = self.link(node).posted.pop_front() {
            self.count(part, now_us);
            self.settle_part(part, Ok(()));
            if part == id {
                break;
            }
        }
        let link = self.link(node);
        link.shaky &= !link.posted.is_empty();
        false
    }

    fn count(&mut self, index: u32, now_us: u64) {
        let replicated = self.config.replicated;
        let part = self.part(index);
        let (node, bytes, only) = (part.node, part.bytes, part.only);
        match part.direction {
            Direction::Read => {
                // Of runs, the time says more about their length.
                if replicated && bytes == PAGE_BYTES {
                    let us = now_us.saturating_sub(part.posted_us);
                    self.measured(node, us);
                }
                self.moved.reads += 1;
                self.moved.bytes_read += bytes as u64;
            }
            Direction::Write => {
                self.moved.writes += 1;
                self.moved.bytes_written += bytes as u64;
                if only {
                    self.moved.repairs += (bytes / PAGE_BYTES) as u64;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

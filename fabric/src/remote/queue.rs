//! The bookkeeping of a lane. Pure: requests in, chains of work out, completions in, answers out.
//!
//! ```text
//!   PageRequest --cut at extents, copied to replicas--> parts --> waiting --chain--> posted --+
//!        ^                                                  ^                                 |
//!        | answered once, when its last part is settled     +---- again, the link broke ------+
//!        +--------------------------------- done, lost, fenced -------------------------------+
//!
//!   a link (a queue pair to one node):   Up --broke--> Away --connected again--> Up
//!                                                        '----given up---------> Lost
//! ```
//!
//! Work on one queue pair is done in order, so the completion of a part settles all that were posted
//! before it. When a queue pair breaks, what it had posted stays posted until somebody says that it is
//! gone for good and touches no frame any more; only then are its parts tried again or given up.
//! Reads and writes of pages are idempotent, so whatever is uncertain is simply done again.

use std::collections::VecDeque;
use std::sync::Arc;

use super::homes::{Homes, Location};
use crate::pages::{Direction, LaneFull, MAX_RUN_PAGES, PageDone, PageError, PageRequest};
use crate::transport::{
    ErrorKind, LocalMemory, Operation, OutOfBounds, RemoteSlice, WorkId, WorkRequest,
};
use crate::units::{PAGE_BYTES, PageCount};

/// Of writes that go out in one chain, one in so many is signaled, and the last. Writes are eviction,
/// whose frames are not waited for one by one. Reads are faults: each is signaled.
const SIGNAL_EVERY: usize = 8;

/// What has been moved since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) bytes_read: u64,
    pub(super) bytes_written: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
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

#[derive(Debug)]
struct Link {
    state: LinkState,
    waiting: VecDeque<u32>,
    posted: VecDeque<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    request: PageRequest,
    parts: u16,
    error: Option<PageError>,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    slot: u32,
    node: u16,
    /// Bytes from the start of the frames.
    local: usize,
    bytes: usize,
    remote: RemoteSlice,
    posted: bool,
    failed: Option<ErrorKind>,
    failing_since_ms: Option<u64>,
}

/// See the module. After it is made it allocates nothing.
#[derive(Debug)]
pub(super) struct LaneQueue {
    homes: Arc<Homes>,
    pages: PageCount,
    frames: u32,
    deadline_ms: u64,
    slots: Vec<Option<Slot>>,
    free_slots: Vec<u32>,
    parts: Vec<Option<Part>>,
    free_parts: Vec<u32>,
    links: Vec<Link>,
    /// Slots whose request is settled; freed when the answer is taken.
    done: VecDeque<u32>,
    fenced: bool,
    moved: Moved,
}

impl LaneQueue {
    /// A lane of `frames` frames with at most `requests` requests in flight; all its links are up.
    pub(super) fn new(
        homes: Arc<Homes>,
        pages: PageCount,
        nodes: usize,
        frames: u32,
        requests: u32,
        deadline_ms: u64,
    ) -> Self {
        let slots = requests as usize;
        let parts = slots * homes.most_parts(MAX_RUN_PAGES);
        let indexes = |count: usize| (0..count as u32).rev().collect::<Vec<_>>();
        let link = || Link {
            state: LinkState::Up,
            waiting: VecDeque::with_capacity(parts),
            posted: VecDeque::with_capacity(parts),
        };
        Self {
            homes,
            pages,
            frames,
            deadline_ms,
            slots: vec![None; slots],
            free_slots: indexes(slots),
            parts: vec![None; parts],
            free_parts: indexes(parts),
            links: std::iter::repeat_with(link).take(nodes).collect(),
            done: VecDeque::with_capacity(slots),
            fenced: false,
            moved: Moved::default(),
        }
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

    pub(super) fn has_waiting(&self, node: u16) -> bool {
        !self.links[usize::from(node)].waiting.is_empty()
    }

    pub(super) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// What was moved since the last call.
    pub(super) fn take_moved(&mut self) -> Moved {
        std::mem::take(&mut self.moved)
    }

    /// Takes a request. Pages outside of the region and frames outside of the lane are a bug of the
    /// caller that would end in another region's memory, so they are not survived.
    pub(super) fn queue(&mut self, request: PageRequest) -> Result<(), LaneFull> {
        let run = u32::from(request.run);
        let inside =
            |first: u32, count: u32| first.checked_add(run).is_some_and(|end| end <= count);
        assert!(
            (1..=MAX_RUN_PAGES).contains(&request.run)
                && inside(request.page.get(), self.pages.get())
                && inside(request.frame.0, self.frames),
            "a page request outside of its region or lane: {request:?}"
        );
        let slot = self.free_slots.pop().ok_or(LaneFull)?;
        self.slots[slot as usize] = Some(Slot {
            request,
            // One more than there are parts, until all are made.
            parts: 1,
            error: None,
        });
        if self.fenced {
            self.settle_one(slot, Err(PageError::Fenced));
            return Ok(());
        }
        let homes = Arc::clone(&self.homes);
        for piece in homes.pieces(request.page, request.run) {
            let copies = homes.of(piece.extent);
            let local = (request.frame.0 as usize + usize::from(piece.skipped)) * PAGE_BYTES;
            let bytes = usize::from(piece.pages) * PAGE_BYTES;
            let mut add = |location: &Location| {
                self.add_part(slot, location.node, local, bytes, location.at(piece.offset));
            };
            match request.direction {
                Direction::Write => copies.iter().for_each(add),
                Direction::Read => add(&copies[0]),
            }
        }
        self.settle_one(slot, Ok(()));
        Ok(())
    }

    fn add_part(&mut self, slot: u32, node: u16, local: usize, bytes: usize, remote: RemoteSlice) {
        let link = &mut self.links[usize::from(node)];
        if let Some(slot) = &mut self.slots[slot as usize] {
            slot.parts += 1;
        }
        if link.state == LinkState::Lost {
            self.settle_one(slot, Err(PageError::Lost { node }));
            return;
        }
        let Some(part) = self.free_parts.pop() else {
            unreachable!("there are parts for every slot's longest run")
        };
        self.parts[part as usize] = Some(Part {
            slot,
            node,
            local,
            bytes,
            remote,
            posted: false,
            failed: None,
            failing_since_ms: None,
        });
        link.waiting.push_back(part);
    }

    /// One part of the request is settled.
    fn settle_one(&mut self, slot: u32, result: Result<(), PageError>) {
        let Some(state) = &mut self.slots[slot as usize] else {
            unreachable!("a part outlives its request")
        };
        if let Err(error) = result {
            // That the owner was fenced says more than that a node is lost.
            if state.error.is_none() || error == PageError::Fenced {
                state.error = Some(error);
            }
        }
        state.parts -= 1;
        if state.parts == 0 {
            self.done.push_back(slot);
        }
    }

    fn settle_part(&mut self, part: u32, result: Result<(), PageError>) {
        let Some(settled) = self.parts[part as usize].take() else {
            unreachable!("a part is settled twice")
        };
        self.free_parts.push(part);
        self.settle_one(settled.slot, result);
    }

    /// Moves up to `room` waiting parts of `node` into `chain`, which they fit; they count as posted.
    pub(super) fn chain(
        &mut self,
        node: u16,
        room: usize,
        memory: &LocalMemory,
        chain: &mut Vec<WorkRequest>,
    ) -> Result<(), OutOfBounds> {
        let link = &mut self.links[usize::from(node)];
        let room = room.min(chain.capacity() - chain.len());
        let count = link.waiting.len().min(room);
        for nth in 0..count {
            let Some(index) = link.waiting.pop_front() else {
                break;
            };
            let Some(part) = &mut self.parts[index as usize] else {
                unreachable!("a settled part waits")
            };
            part.posted = true;
            let Some(slot) = &self.slots[part.slot as usize] else {
                unreachable!("a part outlives its request")
            };
            let local = memory.slice(part.local, part.bytes)?;
            let operation = match slot.request.direction {
                Direction::Read => Operation::Read {
                    into: local,
                    from: part.remote,
                },
                Direction::Write => Operation::Write {
                    from: local,
                    into: part.remote,
                },
            };
            let read = slot.request.direction == Direction::Read;
            chain.push(WorkRequest {
                id: WorkId(u64::from(index)),
                operation,
                signaled: read || nth + 1 == count || nth % SIGNAL_EVERY == SIGNAL_EVERY - 1,
            });
            link.posted.push_back(index);
        }
        Ok(())
    }

    /// The last `count` parts that [`Self::chain`] gave were not taken by the queue pair.
    pub(super) fn not_taken(&mut self, node: u16, count: usize) {
        let link = &mut self.links[usize::from(node)];
        for _ in 0..count {
            if let Some(index) = link.posted.pop_back() {
                if let Some(part) = &mut self.parts[index as usize] {
                    part.posted = false;
                }
                link.waiting.push_front(index);
            }
        }
    }

    /// A completion came. True if the link must be given up: it broke.
    pub(super) fn completed(
        &mut self,
        node: u16,
        id: WorkId,
        result: Result<(), ErrorKind>,
    ) -> bool {
        let posted = u32::try_from(id.0).ok().filter(|part| {
            let part = self.parts.get(*part as usize).and_then(Option::as_ref);
            part.is_some_and(|part| part.node == node && part.posted)
        });
        // A completion of something that is not posted can only be the provider's fault; taking the
        // queue pair down is the one answer that cannot harm a page.
        let Some(id) = posted else { return true };
        if let Err(kind) = result {
            if let Some(part) = &mut self.parts[id as usize] {
                part.failed = Some(kind);
            }
            return true;
        }
        while let Some(part) = self.links[usize::from(node)].posted.pop_front() {
            self.count(part);
            self.settle_part(part, Ok(()));
            if part == id {
                break;
            }
        }
        false
    }

    fn count(&mut self, part: u32) {
        if let Some(part) = &self.parts[part as usize]
            && let Some(slot) = &self.slots[part.slot as usize]
        {
            let bytes = part.bytes as u64;
            match slot.request.direction {
                Direction::Read => {
                    self.moved.reads += 1;
                    self.moved.bytes_read += bytes;
                }
                Direction::Write => {
                    self.moved.writes += 1;
                    self.moved.bytes_written += bytes;
                }
            }
        }
    }

    /// The queue pair is being replaced. What it had posted is not touched yet.
    pub(super) fn away(&mut self, node: u16) {
        self.links[usize::from(node)].state = LinkState::Away;
    }

    /// The former queue pair is no more and there is a new one: what is uncertain is done again, in
    /// its order and before what came later.
    pub(super) fn up(&mut self, node: u16, now_ms: u64) {
        self.links[usize::from(node)].state = LinkState::Up;
        while let Some(index) = self.links[usize::from(node)].posted.pop_back() {
            let Some(part) = &mut self.parts[index as usize] else {
                unreachable!("a settled part is posted")
            };
            part.posted = false;
            let since = *part.failing_since_ms.get_or_insert(now_ms);
            let given_up = now_ms.saturating_sub(since) >= self.deadline_ms;
            let hopeless = matches!(
                part.failed.take(),
                Some(ErrorKind::RemoteAccess | ErrorKind::LocalProtection)
            );
            // A request that is lost already is not worth another try of its other parts.
            let slot = &self.slots[part.slot as usize];
            let pointless = slot.as_ref().is_some_and(|slot| slot.error.is_some());
            if given_up || hopeless || pointless {
                self.settle_part(index, Err(PageError::Lost { node }));
            } else {
                self.links[usize::from(node)].waiting.push_front(index);
            }
        }
    }

    /// The former queue pair is no more, and there will be no other: the node is given up.
    pub(super) fn lost(&mut self, node: u16) {
        self.links[usize::from(node)].state = LinkState::Lost;
        self.settle_all(node, PageError::Lost { node });
    }

    /// The owner has been fenced. What waits is answered; what is posted is when its queue pair is gone.
    pub(super) fn fence(&mut self) {
        self.fenced = true;
        for node in 0..self.links.len() {
            while let Some(part) = self.links[node].waiting.pop_front() {
                self.settle_part(part, Err(PageError::Fenced));
            }
        }
    }

    /// As [`Self::lost`], and [`Self::fence`] too.
    pub(super) fn lost_by_fence(&mut self, node: u16) {
        self.fence();
        self.links[usize::from(node)].state = LinkState::Lost;
        self.settle_all(node, PageError::Fenced);
    }

    fn settle_all(&mut self, node: u16, error: PageError) {
        let node = usize::from(node);
        while let Some(part) = self.links[node]
            .posted
            .pop_front()
            .or_else(|| self.links[node].waiting.pop_front())
        {
            self.settle_part(part, Err(error));
        }
    }

    /// Appends answers to `into` up to its capacity; returns how many.
    pub(super) fn take_done(&mut self, into: &mut Vec<PageDone>) -> usize {
        let before = into.len();
        while into.len() < into.capacity() {
            let Some(index) = self.done.pop_front() else {
                break;
            };
            let Some(slot) = self.slots[index as usize].take() else {
                unreachable!("an answer is taken twice")
            };
            self.free_slots.push(index);
            let request = slot.request;
            into.push(PageDone {
                tag: request.tag,
                direction: request.direction,
                page: request.page,
                run: request.run,
                frame: request.frame,
                result: slot.error.map_or(Ok(()), Err),
            });
        }
        into.len() - before
    }
}

#[cfg(test)]
mod tests;

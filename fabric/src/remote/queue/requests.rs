//! How requests become parts, and parts become answers.

use std::sync::Arc;

use super::{Fill, LaneQueue, LinkState, NONE, Part, Served, Slot};
use crate::pages::{
    Direction, LaneFull, MAX_RUN_PAGES, NodeSet, PageDone, PageError, PageRequest, Which,
};
use crate::remote::copy::CopyTracker;
use crate::remote::homes::{Homes, Location, Piece};
use crate::units::{PAGE_BYTES, PAGE_SHIFT};

/// Pages of an unanswered write that a tracker has been told of.
#[derive(Debug)]
pub(super) struct Tracked {
    slot: u32,
    tracker: Arc<CopyTracker>,
    first: u32,
    count: u16,
}

/// A piece of a write that waits for its extent to be placed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    slot: u32,
    request: PageRequest,
    piece: Piece,
}

impl LaneQueue {
    /// Takes a request. Pages outside of the region and frames outside of the lane are a bug of the
    /// caller that would end in another region's memory, so they are not survived.
    pub(in crate::remote) fn queue(&mut self, request: PageRequest) -> Result<(), LaneFull> {
        let run = u32::from(request.run);
        let inside =
            |first: u32, count: u32| first.checked_add(run).is_some_and(|end| end <= count);
        assert!(
            (1..=MAX_RUN_PAGES).contains(&request.run)
                && inside(request.page.get(), self.config.pages.get())
                && inside(request.frame.0, self.config.frames),
            "a page request outside of its region or lane: {request:?}"
        );
        let slot = self.free_slots.pop().ok_or(LaneFull)?;
        self.slots[slot as usize] = Some(Slot {
            request,
            // One more than there are parts, until all are made.
            parts: 1,
            error: None,
            served: Served::Nobody,
            landing: NONE,
            tracked: false,
            zeros: 0,
        });
        if self.fenced {
            self.settle_one(slot, Err(PageError::Fenced));
            return Ok(());
        }
        let homes = Arc::clone(&self.homes);
        for piece in homes.pieces(request.page, request.run) {
            match request.direction {
                Direction::Read => self.read_piece(&homes, slot, &request, piece),
                Direction::Write => self.write_piece(&homes, slot, &request, piece),
            }
        }
        self.settle_one(slot, Ok(()));
        Ok(())
    }

    fn read_piece(&mut self, homes: &Homes, slot: u32, request: &PageRequest, piece: Piece) {
        if !homes.is_placed(piece.extent) && !matches!(request.which, Which::Only(_)) {
            if let Some(slot) = &mut self.slots[slot as usize] {
                // A run has no more pages than the mask has bits.
                slot.zeros |= (u16::MAX >> (u16::BITS - u32::from(piece.pages))) << piece.skipped;
            }
            self.settle_none(slot, Ok(()));
            return;
        }
        let chosen = match request.which {
            Which::Live => self.choose(homes, piece.extent, NodeSet::default(), NodeSet::default()),
            Which::Except(nodes) => self.choose(homes, piece.extent, nodes, NodeSet::default()),
            Which::Only(node) => homes
                .of(piece.extent)
                .find(|replica| replica.node == node && self.state(node) != LinkState::Lost),
        };
        match chosen {
            Some(replica) => {
                let only = matches!(request.which, Which::Only(_));
                let part = self.add_part(homes, slot, request, piece, &replica, only);
                if !only && request.run == 1 {
                    self.give_landing(homes, part);
                }
            }
            None => {
                let node = self.somebody(homes, piece.extent);
                self.settle_none(slot, Err(PageError::Lost { node }));
            }
        }
    }

    fn write_piece(&mut self, homes: &Homes, slot: u32, request: &PageRequest, piece: Piece) {
        if let Which::Only(node) = request.which {
            let replica = homes.of(piece.extent).find(|replica| replica.node == node);
            match replica.filter(|_| self.state(node) != LinkState::Lost) {
                Some(replica) => {
                    self.add_part(homes, slot, request, piece, &replica, true);
                }
                None => self.settle_none(slot, Err(PageError::Lost { node })),
            }
            return;
        }
        if !homes.is_placed(piece.extent) {
            if let Some(slot) = &mut self.slots[slot as usize] {
                slot.parts += 1;
            }
            self.held.push(Held {
                slot,
                request: *request,
                piece,
            });
            return;
        }
        if let Some(tracker) = homes.tracker(piece.extent) {
            let first = (piece.offset >> PAGE_SHIFT) as u32;
            tracker.begin(first, piece.pages);
            self.tracked.push(Tracked {
                slot,
                tracker: Arc::clone(tracker),
                first,
                count: piece.pages,
            });
            if let Some(slot) = &mut self.slots[slot as usize] {
                slot.tracked = true;
            }
        }
        let left = self.has_live_left(homes, piece.extent);
        for replica in homes.of(piece.extent) {
            let node = replica.node;
            if left || self.state(node) != LinkState::Lost {
                // On a node that was given up it is held: see `failures`.
                self.add_part(homes, slot, request, piece, &replica, false);
            }
        }
        if !left {
            let node = self.somebody(homes, piece.extent);
            self.settle_none(slot, Err(PageError::Lost { node }));
        }
    }

    /// Lets writes go on whose extents are placed by now.
    pub(super) fn let_go(&mut self) {
        let homes = Arc::clone(&self.homes);
        let mut at = 0;
        while let Some(held) = self.held.get(at).copied() {
            if !homes.is_placed(held.piece.extent) {
                at += 1;
                continue;
            }
            self.held.swap_remove(at);
            self.write_piece(&homes, held.slot, &held.request, held.piece);
            self.settle_one(held.slot, Ok(()));
        }
    }

    /// Nobody waits for a place any more.
    pub(in crate::remote) fn answer_held(&mut self, error: PageError) {
        while let Some(held) = self.held.pop() {
            self.settle_one(held.slot, Err(error));
        }
    }

    fn add_part(
        &mut self,
        homes: &Homes,
        slot: u32,
        request: &PageRequest,
        piece: Piece,
        replica: &Location,
        only: bool,
    ) -> u32 {
        if let Some(slot) = &mut self.slots[slot as usize] {
            slot.parts += 1;
        }
        let Some(index) = self.free_parts.pop() else {
            unreachable!("there are parts for every slot's longest run")
        };
        self.parts[index as usize] = Some(Part {
            slot,
            direction: request.direction,
            node: replica.node,
            extent: piece.extent,
            offset: piece.offset,
            local: (request.frame.0 as usize + usize::from(piece.skipped)) * PAGE_BYTES,
            bytes: usize::from(piece.pages) * PAGE_BYTES,
            remote: replica.at(piece.offset),
            only,
            landing: NONE,
            twin: NONE,
            second: false,
            posted: false,
            posted_us: 0,
            version: homes.version(),
            tried: NodeSet::default(),
            failed: None,
            failing_since_ms: None,
        });
        self.link(replica.node).waiting.push_back(index);
        index
    }

    /// A piece that no part was made for.
    fn settle_none(&mut self, slot: u32, result: Result<(), PageError>) {
        if let Some(slot) = &mut self.slots[slot as usize] {
            slot.parts += 1;
        }
        self.settle_one(slot, result);
    }

    /// One part of the request is settled.
    fn settle_one(&mut self, index: u32, result: Result<(), PageError>) {
        let Some(slot) = &mut self.slots[index as usize] else {
            unreachable!("a part outlives its request")
        };
        if let Err(error) = result {
            // That the owner was fenced says more than that a node is lost.
            if slot.error.is_none() || error == PageError::Fenced {
                slot.error = Some(error);
            }
        }
        slot.parts -= 1;
        if slot.parts == 0 {
            if slot.tracked {
                self.tracked.retain(|tracked| {
                    if tracked.slot == index {
                        tracked.tracker.end(tracked.first, tracked.count);
                    }
                    tracked.slot != index
                });
            }
            self.done.push_back(index);
        }
    }

    /// What a part was made for has come, or never will. Nothing touches its frame any more.
    pub(super) fn settle_part(&mut self, index: u32, result: Result<(), PageError>) {
        let part = *self.part(index);
        if part.slot == NONE {
            self.free_part(index);
            return;
        }
        if part.twin != NONE {
            // Alone from now on: what this one could not get, the other may.
            let twin = self.part(part.twin);
            twin.twin = NONE;
            if result.is_err() {
                self.free_part(index);
                return;
            }
            twin.slot = NONE;
            let loser = twin.node;
            match part.second {
                true => {
                    self.moved.hedges_won += 1;
                    // It took that long at least. Who says nothing at all must not stay the nearest.
                    let us = self.tail.delay_us();
                    self.links[usize::from(loser)].average.measured(us);
                }
                false => self.moved.hedges_lost += 1,
            }
        }
        let mut landing = NONE;
        if result.is_ok() && part.landing != NONE {
            landing = part.landing;
            // It is free when the page has been copied out of it.
            self.part(index).landing = NONE;
        }
        self.free_part(index);
        if let Some(slot) = &mut self.slots[part.slot as usize] {
            slot.landing = landing;
            if result.is_ok() && part.direction == Direction::Read {
                slot.served = match slot.served {
                    Served::Nobody => Served::One(part.node),
                    Served::One(node) if node == part.node => Served::One(node),
                    _ => Served::Several,
                };
            }
        }
        self.settle_one(part.slot, result);
    }

    /// The part is no more.
    pub(super) fn free_part(&mut self, index: u32) {
        let Some(part) = self.parts[index as usize].take() else {
            unreachable!("a part is settled twice")
        };
        if part.landing != NONE {
            self.landings[part.landing as usize] = NONE;
            self.free_landings.push(part.landing);
        }
        self.free_parts.push(index);
    }

    /// Appends answers to `into` up to its capacity; returns how many. Before an answer counts, `fill` does
    /// what it is told.
    pub(in crate::remote) fn take_done(
        &mut self,
        into: &mut Vec<PageDone>,
        mut fill: impl FnMut(Fill),
    ) -> usize {
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
            if slot.landing != NONE {
                let from = self.landing_at(slot.landing);
                let to = request.frame.0 as usize * PAGE_BYTES;
                fill(Fill::Copy { from, to });
                self.landings[slot.landing as usize] = NONE;
                self.free_landings.push(slot.landing);
            }
            for page in (0..request.run).filter(|page| slot.zeros >> page & 1 == 1) {
                let at = (request.frame.0 as usize + usize::from(page)) * PAGE_BYTES;
                fill(Fill::Zero { at });
            }
            into.push(PageDone {
                tag: request.tag,
                direction: request.direction,
                page: request.page,
                run: request.run,
                frame: request.frame,
                result: slot.error.map_or(Ok(()), Err),
                node: match slot.served {
                    Served::One(node) => Some(node),
                    Served::Nobody | Served::Several => None,
                },
                wrong: 0,
            });
        }
        into.len() - before
    }
}

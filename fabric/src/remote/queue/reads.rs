//! Which replica is read, and when another one is asked beside it.

use super::{LaneQueue, LinkState, NONE, Part};
use crate::pages::{Direction, NodeSet, Which};
use crate::remote::homes::{Homes, Location};
use crate::units::{ExtentIndex, PAGE_BYTES};

/// A read that takes so many times the usual delay is asked for a second time in any case.
const PATIENCE: u64 = 8;

impl LaneQueue {
    /// The nearest live replica on none of the nodes in `except`; one on a node in `tried`, or on one that
    /// owes an answer that came from elsewhere meanwhile, only if there is no other.
    pub(super) fn choose(
        &self,
        homes: &Homes,
        extent: ExtentIndex,
        except: NodeSet,
        tried: NodeSet,
    ) -> Option<Location> {
        let mut live = homes.live(extent).filter(|replica| {
            self.state(replica.node) != LinkState::Lost && !except.contains(replica.node)
        });
        let first = live.next()?;
        let Some(second) = live.next() else {
            return Some(first);
        };
        let distance = |replica: &Location| {
            let link = &self.links[usize::from(replica.node)];
            let away = link.state == LinkState::Away;
            let owes = self.owes(replica.node);
            let known = (tried.contains(replica.node), away, owes);
            (known, !link.near, link.average)
        };
        [first, second].into_iter().chain(live).min_by_key(distance)
    }

    /// Whether the oldest thing that a node was asked for has been answered by another one since. What it
    /// is asked for next would come after that, if at all, and hold a landing until then.
    fn owes(&self, node: u16) -> bool {
        let oldest = self.links[usize::from(node)].posted.front();
        let oldest = oldest.and_then(|part| self.parts[*part as usize].as_ref());
        oldest.is_some_and(|part| part.slot == NONE)
    }

    /// A node of the extent, to be named when none of them has it any more.
    pub(super) fn somebody(&self, homes: &Homes, extent: ExtentIndex) -> u16 {
        homes.of(extent).next().map_or(0, |replica| replica.node)
    }

    /// A read of `us` from `node` is over.
    pub(super) fn measured(&mut self, node: u16, us: u64) {
        self.links[usize::from(node)].average.measured(us);
        if self.tail.measured(us) {
            self.links.iter_mut().for_each(|link| link.average.fade());
        }
    }

    /// Where a landing is, in bytes from the start of the frames.
    pub(super) fn landing_at(&self, landing: u32) -> usize {
        (self.config.frames + landing) as usize * PAGE_BYTES
    }

    /// Lets a read of one page land in a frame of the lane's own, if another replica could be asked.
    pub(super) fn give_landing(&mut self, homes: &Homes, index: u32) {
        let extent = self.part(index).extent;
        if !self.config.replicated || homes.live(extent).nth(1).is_none() {
            return;
        }
        if let Some(landing) = self.free_landings.pop() {
            self.land(index, landing);
        }
    }

    fn land(&mut self, index: u32, landing: u32) {
        let local = self.landing_at(landing);
        let part = self.part(index);
        part.landing = landing;
        part.local = local;
        self.landings[landing as usize] = index;
    }

    /// When [`Self::ask_twice`] wants to be called. `None`: there is nothing to look at.
    pub(in crate::remote) fn look_us(&self) -> Option<u64> {
        (self.look_us != u64::MAX).then_some(self.look_us)
    }

    /// Asks another replica for reads that take longer than most. True if something is to be posted.
    pub(in crate::remote) fn ask_twice(&mut self, now_us: u64) -> bool {
        if now_us < self.look_us {
            return false;
        }
        self.look_us = u64::MAX;
        let mut any = false;
        for landing in 0..self.landings.len() {
            let index = self.landings[landing];
            let Some(part) = self.parts.get(index as usize).copied().flatten() else {
                continue;
            };
            if !part.posted || part.slot == NONE || part.twin != NONE {
                continue;
            }
            let delay_us = self.tail.delay_us();
            let due_us = part.posted_us.saturating_add(delay_us);
            let patience_us = delay_us.saturating_mul(PATIENCE);
            let is_stuck = part.posted_us.saturating_add(patience_us) <= now_us;
            let look_us = match due_us <= now_us {
                true if self.second(index, part, is_stuck) => {
                    any = true;
                    continue;
                }
                // Not now: there may be room, or another link, or patience may have ended by then.
                true => now_us.saturating_add(delay_us),
                false => due_us,
            };
            self.look_us = self.look_us.min(look_us);
        }
        any
    }

    /// Asks another replica too. One that `is_stuck` is asked for out of turn: where a thread waits for the
    /// only read there is, no other read comes that would pay for it.
    fn second(&mut self, index: u32, part: Part, is_stuck: bool) -> bool {
        let Some(slot) = &self.slots[part.slot as usize] else {
            unreachable!("a part outlives its request")
        };
        let mut except = match slot.request.which {
            Which::Except(nodes) => nodes,
            Which::Live | Which::Only(_) => NodeSet::default(),
        };
        except.add(part.node);
        let homes = std::sync::Arc::clone(&self.homes);
        let other = self.choose(&homes, part.extent, except, part.tried);
        let other = other.filter(|other| self.state(other.node) == LinkState::Up);
        let (Some(other), false, false) = (
            other,
            self.free_landings.is_empty(),
            self.free_parts.is_empty(),
        ) else {
            return false;
        };
        if !self.tail.take() && !is_stuck {
            return false;
        }
        let (Some(landing), Some(twin)) = (self.free_landings.pop(), self.free_parts.pop()) else {
            unreachable!("there is one of each")
        };
        self.part(index).twin = twin;
        self.parts[twin as usize] = Some(Part {
            node: other.node,
            remote: other.at(part.offset),
            twin: index,
            second: true,
            posted: false,
            version: homes.version(),
            tried: NodeSet::default(),
            failed: None,
            failing_since_ms: None,
            ..part
        });
        self.land(twin, landing);
        self.link(other.node).waiting.push_back(twin);
        true
    }

    /// A read goes on elsewhere. False: no live replica is left.
    pub(super) fn move_read(&mut self, index: u32) -> bool {
        let part = *self.part(index);
        let slot = self.slots.get(part.slot as usize).copied().flatten();
        let except = match slot.map(|slot| slot.request.which) {
            Some(Which::Except(nodes)) => nodes,
            _ => NodeSet::default(),
        };
        debug_assert!(part.direction == Direction::Read && !part.only);
        let homes = std::sync::Arc::clone(&self.homes);
        let Some(replica) = self.choose(&homes, part.extent, except, part.tried) else {
            return false;
        };
        let moved = self.part(index);
        moved.node = replica.node;
        moved.remote = replica.at(part.offset);
        moved.version = homes.version();
        if replica.node != part.node {
            moved.failing_since_ms = None;
            self.moved.failovers += 1;
        }
        self.link(replica.node).waiting.push_back(index);
        true
    }
}

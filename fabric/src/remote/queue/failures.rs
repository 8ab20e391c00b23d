//! What follows when a queue pair, a node or a replica is gone.

use std::sync::Arc;

use super::{LaneQueue, LinkState, NONE};
use crate::pages::{Direction, PageError};
use crate::remote::homes::Homes;
use crate::transport::ErrorKind;
use crate::units::ExtentIndex;

/// What is to be done with a part.
enum Then {
    /// It stays with its link.
    Stay,
    /// It is settled, or with another link.
    Gone,
}

impl LaneQueue {
    /// The queue pair is being replaced. What it had posted is not touched yet.
    pub(in crate::remote) fn away(&mut self, node: u16) {
        let link = self.link(node);
        link.state = LinkState::Away;
        link.shaky = true;
    }

    /// The former queue pair is no more, before there is a new one: reads go on elsewhere. True if the
    /// node has to be given up.
    pub(in crate::remote) fn quiet(&mut self, node: u16, now_ms: u64) -> bool {
        let give_up = self.again(node, now_ms);
        self.review(node);
        give_up
    }

    /// The former queue pair is no more and there is a new one: what is uncertain is done again, in its
    /// order and before what came later. True if the node has to be given up: it does not do what is asked.
    pub(in crate::remote) fn up(&mut self, node: u16, now_ms: u64) -> bool {
        self.link(node).state = LinkState::Up;
        let give_up = self.again(node, now_ms);
        for other in 0..self.links.len() as u16 {
            if self.state(other) == LinkState::Away {
                self.review(other);
            }
        }
        give_up
    }

    /// The former queue pair is no more, and there will be no other: the node is given up.
    pub(in crate::remote) fn lost(&mut self, node: u16) {
        self.link(node).state = LinkState::Lost;
        while let Some(index) = self.link(node).posted.pop_back() {
            self.part(index).posted = false;
            self.link(node).waiting.push_front(index);
        }
        // With it, the last live replica of what others have lost may have gone.
        for other in 0..self.links.len() as u16 {
            if self.state(other) == LinkState::Lost {
                self.review(other);
            }
        }
    }

    /// Homes have changed.
    pub(in crate::remote) fn adopt(&mut self, homes: Arc<Homes>) {
        self.homes = homes;
        for node in 0..self.links.len() as u16 {
            self.review(node);
        }
        self.let_go();
    }

    /// The owner has been fenced. What waits is answered; what is posted is when its queue pair is gone.
    pub(in crate::remote) fn fence(&mut self) {
        self.fenced = true;
        self.answer_held(PageError::Fenced);
        for node in 0..self.links.len() {
            while let Some(part) = self.links[node].waiting.pop_front() {
                self.settle_part(part, Err(PageError::Fenced));
            }
        }
    }

    /// As [`Self::lost`], and [`Self::fence`] too.
    pub(in crate::remote) fn lost_by_fence(&mut self, node: u16) {
        self.fence();
        self.link(node).state = LinkState::Lost;
        while let Some(part) = self.link(node).posted.pop_front() {
            self.settle_part(part, Err(PageError::Fenced));
        }
    }

    /// Whether an extent has a live replica on a node that has not been given up.
    pub(super) fn has_live_left(&self, homes: &Homes, extent: ExtentIndex) -> bool {
        let mut live = homes.live(extent);
        live.any(|replica| self.state(replica.node) != LinkState::Lost)
    }

    /// What the queue pair had posted waits again, or is settled.
    fn again(&mut self, node: u16, now_ms: u64) -> bool {
        let mut give_up = false;
        while let Some(index) = self.link(node).posted.pop_back() {
            let deadline_ms = self.config.deadline_ms;
            let part = self.part(index);
            part.posted = false;
            let since = *part.failing_since_ms.get_or_insert(now_ms);
            let given_up = now_ms.saturating_sub(since) >= deadline_ms;
            let hopeless = matches!(
                part.failed.take(),
                Some(ErrorKind::RemoteAccess | ErrorKind::LocalProtection)
            );
            part.tried.add(node);
            let part = *part;
            // A request that is lost already is not worth another try of its other parts.
            let slot = self.slots.get(part.slot as usize).copied().flatten();
            let pointless = slot.is_none_or(|slot| slot.error.is_some());
            if pointless || self.fenced {
                let error = match self.fenced {
                    true => PageError::Fenced,
                    false => PageError::Lost { node },
                };
                self.settle_part(index, Err(error));
                continue;
            }
            if !given_up && !hopeless {
                self.link(node).waiting.push_front(index);
                continue;
            }
            let homes = Arc::clone(&self.homes);
            let others = homes
                .live(part.extent)
                .any(|replica| replica.node != node && self.state(replica.node) != LinkState::Lost);
            if part.only || !others {
                self.settle_part(index, Err(PageError::Lost { node }));
            } else {
                // The others have it, or will: this node does not do what is asked.
                give_up = true;
                self.part(index).failing_since_ms = None;
                self.link(node).waiting.push_front(index);
            }
        }
        give_up
    }

    /// Looks at all that waits for a node: what has to wait for another one, or for none.
    fn review(&mut self, node: u16) {
        for _ in 0..self.link(node).waiting.len() {
            let Some(index) = self.link(node).waiting.pop_front() else {
                break;
            };
            if let Then::Stay = self.review_part(node, index) {
                self.link(node).waiting.push_back(index);
            }
        }
    }

    fn review_part(&mut self, node: u16, index: u32) -> Then {
        let part = *self.part(index);
        if part.slot == NONE {
            self.free_part(index);
            return Then::Gone;
        }
        let homes = Arc::clone(&self.homes);
        let counts = homes
            .of(part.extent)
            .any(|replica| replica.node == node && replica.at(part.offset) == part.remote);
        let lost = self.state(node) == LinkState::Lost;
        let gone = Err(PageError::Lost { node });
        if part.only {
            if lost || !counts {
                self.settle_part(index, gone);
                return Then::Gone;
            }
            return Then::Stay;
        }
        match part.direction {
            Direction::Read => {
                if counts && self.state(node) == LinkState::Up {
                    self.part(index).version = homes.version();
                    return Then::Stay;
                }
                if part.twin != NONE {
                    // The other one of the two is on its way.
                    self.settle_part(index, gone);
                } else if !self.move_read(index) {
                    self.settle_part(index, gone);
                }
                Then::Gone
            }
            Direction::Write => {
                let left = self.has_live_left(&homes, part.extent);
                if !counts {
                    // It missed a replica that does not count any more.
                    let missed = if homes.live(part.extent).next().is_some() {
                        Ok(())
                    } else {
                        gone
                    };
                    self.settle_part(index, missed);
                    return Then::Gone;
                }
                if lost && !left {
                    self.settle_part(index, gone);
                    return Then::Gone;
                }
                // On a lost node it is held, until its replica has been marked stale.
                Then::Stay
            }
        }
    }
}

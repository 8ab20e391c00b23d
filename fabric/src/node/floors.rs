//! The lowest epoch that is served of a region, also of one that is not here (any more, or yet). Pure.
//!
//! A region that was released or freed leaves its floor behind, so that a grant of an old epoch cannot
//! be replayed on the empty place. The number is bounded; the oldest floors go first.

use std::collections::{HashMap, VecDeque};

use crate::units::{Epoch, RegionId};

/// Most floors that are remembered: as many regions as a cluster has.
const MAX_FLOORS: usize = 1 << 16;

/// What stands over all epochs: the region is no more.
const GONE: Epoch = Epoch::new(u64::MAX);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Floors {
    epochs: HashMap<RegionId, Epoch>,
    /// Each key of `epochs` once, the oldest first.
    order: VecDeque<RegionId>,
}

/// What a floor says of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Floor {
    /// It is served.
    Served,
    /// It is under the lowest that is served.
    TooLow(Epoch),
    /// No epoch is served any more.
    Gone,
}

impl Floors {
    /// From now on at least `epoch`.
    pub(super) fn raise(&mut self, region: RegionId, epoch: Epoch) {
        if let Some(known) = self.epochs.get_mut(&region) {
            *known = epoch.max(*known);
            return;
        }
        if self.order.len() >= MAX_FLOORS
            && let Some(oldest) = self.order.pop_front()
        {
            self.epochs.remove(&oldest);
        }
        self.epochs.insert(region, epoch);
        self.order.push_back(region);
    }

    /// From now on none.
    pub(super) fn close(&mut self, region: RegionId) {
        self.raise(region, GONE);
    }

    /// Whether `epoch` is served.
    pub(super) fn check(&self, region: RegionId, epoch: Epoch) -> Floor {
        match self.epochs.get(&region) {
            Some(&GONE) => Floor::Gone,
            Some(floor) if epoch < *floor => Floor::TooLow(*floor),
            _ => Floor::Served,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_only_rise_and_the_oldest_are_forgotten() {
        let mut floors = Floors::default();
        let (region, epoch) = (RegionId::new, Epoch::new);
        assert_eq!(floors.check(region(1), epoch(0)), Floor::Served);
        floors.raise(region(1), epoch(5));
        floors.raise(region(1), epoch(3));
        assert_eq!(floors.check(region(1), epoch(4)), Floor::TooLow(epoch(5)));
        assert_eq!(floors.check(region(1), epoch(5)), Floor::Served);
        floors.close(region(1));
        assert_eq!(floors.check(region(1), epoch(u64::MAX)), Floor::Gone);
        for other in 0..MAX_FLOORS as u64 {
            floors.raise(region(2 + other), epoch(1));
        }
        assert_eq!(floors.order.len(), MAX_FLOORS);
        assert_eq!(floors.epochs.len(), MAX_FLOORS);
        assert_eq!(floors.check(region(1), epoch(1)), Floor::Served);
    }
}

//! Extents with too few replicas of which no other one can be made as the nodes are now, and why. Waiting does not help
//! them: a node has to come, or to come back.

use mycoram_fabric::units::RegionId;

use super::healing::healing_ask;
use super::placement::{Board, NoPlace};
use super::records::{Homes, RegionRecord, ReplicaState};
use super::state::Cluster;

/// How many of a region there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StuckExtents {
    /// All nodes that have a live replica are down.
    pub no_source: u32,
    /// No node that is up is in a failure domain of its own, as the region wants it.
    pub no_domain: u32,
    /// Those that are have no room.
    pub no_room: u32,
}

impl StuckExtents {
    /// All of them.
    #[must_use]
    pub fn total(self) -> u32 {
        self.no_source
            .saturating_add(self.no_domain)
            .saturating_add(self.no_room)
    }
}

impl Cluster {
    /// Of one region. Walks through its extents.
    pub(super) fn stuck(&self, region: &RegionRecord) -> StuckExtents {
        let board = Board::hoped_for(self, &region.locality);
        let mut stuck = StuckExtents::default();
        let room_may_come = self
            .extents(region.id)
            .any(|homes| self.is_being_freed(homes));
        for homes in self.extents(region.id) {
            let there = |node| self.state_of(node).is_there();
            if homes.replicas.is_empty()
                || homes.live().filter(|node| there(*node)).count() >= region.replicas.into()
            {
                continue;
            }
            if !homes.live().any(there) {
                stuck.no_source += 1;
                continue;
            }
            let others = self.counting(homes, None);
            let again = homes.replicas.iter().any(|replica| {
                replica.state == ReplicaState::Stale
                    && board.site_of(replica.node).is_some()
                    && board.is_apart(replica.node, &others, region.locality.apart)
            });
            if others.len() >= region.replicas.into() || again {
                continue;
            }
            let not: Vec<_> = homes.replicas.iter().map(|replica| replica.node).collect();
            match board.has_place(&healing_ask(region), &others, &not) {
                Ok(()) => {}
                Err(NoPlace::NoDomain) => stuck.no_domain += 1,
                Err(NoPlace::Full) => stuck.no_room += u32::from(!room_may_come),
            }
        }
        stuck
    }

    fn extents(&self, region: RegionId) -> impl Iterator<Item = &Homes> {
        let chunks = self.chunks.range((region, 0)..=(region, u32::MAX));
        chunks.flat_map(|(_, chunk)| &chunk.extents)
    }

    /// Whether a node that is there gives memory of it back.
    fn is_being_freed(&self, homes: &Homes) -> bool {
        homes.replicas.iter().any(|replica| {
            replica.state == ReplicaState::Dropping && self.state_of(replica.node).is_there()
        })
    }
}

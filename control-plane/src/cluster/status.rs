//! What can be asked at any time: nodes, regions, and how far healing is.

use mycoram_fabric::units::{ByteCount, RegionId};

use super::identity::NodeId;
use super::records::{NodeRecord, RegionRecord, ReplicaState, ReservationRecord};
use super::state::Cluster;
use super::stuck::StuckExtents;

/// A node and what is on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeRecord,
    /// Bytes of replicas on it, in all states.
    pub placed: ByteCount,
    /// Bytes that a region of the class `normal` could still get there.
    pub available: ByteCount,
    /// How busy it says it is, percent.
    pub load_percent: u8,
}

/// A region and its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionStatus {
    /// The region.
    pub region: RegionRecord,
    /// Extents that are somewhere, or were.
    pub placed_extents: u32,
    /// Bytes of its replicas, in all states.
    pub placed: ByteCount,
    /// Replicas that are live.
    pub live: u32,
    /// Replicas that are being made.
    pub copying: u32,
    /// Replicas that are stale.
    pub stale: u32,
    /// Extents with fewer live replicas on nodes that are there than the region asks for.
    pub endangered_extents: u32,
    /// Of these, extents that can get no other replica as the nodes are now.
    pub stuck: StuckExtents,
    /// Extents whose copies were all lost at some time.
    pub lost_extents: u32,
}

impl Cluster {
    /// All nodes, by number.
    pub fn nodes(&self) -> impl Iterator<Item = NodeStatus> + '_ {
        self.nodes.keys().filter_map(|id| self.node_status(*id))
    }

    /// One node.
    #[must_use]
    pub fn node_status(&self, id: NodeId) -> Option<NodeStatus> {
        let node = self.nodes.get(&id)?;
        let placed = self.placed_on(id);
        let ceiling = u64::from(self.limits.ceilings.percent(super::PriorityClass::Normal));
        let usable = u128::from(node.capacity.get()) * u128::from(ceiling) / 100;
        let usable = u64::try_from(usable).unwrap_or(u64::MAX);
        let takes = node.state == super::NodeState::Up;
        let available = if takes {
            usable.saturating_sub(placed)
        } else {
            0
        };
        Some(NodeStatus {
            node: node.clone(),
            placed: ByteCount::new(placed),
            available: ByteCount::new(available),
            load_percent: self.heard.get(&id).map_or(0, |heard| heard.load_percent),
        })
    }

    /// All regions, by number. Walks through their extents.
    pub fn regions(&self) -> impl Iterator<Item = RegionStatus> + '_ {
        self.regions.keys().filter_map(|id| self.region_status(*id))
    }

    /// One region. Walks through its extents.
    #[must_use]
    pub fn region_status(&self, id: RegionId) -> Option<RegionStatus> {
        let region = self.regions.get(&id)?;
        let mut status = RegionStatus {
            region: region.clone(),
            placed_extents: 0,
            placed: ByteCount::new(self.derived.region_bytes.get(&id).copied().unwrap_or(0)),
            live: 0,
            copying: 0,
            stale: 0,
            endangered_extents: 0,
            stuck: StuckExtents::default(),
            lost_extents: 0,
        };
        let chunks = self.chunks.range((id, 0)..=(id, u32::MAX));
        for homes in chunks.flat_map(|(_, chunk)| &chunk.extents) {
            if homes.replicas.is_empty() && !homes.lost {
                continue;
            }
            status.placed_extents += 1;
            status.lost_extents += u32::from(homes.lost);
            let mut there = 0;
            for replica in &homes.replicas {
                match replica.state {
                    ReplicaState::Live => {
                        status.live += 1;
                        let node = self.nodes.get(&replica.node);
                        there += u32::from(node.is_some_and(|node| node.state.is_there()));
                    }
                    ReplicaState::Copying { .. } => status.copying += 1,
                    ReplicaState::Stale | ReplicaState::Dropping => status.stale += 1,
                }
            }
            status.endangered_extents += u32::from(there < u32::from(region.replicas));
        }
        if status.endangered_extents > 0 {
            status.stuck = self.stuck(region);
        }
        Some(status)
    }

    /// All reservations, by number.
    pub fn reservations(&self) -> impl Iterator<Item = &ReservationRecord> {
        self.reservations.values()
    }
}

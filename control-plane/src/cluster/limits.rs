//! The numbers a control plane works by: leases, ceilings, and how much is done at once.

use serde::{Deserialize, Serialize};

use super::identity::PriorityClass;

/// Longest name of a node, a region or a part of a failure domain, in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// Most nodes of a cluster, those that are down or have left included.
pub const MAX_NODES: usize = 4096;
/// Most regions of a cluster.
pub const MAX_REGIONS: usize = 1 << 16;
/// Most reservations of a cluster.
pub const MAX_RESERVATIONS: usize = 1 << 12;
/// Most replicas of one extent in any state: those asked for, their successors, and what is not yet dropped.
pub const MAX_RECORDED_REPLICAS: usize = 15;
/// Most extents of one request.
pub const MAX_BATCH: usize = 4096;
/// Most extents of a region.
pub const MAX_EXTENTS: u32 = 1 << 24;

/// Percentages of each node's capacity up to which new extents of a class are placed.
/// Replicas that replace lost ones may use all there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ceilings {
    /// Default 75.
    pub low_percent: u8,
    /// Default 85.
    pub normal_percent: u8,
    /// Default 95.
    pub high_percent: u8,
}

impl Default for Ceilings {
    fn default() -> Self {
        Self {
            low_percent: 75,
            normal_percent: 85,
            high_percent: 95,
        }
    }
}

impl Ceilings {
    /// That of a class; never lower than that of a lower class, never over 100.
    #[must_use]
    pub fn percent(&self, class: PriorityClass) -> u8 {
        let low = self.low_percent.min(100);
        let normal = self.normal_percent.clamp(low, 100);
        match class {
            PriorityClass::Low => low,
            PriorityClass::Normal => normal,
            PriorityClass::High => self.high_percent.clamp(normal, 100),
        }
    }
}

/// How a control plane decides. Leases are told to those that hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A node not heard for so long is down, ms. Default 5 000. Shorter finds dead nodes earlier and takes
    /// slow ones for dead.
    pub node_lease_ms: u64,
    /// An owner not heard for so long can be followed without force, ms. Default 10 000.
    pub owner_lease_ms: u64,
    /// How long a report keeps a node suspect, ms. Default 3 000.
    pub suspect_hold_ms: u64,
    /// A node that came back for the second time is watched for so long before it counts, ms; twice as
    /// long each further time. Default 5 000.
    pub probation_ms: u64,
    /// The longest that a node is watched, ms. Default 300 000.
    pub longest_probation_ms: u64,
    /// A node that was up for so long has its former failures forgotten, ms. Default 600 000.
    pub forgive_ms: u64,
    /// See [`Ceilings`].
    pub ceilings: Ceilings,
    /// A node that says it is busier than this gets nothing new while another one could have it, percent. Default 90.
    pub load_percent: u8,
    /// Replicas of one region being made at once. Default 16.
    pub copies_per_region: u32,
    /// Replicas being made on one node at once. Default 8.
    pub copies_per_node: u32,
    /// Replicas being made in the cluster at once. Default 256.
    pub copies_at_once: u32,
    /// Of these, for balance only. Default 8.
    pub moves_at_once: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            node_lease_ms: 5_000,
            owner_lease_ms: 10_000,
            suspect_hold_ms: 3_000,
            probation_ms: 5_000,
            longest_probation_ms: 300_000,
            forgive_ms: 600_000,
            ceilings: Ceilings::default(),
            load_percent: 90,
            copies_per_region: 16,
            copies_per_node: 8,
            copies_at_once: 256,
            moves_at_once: 8,
        }
    }
}

impl Limits {
    /// How often an agent and a node are to be heard, ms: several times within a lease.
    #[must_use]
    pub fn heartbeat_ms(lease_ms: u64) -> u64 {
        (lease_ms / 5).max(1)
    }
}

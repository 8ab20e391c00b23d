//! Who and where, inside a cluster: numbers of nodes, owners and orders, and how far apart things are.

use mycoram_fabric::number;
use mycoram_fabric::placement::{FailureDomain, Shared};
use serde::{Deserialize, Serialize};

number!(/** A memory node's number in its cluster. It stays through restarts, until the node is removed. */ NodeId, u16, "node {}");
number!(/** One life of an owner's process: drawn at its start. */ OwnerId, u64, "owner {:016x}");
number!(/** One attempt to make a replica. What is said of another attempt does not count. */ OrderId, u64, "order {}");
number!(/** Identity of a reservation; random. */ ReservationId, u64, "reservation {:016x}");

/// How far apart two nodes are: the widest thing that they do not share.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Different machines.
    #[default]
    Host,
    /// Different racks.
    Rack,
    /// Different zones.
    Zone,
    /// Different geographic regions.
    Region,
}

impl Level {
    /// The widest level at which two nodes differ; `None`: they are the same machine.
    #[must_use]
    pub fn between(a: &FailureDomain, b: &FailureDomain) -> Option<Self> {
        match a.shared_with(b) {
            Shared::Nothing => Some(Self::Region),
            Shared::Region => Some(Self::Zone),
            Shared::Zone => Some(Self::Rack),
            Shared::Rack => Some(Self::Host),
            Shared::Host => None,
        }
    }
}

/// Where a region's replicas may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locality {
    /// All replicas in this geographic region; default: anywhere.
    #[serde(default)]
    pub region: Option<String>,
    /// All replicas in zones of this name; default: anywhere.
    #[serde(default)]
    pub zone: Option<String>,
    /// Replicas of an extent must differ in this. Default: the machine.
    #[serde(default)]
    pub apart: Level,
    /// They differ in this where there is a choice. Default: the rack. Wider costs latency on every write.
    #[serde(default = "default_spread")]
    pub spread: Level,
}

fn default_spread() -> Level {
    Level::Rack
}

impl Locality {
    /// Anywhere, on different machines, in different racks where there are some.
    #[must_use]
    pub fn anywhere() -> Self {
        Self {
            spread: default_spread(),
            ..Self::default()
        }
    }

    /// Whether a node there may hold the region's extents.
    #[must_use]
    pub fn allows(&self, domain: &FailureDomain) -> bool {
        let is = |wanted: &Option<String>, name: &String| wanted.as_ref().is_none_or(|w| w == name);
        is(&self.region, &domain.region) && is(&self.zone, &domain.zone)
    }
}

/// Who is refused first when memory gets scarce.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum PriorityClass {
    /// First.
    Low,
    /// Then these.
    #[default]
    Normal,
    /// These last.
    High,
}

//! What a control plane knows durably: records under keys. All decisions derive from them.
//!
//! ```text
//!   Cluster                       who leads: the number of the term
//!   Node(id)                      one a node
//!   Region(id)                    one a region, with its lease
//!   Extents(region, chunk)        where 256 extents are, packed by the store
//!   Reservation(id)               one a reservation
//! ```

use std::net::SocketAddr;

use mycoram_fabric::placement::{FailureDomain, NodeEntry};
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, Incarnation, RegionId, TenantId};
use serde::{Deserialize, Serialize};

use super::identity::{Locality, NodeId, OrderId, OwnerId, PriorityClass, ReservationId};
use super::nodes::NodeState;

/// Extents of one record.
pub const CHUNK_EXTENTS: u32 = 256;

/// The name of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The only one of its kind.
    Cluster,
    /// Of a node.
    Node(NodeId),
    /// Of a region.
    Region(RegionId),
    /// Of the region's extents from `chunk * 256` on.
    Extents(RegionId, u32),
    /// Of a reservation.
    Reservation(ReservationId),
}

/// Of the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterRecord {
    /// How often a control plane began to lead it.
    pub terms: u64,
}

/// Where a node's control channel listens, for one transport of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// The transport.
    pub transport: TransportKind,
    /// The control channel.
    pub control: SocketAddr,
}

/// A memory node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRecord {
    /// Its number.
    pub id: NodeId,
    /// Its name, unique.
    pub name: String,
    /// Where it is reached, the best transport first; never empty.
    pub addresses: Vec<NodeAddress>,
    /// What fails with it.
    pub domain: FailureDomain,
    /// What it lends.
    pub capacity: ByteCount,
    /// The life of its process that the replicas on it belong to.
    pub incarnation: Incarnation,
    /// See [`NodeState`].
    pub state: NodeState,
    /// It is to be emptied.
    pub drain: bool,
    /// How often it came back lately.
    pub returns: u32,
}

impl NodeRecord {
    /// As owners know it.
    #[must_use]
    pub fn entry(&self) -> NodeEntry {
        NodeEntry {
            name: self.name.clone(),
            control: self.addresses[0].control,
            transport: self.addresses[0].transport,
            domain: self.domain.clone(),
        }
    }
}

/// How a region's owner treats its replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegionPolicy {
    /// With fewer live replicas of an extent nothing is written to it. Default 1, at most the replicas.
    pub min_live: u8,
    /// The share of the bandwidth that copies may take, percent. Default 50.
    pub copy_percent: u8,
}

impl Default for RegionPolicy {
    fn default() -> Self {
        Self {
            min_live: 1,
            copy_percent: 50,
        }
    }
}

/// The right to write a region. See `leases`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lease {
    /// Nobody has it; this was the last epoch.
    Free {
        /// The last one.
        epoch: Epoch,
        /// Nodes that have not confirmed this epoch.
        unfenced: Vec<NodeId>,
    },
    /// An owner waits until its predecessor is fenced.
    Fencing {
        /// The new epoch.
        epoch: Epoch,
        /// Who waits.
        owner: OwnerId,
        /// Nodes that have not confirmed this epoch.
        unfenced: Vec<NodeId>,
    },
    /// An owner writes.
    Granted {
        /// Its epoch.
        epoch: Epoch,
        /// Who.
        owner: OwnerId,
        /// Nodes that were down and have yet to confirm this epoch, before they are used again.
        unfenced: Vec<NodeId>,
    },
}

impl Lease {
    /// The highest epoch ever given.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Free { epoch, .. }
            | Self::Fencing { epoch, .. }
            | Self::Granted { epoch, .. } => *epoch,
        }
    }

    /// Nodes that have not confirmed the epoch.
    #[must_use]
    pub fn unfenced(&self) -> &[NodeId] {
        match self {
            Self::Free { unfenced, .. }
            | Self::Fencing { unfenced, .. }
            | Self::Granted { unfenced, .. } => unfenced,
        }
    }

    pub(super) fn unfenced_mut(&mut self) -> &mut Vec<NodeId> {
        match self {
            Self::Free { unfenced, .. }
            | Self::Fencing { unfenced, .. }
            | Self::Granted { unfenced, .. } => unfenced,
        }
    }

    /// Who has it or waits for it.
    #[must_use]
    pub fn owner(&self) -> Option<OwnerId> {
        match self {
            Self::Free { .. } => None,
            Self::Fencing { owner, .. } | Self::Granted { owner, .. } => Some(*owner),
        }
    }
}

/// Whether a region is there or going.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegionStage {
    /// It is there.
    Open,
    /// It is being deleted.
    Deleting {
        /// Nodes that still hold something of it.
        unreleased: Vec<NodeId>,
    },
}

/// A region.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionRecord {
    /// Its identity.
    pub id: RegionId,
    /// Its name, unique.
    pub name: String,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its size.
    pub bytes: ByteCount,
    /// Its unit of placement.
    pub extent_bytes: ByteCount,
    /// Copies of each extent that there are to be.
    pub replicas: u8,
    /// How its owner treats them.
    pub policy: RegionPolicy,
    /// Who is refused first.
    pub class: PriorityClass,
    /// Where it may be.
    pub locality: Locality,
    /// The reservation that its extents are counted on.
    pub reservation: Option<ReservationId>,
    /// What its owners show to memory nodes.
    pub secret: [u8; 16],
    /// See [`Lease`].
    pub lease: Lease,
    /// See [`RegionStage`].
    pub stage: RegionStage,
    /// The next attempt's number.
    pub next_order: u64,
}

impl std::fmt::Debug for RegionRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegionRecord")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("lease", &self.lease)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

impl RegionRecord {
    /// How many extents it has.
    #[must_use]
    pub fn extents(&self) -> u32 {
        let count = self.bytes.get().div_ceil(self.extent_bytes.get());
        u32::try_from(count).unwrap_or(MAX_CHUNKED)
    }
}

/// Never reached: a region is created with at most [`super::limits::MAX_EXTENTS`] extents.
const MAX_CHUNKED: u32 = super::limits::MAX_EXTENTS;

/// State of one copy of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplicaState {
    /// It has every write that was done.
    Live,
    /// It is being made, by this order. Writes go to it too; it is not read.
    Copying {
        /// Which attempt.
        order: OrderId,
    },
    /// It missed a write. Never read again; made anew or dropped.
    Stale,
    /// It is stale for good: its owner is told to drop it.
    Dropping,
}

/// One copy of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Where.
    pub node: NodeId,
    /// See [`ReplicaState`].
    pub state: ReplicaState,
}

/// Where an extent is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Homes {
    /// Its copies, of different nodes, at most [`super::limits::MAX_RECORDED_REPLICAS`].
    pub replicas: Vec<Replica>,
    /// Once all its copies were lost. Pages of it that were written before that are lost.
    pub lost: bool,
}

impl Homes {
    /// The replica on a node.
    #[must_use]
    pub fn on(&self, node: NodeId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.node == node)
    }

    /// Nodes of live replicas.
    pub fn live(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.replicas
            .iter()
            .filter(|replica| replica.state == ReplicaState::Live)
            .map(|replica| replica.node)
    }
}

/// Where 256 extents in a row are; those at the end that are nowhere yet are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// By the extent's place in the chunk.
    pub extents: Vec<Homes>,
}

/// Which chunk an extent is in, and where in it.
pub(super) fn chunk_of(extent: ExtentIndex) -> (u32, usize) {
    (
        extent.get() / CHUNK_EXTENTS,
        (extent.get() % CHUNK_EXTENTS) as usize,
    )
}

/// Bytes that nobody else gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReservationRecord {
    /// Its identity.
    pub id: ReservationId,
    /// Who may use it.
    pub tenant: TenantId,
    /// All replicas together.
    pub bytes: ByteCount,
    /// As which class it was made.
    pub class: PriorityClass,
}

/// What stands under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Under [`Key::Cluster`].
    Cluster(ClusterRecord),
    /// Under [`Key::Node`].
    Node(NodeRecord),
    /// Under [`Key::Region`].
    Region(RegionRecord),
    /// Under [`Key::Extents`].
    Extents(Chunk),
    /// Under [`Key::Reservation`].
    Reservation(ReservationRecord),
}

/// Records to be written, all or none; `None` removes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// No key stands there twice.
    pub changes: Vec<(Key, Option<Record>)>,
}

impl Batch {
    /// Nothing to write?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

//! How an agent learns where extents live: the one trait through which it knows a control plane.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::transport::TransportKind;
use crate::units::{ByteCount, Epoch, ExtentIndex, RegionId, TenantId};

/// A memory node as its users need to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// The name people call it by; unique in a cluster.
    pub name: String,
    /// Where its control channel listens. The data address is learnt there.
    pub control: SocketAddr,
    /// Over which transport its memory is to be reached.
    pub transport: TransportKind,
}

/// What a region is, as far as placement is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionEntry {
    /// Its identity.
    pub id: RegionId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The owner's lease.
    pub epoch: Epoch,
    /// Its size.
    pub bytes: ByteCount,
    /// Its unit of placement.
    pub extent_bytes: ByteCount,
}

/// Why no place was named.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// There is no node to choose from.
    #[error("the placement names no memory node")]
    NoNodes,
}

/// Decides where extents live. Static (a file) or the control plane's service.
pub trait Placement: Send + Sync {
    /// The nodes, in the order of the indexes that [`Self::candidates`] gives.
    fn nodes(&self) -> &[NodeEntry];

    /// Appends the nodes that may hold `extent`, the best first, as indexes into [`Self::nodes`]. The
    /// first that is not full gets it.
    fn candidates(
        &self,
        region: &RegionEntry,
        extent: ExtentIndex,
        into: &mut Vec<usize>,
    ) -> Result<(), PlacementError>;
}

//! The memory node's side of a transport: what is exported to whom, and who is let in.

use std::net::SocketAddr;

use super::TransportKind;
use crate::units::{Epoch, RegionId, RemoteAddr, Rkey, TenantId};

/// Bytes of a ticket's secret.
pub const TICKET_BYTES: usize = 16;

/// The right to connect queue pairs: handed out on the control channel when a session is opened,
/// shown in the first message of every data connection (in verbs, in the private data of rdma_cm).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Random, from the system's generator. Compared in constant time.
    pub secret: [u8; TICKET_BYTES],
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket(..)")
    }
}

/// Memory that a tenant's queue pairs can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Where it starts.
    pub addr: RemoteAddr,
    /// Its key, good in the tenant's protection domain only.
    pub rkey: Rkey,
    /// How long it is.
    pub bytes: u64,
}

/// Why memory was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Not inside of the pool.
    #[error("{bytes} bytes at {offset:#x} are not inside of the pool")]
    OutsidePool {
        /// Offset into the pool.
        offset: u64,
        /// Length.
        bytes: u64,
    },
    /// The device refused to register it.
    #[error("the {transport:?} device refused to register the memory")]
    Device {
        /// Which provider.
        transport: TransportKind,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Why a ticket was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// The bound on sessions is reached.
    #[error("the node has {limit} sessions already: close one, or raise the limit")]
    TooManySessions {
        /// The bound.
        limit: usize,
    },
}

/// The memory node's end of one provider, over the pool it was made with. The control channel of the
/// node calls it; data connections are served on threads of the provider's own (verbs needs none).
pub trait DataServer: Send + Sync {
    /// Which provider.
    fn kind(&self) -> TransportKind;

    /// Where queue pairs connect.
    fn address(&self) -> SocketAddr;

    /// Lets `tenant`'s queue pairs reach `bytes` bytes at `offset` of the pool.
    fn export(&self, tenant: TenantId, offset: u64, bytes: u64) -> Result<Export, ExportError>;

    /// Ends an export. When this returns, no request that carries its key can touch the memory any
    /// more, also none that was in flight. False if the tenant has no such key.
    fn revoke(&self, tenant: TenantId, rkey: Rkey) -> bool;

    /// From now on `ticket` admits data connections of `tenant`, for `region` at `epoch`.
    fn admit(
        &self,
        ticket: Ticket,
        tenant: TenantId,
        region: RegionId,
        epoch: Epoch,
    ) -> Result<(), AdmitError>;

    /// The ticket admits nobody any more and its queue pairs are broken. When this returns, none of
    /// them can touch memory.
    fn dismiss(&self, ticket: &Ticket);

    /// As [`Self::dismiss`], for every ticket of `region` with an epoch below `current`: fencing.
    fn fence(&self, region: RegionId, current: Epoch);

    /// Data connections that are up.
    fn connections(&self) -> usize;

    /// Stops serving: connections are drained within a bound and closed. Called once, before drop.
    fn shutdown(&self);
}

//! What is to be moved, and what became of it. Plain values.

use crate::transport::{ErrorKind, RemoteSlice};
use crate::units::RemoteAddr;

/// An endpoint of a session: what [`Transfer::add_endpoint`](super::Transfer::add_endpoint) gave. Never
/// used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointIndex(pub(super) u32);

/// Memory that a session's pieces may use: what [`Transfer::register`](super::Transfer::register) gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemoryIndex(pub(super) u32);

/// Where bytes are, or go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In registered memory of this process.
    Local {
        /// Which.
        memory: MemoryIndex,
        /// Bytes from its start.
        offset: u64,
    },
    /// In the memory of an endpoint.
    Remote {
        /// Which.
        endpoint: EndpointIndex,
        /// Where it starts there, and with which key it is reached.
        at: RemoteSlice,
    },
}

impl Place {
    /// The place `bytes` further on; `None` past the end of all addresses.
    #[must_use]
    pub fn behind(self, bytes: u64) -> Option<Self> {
        Some(match self {
            Self::Local { memory, offset } => Self::Local {
                memory,
                offset: offset.checked_add(bytes)?,
            },
            Self::Remote { endpoint, at } => Self::Remote {
                endpoint,
                at: RemoteSlice {
                    addr: RemoteAddr::new(at.addr.get().checked_add(bytes)?),
                    rkey: at.rkey,
                },
            },
        })
    }

    /// The endpoint, if it is remote.
    #[must_use]
    pub fn endpoint(self) -> Option<EndpointIndex> {
        match self {
            Self::Local { .. } => None,
            Self::Remote { endpoint, .. } => Some(endpoint),
        }
    }
}

/// Bytes to be moved. At least one of the two places is remote.
///
/// Local bytes must not change, and must not be looked at, until the piece is finished. Its chunks are
/// moved in no certain order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The caller's name for it.
    pub tag: u64,
    /// Where the bytes are.
    pub from: Place,
    /// Where they go.
    pub into: Place,
    /// How many. A piece of none is finished at once.
    pub bytes: u64,
}

impl Piece {
    /// What is left of it behind its first `done` bytes.
    #[must_use]
    pub(super) fn rest(self, done: u64) -> Self {
        // Checked when the piece was queued: its end is a valid place.
        Self {
            tag: self.tag,
            from: self.from.behind(done).unwrap_or(self.from),
            into: self.into.behind(done).unwrap_or(self.into),
            bytes: self.bytes.saturating_sub(done),
        }
    }

    /// Whether it comes from `endpoint` or goes there.
    #[must_use]
    pub fn touches(self, endpoint: EndpointIndex) -> bool {
        self.from.endpoint() == Some(endpoint) || self.into.endpoint() == Some(endpoint)
    }
}

/// Why a piece is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// From here to here.
    #[error("piece {tag} begins and ends in local memory: copy it")]
    BothLocal {
        /// The piece.
        tag: u64,
    },
    /// From endpoint to endpoint, in a session without frames.
    #[error("piece {tag} is a copy between endpoints, for which the session has no frames")]
    NoFrames {
        /// The piece.
        tag: u64,
    },
    /// An endpoint that the session does not have, or not any more.
    #[error("piece {tag} names an endpoint that the session does not have")]
    UnknownEndpoint {
        /// The piece.
        tag: u64,
    },
    /// Memory that was not registered with the session.
    #[error("piece {tag} names memory that was not registered with the session")]
    UnknownMemory {
        /// The piece.
        tag: u64,
    },
    /// More bytes than there are at that place.
    #[error("piece {tag} reaches outside of its memory")]
    OutOfBounds {
        /// The piece.
        tag: u64,
    },
}

/// Why bytes did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The endpoint is gone: its process, its machine, or the way there, for longer than the deadline.
    #[error("the endpoint is gone")]
    Lost,
    /// The endpoint has a new owner with a higher epoch.
    #[error("the session was fenced by a higher epoch")]
    Fenced,
    /// The caller took the endpoint out of the session.
    #[error("the endpoint was removed from the session")]
    Removed,
    /// It would fail again: a wrong key, or bytes outside of what it covers.
    #[error("{0}")]
    Refused(ErrorKind),
    /// Every rail that it was tried on broke.
    #[error("every rail that it was tried on broke")]
    TriedTooOften,
}

/// A piece of which not all has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} bytes of piece {} did not arrive: {why}", rest.bytes, rest.tag)]
pub struct NotArrived {
    /// Why.
    pub why: Why,
    /// At which endpoint it failed.
    pub endpoint: EndpointIndex,
    /// What is left: everything before it has arrived, of the rest some may have. Hand it in again.
    pub rest: Piece,
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The piece, as it was handed in.
    pub piece: Piece,
    /// Whether all of it has arrived.
    pub result: Result<(), NotArrived>,
}

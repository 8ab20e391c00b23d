//! Completions: what became of a work request. Every error says who, what, and whether to try again.

use std::net::SocketAddr;

use super::work::{Opcode, WorkId};

/// What became of one work request.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The owner's name for the request.
    pub id: WorkId,
    /// What it was.
    pub opcode: Opcode,
    /// `Ok` when it was carried out.
    pub result: Result<(), WorkError>,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{opcode:?} at {peer} failed: {kind}")]
pub struct WorkError {
    /// The other end.
    pub peer: SocketAddr,
    /// What was asked.
    pub opcode: Opcode,
    /// What went wrong.
    pub kind: ErrorKind,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ErrorKind {
    /// Unknown or revoked key, or bytes outside of what it covers.
    #[error("the peer refused access: wrong or revoked rkey, or outside of the memory it covers")]
    RemoteAccess,
    /// The local slice is not part of registered memory.
    #[error("the local memory is not registered for this")]
    LocalProtection,
    /// The peer could not carry it out for a reason of its own.
    #[error("the peer failed to carry it out")]
    RemoteOperation,
    /// It never started or its outcome is unknown: an earlier request broke the queue pair.
    #[error("flushed, because the queue pair broke before")]
    Flushed,
    /// No answer within the configured time.
    #[error("the peer did not answer in time")]
    PeerUnreachable,
    /// The peer, or its process, closed the connection.
    #[error("the peer closed the connection")]
    PeerDisconnected,
    /// The node ended the session: its epoch is no longer the current one.
    #[error("the session was fenced by a higher epoch")]
    Fenced,
    /// The local device or ring failed.
    #[error("the local device failed")]
    LocalDevice,
    /// The peer sent something that is not in the protocol.
    #[error("the peer broke the protocol")]
    Protocol,
}

/// May it be tried again?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Yes, on a new queue pair to the same node.
    AfterReconnect,
    /// No: it would fail again.
    Never,
}

impl ErrorKind {
    /// Whether the same request may succeed on a new queue pair. READ and WRITE are idempotent;
    /// an atomic whose outcome is unknown is the owner's to reason about.
    #[must_use]
    pub fn retry(self) -> Retry {
        match self {
            Self::Flushed
            | Self::PeerUnreachable
            | Self::PeerDisconnected
            | Self::LocalDevice
            | Self::RemoteOperation => Retry::AfterReconnect,
            Self::RemoteAccess | Self::LocalProtection | Self::Fenced | Self::Protocol => {
                Retry::Never
            }
        }
    }
}

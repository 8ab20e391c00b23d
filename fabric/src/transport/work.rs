//! Work requests: what is asked of the other side's memory. Plain values, checked at one place.

use super::MAX_TRANSFER_BYTES;
use super::memory::LocalSlice;
use crate::units::{RemoteAddr, Rkey};

/// The owner's name for a request; comes back in its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkId(pub u64);

/// A place in the peer's registered memory. How long it is follows from the local slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteSlice {
    /// Where it starts, as the peer counts.
    pub addr: RemoteAddr,
    /// The key of the registration that holds it.
    pub rkey: Rkey,
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// Peer's memory into local memory. Zero length is allowed and checks nothing but the connection.
    Read {
        /// Destination.
        into: LocalSlice,
        /// Source.
        from: RemoteSlice,
    },
    /// Local memory into the peer's. Complete means: a later READ by anybody sees it.
    Write {
        /// Source; must not change until the completion.
        from: LocalSlice,
        /// Destination.
        into: RemoteSlice,
    },
    /// If the 8 bytes at `at` (native-endian u64, aligned) equal `expected` they become `desired`.
    /// Either way what was there before is put into `old`.
    CompareSwap {
        /// 8 aligned bytes that receive the former value.
        old: LocalSlice,
        /// 8 aligned bytes at the peer.
        at: RemoteSlice,
        /// Compared with.
        expected: u64,
        /// Replaced by.
        desired: u64,
    },
    /// Adds to the 8 bytes at `at`, wrapping; the former value is put into `old`.
    FetchAdd {
        /// 8 aligned bytes that receive the former value.
        old: LocalSlice,
        /// 8 aligned bytes at the peer.
        at: RemoteSlice,
        /// The summand.
        add: u64,
    },
}

/// The kind of an [`Operation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// One-sided READ.
    Read,
    /// One-sided WRITE.
    Write,
    /// Atomic compare and swap.
    CompareSwap,
    /// Atomic fetch and add.
    FetchAdd,
}

/// One operation in a chain.
#[derive(Clone, Copy, Debug)]
pub struct WorkRequest {
    /// Comes back in the completion.
    pub id: WorkId,
    /// What to do.
    pub operation: Operation,
    /// Whether success is to be reported. Failure always is.
    pub signaled: bool,
}

impl WorkRequest {
    /// The operation's kind.
    #[must_use]
    pub fn opcode(&self) -> Opcode {
        match self.operation {
            Operation::Read { .. } => Opcode::Read,
            Operation::Write { .. } => Opcode::Write,
            Operation::CompareSwap { .. } => Opcode::CompareSwap,
            Operation::FetchAdd { .. } => Opcode::FetchAdd,
        }
    }

    /// The local bytes it uses.
    #[must_use]
    pub fn local(&self) -> LocalSlice {
        match self.operation {
            Operation::Read { into, .. } => into,
            Operation::Write { from, .. } => from,
            Operation::CompareSwap { old, .. } | Operation::FetchAdd { old, .. } => old,
        }
    }

    /// The remote place it uses.
    #[must_use]
    pub fn remote(&self) -> RemoteSlice {
        match self.operation {
            Operation::Read { from, .. } => from,
            Operation::Write { into, .. } => into,
            Operation::CompareSwap { at, .. } | Operation::FetchAdd { at, .. } => at,
        }
    }

    /// What every provider checks before it takes a request: `Err` says what is wrong.
    pub fn check(&self) -> Result<(), &'static str> {
        let local = self.local();
        match self.opcode() {
            Opcode::Read | Opcode::Write => {
                if local.len() > MAX_TRANSFER_BYTES {
                    return Err("a READ or WRITE moves at most 16 MiB: split it");
                }
            }
            Opcode::CompareSwap | Opcode::FetchAdd => {
                if local.len() != 8 || !local.addr().is_multiple_of(8) {
                    return Err("an atomic needs a local slice of 8 aligned bytes");
                }
                if !self.remote().addr.get().is_multiple_of(8) {
                    return Err("an atomic works on 8 aligned bytes at the peer");
                }
            }
        }
        Ok(())
    }
}

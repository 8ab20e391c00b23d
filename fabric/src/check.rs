//! What is said of a check of a region's replicas: who wants one, and what was found.
//!
//! ```text
//!   authority -- CheckOrder --> agent: compares each replica of each page with the checksum it keeps
//!             <- CheckReport --
//! ```
//!
//! The agent that serves a region does it, while the region is in use: it alone knows what its pages should be.

use crate::units::PageIndex;

/// Most wrong replicas that a report names. All are counted.
pub const MAX_NAMED: usize = 1024;

/// Somebody wants a region's replicas compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckOrder {
    /// Which check it is: reports carry it.
    pub number: u64,
    /// Whether wrong replicas are to be written again from right ones.
    pub repair: bool,
}

/// A replica that does not hold what was written to it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongReplica {
    /// Of which page.
    pub page: PageIndex,
    /// On which node, by name.
    pub node: String,
    /// It was written again, and read back right.
    pub repaired: bool,
}

/// How far a check is, and what it has found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Which check.
    pub number: u64,
    /// Pages of the region.
    pub pages: u64,
    /// Pages that were looked at; in the end all.
    pub looked_at: u64,
    /// Replicas of pages that were read and compared. Pages whose newest content is at the agent only have none
    /// that could be.
    pub compared: u64,
    /// Pages that were written again and again while they were compared; nothing is said of them.
    pub unsettled: u64,
    /// Replicas of pages that could not be read.
    pub unreadable: u64,
    /// Replicas of pages that are wrong.
    pub wrong: u64,
    /// Of those, written again.
    pub repaired: u64,
    /// Wrong ones by name, up to [`MAX_NAMED`].
    pub named: Vec<WrongReplica>,
    /// Nothing more comes.
    pub over: bool,
}

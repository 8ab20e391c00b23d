//! How far a session has come. Plain values.

use super::piece::EndpointIndex;

/// How a rail is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RailState {
    /// It carries chunks.
    Up,
    /// Its queue pair broke, and what was on it may still be under way.
    Broken,
    /// Nothing of it is under way any more; a new queue pair is being connected.
    Away,
    /// There will be no other queue pair.
    Ended,
}

/// One queue pair of a session, with those that were connected in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RailProgress {
    /// Where it leads.
    pub endpoint: EndpointIndex,
    /// How it is.
    pub state: RailState,
    /// Bytes that READs and WRITEs over it have moved. A copy counts on both of its rails.
    pub bytes: u64,
    /// Chunks on it now.
    pub in_flight: u32,
    /// How often its queue pair broke.
    pub breaks: u32,
}

/// How far a session has come since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of all pieces that were queued.
    pub bytes_queued: u64,
    /// Bytes that have arrived. A copy counts once.
    pub bytes_done: u64,
    /// Pieces that were queued.
    pub pieces_queued: u64,
    /// Pieces of which all has arrived.
    pub pieces_done: u64,
    /// Pieces of which not all will arrive.
    pub pieces_not_arrived: u64,
    /// Each rail, in the order in which they were added.
    pub rails: Vec<RailProgress>,
}

impl Progress {
    /// Pieces that are queued and not finished.
    #[must_use]
    pub fn pieces_left(&self) -> u64 {
        self.pieces_queued - self.pieces_done - self.pieces_not_arrived
    }
}

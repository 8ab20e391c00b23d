//! A region's remote pages, as an agent uses them: read these pages into frames, write those.
//!
//! ```text
//!   RemoteRegion (shared)  --open_lane-->  PageLane (one thread's own)
//!     which extent, which node              frames (registered), a queue pair to each node
//!                                           queue, queue, ring ... poll -> PageDone
//! ```
//!
//! An agent knows pages and frames; nodes, extents, rkeys and reconnects are hidden behind these two
//! traits. A lane answers every request exactly once: done, or lost for good. What may come back
//! (a queue pair that broke, a node that is slow) the lane tries again itself, within its deadline.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::transport::{Armed, Mapping};
use crate::units::{PageCount, PageIndex};

/// Most pages in one request: 16 (64 KiB).
pub const MAX_RUN_PAGES: u16 = 16;

/// What a lane is asked to be.
#[derive(Clone, Copy, Debug)]
pub struct LaneConfig {
    /// Frames of one page each, registered with the transport. Bounds what can be in flight. Default 256.
    pub frames: u32,
    /// Most page requests in flight on each queue pair. Default 128.
    pub depth: u32,
    /// How long a node that does not answer is tried again (reconnects included), ms, before its pages
    /// count as lost. Default 3000. Faults on its pages wait that long at most. A node whose process
    /// is known to have died (refused connection, new incarnation) is not waited for.
    pub node_deadline_ms: u32,
}

impl Default for LaneConfig {
    fn default() -> Self {
        Self {
            frames: 256,
            depth: 128,
            node_deadline_ms: 3000,
        }
    }
}

/// A frame of a lane, counted from 0; its bytes are at `frame * PAGE_BYTES` of [`PageLane::frames`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameIndex(pub u32);

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Remote pages into frames.
    Read,
    /// Frames to remote pages; the frames must not change until it is done.
    Write,
}

/// A run of pages that are neighbours in the region, from or into frames that are neighbours.
/// A run that crosses an extent's border is split by the lane; it is still answered once.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// The owner's name for the request.
    pub tag: u64,
    /// Read or write.
    pub direction: Direction,
    /// First page.
    pub page: PageIndex,
    /// How many pages: 1 to [`MAX_RUN_PAGES`].
    pub run: u16,
    /// First frame.
    pub frame: FrameIndex,
}

/// The lane has no room now; poll, then ask again. Nothing was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lane has as many requests in flight as it may")]
pub struct LaneFull;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageDone {
    /// The owner's name for it.
    pub tag: u64,
    /// As asked.
    pub direction: Direction,
    /// As asked.
    pub page: PageIndex,
    /// As asked.
    pub run: u16,
    /// As asked.
    pub frame: FrameIndex,
    /// `Ok`: every page of the run. `Err`: at least one page of the run cannot be had, or put.
    /// A failed run is asked for again page by page by whoever wants to know which.
    pub result: Result<(), PageError>,
}

/// Why a run of pages cannot be had, or put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// No live memory node holds the page any more.
    #[error("the page is lost: its memory node {node} is gone")]
    Lost {
        /// The node's place in the region's node list (see [`RemoteRegion::node_name`]).
        node: u16,
    },
    /// This owner has been replaced by one with a higher epoch. Nothing it does counts any more.
    #[error("this owner was fenced: the region has a new one")]
    Fenced,
}

/// Bytes and operations that a region's lanes have moved, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteStats {
    /// Bytes read from memory nodes.
    pub bytes_read: u64,
    /// Bytes written to memory nodes.
    pub bytes_written: u64,
    /// READs that completed.
    pub reads: u64,
    /// WRITEs that completed.
    pub writes: u64,
    /// Queue pairs that broke and were connected again.
    pub reconnects: u64,
    /// Memory nodes that were given up.
    pub nodes_lost: u64,
}

/// Why no lane came to be.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// Frames could not be allocated.
    #[error("the lane's frames could not be allocated")]
    Frames(#[from] crate::transport::MappingError),
    /// Frames could not be registered.
    #[error("the lane's frames could not be registered with the transport")]
    Register(#[from] crate::transport::RegisterError),
    /// A memory node could not be reached.
    #[error("a queue pair of the lane could not be connected")]
    Connect(#[from] crate::transport::ConnectError),
    /// A memory node did not give the lane a ticket.
    #[error("a memory node did not let the lane in")]
    Session(#[from] crate::session::SessionError),
    /// The owner has been replaced.
    #[error("the lane's owner was fenced: the region has a new one")]
    Fenced,
    /// No descriptor to wait on could be had.
    #[error("the lane's bell could not be made")]
    Bell(#[source] std::io::Error),
}

/// A region's remote side, shared by all threads of its agent.
pub trait RemoteRegion: Send + Sync {
    /// How many pages it has.
    fn pages(&self) -> PageCount;

    /// Connects a lane. Blocks; not for the fault path.
    fn open_lane(&self, config: &LaneConfig) -> Result<Box<dyn PageLane>, LaneError>;

    /// Figures since the region was opened.
    fn stats(&self) -> RemoteStats;

    /// The name of the node that a [`PageError::Lost`] speaks of.
    fn node_name(&self, node: u16) -> String;

    /// Gives the remote memory back to its nodes. The region is of no use afterwards. Dropping it
    /// without this call leaves the memory with the nodes, so that a new agent can take over.
    fn release(&self);
}

/// One thread's way to a region's remote pages. After it is made, it allocates nothing and takes no lock,
/// reconnects excepted.
pub trait PageLane: Send {
    /// The frames' bytes.
    fn frames(&self) -> &Arc<Mapping>;

    /// How many more requests [`Self::queue`] would take.
    fn free_slots(&self) -> usize;

    /// Takes a request; it goes out with the next [`Self::ring`].
    fn queue(&mut self, request: PageRequest) -> Result<(), LaneFull>;

    /// Sends what is queued, in chains, one doorbell a node.
    fn ring(&mut self);

    /// Appends what is done to `into`, up to its capacity; returns how many. Never blocks on a peer.
    fn poll(&mut self, into: &mut Vec<PageDone>) -> usize;

    /// Asks that one of [`Self::readiness`] become readable when there is something to poll.
    fn arm(&mut self) -> Armed;

    /// Calls `each` with every descriptor to wait on. They may change when a queue pair was connected
    /// again, so ask before each wait. None in simulated time.
    fn readiness<'a>(&'a self, each: &mut dyn FnMut(BorrowedFd<'a>));
}

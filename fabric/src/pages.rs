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
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::authority::AuthorityError;
use crate::check::{CheckOrder, CheckReport};
use crate::transport::{Armed, Mapping};
use crate::units::{PageCount, PageIndex};

/// Most pages in one request: 16 (64 KiB).
pub const MAX_RUN_PAGES: u16 = 16;
/// Pages of a huge page: 512 (2 MiB).
pub const HUGE_PAGES: u32 = 512;

/// What a lane is asked to be.
#[derive(Clone, Copy, Debug)]
pub struct LaneConfig {
    /// Frames of one page each, registered with the transport. Bounds what can be in flight. Default 256.
    pub frames: u32,
    /// Most page requests in flight on each queue pair. Default 128.
    pub depth: u32,
    /// Huge pages of frames beside these, [`HUGE_PAGES`] frames each, whose memory may be moved away: see
    /// [`PageLane::stage`]. Default 0. A device does not let its memory go, so a lane may have fewer.
    pub stages: u32,
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
            stages: 0,
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

/// A few nodes of a region, by their places in its node list. Keeps the first [`NodeSet::MOST`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeSet {
    nodes: [u16; Self::MOST],
    count: u8,
}

impl NodeSet {
    /// As many as an extent has live replicas at most, and those being copied.
    pub const MOST: usize = 6;

    /// No node.
    pub const NONE: Self = Self {
        nodes: [0; Self::MOST],
        count: 0,
    };

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes the one that was added last.
    pub fn take_one(&mut self) -> Option<u16> {
        self.count = self.count.checked_sub(1)?;
        Some(self.nodes[usize::from(self.count)])
    }

    /// Adds one; once is enough.
    pub fn add(&mut self, node: u16) {
        let count = usize::from(self.count);
        if !self.contains(node) && count < Self::MOST {
            self.nodes[count] = node;
            self.count += 1;
        }
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, node: u16) -> bool {
        self.nodes[..usize::from(self.count)].contains(&node)
    }
}

/// Which replicas a request is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Which {
    /// A read: the nearest live one that answers. A write: all of them.
    #[default]
    Live,
    /// A read: a live one that is on none of these nodes. They gave a page that is wrong: see
    /// [`PageDone::node`]. A write: as [`Self::Live`].
    Except(NodeSet),
    /// The one on this node, live or being copied, and no other: a repair of a page whose content is
    /// known, or a copy. The owner sees to it that nobody else writes the page meanwhile.
    Only(u16),
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
    /// Which replicas.
    pub which: Which,
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
    /// The node whose replica was read, if it was one. Its place in the region's node list.
    pub node: Option<u16>,
    /// Pages of the run that were read and are wrong, one bit each from the first page on: whoever sealed them
    /// did not seal these bytes. 0 where nothing is sealed.
    pub wrong: u16,
}

/// Why a run of pages cannot be had, or put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// No live memory node holds the page any more.
    #[error("the page is lost: its memory node {node} is gone, and no other replica is live")]
    Lost {
        /// The node's place in the region's node list (see [`RemoteRegion::node_name`]).
        node: u16,
    },
    /// A write that waited for its extent to be placed, and was given up: see [`PageLane::give_up_unplaced`].
    #[error("no memory node has room for the page")]
    Unplaced,
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
    /// Replicas that are read and written now.
    pub replicas_live: u64,
    /// Replicas that are being copied now.
    pub replicas_copying: u64,
    /// Replicas that missed a write and wait to be dropped.
    pub replicas_stale: u64,
    /// Reads that went on to another replica because one failed.
    pub failovers: u64,
    /// Reads that were sent to a second replica because the first was slow, and came from there.
    pub hedges_won: u64,
    /// Such reads that came from the first after all.
    pub hedges_lost: u64,
    /// Pages that were written to one replica only: repaired, or copied.
    pub repairs: u64,
    /// Orders of the control plane to make a replica anew that wait for their turn.
    #[serde(default)]
    pub rebuild_waiting: u64,
    /// Pages of the replicas that are being copied that are still to be copied.
    #[serde(default)]
    pub rebuild_pages_left: u64,
    /// Replicas that were made anew.
    #[serde(default)]
    pub rebuilt_replicas: u64,
    /// Bytes that were copied for that.
    #[serde(default)]
    pub rebuilt_bytes: u64,
    /// Copies that failed and were begun again.
    #[serde(default)]
    pub rebuild_failures: u64,
    /// Extents of the region.
    #[serde(default)]
    pub extents: u64,
    /// Of these, extents that are on memory nodes, or were. The others cost nothing.
    #[serde(default)]
    pub extents_placed: u64,
    /// Writes that wait now because their extents are not placed.
    #[serde(default)]
    pub writes_unplaced: u64,
    /// Requests for places that found the control plane away.
    #[serde(default)]
    pub places_away: u64,
    /// Requests for places that were refused for want of memory.
    #[serde(default)]
    pub places_refused: u64,
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
    /// The control plane did not allow it.
    #[error("the control plane gave no grant for a memory node")]
    Grant(#[from] crate::authority::AuthorityError),
    /// The owner has been replaced.
    #[error("the lane's owner was fenced: the region has a new one")]
    Fenced,
    /// No descriptor to wait on could be had.
    #[error("the lane's bell could not be made")]
    Bell(#[source] std::io::Error),
}

/// Why a directory could not be stored: its keeper knows.
pub type KeepError = Box<dyn std::error::Error + Send + Sync>;

/// Stores a region's directory durably, whole or not at all.
pub type KeepDirectory = Box<dyn FnMut(&[u8]) -> Result<(), KeepError> + Send>;

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

    /// Has what a successor needs stored, now and before any change of it takes effect: a write that missed
    /// a replica is not done before the replica is stale in what was stored. `keep` may block; it is called
    /// by a thread that no page waits for. Where homes never change there is nothing to store.
    fn keep_directory(&self, keep: KeepDirectory) -> Result<(), KeepError> {
        drop(keep);
        Ok(())
    }

    /// A page is used that may be written back before long: there is to be a place for it by then. Cheap enough for
    /// the path of a fault. Without this call a place is asked for when the page is written.
    fn expect(&self, page: PageIndex) {
        let _ = page;
    }

    /// Whether a page's extent is on memory nodes, or was. If not, the page reads as zeros, and a write of it
    /// waits until there is a place.
    fn is_placed(&self, page: PageIndex) -> bool {
        let _ = page;
        true
    }

    /// Whether a former owner may have written the page, of whom nothing is left: it is on memory nodes, and
    /// nobody knows its checksum.
    fn inherits(&self, page: PageIndex) -> bool {
        let _ = page;
        false
    }

    /// False: the memory nodes have no room for an extent that is needed. Writes to it wait, until there is.
    fn has_room(&self) -> bool {
        true
    }

    /// The nodes that hold a live replica of a page now. None where the region does not know nodes.
    fn replicas_of(&self, page: PageIndex) -> NodeSet {
        let _ = page;
        NodeSet::NONE
    }

    /// See [`crate::authority::RegionAuthority::check_wanted`].
    fn check_wanted(&self) -> Option<CheckOrder> {
        None
    }

    /// See [`crate::authority::RegionAuthority::check_told`]. Blocks; not for the fault path.
    fn check_told(&self, report: &CheckReport) -> Result<(), AuthorityError> {
        let _ = report;
        Ok(())
    }

    /// Gives the remote memory back to its nodes. The region is of no use afterwards. Dropping it
    /// without this call leaves the memory with the nodes, so that a new agent can take over.
    fn release(&self);
}

/// One thread's way to a region's remote pages. After it is made, it allocates nothing and takes no lock,
/// reconnects excepted.
pub trait PageLane: Send {
    /// The frames' bytes.
    fn frames(&self) -> &Arc<Mapping>;

    /// First frame of a stage, a huge page of frames that starts where a huge page can. Its memory is the
    /// caller's to populate, and to move elsewhere while no request uses it; what is not there comes with its
    /// first use. `None`: the lane has not so many.
    fn stage(&self, number: u32) -> Option<FrameIndex> {
        let _ = number;
        None
    }

    /// How many more requests [`Self::queue`] would take.
    fn free_slots(&self) -> usize;

    /// Takes a request; it goes out with the next [`Self::ring`].
    fn queue(&mut self, request: PageRequest) -> Result<(), LaneFull>;

    /// Sends what is queued, in chains, one doorbell a node.
    fn ring(&mut self);

    /// Appends what is done to `into`, up to its capacity; returns how many. Never blocks on a peer.
    fn poll(&mut self, into: &mut Vec<PageDone>) -> usize;

    /// Answers writes that wait for their extents to be placed with [`PageError::Unplaced`]. Nothing of those
    /// pages was written.
    fn give_up_unplaced(&mut self) {}

    /// Asks that one of [`Self::readiness`] become readable when there is something to poll.
    fn arm(&mut self) -> Armed;

    /// Calls `each` with every descriptor to wait on. They may change when a queue pair was connected
    /// again, so ask before each wait. None in simulated time.
    fn readiness<'a>(&'a self, each: &mut dyn FnMut(BorrowedFd<'a>));
}

/// Sleeps until a lane may have something to poll, or until `most` is over. For who waits for one lane and nothing
/// else; it allocates. In simulated time, where nothing can be waited on, it sleeps for all of `most`.
pub fn await_answers(lane: &mut dyn PageLane, most: Duration) {
    if lane.arm() == Armed::Ready {
        return;
    }
    let mut descriptors = Vec::new();
    lane.readiness(&mut |fd| descriptors.push(PollFd::new(fd, PollFlags::POLLIN)));
    let most = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
    // A signal ends it as an answer does: who waits looks at the lane in any case.
    let _ = poll(&mut descriptors, most);
}

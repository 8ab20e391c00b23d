//! A region's remote pages, spread over memory nodes: the implementation of [`crate::pages`].
//!
//! ```text
//!   Remote (shared)                                    Lane (one thread's own)
//!     directory  what a successor needs                  queue  pure: parts, chains, answers
//!     published  homes: extent -> nodes, addresses       a queue pair and a ticket a node
//!                links: a session a node                 redial: broken queue pairs out, new ones in
//!        ^  ^                                                |            ^
//!        |  +-- watch threads, one a node: signs of life <---+---- jobs --+
//!        +----- keeper threads: what lost nodes had is marked stale; extents are placed ahead of need
//! ```
//!
//! `queue`, `homes`, `copy` and `directory` are pure. `changes`: replicas come and go. `thin` and `places`: an
//! extent costs nothing before it is written. A page's way is lane -> queue pair -> node and back; no
//! other thread, no lock and no allocation is on it. Everything that blocks (dialing, connecting,
//! dropping a broken queue pair) is done by the watch thread of the node concerned.

mod assemble;
mod bell;
mod changes;
mod clock;
mod copy;
mod create;
mod directory;
mod endpoint;
mod frames;
mod homes;
mod keeper;
mod lane;
mod link;
mod places;
mod published;
mod queue;
mod redial;
mod region;
mod reopen;
mod thin;
mod transports;
mod waits;
mod watch;

pub use assemble::RemoteOptions;
pub use changes::{ChangeError, Replica, ReplicaState};
pub use clock::{Clock, SystemClock};
pub use copy::{CopyRun, CopyStep, ExtentCopy};
pub use create::{CreateError, Room};
pub use directory::{DirectoryError, SizeError};
pub use endpoint::Source;

pub use region::Remote;
pub use reopen::ReopenError;
pub use thin::Ahead;
pub use transports::{TransportError, TransportMissing, Transports};

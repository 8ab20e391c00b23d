//! A region's remote pages, spread over memory nodes: the implementation of [`crate::pages`].
//!
//! ```text
//!   Remote (shared)                                    Lane (one thread's own)
//!     directory  what a successor needs                  queue  pure: parts, chains, answers
//!     homes      extent -> node, address, key            a queue pair and a ticket a node
//!     links      a session a node: live, lost, fenced    redial: broken queue pairs out, new ones in
//!        ^                                                   |            ^
//!        +---- watch threads, one a node: signs of life <----+---- jobs --+
//! ```
//!
//! `queue`, `homes` and `directory` are pure. A page's way is lane -> queue pair -> node and back; no
//! other thread, no lock and no allocation is on it. Everything that blocks (dialing, connecting,
//! dropping a broken queue pair) is done by the watch thread of the node concerned.

mod assemble;
mod bell;
mod clock;
mod create;
mod directory;
mod frames;
mod homes;
mod lane;
mod link;
mod queue;
mod redial;
mod region;
mod reopen;
mod transports;
mod watch;

pub use assemble::RemoteOptions;
pub use clock::{Clock, SystemClock};
pub use create::{CreateError, Room};
pub use directory::{DirectoryError, SizeError};

pub use region::Remote;
pub use reopen::ReopenError;
pub use transports::{TransportError, TransportMissing, Transports};

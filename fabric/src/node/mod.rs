//! The memory node: a process that lends RAM to regions, extent by extent.
//!
//! ```text
//!   control channel (tokio)      one thread                     the transport's own threads
//!   connection tasks  -------->  NodeCore                       DataServer
//!     frames, bounds             ledger: who has what  ------>    admit, export, revoke, fence
//!     idle limits                pool: the bytes                  READ and WRITE go past all this
//! ```
//!
//! `runs`, `gate`, `floors` and `ledger` are pure; `core` does what they say, without a clock; `serve` has the sockets,
//! the threads and the time; `data` chooses the provider. No page ever passes through here.

mod core;
mod data;
mod floors;
mod gate;
mod ledger;
mod pool;
mod runs;
mod serve;

pub use core::{Entropy, NodeCore, WallClock};
pub use data::{DataServerError, start_data_server};
pub use gate::GrantCheck;
pub use ledger::{Bounds, SessionId};
pub use pool::{HugePages, Pool, PoolError};
pub use serve::{Drained, MemoryNode, NodeConfig, NodeEnded, NodeHandle, StartError};

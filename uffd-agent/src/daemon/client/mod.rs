//! The program's end: connect to a daemon, have a mapping served, and keep everything open that the next
//! daemon needs.
//!
//! ```text
//!   Connection::open --hello--> daemon        may be lent /dev/userfaultfd
//!   Connection::attach  makes userfaultfd and parking pipes, passes them and the memory
//!     -> Attached: holds them all open; its thread hears notices, and connects again when the
//!        daemon has gone, until there is a daemon that knows the region
//! ```
//!
//! While there is no daemon the program runs on and waits at its next fault; requests wait up to
//! [`AWAY_PATIENCE`].

mod attached;
mod connection;

pub use attached::{AWAY_PATIENCE, Attached, OrderError, ProgramNotice};
pub use connection::{AttachError, AttachRequest, ConnectError, Connection, DEFAULT_PIPES};

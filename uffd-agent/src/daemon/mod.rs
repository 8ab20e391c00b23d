//! The agent as a daemon: `myco agent serve`. Programs connect over a Unix socket, pass their userfaultfd,
//! memfd and parking pipes, and have their faults served here.
//!
//! ```text
//!   program                                      daemon
//!   client::Connection --hello---------------->  listener: who is it? (SO_PEERCRED), how many?
//!                      <-welcome, /dev/userfaultfd where the program may not open it itself
//!                      --attach + descriptors->  intake: are they what they should be?
//!                                                ledger: is there budget for it?
//!   client::Attached   <-attached, token-------  keeper: one thread a client, owns its Region
//!                      --advise, flush, stats->
//!
//!   the program ends   -> its region ends, its remote memory is freed
//!   the daemon ends    -> the program waits at its next fault; the next daemon takes over, from its
//!                         records and pidfd_getfd, or from the program, which connects again
//! ```
//!
//! * `server` listens; `visitor` greets; `arrival` takes regions in; `succession` inherits them; a
//!   `keeper` serves one to its end; `shared` is what they all see.
//! * `message`, `ledger` are pure; `socket`, `record` do the IO of one thing each.
//! * A region belongs to a process, not to a connection: when only the connection is gone (the program
//!   closed it, or it sent garbage) its pages are served on.
//! * What the daemon does not do: decide where pages live. It is given a [`RemoteSource`].

pub mod client;

mod arrival;
mod config;
mod intake;
mod keeper;
mod ledger;
mod message;
mod placed;
mod record;
mod server;
mod shared;
mod socket;
mod source;
mod succession;
mod visitor;

pub use config::{AllowedPeers, DaemonConfig, DaemonConfigError};
pub use intake::DescriptorFault;
pub use message::{MAX_MESSAGE_BYTES, Refusal, Resource, VERSION};
pub use placed::PlacedRegions;
pub use server::{Daemon, StartError, Stopper};
pub use source::{RemoteSource, SourceError};

//! RDMA: reliable connected queue pairs, brought up by rdma_cm. The first citizen of the transports.
//!
//! ```text
//!   transport   VerbsTransport: devices, registered memory      server   VerbsServer: tickets, exports
//!   connect     the active handshake                                     lets clients in, throws them out
//!   requester   a queue pair: post, poll, break, drain
//!   watch       the event thread: who has left, what failed
//!   ------------------------------------------------------------------------------------------------
//!   library device address protection_domain memory_region completion_queue queue_pair
//!   connection_manager       one kind of object each, freed when dropped, children hold their parents
//!   in_flight greeting retry_policy send_chain     what can be thought through without a device
//!   ------------------------------------------------------------------------------------------------
//!   ffi         which crate binds the libraries
//! ```
//!
//! All `unsafe` of the transport is in this folder, and nobody outside of it writes `ibv_` or `rdma_`.
//! Memory is pinned when it is registered, once; on-demand paging is never asked for. What a queue pair
//! waits for is finite on purpose (`retry_policy`). A queue pair is never destroyed with work in flight:
//! it is put into the error state, its flushes are polled, then it goes (`requester`).
//!
//! What this does not do: retry, choose between rails, or keep a peer alive. See `library` about fork.

mod address;
mod completion_queue;
mod connect;
mod connection_manager;
mod device;
mod ffi;
mod greeting;
mod in_flight;
mod library;
mod memory_region;
mod protection_domain;
mod queue_pair;
mod requester;
mod retry_policy;
mod send_chain;
mod server;
mod transport;
mod watch;

pub use address::{LocalAddress, local_addresses};
pub use connect::{NoAnswer, TurnedAway};
pub use device::DeviceName;
pub use library::OpenError;
pub use server::{ServerLimits, VerbsServer};
pub use transport::{MAX_REGISTRATIONS, VerbsTransport};

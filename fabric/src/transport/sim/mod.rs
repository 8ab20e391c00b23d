//! The transport in simulated time: one network, one seed, one clock, no thread and no socket.
//!
//! ```text
//!   SimTransport, SimQueuePair (compute)          SimServer (memory node)
//!            \                                      /
//!             SimNetwork: events by virtual time; one generator draws every delay, loss and key
//!               faults: cut and heal, kill a process or a machine, restart, flip bits
//! ```
//!
//! Everything happens in events, and events happen only when somebody lets time pass: [`SimNetwork::step`],
//! [`SimNetwork::advance`], `wait` on a queue pair, or `connect`, which takes a round trip. The same seed
//! and the same calls give the same run; [`SimNetwork::digest`] says whether two runs were the same.
//! Messages of different connections overtake each other, messages of one connection never.
//!
//! A lost message is sent again, as a transport of RDMA or TCP does; what does not get through in
//! `response_timeout_ms` breaks the queue pair with `PeerUnreachable`.

mod network;
mod node;
mod queue_pair;
mod world;

pub use network::{SimConfig, SimNetwork};
pub use node::SimServer;
pub use queue_pair::{SimQueuePair, SimTransport};

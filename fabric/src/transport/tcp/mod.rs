//! The transport for machines without RDMA: the semantics of RC queue pairs over TCP.
//!
//! ```text
//!   compute side, the owner's thread               memory node, threads of its own, io_uring
//!   TcpQueuePair                                   TcpServer (DataServer)
//!     post  -> requests --- sendmsg ---------------> recv -> Connection -> Access: tenant, rkey, bounds
//!     poll  <- answers  <-- recvmsg, payload ------- sendmsg <- answers  <- the pool itself
//!              straight into the destination          READ payloads go out of the pool, uncopied
//! ```
//!
//! Answers come in the order of the requests, so both ends know what comes next on the wire, and
//! payloads move between the socket and registered memory with no buffer between. The first failed
//! request is the last that is answered: the connection ends, what was behind it is flushed.
//!
//! Differences from an RDMA device that an owner may notice: the serving side uses processor time; a
//! peer whose process is stopped (not dead) keeps its TCP connection but answers nothing, so requests
//! end with [`ErrorKind::PeerUnreachable`](super::ErrorKind) after `response_timeout_ms` without a
//! byte of progress.
//!
//! - `frames`: pure: which bytes come next, in either direction
//! - `message`: the scatter list of one send or receive
//! - `transport`, `queue_pair`: the compute side
//! - `server`: the memory node's side; `ring`: the io_uring that each of its threads is driven by
//! - `window`: pure: the requests of a queue pair that have not been given back
//! - `socket`: options of a socket, and what its errors mean

mod frames;
mod message;
mod queue_pair;
mod ring;
mod server;
mod socket;
mod transport;
mod window;

pub use queue_pair::TcpQueuePair;
pub use ring::{RingError, probe};
pub use server::{ServeError, TcpServer, TcpServerConfig};
pub use transport::TcpTransport;

//! One interface to registered memory on another machine, in the shape of verbs, with three providers.
//!
//! ```text
//!        Transport (compute side)                      DataServer (memory node)
//!   register(memory) -> LocalMemory                export(tenant, range) -> Export { addr, rkey }
//!   connect(address, ticket) -> QueuePair  ----->  admit(ticket): which tenant, which epoch
//!
//!   QueuePair:  post(chain of WorkRequest) -> ... -> poll() -> Completion
//!               READ, WRITE, COMPARE_SWAP, FETCH_ADD on (addr, rkey)
//! ```
//!
//! A queue pair is owned by one thread and is never locked. Work is done in the order in which it was
//! posted. The first failed request breaks the queue pair: it completes with its reason, everything
//! behind it is flushed, and the owner connects a new one. That is what RC queue pairs do, so the
//! other providers do it too. Whoever wants a page twice asks twice: this module retries nothing.

mod access;
mod completion;
mod memory;
mod registry;
mod server;
pub mod sim;
pub mod tcp;
#[cfg(any(feature = "verbs", feature = "rdma-sys"))]
pub mod verbs;
mod work;

pub use completion::{Completion, ErrorKind, Retry, WorkError};
pub use memory::{LocalMemory, LocalSlice, Mapping, MappingError, OutOfBounds};
pub use server::{AdmitError, DataServer, Export, ExportError, TICKET_BYTES, Ticket};
pub use work::{Opcode, Operation, RemoteSlice, WorkId, WorkRequest};

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Most bytes that one READ or WRITE moves: 16 MiB, an extent.
pub const MAX_TRANSFER_BYTES: usize = 16 << 20;
/// Most work requests in flight that a queue pair may be asked for.
pub const MAX_QUEUE_DEPTH: u32 = 8192;

/// Which provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// RC queue pairs on an RDMA device.
    Verbs,
    /// The same semantics over TCP sockets and io_uring.
    Tcp,
    /// Seeded simulation in virtual time.
    Sim,
}

/// What a queue pair is asked to be.
#[derive(Clone, Copy, Debug)]
pub struct QueuePairConfig {
    /// Most work requests in flight; 1 to [`MAX_QUEUE_DEPTH`]. Default 256. Costs memory on both ends.
    pub depth: u32,
    /// How long `connect` may take, ms. Default 2000. Shorter gives up on a loaded node.
    pub connect_timeout_ms: u32,
    /// How long a request may go unanswered by a live peer's machine, ms, before it completes with
    /// [`ErrorKind::PeerUnreachable`]. Default 300. Never infinite: verbs turns it into a local ACK
    /// timeout and at most 6 retries; tcp into a deadline on the oldest request and TCP_USER_TIMEOUT.
    pub response_timeout_ms: u32,
}

impl Default for QueuePairConfig {
    fn default() -> Self {
        Self {
            depth: 256,
            connect_timeout_ms: 2000,
            response_timeout_ms: 300,
        }
    }
}

/// Whether a wait would be in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Armed {
    /// [`QueuePair::readiness`] becomes readable with the next completion.
    Waiting,
    /// Completions are there already: poll.
    Ready,
}

/// Why a chain was not taken. Nothing of it was posted.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The queue has room for fewer requests than the chain has. Poll, then post again.
    #[error("the queue pair has room for {free} of {asked} work requests")]
    Full {
        /// Requests in the chain.
        asked: usize,
        /// Requests that would have been taken.
        free: usize,
    },
    /// The queue pair broke earlier; its outstanding work is being flushed. Connect a new one.
    #[error("the queue pair to {peer} is broken: {error}")]
    Broken {
        /// The other end.
        peer: SocketAddr,
        /// What broke it.
        error: WorkError,
    },
    /// A request that no provider takes: too long, or atomics not on 8 aligned bytes.
    #[error("work request {id:?} is not valid: {reason}")]
    Invalid {
        /// Which request of the chain.
        id: WorkId,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Why no queue pair came to be.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No answer in `connect_timeout_ms`, or the network refused.
    #[error(
        "memory node {peer} cannot be reached over {transport:?}: is it running and listening there?"
    )]
    Unreachable {
        /// The address that was tried.
        peer: SocketAddr,
        /// Over which provider.
        transport: TransportKind,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The node does not know this ticket: never given, revoked, or its epoch is too low.
    #[error("memory node {peer} refused the session's ticket: open a new session")]
    Refused {
        /// The node.
        peer: SocketAddr,
    },
    /// The other end does not speak this protocol or this version of it.
    #[error("{peer} does not speak version {version} of Mycoram's data protocol")]
    Protocol {
        /// The other end.
        peer: SocketAddr,
        /// Our version.
        version: u16,
    },
    /// The local device or ring could not be set up.
    #[error("the local {transport:?} endpoint could not be set up")]
    Local {
        /// Which provider.
        transport: TransportKind,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Why memory could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The device refused, mostly for RLIMIT_MEMLOCK or the device's limit of regions.
    #[error("registering {bytes} bytes failed: raise RLIMIT_MEMLOCK (ulimit -l) or register less")]
    Refused {
        /// How many bytes.
        bytes: usize,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// The compute side of a provider. Shared by all threads; queue pairs are not.
pub trait Transport: Send + Sync {
    /// Which provider this is.
    fn kind(&self) -> TransportKind;

    /// Makes `memory` usable as source and destination of work requests on queue pairs of this transport.
    /// The registration, and with it the memory, lives as long as the transport and its queue pairs.
    fn register(&self, memory: Arc<Mapping>) -> Result<LocalMemory, RegisterError>;

    /// Connects a queue pair to the data address of a memory node that has handed out `ticket`.
    fn connect(
        &self,
        peer: SocketAddr,
        ticket: &Ticket,
        config: &QueuePairConfig,
    ) -> Result<Box<dyn QueuePair>, ConnectError>;
}

/// One connection, owned by one thread. Dropping it drains what is in flight, within a bound, first.
pub trait QueuePair: Send {
    /// The other end.
    fn peer(&self) -> SocketAddr;

    /// How many more requests `post` would take now.
    fn free_slots(&self) -> usize;

    /// Posts a chain, all of it or nothing. A request that is not `signaled` completes silently unless
    /// it fails, and frees its slot when a later signaled one completes; so the last of a chain should
    /// be signaled. Never blocks on the peer.
    fn post(&mut self, chain: &[WorkRequest]) -> Result<(), PostError>;

    /// Appends completions to `into` until its capacity is reached or none is left; returns how many.
    /// Never blocks, never grows `into`. A broken queue pair first gives every request that was in
    /// flight back as an error completion, once each.
    fn poll(&mut self, into: &mut Vec<Completion>) -> usize;

    /// Asks that [`Self::readiness`] become readable with the next completion or failure.
    fn arm(&mut self) -> Armed;

    /// The descriptor to wait on after [`Self::arm`] said [`Armed::Waiting`]; `None` in simulated time.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;

    /// What broke the queue pair, if anything did.
    fn broken(&self) -> Option<WorkError>;

    /// Blocks until a completion can be polled or `timeout` has passed; true if one can.
    fn wait(&mut self, timeout: Duration) -> bool {
        if self.arm() == Armed::Ready {
            return true;
        }
        self.readiness()
            .is_some_and(|fd| memory::poll_readable(fd, timeout))
    }
}

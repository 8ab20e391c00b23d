//! The memory node's end of the tcp transport: who may reach what, and the threads that serve it.
//!
//! ```text
//!   control channel --> TcpServer --+--> Access: exports by key, sessions by ticket
//!                                   +--> orders --> Worker (thread, ring) --> Connection, ...
//! ```
//!
//! Taking a right away has two halves: it is removed from `Access`, so that no new request gets it,
//! and every worker confirms that nothing which got it before is still with the kernel.

mod connection;
mod worker;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;

use crate::transport::access::{Access, SessionNumber};
use worker::{Desk, Door, Order, Shared, Worker};

use super::ring::RingError;
use crate::transport::{
    AdmitError, DataServer, Export, ExportError, Mapping, Ticket, TransportKind,
};
use crate::units::{Epoch, RegionId, Rkey, TenantId};
use crate::wire::data::Status;

/// Entries of a worker's ring: what it submits at once.
const RING_ENTRIES: u32 = 256;
/// Completions that may wait for a worker: four for each connection that is allowed by default.
const RING_COMPLETIONS: u32 = 4096;

/// How a tcp server behaves.
#[derive(Clone, Copy, Debug)]
pub struct TcpServerConfig {
    /// Threads that serve connections. Default 1, and 2 on machines with 4 processors or more.
    pub threads: usize,
    /// Data connections of all tenants together. Default 1024; about 64 KiB each.
    pub max_connections: usize,
    /// Connections that may be up before they have shown a ticket; a further one replaces the oldest.
    /// Default 64.
    pub max_greeting: usize,
    /// Connections of one session. Default 128.
    pub max_session_connections: usize,
    /// Sessions, that is admitted tickets. Default 1024.
    pub max_sessions: usize,
    /// How long a new connection may take to show its ticket, ms. Default 2000.
    pub hello_timeout_ms: u32,
    /// How long a peer may take nothing of what is sent to it, ms, before it counts as gone.
    /// Default 10000. Shorter cuts off machines that are merely busy.
    pub peer_timeout_ms: u32,
    /// How long `shutdown` lets connections take what they are owed, ms. Default 1000.
    pub drain_timeout_ms: u32,
    /// How long a thread spins for the next request before it sleeps, us. Default 0. Spinning saves a
    /// wake-up (up to 50 us where the peer runs on another processor) and costs a processor.
    pub spin_us: u32,
}

impl Default for TcpServerConfig {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            threads: if processors >= 4 { 2 } else { 1 },
            max_connections: 1024,
            max_greeting: 64,
            max_session_connections: 128,
            max_sessions: 1024,
            hello_timeout_ms: 2000,
            peer_timeout_ms: 10_000,
            drain_timeout_ms: 1000,
            spin_us: 0,
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("data connections cannot be listened for at {address}")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// No io_uring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// No thread, or no descriptor.
    #[error("the threads that serve data connections could not be started")]
    Thread(#[source] io::Error),
}

/// Serves a pool over TCP. Dropping it shuts it down.
pub struct TcpServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    desks: Vec<Desk>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl TcpServer {
    /// Listens at `address` (port 0: any) and serves `pool` on threads of its own.
    pub fn start(
        address: SocketAddr,
        pool: Arc<Mapping>,
        config: TcpServerConfig,
    ) -> Result<Self, ServeError> {
        let listener =
            TcpListener::bind(address).map_err(|source| ServeError::Listen { address, source })?;
        let address = listener
            .local_addr()
            .map_err(|source| ServeError::Listen { address, source })?;
        let shared = Arc::new(Shared {
            access: Access::new(pool.len() as u64, config.max_sessions),
            pool,
            census: connection::Census::default(),
            config,
        });
        let mut desks = Vec::new();
        let mut orders = Vec::new();
        for _ in 0..config.threads.max(1) {
            let (desk, taken) = Desk::new().map_err(ServeError::Thread)?;
            desks.push(desk);
            orders.push(taken);
        }
        let mut door = Some(Door {
            listener,
            desks: desks.clone(),
            next: 0,
            accepting: false,
            shut_until: None,
        });
        let mut server = Self {
            address,
            shared,
            desks,
            threads: Mutex::default(),
        };
        for (number, taken) in orders.into_iter().enumerate() {
            let shared = Arc::clone(&server.shared);
            let worker = Worker::new(shared, &server.desks[number], taken, door.take())?;
            let thread = std::thread::Builder::new()
                .name(format!("myco-tcp-{number}"))
                .spawn(move || worker.run())
                .map_err(ServeError::Thread)?;
            server
                .threads
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .push(thread);
        }
        Ok(server)
    }

    /// Gives an order to every worker and waits until all have done it.
    fn order_all(&self, order: impl Fn(Sender<Infallible>) -> Order) {
        let (done, waiting) = crossbeam_channel::bounded(1);
        for desk in &self.desks {
            desk.give(order(done.clone()));
        }
        drop(done);
        // Nothing is ever sent: the channel closes when the last holder is through.
        let _ = waiting.recv();
    }

    fn end(&self, sessions: Vec<SessionNumber>, status: Status) {
        if !sessions.is_empty() {
            let sessions: Arc<[SessionNumber]> = sessions.into();
            self.order_all(|done| Order::End(Arc::clone(&sessions), status, done));
        }
    }
}

/// 32 bits of the system's generator.
fn random_key() -> io::Result<u32> {
    let mut bytes = [0; 4];
    // SAFETY: the buffer has the length that is given.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == bytes.len() as isize {
        Ok(u32::from_ne_bytes(bytes))
    } else {
        Err(io::Error::last_os_error())
    }
}

impl DataServer for TcpServer {
    fn kind(&self) -> TransportKind {
        TransportKind::Tcp
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn export(&self, tenant: TenantId, offset: u64, bytes: u64) -> Result<Export, ExportError> {
        self.shared
            .access
            .export(TransportKind::Tcp, tenant, offset, bytes, random_key)
    }

    fn revoke(&self, tenant: TenantId, rkey: Rkey) -> bool {
        let theirs = self.shared.access.revoke(tenant, rkey);
        if theirs {
            self.order_all(|done| Order::Forget(rkey, done));
        }
        theirs
    }

    fn admit(
        &self,
        ticket: Ticket,
        tenant: TenantId,
        region: RegionId,
        epoch: Epoch,
    ) -> Result<(), AdmitError> {
        self.shared.access.admit(ticket, tenant, region, epoch)
    }

    fn dismiss(&self, ticket: &Ticket) {
        let sessions = self.shared.access.dismiss(ticket);
        self.end(sessions, Status::Done);
    }

    fn fence(&self, region: RegionId, current: Epoch) {
        let sessions = self.shared.access.fence(region, current);
        self.end(sessions, Status::Fenced);
    }

    fn connections(&self) -> usize {
        self.shared.census.open.load(Ordering::Acquire)
    }

    fn shutdown(&self) {
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for desk in &self.desks {
            desk.give(Order::Finish);
        }
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a tcp worker panicked");
            }
        }
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.shutdown();
    }
}

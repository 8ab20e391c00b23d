//! The node's runtime: sockets, threads, time.
//!
//! ```text
//!   listener --> connection task (bounded number) --Command--> keeper thread (owns NodeCore)
//!                 header, body, checks            <--oneshot--   answers; zeroes freed memory when idle
//! ```
//!
//! A message that is no message ends its connection and nothing else. A connection that says nothing
//! for `idle_ms` is ended; sessions keep themselves alive. Everything that waits has a bound.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{RwLock, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::core::NodeCore;
use super::gate::GrantCheck;
use super::ledger::{Bounds, SessionId};
use super::pool::Pool;
use crate::random;
use crate::transport::DataServer;
use crate::units::{Epoch, Incarnation, RegionId};
use crate::wire::control::{Request, Response, StatusReport, decode_header};
use crate::wire::{FrameError, HEADER_BYTES, Refusal, VERSION};

/// Requests that wait for the keeper; a connection has at most one.
const KEEPER_QUEUE: usize = 256;
/// How often orphans are looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long an answer may take to be sent to a peer that does not read.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// What a node is asked to be.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where the control channel listens. Port 0: any that is free.
    pub listen: SocketAddr,
    /// What is taken at most.
    pub bounds: Bounds,
    /// Control connections at most. Default 1024.
    pub connections: u32,
    /// How long a control connection may be silent, ms. Default 30 s. Shorter than an owner's keepalive
    /// interval makes orphans of living owners.
    pub idle_ms: u64,
    /// What owners must show. `None`, the default: nothing; whoever reaches the node may use it.
    pub grants: Option<GrantCheck>,
    /// The certificates of the control channel. It must send no session tickets (nothing comes unasked).
    /// `None`, the default: it is not encrypted.
    pub tls: Option<Arc<ServerConfig>>,
}

impl NodeConfig {
    /// All defaults.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            bounds: Bounds::default(),
            connections: 1024,
            idle_ms: 30_000,
            grants: None,
            tls: None,
        }
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken, or not one of this machine.
    #[error("the control channel cannot listen on {address}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A thread or a descriptor could not be had.
    #[error("the node's threads could not be started")]
    Threads(#[source] io::Error),
    /// The system's random generator does not work.
    #[error("the system gives no random numbers")]
    Random(#[source] io::Error),
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All owners had left.
    Empty,
    /// The time was up; the pages of those who had not left are lost.
    TimeUp,
}

enum Command {
    Request {
        session: SessionId,
        epoch: Epoch,
        request: Request,
        answer: oneshot::Sender<Response>,
    },
    Disconnected(SessionId),
    Tick,
    Drain {
        until_ms: u64,
    },
    Fence {
        region: RegionId,
        epoch: Epoch,
        done: oneshot::Sender<()>,
    },
    End {
        region: RegionId,
        done: oneshot::Sender<()>,
    },
    Status(oneshot::Sender<StatusReport>),
    Refusals(oneshot::Sender<Vec<(&'static str, u64)>>),
}

/// The node has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory node has ended")]
pub struct NodeEnded;

/// What the node's own process asks of it. It does not keep the node alive. All calls block, and are not
/// made on a runtime's thread.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    commands: mpsc::WeakSender<Command>,
}

impl NodeHandle {
    /// See [`NodeCore::fence_below`].
    pub fn fence_below(&self, region: RegionId, epoch: Epoch) -> Result<(), NodeEnded> {
        self.ask(|done| Command::Fence {
            region,
            epoch,
            done,
        })
    }

    /// See [`NodeCore::end_region`].
    pub fn end_region(&self, region: RegionId) -> Result<(), NodeEnded> {
        self.ask(|done| Command::End { region, done })
    }

    /// What the node says of itself.
    pub fn status(&self) -> Result<StatusReport, NodeEnded> {
        self.ask(Command::Status)
    }

    /// How often the node refused, by kind.
    pub fn refusals(&self) -> Result<Vec<(&'static str, u64)>, NodeEnded> {
        self.ask(Command::Refusals)
    }

    fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, NodeEnded> {
        let commands = self.commands.upgrade().ok_or(NodeEnded)?;
        let (answer, answered) = oneshot::channel();
        commands
            .blocking_send(command(answer))
            .map_err(|_| NodeEnded)?;
        drop(commands);
        answered.blocking_recv().map_err(|_| NodeEnded)
    }
}

/// A running memory node. Dropping it ends it at once; [`Self::drain`] is the polite way.
#[derive(Debug)]
pub struct MemoryNode {
    control: SocketAddr,
    incarnation: Incarnation,
    started: Instant,
    /// Taken when the node ends: the keeper ends when nobody can command it any more.
    commands: Option<mpsc::Sender<Command>>,
    /// Becomes true when no owner is connected.
    left_alone: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    commands: mpsc::Sender<Command>,
    next_session: AtomicU64,
    connections: Arc<AtomicU32>,
    limit: u32,
    tls: Option<TlsAcceptor>,
    idle: Duration,
    /// Held for reading while a request is answered; whoever holds it for writing knows that no answer
    /// is on its way.
    answering: RwLock<()>,
}

impl MemoryNode {
    /// Lends `pool` through `data`, which was made over it.
    pub fn start(
        config: &NodeConfig,
        pool: Pool,
        data: Arc<dyn DataServer>,
    ) -> Result<Self, StartError> {
        let listen = |source| StartError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let control = listener.local_addr().map_err(listen)?;
        let mut random = random::System::open().map_err(StartError::Random)?;
        let incarnation = Incarnation::new(random.number());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(StartError::Threads)?;

        let started = Instant::now();
        let mut core = NodeCore::new(
            pool,
            data,
            config.bounds,
            incarnation,
            0,
            Box::new(move || random.bytes()),
        );
        if let Some(check) = &config.grants {
            core = core.guarded(check.clone(), Box::new(unix_ms));
        }
        let (commands, received) = mpsc::channel(KEEPER_QUEUE);
        let (tell_left_alone, left_alone) = watch::channel(true);
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared {
            commands: commands.clone(),
            next_session: AtomicU64::new(1),
            connections: Arc::default(),
            limit: config.connections,
            tls: config.tls.clone().map(TlsAcceptor::from),
            idle: Duration::from_millis(config.idle_ms),
            answering: RwLock::new(()),
        });
        let keeper = Keeper {
            core,
            started,
            tell_left_alone,
            connections: Arc::clone(&shared.connections),
        };
        let mut node = Self {
            control,
            incarnation,
            started,
            commands: Some(commands),
            left_alone,
            stop,
            threads: Vec::new(),
        };
        node.spawn("myco-keeper", move || keeper.run(received))?;
        node.spawn("myco-control", move || {
            runtime.block_on(accept(listener, shared, stopped));
        })?;
        Ok(node)
    }

    fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), StartError> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(StartError::Threads)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Where the control channel listens.
    #[must_use]
    pub fn control(&self) -> SocketAddr {
        self.control
    }

    /// For the node's own process.
    #[must_use]
    pub fn handle(&self) -> NodeHandle {
        let commands = self.commands.as_ref();
        NodeHandle {
            commands: commands.expect("taken at the end only").downgrade(),
        }
    }

    /// This life of the node.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Takes nothing new, tells the owners, and ends when the last one has left or `bound` is over.
    /// Blocks.
    pub fn drain(mut self, bound: Duration) -> Drained {
        let until = self.started.elapsed().saturating_add(bound);
        let until_ms = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        let Some(commands) = self.commands.take() else {
            return Drained::Empty;
        };
        let mut left_alone = self.left_alone.clone();
        // A runtime of its own: the caller's thread may be any.
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
        else {
            return Drained::TimeUp;
        };
        let drained = runtime.block_on(async {
            // The keeper tells after it has begun to drain whether it is left alone.
            left_alone.mark_unchanged();
            if commands.send(Command::Drain { until_ms }).await.is_err() {
                return Drained::Empty;
            }
            let empty = async {
                while left_alone.changed().await.is_ok() {
                    if *left_alone.borrow_and_update() {
                        return;
                    }
                }
            };
            match timeout(bound, empty).await {
                Ok(()) => Drained::Empty,
                Err(_) => Drained::TimeUp,
            }
        });
        drop(commands);
        self.end();
        drained
    }

    fn end(&mut self) {
        // The control thread gives up its connections, and with the last command's sender the keeper ends.
        let _ = self.stop.send(true);
        self.commands = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the memory node panicked");
            }
        }
    }
}

impl Drop for MemoryNode {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.end();
        }
    }
}

/// ms since 1970; a clock before that says 0, and no grant is over by it.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// The thread that owns the core.
struct Keeper {
    core: NodeCore,
    started: Instant,
    tell_left_alone: watch::Sender<bool>,
    connections: Arc<AtomicU32>,
}

impl Keeper {
    fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let command = match commands.try_recv() {
                Ok(command) => Some(command),
                Err(mpsc::error::TryRecvError::Empty) if self.core.zero_some() => continue,
                Err(mpsc::error::TryRecvError::Empty) => commands.blocking_recv(),
                Err(mpsc::error::TryRecvError::Disconnected) => None,
            };
            let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            match command {
                None => break,
                Some(Command::Tick) => self.core.tick(now_ms),
                Some(Command::Disconnected(session)) => self.core.disconnected(now_ms, session),
                Some(Command::Drain { until_ms }) => {
                    self.core.drain(until_ms);
                    self.tell_left_alone.send_replace(self.core.is_left_alone());
                }
                // Whoever asked and waits no longer asks again.
                Some(Command::Fence {
                    region,
                    epoch,
                    done,
                }) => {
                    self.core.fence_below(now_ms, region, epoch);
                    let _ = done.send(());
                }
                Some(Command::End { region, done }) => {
                    let extents = self.core.end_region(region);
                    tracing::info!(%region, extents, "a region was deleted, its memory is taken back");
                    let _ = done.send(());
                }
                Some(Command::Refusals(answer)) => {
                    let _ = answer.send(self.core.refusals());
                }
                Some(Command::Status(answer)) => {
                    let mut report = self.core.status(now_ms);
                    report.control_connections = self.connections.load(Ordering::Relaxed);
                    let _ = answer.send(report);
                }
                Some(Command::Request {
                    session,
                    epoch,
                    request,
                    answer,
                }) => {
                    let mut response = self.core.handle(now_ms, session, epoch, request);
                    if let Response::StatusReport(report) = &mut response {
                        report.control_connections = self.connections.load(Ordering::Relaxed);
                    }
                    // Nobody waits any more if the connection has ended meanwhile.
                    let _ = answer.send(response);
                }
            }
            let left_alone = self.core.is_left_alone();
            self.tell_left_alone.send_if_modified(|known| {
                let changed = *known != left_alone;
                *known = left_alone;
                changed
            });
        }
        self.core.shutdown();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the control channel cannot be served");
            return;
        }
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            _ = tick.tick() => {
                // A keeper that is busy gets the next one.
                let _ = shared.commands.try_send(Command::Tick);
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move {
                        if let Err(reason) = welcome(stream, &shared).await {
                            tracing::warn!(%peer, error = &reason as &dyn std::error::Error, "a control connection was ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, mostly: give those that are in use time to end.
                    tracing::warn!(%error, "a control connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
    // Who has been served hears of it; who asks now is not served any more.
    let _ = timeout(SEND_TIMEOUT, shared.answering.write()).await;
}

/// Why a connection was ended by this side.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("it said nothing, or half a message, for too long")]
    Idle,
    #[error("it showed no certificate of this cluster")]
    Stranger(#[source] io::Error),
    #[error("it broke")]
    Broke(#[from] io::Error),
    #[error("what it sent is no message")]
    Malformed(#[from] crate::wire::control::ControlError),
    #[error("there are {limit} connections already")]
    TooMany { limit: u32 },
}

/// Counts a connection for as long as it lives, and tells the keeper when it ends.
struct Connection<'a> {
    shared: &'a Shared,
    session: SessionId,
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        let (commands, session) = (self.shared.commands.clone(), self.session);
        if let Err(mpsc::error::TrySendError::Full(command)) =
            commands.try_send(Command::Disconnected(session))
        {
            // The keeper must not miss it; there is at most one such task a connection. Without a
            // runtime the node is ending, and nobody needs to know.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { commands.send(command).await });
            }
        }
    }
}

/// Shakes hands, if there are certificates, and serves.
async fn welcome(stream: TcpStream, shared: &Shared) -> Result<(), Ended> {
    stream.set_nodelay(true)?;
    match &shared.tls {
        None => serve(stream, shared).await,
        Some(tls) => {
            let stream = timeout(SEND_TIMEOUT, tls.accept(stream))
                .await
                .map_err(|_| Ended::Idle)?
                .map_err(Ended::Stranger)?;
            serve(stream, shared).await
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    shared: &Shared,
) -> Result<(), Ended> {
    let before = shared.connections.fetch_add(1, Ordering::Relaxed);
    let connection = Connection {
        shared,
        session: SessionId(shared.next_session.fetch_add(1, Ordering::Relaxed)),
    };
    if before >= shared.limit {
        let limit = shared.limit;
        refuse(&mut stream, Refusal::TooManyConnections { limit }).await?;
        return Err(Ended::TooMany { limit });
    }
    loop {
        let message = timeout(shared.idle, receive(&mut stream))
            .await
            .map_err(|_| Ended::Idle)??;
        let (epoch, request) = match message {
            Received::End => return Ok(()),
            Received::Message(epoch, request) => (epoch, request),
            Received::OtherVersion(theirs) => {
                let refusal = Refusal::Version {
                    requested: theirs,
                    node: VERSION,
                };
                refuse(&mut stream, refusal).await?;
                return Ok(());
            }
        };
        let _answering = shared.answering.read().await;
        let (answer, answered) = oneshot::channel();
        let command = Command::Request {
            session: connection.session,
            epoch,
            request,
            answer,
        };
        if shared.commands.send(command).await.is_err() {
            return Ok(());
        }
        let Ok(response) = answered.await else {
            return Ok(());
        };
        send(&mut stream, &response, epoch).await?;
    }
}

enum Received {
    End,
    Message(Epoch, Request),
    OtherVersion(u16),
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Received, Ended> {
    let mut head = [0; HEADER_BYTES];
    match stream.read(&mut head[..1]).await {
        Ok(0) => return Ok(Received::End),
        // Inside of TLS: a peer that was killed has not said goodbye. Between two messages that is no harm.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Received::End),
        read => read?,
    };
    stream.read_exact(&mut head[1..]).await?;
    let header = match decode_header(&head) {
        Ok(header) => header,
        Err(FrameError::Version { theirs, .. }) => return Ok(Received::OtherVersion(theirs)),
        Err(other) => return Err(Ended::Malformed(other.into())),
    };
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body).await?;
    let request = Request::decode(&header, &body)?;
    Ok(Received::Message(header.epoch, request))
}

async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S, refusal: Refusal) -> Result<(), Ended> {
    send(stream, &Response::Refused(refusal), Epoch::new(0)).await
}

async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    response: &Response,
    epoch: Epoch,
) -> Result<(), Ended> {
    let bytes = response.encode(epoch);
    let write = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    timeout(SEND_TIMEOUT, write)
        .await
        .map_err(|_| Ended::Idle)??;
    Ok(())
}

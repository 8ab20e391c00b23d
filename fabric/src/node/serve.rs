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
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{RwLock, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::core::NodeCore;
use super::ledger::{Bounds, SessionId};
use super::pool::Pool;
use crate::random;
use crate::transport::DataServer;
use crate::units::{Epoch, Incarnation};
use crate::wire::control::{Request, Response, decode_header};
use crate::wire::{FrameError, HEADER_BYTES, Refusal, VERSION};

/// Requests that wait for the keeper; a connection has at most one.
const KEEPER_QUEUE: usize = 256;
/// How often orphans are looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long an answer may take to be sent to a peer that does not read.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// What a node is asked to be.
#[derive(Clone, Copy, Debug)]
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
        let core = NodeCore::new(
            pool,
            data,
            config.bounds,
            incarnation,
            0,
            Box::new(move || random.bytes()),
        );
        let (commands, received) = mpsc::channel(KEEPER_QUEUE);
        let (tell_left_alone, left_alone) = watch::channel(true);
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared {
            commands: commands.clone(),
            next_session: AtomicU64::new(1),
            connections: Arc::default(),
            limit: config.connections,
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
                        if let Err(reason) = serve(stream, &shared).await {
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

async fn serve(mut stream: TcpStream, shared: &Shared) -> Result<(), Ended> {
    stream.set_nodelay(true)?;
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

async fn receive(stream: &mut TcpStream) -> Result<Received, Ended> {
    let mut head = [0; HEADER_BYTES];
    if stream.read(&mut head[..1]).await? == 0 {
        return Ok(Received::End);
    }
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

async fn refuse(stream: &mut TcpStream, refusal: Refusal) -> Result<(), Ended> {
    send(stream, &Response::Refused(refusal), Epoch::new(0)).await
}

async fn send(stream: &mut TcpStream, response: &Response, epoch: Epoch) -> Result<(), Ended> {
    timeout(SEND_TIMEOUT, stream.write_all(&response.encode(epoch)))
        .await
        .map_err(|_| Ended::Idle)??;
    Ok(())
}

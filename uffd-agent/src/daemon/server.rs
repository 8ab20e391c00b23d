//! The daemon: its listener, its clients, and what an earlier daemon has left.
//!
//! ```text
//!   start: lock -> records of the last daemon -+-> process gone: remote memory freed, forgotten
//!                                              +-> taken over through pidfd_getfd
//!                                              +-> not permitted: waits for the program to connect
//!          -> listen
//!   connection -> thread: who, hello, attach or resume -> keeper
//! ```
//!
//! Owns the table of regions. Which pages are where is each region's own matter.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mycoram_fabric::random;
use mycoram_fabric::units::ByteCount;
use mycoram_fabric::wire::FrameError;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::config::{AllowedPeers, DaemonConfig, DaemonConfigError};
use super::intake::{self, Life};
use super::keeper::{Ending, Keeper, Mail, Mailbox, say};
use super::ledger::Ledger;
use super::message::{self, Kind, Mapping, MessageError, Refusal, Reply, Request, Token, in_words};
use super::record::{self, Record, RecordError};
use super::socket::{Packet, Peer, Socket, SocketError, accept_at, listen_at};
use super::source::RemoteSource;
use crate::kernel::{PidFd, UserfaultDevice};
use crate::{Region, RegionConfig, RegionName, SavedRegion, Target};

/// How long a connection may take to say what it wants: 10 s.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most fault workers that a client may ask for: each spins on a core while it is busy.
const MAX_FAULT_WORKERS: u8 = 4;

/// Why a daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be.
    #[error("the daemon's configuration cannot be")]
    Config(#[from] DaemonConfigError),
    /// There is one already.
    #[error("another daemon has the state directory {path}")]
    Running {
        /// The directory.
        path: PathBuf,
    },
    /// The state directory.
    #[error("the daemon cannot use its state directory")]
    State(#[from] RecordError),
    /// The lock in it.
    #[error("the daemon cannot make its lock {path}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The socket.
    #[error("the daemon cannot listen at {path}")]
    Listen {
        /// The path.
        path: PathBuf,
        /// The reason.
        #[source]
        source: SocketError,
    },
    /// Something that every process has.
    #[error("the daemon cannot be set up")]
    Kernel(#[from] Errno),
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random(#[source] std::io::Error),
}

/// What is known of a region.
#[derive(Debug)]
enum State {
    /// It is being attached or taken over.
    Busy,
    /// It is served.
    Served(Arc<Mailbox>),
    /// An earlier daemon served it, and its process may not be reached from here.
    Waiting,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    state: State,
}

struct Shared {
    config: DaemonConfig,
    own_uid: u32,
    source: Arc<dyn RemoteSource>,
    device: Option<UserfaultDevice>,
    ledger: Mutex<Ledger>,
    regions: Mutex<HashMap<RegionName, Entry>>,
    connections: AtomicUsize,
    random: Mutex<random::System>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Readable when the daemon ends; never read.
    closing: Arc<EventFd>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Budget that a region was promised, given back when it is dropped.
pub(super) struct Promise {
    shared: Arc<Shared>,
    uid: u32,
    bytes: ByteCount,
}

impl Promise {
    fn make(shared: &Arc<Shared>, uid: u32, bytes: ByteCount) -> Result<Self, Refusal> {
        lock(&shared.ledger).reserve(uid, bytes)?;
        Ok(Self {
            shared: Arc::clone(shared),
            uid,
            bytes,
        })
    }

    /// Changes it; what is smaller is always granted.
    pub(super) fn resize(&mut self, bytes: ByteCount) -> Result<(), Refusal> {
        let mut ledger = lock(&self.shared.ledger);
        ledger.release(self.uid, self.bytes);
        match ledger.reserve(self.uid, bytes) {
            Ok(()) => {
                self.bytes = bytes;
                Ok(())
            }
            Err(refusal) => {
                ledger.add(self.uid, self.bytes);
                Err(refusal)
            }
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        lock(&self.shared.ledger).release(self.uid, self.bytes);
    }
}

/// Ends a daemon from another thread or a signal handler's thread.
#[derive(Clone, Debug)]
pub struct Stopper {
    closing: Arc<EventFd>,
}

impl Stopper {
    /// [`Daemon::run`] returns soon. Regions are left for the next daemon; their programs wait.
    pub fn stop(&self) {
        // It can only fail when it has rung 2^64 times.
        let _ = self.closing.write(1);
    }
}

/// A daemon that listens.
pub struct Daemon {
    shared: Arc<Shared>,
    listener: OwnedFd,
    _lock: Flock<File>,
}

impl Daemon {
    /// Takes over what an earlier daemon has left, and listens. Blocks while it takes over.
    pub fn start(config: DaemonConfig, source: Arc<dyn RemoteSource>) -> Result<Self, StartError> {
        config.validate()?;
        record::make_dir(&config.state_dir)?;
        let held = lock_state(&config)?;
        let device = config
            .lend_device
            .then(UserfaultDevice::open)
            .and_then(Result::ok);
        let shared = Arc::new(Shared {
            own_uid: nix::unistd::geteuid().as_raw(),
            ledger: Mutex::new(Ledger::new(config.max_local, config.max_local_per_user)),
            regions: Mutex::new(HashMap::new()),
            connections: AtomicUsize::new(0),
            random: Mutex::new(random::System::open().map_err(StartError::Random)?),
            threads: Mutex::new(Vec::new()),
            closing: Arc::new(EventFd::from_flags(
                EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
            )?),
            source,
            device,
            config,
        });
        take_over_all(&shared)?;
        let listener = listen(&shared.config)?;
        Ok(Self {
            shared,
            listener,
            _lock: held,
        })
    }

    /// The way to end it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper {
            closing: Arc::clone(&self.shared.closing),
        }
    }

    /// Serves until it is stopped.
    pub fn run(self) {
        loop {
            let mut fds = [
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.shared.closing.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the daemon cannot wait for clients any more");
                    break;
                }
            }
            if fds[1].any() == Some(true) {
                break;
            }
            match accept_at(self.listener.as_fd()) {
                Ok(Some(socket)) => receive_client(&self.shared, socket),
                Ok(None) => {}
                // Out of descriptors, say. Those who wait are accepted when some are free again.
                Err(error) => {
                    tracing::warn!(%error, "a client could not be accepted");
                    let _ = poll(
                        &mut [PollFd::new(self.shared.closing.as_fd(), PollFlags::POLLIN)],
                        PollTimeout::from(100_u16),
                    );
                }
            }
        }
        self.stop();
    }

    fn stop(self) {
        // Also when it was not asked for.
        self.stopper().stop();
        // No new connections: who connects now waits for the next daemon.
        let _ = std::fs::remove_file(&self.shared.config.socket);
        drop(self.listener);
        loop {
            let Some(thread) = lock(&self.shared.threads).pop() else {
                break;
            };
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn lock_state(config: &DaemonConfig) -> Result<Flock<File>, StartError> {
    let path = config.state_dir.join("daemon.lock");
    let failed = |source| StartError::Lock {
        path: path.clone(),
        source,
    };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EAGAIN => StartError::Running {
            path: config.state_dir.clone(),
        },
        other => failed(other.into()),
    })
}

/// Listens at the configured path. What is there is of a daemon that has ended: we have its lock.
fn listen(config: &DaemonConfig) -> Result<OwnedFd, StartError> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let path = &config.socket;
    let failed = |source| StartError::Listen {
        path: path.clone(),
        source,
    };
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        let _ = std::fs::remove_file(path);
    }
    let listener = listen_at(path).map_err(failed)?;
    // Everybody may knock if not only the daemon's user is let in; who it is the kernel says.
    let mode = match config.allow {
        AllowedPeers::SameUser => 0o600,
        AllowedPeers::Users(_) | AllowedPeers::Everybody => 0o666,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(|error| {
        failed(SocketError::Kernel(Errno::from_raw(
            error.raw_os_error().unwrap_or(libc::EIO),
        )))
    })?;
    Ok(listener)
}

/// Runs `work` on a thread of its own, which the daemon's end waits for.
fn spawn(
    shared: &Arc<Shared>,
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(work)?;
    let mut threads = lock(&shared.threads);
    threads.retain(|thread| !thread.is_finished());
    threads.push(thread);
    Ok(())
}

/// A place among the connections, given back when it is dropped.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn refuse(socket: &Socket, refusal: Refusal) {
    // Who has gone away does not need to be told.
    let _ = say(socket, Kind::Reply, &Reply::Refused(refusal));
}

fn receive_client(shared: &Arc<Shared>, socket: Socket) {
    let limit = shared.config.max_clients;
    let place = Place(Arc::clone(shared));
    if shared.connections.fetch_add(1, Ordering::Relaxed) >= limit {
        refuse(&socket, Refusal::TooManyClients { limit });
        return;
    }
    let started = spawn(shared, "myco-client", move || {
        let shared = Arc::clone(&place.0);
        serve_client(&shared, socket);
        drop(place);
    });
    if let Err(error) = started {
        tracing::warn!(%error, "no thread for a client");
    }
}

fn serve_client(shared: &Arc<Shared>, socket: Socket) {
    let Ok(peer) = socket.peer() else { return };
    // A process of another pid namespace has the number 0: nothing can be kept for it.
    if !shared.config.allow.allows(peer.uid, shared.own_uid) || peer.pid <= 0 {
        refuse(&socket, Refusal::NotAllowed { uid: peer.uid });
        return;
    }
    let Ok(process) = PidFd::of_peer(&socket) else {
        return;
    };
    match greet(shared, &socket) {
        Ok((request, descriptors)) => {
            let served = match request {
                Request::Attach { .. } => {
                    attach(shared, socket, peer, process, request, descriptors)
                }
                Request::Resume {
                    mapping,
                    name,
                    token,
                } => {
                    let asked = Resumption {
                        mapping,
                        name,
                        token,
                        descriptors,
                    };
                    resume(shared, socket, peer, process, asked)
                }
                _ => {
                    refuse(&socket, Refusal::Malformed);
                    return;
                }
            };
            if let Err(refusal) = served {
                tracing::info!(pid = peer.pid, uid = peer.uid, %refusal, "a client is refused");
            }
        }
        Err(Some(refusal)) => refuse(&socket, refusal),
        Err(None) => {}
    }
}

/// Hears a hello and what follows it. An error is the end of the connection, with what to say.
fn greet(shared: &Shared, socket: &Socket) -> Result<(Request, Vec<OwnedFd>), Option<Refusal>> {
    let next = || -> Result<(Request, Vec<OwnedFd>), Option<Refusal>> {
        socket
            .wait(PATIENCE, shared.closing.as_fd())
            .map_err(|_| None)?;
        let Packet { bytes, descriptors } = match socket.receive() {
            Ok(packet) => packet,
            Err(SocketError::TooLong) => return Err(Some(Refusal::Malformed)),
            Err(_) => return Err(None),
        };
        match message::decode(Kind::Request, &bytes) {
            Ok(request) => Ok((request, descriptors)),
            Err(MessageError::Frame(FrameError::Version { ours, theirs })) => {
                Err(Some(Refusal::Version {
                    daemon: ours,
                    program: theirs,
                }))
            }
            Err(_) => Err(Some(Refusal::Malformed)),
        }
    };
    let (Request::Hello { lend_device }, _) = next()? else {
        return Err(Some(Refusal::Malformed));
    };
    let device = shared.device.as_ref().filter(|_| lend_device);
    let welcome = Reply::Welcome {
        free: lock(&shared.ledger).free(),
        device: device.is_some(),
    };
    let bytes = message::encode(Kind::Reply, &welcome).map_err(|_| None)?;
    let lent: Vec<_> = device.iter().map(|device| device.as_fd()).collect();
    socket.send(&bytes, &lent).map_err(|_| None)?;
    next()
}

/// Takes a new region in and serves it to its end. A refusal has been told to the program.
fn attach(
    shared: &Arc<Shared>,
    socket: Socket,
    peer: Peer,
    process: PidFd,
    request: Request,
    descriptors: Vec<OwnedFd>,
) -> Result<(), Refusal> {
    match begin(shared, peer, &process, request, descriptors) {
        Ok((region, promise, record, mailbox)) => {
            mailbox.put(Mail::Socket(socket));
            serve(
                shared,
                Keeper {
                    region,
                    process,
                    socket: None,
                    mailbox,
                    promise,
                    record,
                    state_dir: shared.config.state_dir.clone(),
                    closing: Arc::clone(&shared.closing),
                },
            );
            Ok(())
        }
        Err(refusal) => {
            refuse(&socket, refusal.clone());
            Err(refusal)
        }
    }
}

fn begin(
    shared: &Arc<Shared>,
    peer: Peer,
    process: &PidFd,
    request: Request,
    descriptors: Vec<OwnedFd>,
) -> Result<(Region, Promise, Record, Arc<Mailbox>), Refusal> {
    let Request::Attach {
        mapping,
        local_budget,
        extent_bytes,
        fault_workers,
    } = request
    else {
        return Err(Refusal::Malformed);
    };
    let target = intake::target(own(process)?, &mapping, descriptors, Life::New)
        .map_err(Refusal::Descriptor)?;
    let promise = Promise::make(shared, peer.uid, local_budget)?;
    let record = Record {
        name: new_name(shared, peer),
        token: Token(lock(&shared.random).bytes()),
        uid: peer.uid,
        pid: peer.pid,
        began: process.began().ok_or(Refusal::Over)?,
        local_budget,
        fault_workers: fault_workers.clamp(1, MAX_FAULT_WORKERS),
    };
    let config = region_config(shared, &record);
    config.validate(target.pipes.len()).map_err(engine)?;
    let mailbox = Mailbox::new().map_err(engine)?;
    let (remote, owner) = shared
        .source
        .create(mapping.bytes, extent_bytes)
        .map_err(|error| Refusal::Remote {
            words: in_words(&*error),
        })?;
    // Before the region is served: a daemon that dies right after must not be forgotten by the next.
    if let Err(error) = record.write(&shared.config.state_dir) {
        remote.release();
        return Err(engine(error));
    }
    match Region::attach(target, Arc::clone(&remote), owner, config, news(&mailbox)) {
        Ok(region) => {
            tracing::info!(region = %record.name, pid = peer.pid, uid = peer.uid, budget = %local_budget, "a client is served");
            Ok((region, promise, record, mailbox))
        }
        Err(error) => {
            record.remove(&shared.config.state_dir);
            remote.release();
            Err(engine(error))
        }
    }
}

fn engine(error: impl std::error::Error + 'static) -> Refusal {
    Refusal::Engine {
        words: in_words(&error),
    }
}

fn own(process: &PidFd) -> Result<PidFd, Refusal> {
    process.try_clone().map_err(engine)
}

fn news(mailbox: &Arc<Mailbox>) -> crate::EventHandler {
    let mailbox = Arc::clone(mailbox);
    Box::new(move |event| mailbox.put(Mail::News(event)))
}

fn new_name(shared: &Shared, peer: Peer) -> RegionName {
    let number = lock(&shared.random).number();
    format!("client-{}-{number:016x}", peer.pid)
        .parse()
        .expect("letters, digits and dashes, shorter than a name may be")
}

fn region_config(shared: &Shared, record: &Record) -> RegionConfig {
    let mut config = RegionConfig::new(record.name.clone(), record.local_budget);
    config.state_dir.clone_from(&shared.config.state_dir);
    config.fault_workers = record.fault_workers;
    config
}

/// Enters the region in the table and keeps it on this thread.
fn serve(shared: &Arc<Shared>, keeper: Keeper) {
    let name = keeper.record.name.clone();
    let entry = Entry {
        record: keeper.record.clone(),
        state: State::Served(Arc::clone(&keeper.mailbox)),
    };
    lock(&shared.regions).insert(name.clone(), entry);
    if keeper.run() == Ending::Over {
        lock(&shared.regions).remove(&name);
    }
}

/// What a program that connects again brings.
struct Resumption {
    mapping: Mapping,
    name: RegionName,
    token: Token,
    descriptors: Vec<OwnedFd>,
}

/// A program has connected again: its keeper gets the connection, or, if there is none yet, it is made
/// from what the program brings.
fn resume(
    shared: &Arc<Shared>,
    socket: Socket,
    peer: Peer,
    process: PidFd,
    asked: Resumption,
) -> Result<(), Refusal> {
    let record = {
        let mut regions = lock(&shared.regions);
        let entry = regions.get_mut(&asked.name).filter(|entry| {
            entry.record.token.matches(&asked.token)
                && (entry.record.uid, entry.record.pid) == (peer.uid, peer.pid)
                && process.began() == Some(entry.record.began)
        });
        match entry {
            None => {
                refuse(&socket, Refusal::UnknownRegion);
                return Err(Refusal::UnknownRegion);
            }
            Some(entry) => match &entry.state {
                State::Served(mailbox) => {
                    mailbox.put(Mail::Socket(socket));
                    return Ok(());
                }
                // It is told no: it will ask again.
                State::Busy => {
                    let refusal = Refusal::Engine {
                        words: "the region is being taken over".into(),
                    };
                    refuse(&socket, refusal.clone());
                    return Err(refusal);
                }
                State::Waiting => {
                    entry.state = State::Busy;
                    entry.record.clone()
                }
            },
        }
    };
    let taken = own(&process)
        .and_then(|process| {
            intake::target(process, &asked.mapping, asked.descriptors, Life::GoesOn)
                .map_err(Refusal::Descriptor)
        })
        .and_then(|target| take_over(shared, &record, Some(target)));
    match taken {
        Ok((region, promise, mailbox)) => {
            mailbox.put(Mail::Socket(socket));
            serve(
                shared,
                Keeper {
                    region,
                    process,
                    socket: None,
                    mailbox,
                    promise,
                    record,
                    state_dir: shared.config.state_dir.clone(),
                    closing: Arc::clone(&shared.closing),
                },
            );
            Ok(())
        }
        Err(refusal) => {
            set_state(shared, &record.name, State::Waiting);
            refuse(&socket, refusal.clone());
            Err(refusal)
        }
    }
}

fn set_state(shared: &Shared, name: &RegionName, state: State) {
    if let Some(entry) = lock(&shared.regions).get_mut(name) {
        entry.state = state;
    }
}

/// Goes on where an earlier daemon stopped: with the descriptors that the program has brought, or with
/// those taken from it.
fn take_over(
    shared: &Arc<Shared>,
    record: &Record,
    brought: Option<Target>,
) -> Result<(Region, Promise, Arc<Mailbox>), Refusal> {
    let saved = SavedRegion::open(&shared.config.state_dir, &record.name).map_err(engine)?;
    let target = match brought {
        Some(target) => target,
        None => saved.target().map_err(engine)?,
    };
    let (remote, owner) =
        shared
            .source
            .reopen(&saved.owner())
            .map_err(|error| Refusal::Remote {
                words: in_words(&*error),
            })?;
    let mailbox = Mailbox::new().map_err(engine)?;
    lock(&shared.ledger).add(record.uid, record.local_budget);
    let promise = Promise {
        shared: Arc::clone(shared),
        uid: record.uid,
        bytes: record.local_budget,
    };
    let config = region_config(shared, record);
    let region =
        Region::take_over(saved, target, remote, owner, config, news(&mailbox)).map_err(engine)?;
    tracing::info!(region = %record.name, pid = record.pid, "a client's region is taken over");
    Ok((region, promise, mailbox))
}

/// Takes over, one after the other, what the last daemon has left.
fn take_over_all(shared: &Arc<Shared>) -> Result<(), StartError> {
    for record in Record::read_all(&shared.config.state_dir)? {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(%error, "a client of the last daemon is not known any more");
                continue;
            }
        };
        let process = PidFd::open(record.pid)
            .ok()
            .filter(|process| process.began() == Some(record.began));
        let Some(process) = process else {
            free_what_is_left(shared, &record);
            continue;
        };
        let entry = Entry {
            record: record.clone(),
            state: State::Busy,
        };
        lock(&shared.regions).insert(record.name.clone(), entry);
        match take_over(shared, &record, None) {
            Ok((region, promise, mailbox)) => {
                let keeper = Keeper {
                    region,
                    process,
                    socket: None,
                    mailbox,
                    promise,
                    record,
                    state_dir: shared.config.state_dir.clone(),
                    closing: Arc::clone(&shared.closing),
                };
                let keeper_of = Arc::clone(shared);
                let name = keeper.record.name.clone();
                set_state(shared, &name, State::Served(Arc::clone(&keeper.mailbox)));
                if let Err(error) = spawn(shared, "myco-client", move || serve(&keeper_of, keeper))
                {
                    tracing::error!(%error, region = %name, "no thread for a client");
                    set_state(shared, &name, State::Waiting);
                }
            }
            Err(refusal) => {
                tracing::warn!(region = %record.name, pid = record.pid, %refusal, "a client is waited for, as its region cannot be taken over without it");
                set_state(shared, &record.name, State::Waiting);
                await_end(shared, process, record);
            }
        }
    }
    Ok(())
}

/// Sees to it that a program which ends while it is waited for is not waited for any longer.
fn await_end(shared: &Arc<Shared>, process: PidFd, record: Record) {
    let of = Arc::clone(shared);
    let started = spawn(shared, "myco-waiting", move || {
        let mut fds = [
            PollFd::new(process.as_fd(), PollFlags::POLLIN),
            PollFd::new(of.closing.as_fd(), PollFlags::POLLIN),
        ];
        while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
        if fds[0].any() != Some(true) {
            return;
        }
        let mut regions = lock(&of.regions);
        let waiting = regions
            .get(&record.name)
            .is_some_and(|entry| matches!(entry.state, State::Waiting));
        if waiting {
            regions.remove(&record.name);
            drop(regions);
            free_what_is_left(&of, &record);
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "no thread to wait for a client");
    }
}

/// The program has ended while no daemon was there: nobody needs its pages any more.
fn free_what_is_left(shared: &Shared, record: &Record) {
    tracing::info!(region = %record.name, pid = record.pid, "a client has ended without a daemon");
    match SavedRegion::open(&shared.config.state_dir, &record.name) {
        Ok(saved) => match shared.source.reopen(&saved.owner()) {
            Ok((remote, _)) => {
                remote.release();
                saved.discard();
            }
            Err(error) => {
                tracing::warn!(error = %in_words(&*error), region = %record.name, "its remote memory could not be freed; the next daemon tries again");
                return;
            }
        },
        Err(error) => {
            tracing::warn!(error = %in_words(&error), region = %record.name, "it left no page table");
        }
    }
    record.remove(&shared.config.state_dir);
}

//! The session: rails, their memory and their waiting, driven by the schedule.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::endpoint::{Endpoint, EndpointError};
use super::piece::{
    EndpointIndex, Finished, MemoryIndex, NotArrived, Piece, PieceError, Place, Why,
};
use super::progress::Progress;
use super::redial::{Event, Job, Redial};
use super::schedule::{Limits, Local, Schedule, Step, Way};
use crate::remote::{Clock, SystemClock};
use crate::transport::{
    Armed, Completion, LocalMemory, Mapping, MappingError, Operation, QueuePair, QueuePairConfig,
    RegisterError, Ticket, Transport, WorkId, WorkRequest,
};
use crate::units::ByteCount;

/// Completions that are taken at a time.
const BATCH: usize = 64;
/// How often [`Transfer::run`] shows its progress at most, ms.
const SHOW_EVERY_MS: u64 = 50;
/// The longest single wait of [`Transfer::run`]; it waits again.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// The frames: the first memory of a session.
const FRAMES: usize = 0;

/// What a session is asked to be.
#[derive(Clone)]
pub struct TransferConfig {
    /// Queue pairs to each endpoint. Default 2. More keep more processors and paths of a network busy.
    pub rails: u32,
    /// Chunks under way on each rail. Default 8.
    pub depth: u32,
    /// Bytes of a chunk. Default 256 KiB; from 64 KiB to 1 MiB is sensible: smaller costs processors,
    /// larger holds up what shares the wire.
    pub chunk_bytes: ByteCount,
    /// Chunks that stand between two endpoints. Default 16. With `chunk_bytes` this is the session's
    /// memory; 0 for a session that copies nothing from endpoint to endpoint.
    pub frames: u32,
    /// Pieces that are queued and not taken back yet. Default 4096.
    pub pieces: u32,
    /// How often a chunk is tried, on whatever rails. Default 4.
    pub tries: u32,
    /// How long an endpoint that does not answer is tried again, ms, before its pieces are given back.
    /// Default 3000.
    pub endpoint_deadline_ms: u32,
    /// How long a chunk may go unanswered, ms, before its rail counts as broken. Default 2000.
    pub response_timeout_ms: u32,
    /// Bytes a second that set out, at most; a copy counts once. Default: no limit.
    pub rate: Option<ByteCount>,
    /// By what time deadlines and the rate go. Default: the system's.
    pub clock: Arc<dyn Clock>,
    /// Whether broken rails are replaced by threads. Default true. Without, [`Transfer::drive`] does it
    /// itself, and blocks meanwhile: for simulated time.
    pub threads: bool,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            rails: 2,
            depth: 8,
            chunk_bytes: ByteCount::new(256 << 10),
            frames: 16,
            pieces: 4096,
            tries: 4,
            endpoint_deadline_ms: 3000,
            response_timeout_ms: 2000,
            rate: None,
            clock: Arc::new(SystemClock::default()),
            threads: true,
        }
    }
}

/// Why there is no session, or not this endpoint in it.
#[derive(Debug, thiserror::Error)]
pub enum OpenTransferError {
    /// Memory for the frames.
    #[error("the frames of the transfer could not be allocated")]
    Frames(#[from] MappingError),
    /// Registration with an endpoint's transport.
    #[error("memory of the transfer could not be registered")]
    Register(#[from] RegisterError),
    /// The endpoint gave no rails.
    #[error("the endpoint could not be connected")]
    Endpoint(#[from] EndpointError),
    /// A descriptor.
    #[error("the bell of the transfer could not be made")]
    Bell(#[source] std::io::Error),
}

struct Side {
    endpoint: Arc<dyn Endpoint>,
    /// Forgotten when its last rail is ended.
    removed: bool,
    transport: usize,
    first_rail: usize,
    rails: usize,
}

struct RailSide {
    endpoint: usize,
    queue_pair: Option<Box<dyn QueuePair>>,
    ticket: Option<Ticket>,
    chain: Vec<WorkRequest>,
}

struct Registered {
    transport: Arc<dyn Transport>,
    /// As long as the session's memories.
    memories: Vec<LocalMemory>,
}

/// A session of parallel transfer; see the [module](super). One thread drives it.
///
/// Open one and keep it: what is registered with a transport stays so as long as the transport lives.
pub struct Transfer {
    schedule: Schedule,
    /// Dropped before the memories. `None` in the place of an endpoint that was removed.
    rails: Vec<RailSide>,
    redial: Redial,
    sides: Vec<Option<Side>>,
    transports: Vec<Registered>,
    memories: Vec<Arc<Mapping>>,
    completions: Vec<Completion>,
    pair: QueuePairConfig,
    config: TransferConfig,
}

impl Transfer {
    /// A session without endpoints.
    pub fn open(config: TransferConfig) -> Result<Self, OpenTransferError> {
        let chunk_bytes = config.chunk_bytes.get().clamp(1, MAX_CHUNK_BYTES);
        let depth = config.depth.max(1);
        // A mapping has at least one byte.
        let bytes = (u64::from(config.frames) * chunk_bytes).max(1);
        let frames = Mapping::anonymous(ByteCount::new(bytes).as_usize())?;
        let redial = if config.threads {
            Redial::threads(Arc::clone(&config.clock)).map_err(OpenTransferError::Bell)?
        } else {
            Redial::Inline(Vec::new())
        };
        let limits = Limits {
            chunk_bytes,
            depth: depth as usize,
            frames: config.frames as usize,
            pieces: config.pieces as usize,
            tries: config.tries.max(1),
            rate: config.rate.map(ByteCount::get),
        };
        let now = Duration::from_millis(config.clock.now_ms());
        Ok(Self {
            schedule: Schedule::new(limits, now),
            rails: Vec::new(),
            redial,
            sides: Vec::new(),
            transports: Vec::new(),
            memories: vec![Arc::new(frames)],
            completions: Vec::with_capacity(BATCH),
            pair: QueuePairConfig {
                depth,
                response_timeout_ms: config.response_timeout_ms,
                ..QueuePairConfig::default()
            },
            config,
        })
    }

    /// Connects the rails of another endpoint. Blocks.
    pub fn add_endpoint(
        &mut self,
        endpoint: Arc<dyn Endpoint>,
    ) -> Result<EndpointIndex, OpenTransferError> {
        let transport = self.transport(endpoint.transport())?;
        let mut rails = Vec::new();
        for _ in 0..self.config.rails.max(1) {
            match connect(&*endpoint, &self.pair) {
                Ok((queue_pair, ticket)) => rails.push(RailSide {
                    endpoint: self.sides.len(),
                    queue_pair: Some(queue_pair),
                    ticket: Some(ticket),
                    chain: Vec::with_capacity(self.pair.depth as usize),
                }),
                Err(error) => {
                    for rail in &mut rails {
                        end(rail, &*endpoint);
                    }
                    return Err(error.into());
                }
            }
        }
        let (index, first_rail) = self.schedule.add_endpoint(rails.len());
        self.sides.push(Some(Side {
            endpoint,
            removed: false,
            transport,
            first_rail,
            rails: rails.len(),
        }));
        self.rails.append(&mut rails);
        Ok(index)
    }

    /// Ends the rails of an endpoint. Its pieces are given back. Blocks.
    pub fn remove_endpoint(&mut self, endpoint: EndpointIndex) {
        self.lose(endpoint, Why::Removed);
        let index = endpoint.0 as usize;
        if let Some(Some(side)) = self.sides.get_mut(index) {
            side.removed = true;
            self.forget(index);
        }
    }

    /// Lets go of an endpoint that was removed, when none of its rails is being replaced any more.
    fn forget(&mut self, endpoint: usize) {
        if let Some(Some(side)) = self.sides.get(endpoint)
            && side.removed
            && !self.schedule.has_hope(EndpointIndex(endpoint as u32))
        {
            self.sides[endpoint] = None;
        }
    }

    /// Whether pieces may name the endpoint: it was added, and neither removed nor lost.
    #[must_use]
    pub fn has_endpoint(&self, endpoint: EndpointIndex) -> bool {
        self.schedule.has_endpoint(endpoint)
    }

    /// Makes memory known, so that pieces can name it.
    pub fn register(&mut self, memory: Arc<Mapping>) -> Result<MemoryIndex, RegisterError> {
        for known in &mut self.transports {
            let registered = known.transport.register(Arc::clone(&memory))?;
            known.memories.truncate(self.memories.len());
            known.memories.push(registered);
        }
        self.memories.push(memory);
        // Each is a mapping of this process, of which there are fewer than 2^32.
        Ok(MemoryIndex((self.memories.len() - 1) as u32))
    }

    /// The place of `transport` in the list, with all memory registered.
    fn transport(&mut self, transport: &Arc<dyn Transport>) -> Result<usize, RegisterError> {
        let same = |known: &Registered| {
            std::ptr::addr_eq(Arc::as_ptr(&known.transport), Arc::as_ptr(transport))
        };
        if let Some(at) = self.transports.iter().position(same) {
            return Ok(at);
        }
        let memories = self
            .memories
            .iter()
            .map(|memory| transport.register(Arc::clone(memory)));
        self.transports.push(Registered {
            transport: Arc::clone(transport),
            memories: memories.collect::<Result<_, _>>()?,
        });
        Ok(self.transports.len() - 1)
    }

    /// Changes the share of the bandwidth: bytes a second, or no limit.
    pub fn set_rate(&mut self, rate: Option<ByteCount>) {
        let now = self.now();
        self.schedule.set_rate(rate.map(ByteCount::get), now);
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.config.clock.now_ms())
    }

    /// Takes pieces, from the first on, as far as there is room; returns how many. What was not taken is
    /// to be handed in again when pieces have been finished and taken back. If one of them is no piece,
    /// none is taken.
    pub fn queue(&mut self, pieces: &[Piece]) -> Result<usize, PieceError> {
        for piece in pieces {
            self.check(piece)?;
        }
        let taken = pieces.len().min(self.schedule.room());
        for piece in &pieces[..taken] {
            self.schedule.queue(*piece);
        }
        Ok(taken)
    }

    fn check(&self, piece: &Piece) -> Result<(), PieceError> {
        let tag = piece.tag;
        let mut remotes = 0;
        for place in [piece.from, piece.into] {
            let Some(end) = place.behind(piece.bytes) else {
                return Err(PieceError::OutOfBounds { tag });
            };
            match end {
                Place::Local { memory, offset } => {
                    // The frames are the session's own.
                    let known = (memory.0 as usize != FRAMES)
                        .then(|| self.memories.get(memory.0 as usize))
                        .flatten()
                        .ok_or(PieceError::UnknownMemory { tag })?;
                    if offset > known.len() as u64 {
                        return Err(PieceError::OutOfBounds { tag });
                    }
                }
                Place::Remote { endpoint, .. } => {
                    remotes += 1;
                    let side = self.sides.get(endpoint.0 as usize);
                    if !matches!(side, Some(Some(side)) if !side.removed) {
                        return Err(PieceError::UnknownEndpoint { tag });
                    }
                }
            }
        }
        match remotes {
            0 => Err(PieceError::BothLocal { tag }),
            2 if self.config.frames == 0 => Err(PieceError::NoFrames { tag }),
            _ => Ok(()),
        }
    }

    /// Does what can be done now: takes completions, replaces broken rails, posts chunks. Never blocks on
    /// a peer, unless the session has no threads.
    pub fn drive(&mut self) {
        for rail in 0..self.rails.len() {
            self.collect(rail);
        }
        self.take_back();
        self.post();
    }

    /// Whether every piece is finished, though not every answer may have been taken.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.schedule.is_idle()
    }

    /// What became of a piece; each is answered once.
    pub fn take_finished(&mut self) -> Option<Finished> {
        self.schedule.take_finished()
    }

    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.schedule.progress()
    }

    /// Waits until there is something to drive, at most `timeout`. In simulated time it returns at once.
    pub fn wait(&mut self, timeout: Duration) {
        for rail in &mut self.rails {
            if let Some(queue_pair) = &mut rail.queue_pair
                && queue_pair.arm() == Armed::Ready
            {
                return;
            }
        }
        let timeout = self
            .schedule
            .wait()
            .map_or(timeout, |wait| wait.min(timeout));
        // Rounded up, or the last part of a millisecond would be spent spinning.
        let ms = timeout.as_micros().div_ceil(1000).min(i32::MAX as u128 - 1);
        let timeout = PollTimeout::try_from(Duration::from_millis(ms as u64));
        let mut fds = Vec::with_capacity(self.rails.len() + 1);
        self.readiness(&mut |fd| fds.push(PollFd::new(fd, PollFlags::POLLIN)));
        if !fds.is_empty() {
            let _ = poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX));
        }
    }

    /// Calls `each` with every descriptor to wait on; ask before each wait. None in simulated time.
    pub fn readiness<'a>(&'a self, each: &mut dyn FnMut(BorrowedFd<'a>)) {
        if let Some(bell) = self.redial.bell() {
            each(bell);
        }
        for rail in &self.rails {
            if let Some(fd) = rail.queue_pair.as_ref().and_then(|qp| qp.readiness()) {
                each(fd);
            }
        }
    }

    /// Moves all of `pieces`, whatever their number, and returns what did not arrive. `each` is shown the
    /// progress from time to time, and at the end. Blocks. What was queued before is moved too, and its
    /// answers with it. Not for simulated time.
    pub fn run(
        &mut self,
        pieces: &[Piece],
        mut each: impl FnMut(&Progress),
    ) -> Result<Vec<NotArrived>, PieceError> {
        for piece in pieces {
            self.check(piece)?;
        }
        let mut left = pieces;
        let mut not_arrived = Vec::new();
        let mut shown_ms = self.config.clock.now_ms();
        loop {
            let taken = left.len().min(self.schedule.room());
            for piece in &left[..taken] {
                self.schedule.queue(*piece);
            }
            left = &left[taken..];
            self.drive();
            while let Some(finished) = self.take_finished() {
                not_arrived.extend(finished.result.err());
            }
            if left.is_empty() && self.is_idle() {
                each(&self.progress());
                return Ok(not_arrived);
            }
            let now_ms = self.config.clock.now_ms();
            if now_ms >= shown_ms + SHOW_EVERY_MS {
                shown_ms = now_ms;
                each(&self.progress());
            }
            if !self.is_idle() {
                self.wait(LONGEST_WAIT);
            }
        }
    }

    /// Takes completions from one rail; if it broke, hands it over to be replaced.
    fn collect(&mut self, rail: usize) {
        let Some(queue_pair) = &mut self.rails[rail].queue_pair else {
            return;
        };
        let mut broken = false;
        loop {
            self.completions.clear();
            let count = queue_pair.poll(&mut self.completions);
            for completion in &self.completions {
                let result = completion.result.map_err(|error| error.kind);
                broken |= self.schedule.completed(rail, completion.id.0, result);
            }
            if count == 0 {
                broken |= queue_pair.broken().is_some();
            }
            // Ends: a rail has at most `depth` chunks, and none is posted here.
            if count < BATCH {
                break;
            }
        }
        if broken {
            self.hand_over(rail);
        }
    }

    fn hand_over(&mut self, rail: usize) {
        let side = &mut self.rails[rail];
        let Some(broken) = side.queue_pair.take() else {
            return;
        };
        let Some(Some(known)) = self.sides.get(side.endpoint) else {
            return;
        };
        self.schedule.broke(rail);
        self.redial.start(Job::new(
            rail,
            Arc::clone(&known.endpoint),
            broken,
            side.ticket.take(),
            self.pair,
            (
                self.config.clock.now_ms(),
                u64::from(self.config.endpoint_deadline_ms),
            ),
        ));
    }

    fn take_back(&mut self) {
        // Bounded by the rails: each has at most one job.
        while let Some((rail, event)) = self.redial.event(&*self.config.clock) {
            let endpoint = self.rails[rail].endpoint;
            let index = EndpointIndex(endpoint as u32);
            match event {
                Event::Gone => self.schedule.gone(rail),
                Event::Up(queue_pair, ticket) => {
                    let side = &mut self.rails[rail];
                    (side.queue_pair, side.ticket) = (Some(queue_pair), Some(ticket));
                    if self.schedule.has_endpoint(index) {
                        self.schedule.up(rail);
                    } else {
                        self.end_rail(rail);
                    }
                }
                Event::Ended(ticket) => {
                    self.rails[rail].ticket = ticket;
                    self.end_rail(rail);
                    if !self.schedule.has_hope(index) {
                        self.lose(index, Why::Lost);
                    }
                }
                Event::Lost(why) => {
                    self.schedule.ended(rail);
                    self.schedule.gone(rail);
                    self.lose(index, why);
                }
            }
            self.forget(endpoint);
        }
    }

    /// The endpoint takes part no more: all its rails that are not being replaced end now.
    fn lose(&mut self, endpoint: EndpointIndex, why: Why) {
        let Some(Some(side)) = self.sides.get(endpoint.0 as usize) else {
            return;
        };
        let rails = side.first_rail..side.first_rail + side.rails;
        self.schedule.lost(endpoint, why);
        for rail in rails {
            if self.rails[rail].queue_pair.is_some() {
                self.end_rail(rail);
            }
        }
    }

    fn end_rail(&mut self, rail: usize) {
        let side = &mut self.rails[rail];
        if let Some(Some(known)) = self.sides.get(side.endpoint) {
            end(side, &*known.endpoint);
        }
        self.schedule.ended(rail);
        self.schedule.gone(rail);
    }

    /// Posts all that can go now, a chain a rail.
    fn post(&mut self) {
        let now = self.now();
        while let Some(step) = self.schedule.next(now) {
            match self.request(&step) {
                Some(request) => self.rails[step.rail].chain.push(request),
                // Checked when the piece was queued; the rail's end answers it.
                None => {
                    debug_assert!(false, "a step outside of its memory: {step:?}");
                    self.hand_over(step.rail);
                }
            }
        }
        for rail in 0..self.rails.len() {
            let side = &mut self.rails[rail];
            if side.chain.is_empty() {
                continue;
            }
            let posted = match &mut side.queue_pair {
                Some(queue_pair) => queue_pair.post(&side.chain).is_ok(),
                None => true,
            };
            side.chain.clear();
            if !posted {
                // What was not taken is tried again as if it had been under way.
                self.collect(rail);
                self.hand_over(rail);
            }
        }
    }

    fn request(&self, step: &Step) -> Option<WorkRequest> {
        let side = self.sides[self.rails[step.rail].endpoint].as_ref()?;
        let (memory, offset) = match step.local {
            Local::Frame(frame) => (
                FRAMES,
                frame as u64 * self.config.chunk_bytes.get().clamp(1, MAX_CHUNK_BYTES),
            ),
            Local::Place(Place::Local { memory, offset }) => (memory.0 as usize, offset),
            Local::Place(Place::Remote { .. }) => return None,
        };
        let memory = self.transports[side.transport].memories.get(memory)?;
        let offset = ByteCount::new(offset).as_usize();
        let bytes = ByteCount::new(step.bytes).as_usize();
        let local = memory.slice(offset, bytes).ok()?;
        let operation = match step.way {
            Way::Read => Operation::Read {
                into: local,
                from: step.remote,
            },
            Way::Write => Operation::Write {
                from: local,
                into: step.remote,
            },
        };
        Some(WorkRequest {
            id: WorkId(step.chunk as u64),
            operation,
            signaled: true,
        })
    }
}

/// One READ or WRITE moves no more.
const MAX_CHUNK_BYTES: u64 = crate::transport::MAX_TRANSFER_BYTES as u64;

fn connect(
    endpoint: &dyn Endpoint,
    config: &QueuePairConfig,
) -> Result<(Box<dyn QueuePair>, Ticket), EndpointError> {
    let ticket = endpoint.ticket(None)?;
    match endpoint.connect(&ticket, config) {
        Ok(queue_pair) => Ok((queue_pair, ticket)),
        Err(error) => {
            endpoint.dismiss(ticket);
            Err(error)
        }
    }
}

/// Ends a rail: first here, so that nothing is touched here any more, then there.
fn end(rail: &mut RailSide, endpoint: &dyn Endpoint) {
    rail.queue_pair = None;
    if let Some(ticket) = rail.ticket.take() {
        endpoint.dismiss(ticket);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.redial.stop();
        while let Some((rail, event)) = self.redial.event(&*self.config.clock) {
            if let Event::Up(queue_pair, ticket) = event {
                let side = &mut self.rails[rail];
                (side.queue_pair, side.ticket) = (Some(queue_pair), Some(ticket));
            }
        }
        for rail in &mut self.rails {
            if let Some(Some(side)) = self.sides.get(rail.endpoint) {
                end(rail, &*side.endpoint);
            }
        }
    }
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer")
            .field("endpoints", &self.sides.len())
            .field("rails", &self.rails.len())
            .finish_non_exhaustive()
    }
}

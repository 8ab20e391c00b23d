//! All state of a simulated network, and the events that change it. Single-threaded by its lock.
//!
//! ```text
//!   post --> Lane(requests) --Deliver--> node: check, carry out --> Lane(answers) --Deliver--> settled
//!                                          |                                                   |
//!            Hangup (node died, session ended) ------------------------> broken <---- Deadline +
//! ```
//!
//! A lane is one direction of one connection: messages arrive in order, each when its time has come
//! and the link is up.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use twox_hash::XxHash3_64;

use super::network::SimConfig;
use crate::transport::access::{Access, Session, SessionNumber};
use crate::transport::{
    ErrorKind, Export, ExportError, Mapping, Operation, Ticket, TransportKind, WorkRequest,
};
use crate::units::TenantId;

/// Tries after which a lost message is taken to be lost for good: any response timeout is over then.
const MAX_LOSSES: u32 = 64;
/// Sessions of a simulated node.
const MAX_SESSIONS: usize = 1024;
/// Connections of one simulated session.
const MAX_SESSION_CONNECTIONS: usize = 4096;

/// A connection's name, in the order of connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConnectionNumber(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    ToNode,
    ToOwner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The first message of a lane may have arrived.
    Deliver(ConnectionNumber, Direction),
    /// The owner learns that the connection is over.
    Hangup(ConnectionNumber, Ending),
    /// The owner looks whether the node has been silent for too long.
    Deadline(ConnectionNumber),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    Disconnected,
    Fenced,
}

/// A request under way, with what it brings along.
struct Asked {
    request: WorkRequest,
    /// Of a WRITE.
    bytes: Vec<u8>,
}

/// What comes back.
enum Answer {
    /// With what the READ or the atomic puts into local memory.
    Done(Vec<u8>),
    Refused,
}

struct Lane<T> {
    under_way: VecDeque<(Duration, T)>,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self {
            under_way: VecDeque::new(),
        }
    }
}

struct Connection {
    node: SocketAddr,
    /// `None` when the node has ended it; what arrives there is then ignored.
    session: Option<Session>,
    response_timeout: Duration,
    requests: Lane<Asked>,
    answers: Lane<Answer>,
    /// Local places of what is not answered, in order.
    awaited: VecDeque<WorkRequest>,
    /// Requests answered since the owner last asked.
    answered: usize,
    broken: Option<ErrorKind>,
    progress: Duration,
    deadline_is_set: bool,
}

struct Node {
    pool: Arc<Mapping>,
    access: Access,
    alive: bool,
    silent: bool,
    cut: bool,
    reads_to_corrupt: u32,
}

/// What connecting came to.
pub(super) enum Connected {
    Yes(ConnectionNumber),
    /// The ticket opens nothing.
    Refused,
    /// There is a machine, but nothing listens.
    NobodyThere,
    /// No answer.
    Silence,
}

/// See the module.
pub(super) struct World {
    config: SimConfig,
    now: Duration,
    random: ChaCha8Rng,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    next_event: u64,
    next_connection: u64,
    nodes: BTreeMap<SocketAddr, Node>,
    connections: BTreeMap<ConnectionNumber, Connection>,
    digest: u64,
}

impl World {
    pub(super) fn new(config: SimConfig) -> Self {
        Self {
            config,
            now: Duration::ZERO,
            random: ChaCha8Rng::seed_from_u64(config.seed),
            events: BinaryHeap::new(),
            next_event: 0,
            next_connection: 0,
            nodes: BTreeMap::new(),
            connections: BTreeMap::new(),
            digest: config.seed,
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.now
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    fn record(&mut self, bytes: &[u8]) {
        self.digest = XxHash3_64::oneshot_with_seed(self.digest, bytes);
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.events.push(Reverse((at, self.next_event, event)));
        self.next_event += 1;
    }

    /// How long a message is under way, with every time that it is lost and sent again.
    fn delay(&mut self) -> Duration {
        let SimConfig {
            min_delay_us,
            max_delay_us,
            loss_per_million,
            retransmit_us,
            ..
        } = self.config;
        let spread = u64::from(max_delay_us.saturating_sub(min_delay_us)) * 1000 + 1;
        let nanos = u64::from(min_delay_us) * 1000 + self.random.next_u64() % spread;
        let mut delay = Duration::from_nanos(nanos);
        for _ in 0..MAX_LOSSES {
            if self.random.next_u32() % 1_000_000 >= loss_per_million {
                break;
            }
            delay += Duration::from_micros(retransmit_us.into());
        }
        delay
    }

    // --- time -------------------------------------------------------------------------------------

    /// When the next event is due.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.events.peek().map(|Reverse((at, _, _))| *at)
    }

    pub(super) fn step(&mut self) -> bool {
        let Some(Reverse((at, _, event))) = self.events.pop() else {
            return false;
        };
        self.now = self.now.max(at);
        self.happen(event);
        true
    }

    pub(super) fn run_until(&mut self, until: Duration) {
        while self.next_due().is_some_and(|at| at <= until) {
            self.step();
        }
        self.now = self.now.max(until);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver(connection, direction) => self.deliver(connection, direction),
            Event::Hangup(number, ending) => {
                let Some(connection) = self.connections.get(&number) else {
                    return;
                };
                if self.is_cut(connection.node) {
                    return;
                }
                self.break_with(
                    number,
                    match ending {
                        Ending::Disconnected => ErrorKind::PeerDisconnected,
                        Ending::Fenced => ErrorKind::Fenced,
                    },
                );
            }
            Event::Deadline(number) => self.look_at_deadline(number),
        }
    }

    // --- nodes ------------------------------------------------------------------------------------

    pub(super) fn start_node(&mut self, at: Option<SocketAddr>, pool: Arc<Mapping>) -> SocketAddr {
        let address = at.unwrap_or_else(|| {
            let number = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
            let host = u32::from(Ipv4Addr::new(10, 0, 0, 1)).wrapping_add(number);
            SocketAddr::from((Ipv4Addr::from(host), 7000))
        });
        self.disconnect_all(address, None);
        let node = Node {
            access: Access::new(pool.len() as u64, MAX_SESSIONS),
            pool,
            alive: true,
            silent: false,
            cut: false,
            reads_to_corrupt: 0,
        };
        self.nodes.insert(address, node);
        address
    }

    /// A node that is there, for its control channel.
    pub(super) fn access(&self, address: SocketAddr) -> Option<&Access> {
        let node = self.nodes.get(&address)?;
        node.alive.then_some(&node.access)
    }

    /// Draws a key and exports.
    pub(super) fn export(
        &mut self,
        address: SocketAddr,
        tenant: TenantId,
        offset: u64,
        bytes: u64,
    ) -> Result<Export, ExportError> {
        let Some(node) = self.nodes.get(&address).filter(|node| node.alive) else {
            return Err(ExportError::Device {
                transport: TransportKind::Sim,
                source: std::io::ErrorKind::NotConnected.into(),
            });
        };
        let random = &mut self.random;
        node.access
            .export(TransportKind::Sim, tenant, offset, bytes, || {
                Ok(random.next_u32())
            })
    }

    pub(super) fn connections_of(&self, address: SocketAddr) -> usize {
        self.connections
            .values()
            .filter(|connection| connection.node == address && connection.session.is_some())
            .count()
    }

    pub(super) fn set_cut(&mut self, address: SocketAddr, cut: bool) {
        if let Some(node) = self.nodes.get_mut(&address) {
            node.cut = cut;
        }
    }

    fn is_cut(&self, address: SocketAddr) -> bool {
        self.nodes
            .get(&address)
            .is_none_or(|node| node.cut || node.silent)
    }

    pub(super) fn kill(&mut self, address: SocketAddr, peers_notice: bool) {
        if let Some(node) = self.nodes.get_mut(&address) {
            node.alive = false;
            node.silent = !peers_notice;
            self.disconnect_all(address, peers_notice.then_some(Ending::Disconnected));
        }
    }

    /// Ends all connections of a node on its side.
    fn disconnect_all(&mut self, address: SocketAddr, told: Option<Ending>) {
        let theirs: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.node == address)
            .map(|(number, _)| *number)
            .collect();
        for number in theirs {
            self.end_connection(number, told);
        }
    }

    /// Ends the connections of sessions that are over.
    pub(super) fn end_sessions(
        &mut self,
        address: SocketAddr,
        ended: &[SessionNumber],
        fenced: bool,
    ) {
        let told = if fenced {
            Ending::Fenced
        } else {
            Ending::Disconnected
        };
        let theirs: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| {
                connection.node == address
                    && connection
                        .session
                        .as_ref()
                        .is_some_and(|session| ended.contains(&session.number))
            })
            .map(|(number, _)| *number)
            .collect();
        for number in theirs {
            self.end_connection(number, Some(told));
        }
    }

    pub(super) fn shut_down(&mut self, address: SocketAddr) {
        if let Some(node) = self.nodes.get_mut(&address) {
            node.alive = false;
        }
        self.disconnect_all(address, Some(Ending::Disconnected));
    }

    fn end_connection(&mut self, number: ConnectionNumber, told: Option<Ending>) {
        let delay = self.delay();
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if let Some(session) = connection.session.take() {
            session.connections.fetch_sub(1, Ordering::Relaxed);
        }
        connection.requests.under_way.clear();
        // Answers that were sent before still arrive first.
        let behind = connection
            .answers
            .under_way
            .back()
            .map_or(Duration::ZERO, |(at, _)| *at);
        if let Some(told) = told {
            let at = behind.max(self.now + delay);
            self.schedule(at, Event::Hangup(number, told));
        }
    }

    pub(super) fn corrupt_reads(&mut self, address: SocketAddr, count: u32) {
        if let Some(node) = self.nodes.get_mut(&address) {
            node.reads_to_corrupt = node.reads_to_corrupt.saturating_add(count);
        }
    }

    pub(super) fn corrupt_memory(&mut self, address: SocketAddr, offset: usize) -> bool {
        let bit = 1_u8 << (self.random.next_u32() % 8);
        let Some(node) = self.nodes.get(&address) else {
            return false;
        };
        let mut byte = [0];
        let flipped = node.pool.copy_out(offset, &mut byte).and_then(|()| {
            byte[0] ^= bit;
            node.pool.copy_in(offset, &byte)
        });
        flipped.is_ok()
    }

    // --- the owner's side -------------------------------------------------------------------------

    /// Connects, which takes a round trip, or `patience` where nobody answers.
    pub(super) fn connect(
        &mut self,
        address: SocketAddr,
        ticket: &Ticket,
        patience: Duration,
        response_timeout: Duration,
    ) -> Connected {
        let trip = self.delay() + self.delay();
        if self.is_cut(address) || trip > patience {
            self.run_until(self.now + patience);
            return Connected::Silence;
        }
        self.run_until(self.now + trip);
        let Some(access) = self.access(address) else {
            return Connected::NobodyThere;
        };
        let Some(session) = access.open(&ticket.secret, MAX_SESSION_CONNECTIONS) else {
            return Connected::Refused;
        };
        let number = ConnectionNumber(self.next_connection);
        self.next_connection += 1;
        let connection = Connection {
            node: address,
            session: Some(session),
            response_timeout,
            requests: Lane::default(),
            answers: Lane::default(),
            awaited: VecDeque::new(),
            answered: 0,
            broken: None,
            progress: self.now,
            deadline_is_set: false,
        };
        self.connections.insert(number, connection);
        Connected::Yes(number)
    }

    /// The owner drops the queue pair; the node knows it at once.
    pub(super) fn disconnect(&mut self, number: ConnectionNumber) {
        if let Some(session) = self.connections.remove(&number).and_then(|c| c.session) {
            session.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn post(&mut self, number: ConnectionNumber, request: WorkRequest) {
        let bytes = match request.operation {
            Operation::Write { from, .. } => {
                let mut bytes = vec![0; from.len()];
                // SAFETY: the slice lies in memory registered with this transport (checked when it was
                // posted), which stays mapped as long as the queue pair; its owner does not change it
                // before the completion.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        from.addr() as *const u8,
                        bytes.as_mut_ptr(),
                        bytes.len(),
                    );
                }
                bytes
            }
            _ => Vec::new(),
        };
        let delay = self.delay();
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if connection.awaited.is_empty() {
            connection.progress = now;
        }
        connection.awaited.push_back(request);
        let deadline = (!connection.deadline_is_set).then_some(now + connection.response_timeout);
        connection.deadline_is_set = true;
        if connection.session.is_some() {
            let lane = &mut connection.requests.under_way;
            let at = lane.back().map_or(Duration::ZERO, |(at, _)| *at);
            let at = at.max(now + delay);
            lane.push_back((at, Asked { request, bytes }));
            self.schedule(at, Event::Deliver(number, Direction::ToNode));
        }
        if let Some(at) = deadline {
            self.schedule(at, Event::Deadline(number));
        }
    }

    /// Requests answered since this was last asked.
    pub(super) fn take_answered(&mut self, number: ConnectionNumber) -> usize {
        self.connections
            .get_mut(&number)
            .map_or(0, |connection| std::mem::take(&mut connection.answered))
    }

    pub(super) fn broken(&self, number: ConnectionNumber) -> Option<ErrorKind> {
        self.connections.get(&number)?.broken
    }

    /// Whether the owner has something to take.
    pub(super) fn has_news(&self, number: ConnectionNumber) -> bool {
        self.connections
            .get(&number)
            .is_some_and(|connection| connection.answered > 0 || connection.broken.is_some())
    }

    fn break_with(&mut self, number: ConnectionNumber, kind: ErrorKind) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if connection.broken.is_some() {
            return;
        }
        connection.broken = Some(kind);
        connection.requests.under_way.clear();
        connection.answers.under_way.clear();
        if let Some(session) = connection.session.take() {
            session.connections.fetch_sub(1, Ordering::Relaxed);
        }
        let mut line = *b"broken..........";
        line[8..].copy_from_slice(&number.0.to_le_bytes());
        self.record(&line);
    }

    fn look_at_deadline(&mut self, number: ConnectionNumber) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        connection.deadline_is_set = false;
        if connection.awaited.is_empty() || connection.broken.is_some() {
            return;
        }
        let due = connection.progress + connection.response_timeout;
        if due <= now {
            return self.break_with(number, ErrorKind::PeerUnreachable);
        }
        connection.deadline_is_set = true;
        self.schedule(due, Event::Deadline(number));
    }

    // --- messages ---------------------------------------------------------------------------------

    /// Delivers what has arrived in a lane; while the link is down, its head is sent again.
    fn deliver(&mut self, number: ConnectionNumber, direction: Direction) {
        loop {
            let now = self.now;
            let Some(connection) = self.connections.get(&number) else {
                return;
            };
            let head = match direction {
                Direction::ToNode => connection.requests.under_way.front().map(|(at, _)| *at),
                Direction::ToOwner => connection.answers.under_way.front().map(|(at, _)| *at),
            };
            if head.is_none_or(|at| at > now) {
                return;
            }
            let node = connection.node;
            if self.is_cut(node) {
                // Under the deadline of the connection, which ends this.
                let retry = now + Duration::from_micros(self.config.retransmit_us.max(1).into());
                return self.schedule(retry, Event::Deliver(number, direction));
            }
            let Some(connection) = self.connections.get_mut(&number) else {
                return;
            };
            match direction {
                Direction::ToNode => {
                    let asked = connection.requests.under_way.pop_front();
                    if let Some((_, asked)) = asked {
                        self.carry_out(number, &asked);
                    }
                }
                Direction::ToOwner => {
                    let answer = connection.answers.under_way.pop_front();
                    if let Some((_, answer)) = answer {
                        self.settle(number, &answer);
                    }
                }
            }
        }
    }

    /// The node does what a request asks, and answers.
    fn carry_out(&mut self, number: ConnectionNumber, asked: &Asked) {
        let delay = self.delay();
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let Some(session) = &connection.session else {
            return;
        };
        let Some(node) = self.nodes.get_mut(&connection.node) else {
            return;
        };
        let request = &asked.request;
        let (remote, len) = (request.remote(), request.local().len());
        let place = if len == 0 {
            Some(0)
        } else {
            node.access
                .keys()
                .resolve(session.tenant, remote.rkey, remote.addr, len)
        };
        let answer = place.and_then(|offset| perform(node, offset, asked));
        let refused = answer.is_none();
        let mut bytes = answer.unwrap_or_default();
        let mut line = [0; 24];
        line[..8].copy_from_slice(&(self.now.as_nanos() as u64).to_le_bytes());
        line[8..16].copy_from_slice(&number.0.to_le_bytes());
        line[16..].copy_from_slice(&request.id.0.to_le_bytes());
        let is_read = matches!(request.operation, Operation::Read { .. });
        if is_read && !bytes.is_empty() && node.reads_to_corrupt > 0 {
            node.reads_to_corrupt -= 1;
            let bit = (self.random.next_u64() % (bytes.len() as u64 * 8)) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let answer = if refused {
            // The node ends the connection behind its refusal.
            connection.requests.under_way.clear();
            if let Some(session) = connection.session.take() {
                session.connections.fetch_sub(1, Ordering::Relaxed);
            }
            Answer::Refused
        } else {
            Answer::Done(bytes)
        };
        let lane = &mut connection.answers.under_way;
        let at = lane.back().map_or(Duration::ZERO, |(at, _)| *at);
        let at = at.max(self.now + delay);
        lane.push_back((at, answer));
        self.schedule(at, Event::Deliver(number, Direction::ToOwner));
        self.record(&line);
    }

    /// The owner's side takes an answer in.
    fn settle(&mut self, number: ConnectionNumber, answer: &Answer) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let bytes = match answer {
            Answer::Done(bytes) => bytes,
            Answer::Refused => return self.break_with(number, ErrorKind::RemoteAccess),
        };
        let Some(request) = connection.awaited.pop_front() else {
            return;
        };
        let local = request.local();
        // SAFETY: as many bytes as the slice has (`perform`), which lies in registered memory that stays
        // mapped as long as the queue pair, and is this request's alone until it completes.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), local.addr() as *mut u8, bytes.len());
        }
        connection.answered += 1;
        connection.progress = now;
        let digest = XxHash3_64::oneshot(bytes);
        self.record(&digest.to_le_bytes());
    }
}

/// Carries out a request that was allowed. What goes into local memory, at most as long as the local
/// slice; `None` if it cannot be done.
fn perform(node: &Node, offset: usize, asked: &Asked) -> Option<Vec<u8>> {
    let pool = &node.pool;
    match asked.request.operation {
        Operation::Read { into, .. } => {
            let mut bytes = vec![0; into.len()];
            pool.copy_out(offset, &mut bytes).ok()?;
            Some(bytes)
        }
        Operation::Write { .. } => {
            pool.copy_in(offset, &asked.bytes).ok()?;
            Some(Vec::new())
        }
        Operation::CompareSwap {
            expected, desired, ..
        } => {
            let word = pool.word(offset)?;
            let former =
                word.compare_exchange(expected, desired, Ordering::SeqCst, Ordering::SeqCst);
            Some(former.unwrap_or_else(|found| found).to_ne_bytes().into())
        }
        Operation::FetchAdd { add, .. } => {
            let word = pool.word(offset)?;
            Some(word.fetch_add(add, Ordering::SeqCst).to_ne_bytes().into())
        }
    }
}

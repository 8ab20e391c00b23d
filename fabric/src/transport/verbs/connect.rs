//! The active side's handshake, up to a queue pair that can be posted to.
//!
//! ```text
//!   resolve address -> resolve route -> create queue pair, INIT
//!     -> CONNECT (ticket in the private data)  ----->  memory node: ticket -> tenant -> domain
//!     <- CONNECT_RESPONSE (a greeting): RTR, RTS, ESTABLISH    or REJECTED with the reason
//! ```
//!
//! Every step has what is left of `connect_timeout_ms`. Nothing is tried twice, with one exception: a
//! device that hands out a queue pair number again which the peer still remembers is told "stale".

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::completion_queue::CompletionQueue;
use super::connection_manager::{CmEvent, CmEventKind, CmId, ConnectionParameters, EventChannel};
use super::greeting::{self, Rejection};
use super::queue_pair::{PeerMay, RcQueuePair};
use super::requester::{Parts, Requester};
use super::retry_policy::{RNR_RETRIES, RetryPolicy};
use super::transport::Rails;
use super::watch::{Link, Watched};
use crate::transport::{ConnectError, MAX_QUEUE_DEPTH, QueuePairConfig, Ticket, TransportKind};

/// How often a connection is begun anew because its queue pair number was stale.
const STALE_ATTEMPTS: usize = 4;

/// How long the kernel is first given to find a neighbour; then twice as long, and so on.
const FIRST_ADDRESS_SLICE: Duration = Duration::from_millis(20);

/// Reasons for a rejection in the CM protocol that say something to a user.
const REJECTED_NOBODY_LISTENS: i32 = 8;
const REJECTED_STALE: i32 = 10;
const REJECTED_BY_CONSUMER: i32 = 28;

/// Why a connection was turned away, where the system has no errno for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TurnedAway {
    /// The node's bound on connections, or its device's on queue pairs.
    #[error("the node has as many connections as it allows")]
    Busy,
    /// The request came in on a device that the node does not lend memory through.
    #[error("the node lends its memory through another of its devices: use the address it names")]
    WrongDevice,
    /// Again and again.
    #[error("the node still remembers an older connection of this queue pair number")]
    Stale,
    /// No READ could ever be answered.
    #[error("the node's device serves no READs")]
    NoReads,
    /// Anything else, as the CM protocol numbers it.
    #[error("the connection was rejected with CM reason {0}")]
    Other(i32),
}

/// What a handshake was waiting for when its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The neighbour's address (ARP or neighbour discovery).
    #[error("nobody answers for the address on the link")]
    Address,
    /// The path.
    #[error("no path to the address was found in time")]
    Route,
    /// The node's rdma_cm.
    #[error("the machine is there, but no connection manager answers")]
    Connection,
}

enum Attempt {
    Stale,
    Failed(ConnectError),
}

pub(super) fn connect(
    rails: &Arc<Rails>,
    peer: SocketAddr,
    ticket: &Ticket,
    config: &QueuePairConfig,
) -> Result<Requester, ConnectError> {
    if !(1..=MAX_QUEUE_DEPTH).contains(&config.depth) {
        return Err(local(io::ErrorKind::InvalidInput.into()));
    }
    let deadline = Instant::now() + Duration::from_millis(u64::from(config.connect_timeout_ms));
    for _ in 0..STALE_ATTEMPTS {
        match attempt(rails, peer, ticket, config, deadline) {
            Ok(requester) => return Ok(requester),
            Err(Attempt::Stale) => {
                tracing::debug!(%peer, "stale queue pair number: taking another")
            }
            Err(Attempt::Failed(error)) => return Err(error),
        }
    }
    Err(unreachable(peer, io::Error::other(TurnedAway::Stale)))
}

fn local(source: io::Error) -> ConnectError {
    ConnectError::Local {
        transport: TransportKind::Verbs,
        source,
    }
}

fn protocol(peer: SocketAddr) -> ConnectError {
    ConnectError::Protocol {
        peer,
        version: greeting::VERSION,
    }
}

fn unreachable(peer: SocketAddr, source: io::Error) -> ConnectError {
    ConnectError::Unreachable {
        peer,
        transport: TransportKind::Verbs,
        source,
    }
}

fn attempt(
    rails: &Arc<Rails>,
    peer: SocketAddr,
    ticket: &Ticket,
    config: &QueuePairConfig,
    deadline: Instant,
) -> Result<Requester, Attempt> {
    let here = |source| Attempt::Failed(local(source));
    let there = |source| Attempt::Failed(unreachable(peer, source));
    let left = || deadline.saturating_duration_since(Instant::now());

    let channel = EventChannel::new().map_err(here)?;
    let id = CmId::new(&channel).map_err(here)?;
    resolve_address(&id, &channel, peer, deadline).map_err(there)?;
    id.resolve_route(left()).map_err(there)?;
    let resolved = answer_by(&channel, deadline, NoAnswer::Route).map_err(there)?;
    expect(&resolved, CmEventKind::RouteResolved).map_err(there)?;

    let (device, port) = id
        .device()
        .ok_or_else(|| there(io::ErrorKind::HostUnreachable.into()))?;
    // The route leads through a device that had no address when the transport was opened.
    let index = rails
        .index_of(&device)
        .ok_or_else(|| here(io::ErrorKind::NotFound.into()))?;
    let rail = rails.rail(index);
    let limits = rail.device().limits();
    // One entry more than requests: the marker that ends a drain.
    let entries = config.depth + 1;
    if entries > limits.queue_depth || entries > limits.completions {
        return Err(here(io::ErrorKind::QuotaExceeded.into()));
    }
    let completions = CompletionQueue::new(Arc::clone(rail.device()), entries).map_err(here)?;
    let pair = RcQueuePair::new(Arc::clone(rail.domain()), Arc::clone(&completions), entries)
        .map_err(here)?;
    pair.initialize(&id, PeerMay::Nothing).map_err(here)?;

    let policy = RetryPolicy::within(config.response_timeout_ms);
    let greeting = greeting::encode_request(ticket);
    id.connect(&ConnectionParameters {
        queue_pair: pair.number(),
        initiator_depth: limits.initiator_depth,
        responder_resources: 0,
        retries: policy.retries,
        rnr_retries: RNR_RETRIES,
        private_data: &greeting,
    })
    .map_err(there)?;
    let answer = answer_by(&channel, deadline, NoAnswer::Connection).map_err(there)?;
    match answer.kind {
        CmEventKind::ConnectResponse => {}
        CmEventKind::Rejected => return Err(rejected(peer, &answer)),
        _ => return Err(there(answer.error())),
    }
    greeting::decode_acceptance(answer.private_data())
        .map_err(|_| Attempt::Failed(protocol(peer)))?;
    let asks = answer.initiator_depth.min(limits.initiator_depth);
    if asks == 0 {
        return Err(there(io::Error::other(TurnedAway::NoReads)));
    }
    pair.receive_ready(&id, 0).map_err(here)?;
    pair.send_ready(&id, asks, policy).map_err(here)?;
    id.establish().map_err(there)?;

    let link = Link::new().map_err(here)?;
    let watch = rails
        .watch()
        .add(Watched {
            channel: Arc::clone(id.channel()),
            link: Arc::clone(&link),
            device: index,
            port,
            queue_pair: pair.number(),
        })
        .map_err(here)?;
    let parts = Parts {
        rails: Arc::clone(rails),
        rail: index,
        watch,
        link,
        id,
        pair,
        completions,
    };
    Requester::new(peer, parts, config.depth).map_err(here)
}

/// Asks in slices of the time there is: a kernel that learns the neighbour's address just while it is
/// being asked looks at it again only at the end of the slice. (On a virtual link, where the answer is
/// there at once, that is how it goes each first time.)
fn resolve_address(
    id: &CmId,
    channel: &EventChannel,
    peer: SocketAddr,
    deadline: Instant,
) -> io::Result<()> {
    let mut slice = FIRST_ADDRESS_SLICE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        id.resolve_address(peer, slice.min(left))?;
        let event = answer_by(channel, deadline, NoAnswer::Address)?;
        match expect(&event, CmEventKind::AddressResolved) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => slice *= 2,
            result => return result,
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, NoAnswer::Address));
        }
    }
}

/// The next event. Where none comes in time the error says what was waited for.
fn answer_by(channel: &EventChannel, deadline: Instant, awaited: NoAnswer) -> io::Result<CmEvent> {
    channel
        .next_until(deadline)
        .map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => io::Error::new(io::ErrorKind::TimedOut, awaited),
            _ => error,
        })
}

fn expect(event: &CmEvent, kind: CmEventKind) -> io::Result<()> {
    if event.kind == kind {
        return Ok(());
    }
    Err(event.error())
}

fn rejected(peer: SocketAddr, answer: &CmEvent) -> Attempt {
    let turned_away = |why| unreachable(peer, io::Error::other(why));
    Attempt::Failed(match answer.status {
        REJECTED_STALE => return Attempt::Stale,
        REJECTED_NOBODY_LISTENS => unreachable(peer, io::ErrorKind::ConnectionRefused.into()),
        REJECTED_BY_CONSUMER => match greeting::decode_rejection(answer.private_data()) {
            Ok(Rejection::Ticket) => ConnectError::Refused { peer },
            Ok(Rejection::Busy) => turned_away(TurnedAway::Busy),
            Ok(Rejection::WrongDevice) => turned_away(TurnedAway::WrongDevice),
            Ok(Rejection::Version) | Err(_) => protocol(peer),
        },
        status if status < 0 => unreachable(peer, answer.error()),
        reason => turned_away(TurnedAway::Other(reason)),
    })
}

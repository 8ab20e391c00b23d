//! The compute side's queue pair: posts chains, polls completions, breaks in an orderly way.
//!
//! ```text
//!   Live --first error entry, or the link is lost--> Draining --marker flushed--> Silent
//!          (the device's queue pair goes into ERR)       |                          ^
//!                                                        `--DRAIN_BOUND: destroyed--'
//! ```
//!
//! A request is given back to its owner only when the device cannot touch its memory any more: while
//! draining by its own flushed entry, later all at once. To know when the device is through, a marker
//! is posted behind the last request, as drained queue pairs always flush in order. Requests that were
//! silent and not reported count as flushed then: their outcome is unknown, and READ and WRITE may be
//! repeated.
//!
//! Owned by one thread, never locked. After set-up nothing here allocates or logs.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::completion_queue::{CompletionQueue, Entry, EntryBatch};
use super::connection_manager::CmId;
use super::in_flight::{InFlight, Request};
use super::queue_pair::RcQueuePair;
use super::send_chain::SendChain;
use super::transport::Rails;
use super::watch::{Link, WatchKey};
use crate::transport::memory::poll_readable;
use crate::transport::{
    Armed, Completion, ErrorKind, Opcode, PostError, QueuePair, WorkError, WorkRequest,
};

/// How long a device may take to flush a broken queue pair before it is destroyed as it is.
const DRAIN_BOUND: Duration = Duration::from_millis(500);
/// The marker's name at the device; no request ever gets it.
const MARKER: u64 = u64::MAX;

/// What `connect` made.
pub(super) struct Parts {
    pub(super) rails: Arc<Rails>,
    pub(super) rail: usize,
    pub(super) watch: WatchKey,
    pub(super) link: Arc<Link>,
    pub(super) id: CmId,
    pub(super) pair: RcQueuePair,
    pub(super) completions: Arc<CompletionQueue>,
}

enum State {
    Live,
    Draining {
        until: Instant,
    },
    /// The device has let go of every request.
    Silent,
}

pub(super) struct Requester {
    peer: SocketAddr,
    state: State,
    broken: Option<WorkError>,
    /// What broke it, until the first failed request has been told.
    untold: Option<ErrorKind>,
    in_flight: InFlight,
    last_opcode: Opcode,
    chain: SendChain,
    batch: EntryBatch,
    /// An entry with requests before it that are still to be given back.
    pending: Option<Entry>,
    /// A completion event was asked for and has not been taken.
    armed: bool,
    readiness: Epoll,
    link: Arc<Link>,
    watch: WatchKey,
    // Dropped in this order, after `Drop::drop` has drained: queue pair, its id, its completion queue.
    pair: Option<RcQueuePair>,
    id: CmId,
    completions: Arc<CompletionQueue>,
    rail: usize,
    rails: Arc<Rails>,
}

impl Requester {
    pub(super) fn new(peer: SocketAddr, parts: Parts, depth: u32) -> io::Result<Self> {
        let Parts {
            rails,
            rail,
            watch,
            link,
            id,
            pair,
            completions,
        } = parts;
        let readiness = match readiness(&completions, &link) {
            Ok(readiness) => readiness,
            Err(error) => {
                rails.watch().remove(watch);
                return Err(error);
            }
        };
        Ok(Self {
            peer,
            state: State::Live,
            broken: None,
            untold: None,
            in_flight: InFlight::new(depth as usize),
            last_opcode: Opcode::Read,
            chain: SendChain::new(depth as usize),
            batch: EntryBatch::new(),
            pending: None,
            armed: false,
            readiness,
            link,
            watch,
            pair: Some(pair),
            id,
            completions,
            rail,
            rails,
        })
    }

    /// Breaks the queue pair: from here on the device only flushes.
    fn fail(&mut self, kind: ErrorKind, opcode: Opcode) {
        if self.broken.is_some() {
            return;
        }
        self.broken = Some(WorkError {
            peer: self.peer,
            opcode,
            kind,
        });
        self.untold = Some(kind);
        let drained = self.pair.as_ref().is_some_and(|pair| {
            // An error here means that the device is gone; it is not waited for.
            pair.fail().is_ok() && self.chain.post_marker(pair, MARKER).is_ok()
        });
        let bound = if drained { DRAIN_BOUND } else { Duration::ZERO };
        self.state = State::Draining {
            until: Instant::now() + bound,
        };
    }

    fn given_back(&mut self, request: Request, kind: ErrorKind) -> Completion {
        Completion {
            id: request.id,
            opcode: request.opcode,
            result: Err(WorkError {
                peer: self.peer,
                opcode: request.opcode,
                kind: self.untold.take().unwrap_or(kind),
            }),
        }
    }

    fn next_entry(&mut self) -> Option<Entry> {
        if let Some(entry) = self.pending.take() {
            return Some(entry);
        }
        if self.batch.is_empty() && self.completions.poll(&mut self.batch) == 0 {
            return None;
        }
        self.batch.take()
    }

    /// Turns the device's entries into completions, as far as there is room.
    fn settle(&mut self, into: &mut Vec<Completion>) {
        while into.len() < into.capacity() {
            let Some(entry) = self.next_entry() else {
                break;
            };
            if entry.sequence == MARKER {
                self.state = State::Silent;
                continue;
            }
            if !self.in_flight.holds(entry.sequence) {
                // The device reports what was never asked, or twice.
                self.fail(ErrorKind::LocalDevice, self.last_opcode);
                continue;
            }
            let before = self.in_flight.before(entry.sequence);
            if entry.result.is_ok() || self.broken.is_none() {
                // Done in order: what stands before it, silent, has succeeded.
                for _ in 0..before {
                    self.in_flight.pop();
                }
            } else if before > 0 {
                self.pending = Some(entry);
                if let Some(request) = self.in_flight.pop() {
                    let completion = self.given_back(request, ErrorKind::Flushed);
                    into.push(completion);
                }
                continue;
            }
            let Some(request) = self.in_flight.pop() else {
                continue;
            };
            match entry.result {
                Ok(()) if request.signaled => into.push(Completion {
                    id: request.id,
                    opcode: request.opcode,
                    result: Ok(()),
                }),
                Ok(()) => {}
                Err(kind) => {
                    if self.broken.is_none() {
                        // Flushed as the first one: something outside of the work broke it.
                        let kind = match kind {
                            ErrorKind::Flushed => {
                                self.link.lost().unwrap_or(ErrorKind::LocalDevice)
                            }
                            kind => kind,
                        };
                        self.fail(kind, request.opcode);
                    }
                    let completion = self.given_back(request, kind);
                    into.push(completion);
                }
            }
        }
    }

    /// The part of `poll` that only a lost link or a broken queue pair needs.
    #[cold]
    fn settle_broken(&mut self, into: &mut Vec<Completion>) {
        if let (None, Some(kind)) = (self.broken, self.link.lost()) {
            let opcode = self
                .in_flight
                .oldest()
                .map_or(self.last_opcode, |request| request.opcode);
            self.fail(kind, opcode);
            self.settle(into);
        }
        if let State::Draining { until } = self.state
            && Instant::now() >= until
            && into.len() < into.capacity()
        {
            // The device did not flush: without a queue pair it cannot touch anything.
            self.pair = None;
            self.state = State::Silent;
            self.settle(into);
        }
        if matches!(self.state, State::Silent) && self.pending.is_none() && self.batch.is_empty() {
            while into.len() < into.capacity()
                && let Some(request) = self.in_flight.pop()
            {
                let completion = self.given_back(request, ErrorKind::Flushed);
                into.push(completion);
            }
        }
    }

    /// Waits until the device has let go of everything, or the bound has passed.
    fn drain(&mut self) {
        self.fail(ErrorKind::Flushed, self.last_opcode);
        while let State::Draining { until } = self.state {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.pending = None;
            match self.next_entry() {
                Some(entry) if entry.sequence == MARKER => self.state = State::Silent,
                Some(_) => {}
                None => {
                    // Asked for, then looked once more, so that no entry is missed in between.
                    if self.armed && self.completions.take_event() {
                        self.armed = false;
                    }
                    if !self.armed {
                        if self.completions.request_event().is_err() {
                            return;
                        }
                        self.armed = true;
                        continue;
                    }
                    poll_readable(self.completions.as_fd(), left.max(Duration::from_millis(1)));
                }
            }
        }
    }
}

/// One descriptor for completions and for the loss of the link.
fn readiness(completions: &CompletionQueue, link: &Link) -> io::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(completions, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    epoll.add(link, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
    Ok(epoll)
}

impl QueuePair for Requester {
    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn free_slots(&self) -> usize {
        self.in_flight.free()
    }

    fn post(&mut self, chain: &[WorkRequest]) -> Result<(), PostError> {
        if self.broken.is_none()
            && let Some(kind) = self.link.lost()
        {
            let opcode = self
                .in_flight
                .oldest()
                .map_or(self.last_opcode, |request| request.opcode);
            self.fail(kind, opcode);
        }
        if let Some(error) = self.broken {
            return Err(PostError::Broken {
                peer: self.peer,
                error,
            });
        }
        let free = self.in_flight.free();
        if chain.len() > free {
            return Err(PostError::Full {
                asked: chain.len(),
                free,
            });
        }
        let Some(last) = chain.last() else {
            return Ok(());
        };
        let rail = self.rails.rail(self.rail);
        self.chain
            .build(chain, rail, &self.in_flight)
            .map_err(|(id, reason)| PostError::Invalid { id, reason })?;
        for request in chain {
            self.in_flight.push(Request {
                id: request.id,
                opcode: request.opcode(),
                signaled: request.signaled,
            });
        }
        self.last_opcode = last.opcode();
        let posted = self
            .pair
            .as_ref()
            .is_some_and(|pair| self.chain.post(pair, chain.len()).is_ok());
        if !posted {
            // How much of it the device has taken is not known: all of it comes back as failed.
            self.fail(ErrorKind::LocalDevice, self.last_opcode);
        }
        Ok(())
    }

    fn poll(&mut self, into: &mut Vec<Completion>) -> usize {
        let before = into.len();
        self.settle(into);
        if (self.broken.is_some() || self.link.lost().is_some()) && into.len() < into.capacity() {
            self.settle_broken(into);
        }
        into.len() - before
    }

    fn arm(&mut self) -> Armed {
        if self.pending.is_some()
            || !self.batch.is_empty()
            || self.broken.is_some()
            || self.link.lost().is_some()
        {
            return Armed::Ready;
        }
        if self.armed && self.completions.take_event() {
            self.armed = false;
        }
        if !self.armed {
            if self.completions.request_event().is_err() {
                self.fail(ErrorKind::LocalDevice, self.last_opcode);
                return Armed::Ready;
            }
            self.armed = true;
        }
        // What came before the request makes no event.
        if self.completions.poll(&mut self.batch) > 0 {
            return Armed::Ready;
        }
        Armed::Waiting
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.readiness.0.as_fd())
    }

    fn broken(&self) -> Option<WorkError> {
        self.broken.or_else(|| {
            self.link.lost().map(|kind| WorkError {
                peer: self.peer,
                opcode: self
                    .in_flight
                    .oldest()
                    .map_or(self.last_opcode, |request| request.opcode),
                kind,
            })
        })
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            if self.broken().is_some() && self.in_flight.is_empty() {
                return false;
            }
            if self.arm() == Armed::Ready {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // An event of entries that were polled meanwhile wakes too: then once more.
            poll_readable(self.readiness.0.as_fd(), left.max(Duration::from_millis(1)));
        }
    }
}

impl Drop for Requester {
    fn drop(&mut self) {
        self.rails.watch().remove(self.watch);
        self.drain();
        self.id.disconnect();
        // Then, by field order: the queue pair is destroyed, its id, its completion queue.
    }
}

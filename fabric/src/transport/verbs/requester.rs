//! The compute side's queue pair: posts chains, polls completions, breaks in an orderly way.
//!
//! ```text
//!   Live --first error entry, or the link is lost--> fail() --> Silent
//!                                                      |
//!          the device's queue pair into ERR, a marker posted behind the last request,
//!          entries read until the marker's: the device has let go of everything
//! ```
//!
//! A broken queue pair is silent before anybody is told that it is broken. So whoever sees
//! [`QueuePair::broken`], or an error completion, may use the memory of all its requests again, and drop
//! or replace the queue pair at once. That costs the owner a wait for the local device (a fraction of a
//! millisecond, `DRAIN_BOUND` at most; then the queue pair is destroyed as it is), once, when it breaks.
//!
//! Requests complete in order: all up to some point have succeeded, the next has failed with the reason,
//! everything behind it is flushed. Silent requests behind the last report count as flushed: their
//! outcome is unknown, and READ and WRITE may be repeated.
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

/// How long a device may take to flush a broken queue pair before that is destroyed as it is.
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
    /// The device has let go of every request; those with a lower number have succeeded.
    Silent {
        succeeded: u64,
    },
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

    /// Breaks the queue pair for `kind`, and waits until the device has let go of everything.
    #[cold]
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
        self.silence();
    }

    /// Breaks it for `kind` at the request that stands first.
    #[cold]
    fn fail_oldest(&mut self, kind: ErrorKind) {
        let opcode = self
            .in_flight
            .oldest()
            .map_or(self.last_opcode, |request| request.opcode);
        self.fail(kind, opcode);
    }

    fn silence(&mut self) {
        let mut succeeded = self.in_flight.oldest_sequence();
        let marked = self.pair.as_ref().is_some_and(|pair| {
            // An error here means that the device is gone; it is not waited for.
            pair.fail().is_ok() && self.chain.post_marker(pair, MARKER).is_ok()
        });
        let mut silent = false;
        if marked {
            let until = Instant::now() + DRAIN_BOUND;
            while let Some(entry) = self.entry_until(until) {
                if entry.sequence == MARKER {
                    silent = true;
                    break;
                }
                if entry.result.is_ok() && self.in_flight.holds(entry.sequence) {
                    succeeded = entry.sequence + 1;
                }
            }
        }
        if !silent {
            // Without a queue pair the device cannot touch anything.
            self.pair = None;
        }
        self.state = State::Silent { succeeded };
    }

    fn next_entry(&mut self) -> Option<Entry> {
        if self.batch.is_empty() && self.completions.poll(&mut self.batch) == 0 {
            return None;
        }
        self.batch.take()
    }

    /// The next entry, waited for. `None` when the time is over, or waiting is impossible.
    fn entry_until(&mut self, until: Instant) -> Option<Entry> {
        loop {
            if let Some(entry) = self.next_entry() {
                return Some(entry);
            }
            if self.armed && self.completions.take_event() {
                self.armed = false;
            }
            if !self.armed {
                self.completions.request_event().ok()?;
                self.armed = true;
                // What came before the request makes no event: look once more.
                continue;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            poll_readable(self.completions.as_fd(), left.max(Duration::from_millis(1)));
        }
    }

    /// Turns the device's entries into completions, as far as there is room.
    fn settle(&mut self, into: &mut Vec<Completion>) {
        while into.len() < into.capacity()
            && let Some(entry) = self.next_entry()
        {
            if !self.in_flight.holds(entry.sequence) {
                // The device reports what was never asked, or twice.
                self.fail(ErrorKind::LocalDevice, self.last_opcode);
                return;
            }
            // Done in order: what stands before it, silent, has succeeded.
            for _ in 0..self.in_flight.before(entry.sequence) {
                self.in_flight.pop();
            }
            match entry.result {
                Ok(()) => {
                    if let Some(request) = self.in_flight.pop()
                        && request.signaled
                    {
                        into.push(succeeded(request));
                    }
                }
                Err(kind) => {
                    // Flushed as the first one: something outside of the work broke it.
                    let kind = match kind {
                        ErrorKind::Flushed => self.link.lost().unwrap_or(ErrorKind::LocalDevice),
                        kind => kind,
                    };
                    self.fail_oldest(kind);
                    return;
                }
            }
        }
    }

    /// Gives back what was in flight when it broke, as far as there is room.
    #[cold]
    fn give_back(&mut self, until: u64, into: &mut Vec<Completion>) {
        while into.len() < into.capacity() {
            let sequence = self.in_flight.oldest_sequence();
            let Some(request) = self.in_flight.pop() else {
                return;
            };
            if sequence >= until {
                let kind = self.untold.take().unwrap_or(ErrorKind::Flushed);
                into.push(Completion {
                    id: request.id,
                    opcode: request.opcode,
                    result: Err(WorkError {
                        peer: self.peer,
                        opcode: request.opcode,
                        kind,
                    }),
                });
            } else if request.signaled {
                into.push(succeeded(request));
            }
        }
    }
}

fn succeeded(request: Request) -> Completion {
    Completion {
        id: request.id,
        opcode: request.opcode,
        result: Ok(()),
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
            self.fail_oldest(kind);
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
        if self.broken.is_none() {
            self.settle(into);
            if self.broken.is_none()
                && let Some(kind) = self.link.lost()
            {
                self.fail_oldest(kind);
            }
        }
        if let State::Silent { succeeded } = self.state {
            self.give_back(succeeded, into);
        }
        into.len() - before
    }

    fn arm(&mut self) -> Armed {
        if !self.batch.is_empty() || self.broken.is_some() || self.link.lost().is_some() {
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
        self.broken
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            if self.broken.is_some() && self.in_flight.is_empty() {
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
        self.fail(ErrorKind::Flushed, self.last_opcode);
        self.id.disconnect();
        // Then, by field order: the queue pair is destroyed, its id, its completion queue.
    }
}

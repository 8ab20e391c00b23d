//! The compute side's end of a connection: a window of work requests, driven by its owner's thread.
//!
//! ```text
//!   post --> window --> one send  ---\                    at most one send and one receive are with
//!                       one receive --> ring --> kernel    the kernel at a time, plus a watch for
//!   poll <-- window <-- completions -/                     hang-ups and, while armed, a timer
//! ```
//!
//! `post` hands the send and the receive of its answer to the kernel in one system call. A spinning
//! `poll` reads memory only, until the kernel says that there is something to run. Nothing blocks but
//! `wait`. The queue pair is bound to the thread that first uses it; used from another one later, it
//! moves there with what is in flight, and its readiness descriptor is then another one.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use io_uring::{cqueue, opcode, types};

use super::message::Direction;
use super::ring::{Bound, Ring, RingError};
use super::socket;
use super::window::Window;
use crate::transport::registry::RegistryView;
use crate::transport::{
    Armed, Completion, ErrorKind, PostError, QueuePair, QueuePairConfig, WorkError, WorkRequest,
};
use crate::units::Epoch;

/// One send, one receive, one watch, one timer, with room to spare.
const RING_ENTRIES: u32 = 8;
/// How often one call goes back to the kernel for more before it hands out what it has.
const MAX_TURNS: usize = 8;
/// How long an operation on a socket that was shut may stay with the kernel. It takes microseconds.
const QUIESCE_STEP: Duration = Duration::from_millis(100);
const QUIESCE_STEPS: usize = 50;
/// The kernel takes no longer waits; a longer one is taken in pieces.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

const SEND: u64 = 1;
const RECEIVE: u64 = 2;
const WATCH: u64 = 3;
const TIMER: u64 = 4;

/// The ring of a queue pair, before there is one.
pub(super) fn new_ring() -> Result<Ring, RingError> {
    Ring::new(RING_ENTRIES, 4 * RING_ENTRIES)
}

/// A queue pair over one TCP connection. See [`QueuePair`].
pub struct TcpQueuePair {
    // First, so that it is closed before what its entries point to is freed.
    ring: Ring,
    stream: TcpStream,
    window: Window,
    view: RegistryView,
    send: Direction,
    receive: Direction,
    /// A poll for hang-ups is with the kernel, or has answered.
    watched: bool,
    hung_up: bool,
    /// The peer takes nothing any more; what it said before is still to be read.
    deaf: Option<ErrorKind>,
    /// The last receive left bytes in the socket.
    more: bool,
    timer: bool,
    timer_span: Box<types::Timespec>,
    /// When a byte last moved while answers were outstanding, by the coarse clock.
    progress: Duration,
    response_timeout: Duration,
}

/// Coarse monotonic time: a few nanoseconds to read, a few milliseconds of resolution.
fn coarse_now() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from)
}

impl TcpQueuePair {
    pub(super) fn new(
        stream: TcpStream,
        peer: SocketAddr,
        epoch: Epoch,
        ring: Ring,
        view: RegistryView,
        config: &QueuePairConfig,
    ) -> Self {
        Self {
            ring,
            stream,
            window: Window::new(peer, epoch, config.depth as usize),
            view,
            send: Direction::new(),
            receive: Direction::new(),
            watched: false,
            hung_up: false,
            deaf: None,
            more: false,
            timer: false,
            timer_span: Box::default(),
            progress: Duration::ZERO,
            response_timeout: Duration::from_millis(config.response_timeout_ms.max(1).into()),
        }
    }

    /// Makes the ring usable on this thread. False if the queue pair is broken.
    fn bind(&mut self) -> bool {
        if self.window.broken().is_some() {
            return false;
        }
        let mut left = Vec::new();
        match self.ring.bind(|entry| left.push(entry.clone())) {
            Ok(Bound::Already) => {}
            Ok(Bound::Anew) => {
                let failed = left.iter().find_map(|entry| self.absorb(entry).err());
                self.send.pending = false;
                self.receive.pending = false;
                self.watched = false;
                self.timer = false;
                if let Some(kind) = failed {
                    self.fail(kind);
                }
            }
            Err(_) => self.fail(ErrorKind::LocalDevice),
        }
        self.window.broken().is_none()
    }

    /// Queues what the kernel could do next.
    fn prepare(&mut self) -> io::Result<()> {
        let target = socket::target(&self.stream);
        if !self.watched {
            let events = libc::POLLRDHUP | libc::POLLERR | libc::POLLHUP;
            let watch = opcode::PollAdd::new(target, events as u32).build();
            // SAFETY: a poll points to nothing.
            unsafe { self.ring.push(&watch.user_data(WATCH)) }?;
            self.watched = true;
        }
        if !self.send.pending && self.deaf.is_none() && self.window.has_unsent() {
            self.window.fill_send(&mut self.send.message);
            let entry = self.send.send(target);
            // SAFETY: the message is boxed and not touched until its completion; headers are kept in
            // the window and payloads in registered memory, both of which outlive the ring.
            unsafe { self.ring.push(&entry.user_data(SEND)) }?;
            self.send.pending = true;
        }
        if !self.receive.pending && (self.window.is_waiting() || self.hung_up) {
            self.window.fill_receive(&mut self.receive.message);
            let entry = self.receive.receive(target, !self.more && !self.hung_up);
            // SAFETY: as above; destinations belong to this request until it completes.
            unsafe { self.ring.push(&entry.user_data(RECEIVE)) }?;
            self.receive.pending = true;
        }
        Ok(())
    }

    /// Lets the kernel do what can be done without waiting, and takes in what came of it.
    fn drive(&mut self) {
        for _ in 0..MAX_TURNS {
            if self.window.broken().is_some() {
                return;
            }
            let mut submitted = self.prepare();
            if submitted.is_ok() && (self.ring.has_unsubmitted() || self.ring.work_is_deferred()) {
                submitted = self.ring.submit();
            }
            if submitted.is_err() {
                return self.fail(ErrorKind::LocalDevice);
            }
            let mut news = false;
            while let Some(entry) = self.ring.next() {
                news = true;
                if let Err(kind) = self.absorb(&entry) {
                    return self.fail(kind);
                }
            }
            if !news {
                return;
            }
        }
    }

    /// Takes in one completion of the ring.
    fn absorb(&mut self, entry: &cqueue::Entry) -> Result<(), ErrorKind> {
        let result = entry.result();
        match entry.user_data() {
            SEND => {
                self.send.pending = false;
                if result >= 0 {
                    self.progress = coarse_now();
                    self.window.sent(result as usize);
                } else if !socket::is_passing(-result) {
                    self.deaf = Some(socket::kind_of(-result));
                    // Why, may stand in what it sent before.
                    self.hung_up = true;
                }
            }
            RECEIVE => {
                self.receive.pending = false;
                if result > 0 {
                    self.progress = coarse_now();
                    self.more = cqueue::sock_nonempty(entry.flags());
                    return self.window.received(result as usize);
                }
                if result == 0 {
                    return Err(self.deaf.unwrap_or(ErrorKind::PeerDisconnected));
                }
                if !socket::is_passing(-result) {
                    return Err(self.deaf.unwrap_or_else(|| socket::kind_of(-result)));
                }
            }
            WATCH => self.hung_up = true,
            TIMER => self.timer = false,
            _ => {}
        }
        Ok(())
    }

    /// Breaks the queue pair. When this returns, the kernel touches no memory of a request any more.
    fn fail(&mut self, kind: ErrorKind) {
        self.window.break_with(kind);
        self.quiesce();
    }

    fn quiesce(&mut self) {
        socket::shut(&self.stream);
        if !self.ring.is_bound_here() {
            return;
        }
        // A shut socket completes what is pending on it at once.
        for _ in 0..QUIESCE_STEPS {
            if !self.send.pending && !self.receive.pending {
                return;
            }
            if self.ring.submit_and_wait(Some(QUIESCE_STEP)).is_err() {
                return;
            }
            while let Some(entry) = self.ring.next() {
                match entry.user_data() {
                    SEND => self.send.pending = false,
                    RECEIVE => self.receive.pending = false,
                    _ => {}
                }
            }
        }
    }

    /// How long the peer may go on being silent; `None` if nothing is expected of it.
    fn patience(&self) -> Option<Duration> {
        self.window.is_waiting().then(|| {
            let silent = coarse_now().saturating_sub(self.progress);
            self.response_timeout.saturating_sub(silent)
        })
    }

    fn check_deadline(&mut self) {
        if self.window.broken().is_none() && self.patience() == Some(Duration::ZERO) {
            self.fail(ErrorKind::PeerUnreachable);
        }
    }

    fn has_news_for_owner(&self) -> bool {
        self.window.has_reportable() || self.window.broken().is_some()
    }
}

impl QueuePair for TcpQueuePair {
    fn peer(&self) -> SocketAddr {
        self.window.peer()
    }

    fn free_slots(&self) -> usize {
        self.window.free()
    }

    fn post(&mut self, chain: &[WorkRequest]) -> Result<(), PostError> {
        if let Some(error) = self.window.broken() {
            let peer = self.peer();
            return Err(PostError::Broken { peer, error });
        }
        for request in chain {
            let id = request.id;
            let invalid = |reason| PostError::Invalid { id, reason };
            request.check().map_err(invalid)?;
            if !self.view.holds(request.local()) {
                return Err(invalid(
                    "its local memory is not registered with this transport",
                ));
            }
        }
        let (asked, free) = (chain.len(), self.window.free());
        if asked > free {
            return Err(PostError::Full { asked, free });
        }
        if !self.window.is_waiting() {
            self.progress = coarse_now();
        }
        for request in chain {
            self.window.push(request);
        }
        if self.bind() {
            self.drive();
        }
        Ok(())
    }

    fn poll(&mut self, into: &mut Vec<Completion>) -> usize {
        if !self.window.has_reportable() && self.bind() {
            if self.ring.has_news() || !self.watched {
                self.drive();
            } else {
                self.check_deadline();
            }
        }
        self.window.collect(into)
    }

    fn arm(&mut self) -> Armed {
        if self.has_news_for_owner() || !self.bind() {
            return Armed::Ready;
        }
        self.drive();
        self.check_deadline();
        if self.has_news_for_owner() {
            return Armed::Ready;
        }
        // The descriptor must also wake its waiter when the peer has been silent for too long.
        if let Some(patience) = self.patience().filter(|_| !self.timer) {
            *self.timer_span = types::Timespec::from(patience);
            let timer = opcode::Timeout::new(&raw const *self.timer_span).build();
            // SAFETY: the time span is boxed, and read by the kernel while it is submitted.
            let pushed = unsafe { self.ring.push(&timer.user_data(TIMER)) };
            if pushed.and_then(|()| self.ring.submit()).is_err() {
                self.fail(ErrorKind::LocalDevice);
                return Armed::Ready;
            }
            self.timer = true;
        }
        Armed::Waiting
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.as_fd())
    }

    fn broken(&self) -> Option<WorkError> {
        self.window.broken()
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        let begun = Instant::now();
        loop {
            if self.has_news_for_owner() || !self.bind() {
                return true;
            }
            self.drive();
            self.check_deadline();
            if self.has_news_for_owner() {
                return true;
            }
            let left = timeout.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return false;
            }
            let left = self.patience().map_or(left, |patience| patience.min(left));
            if self
                .ring
                .submit_and_wait(Some(left.min(LONGEST_WAIT)))
                .is_err()
            {
                self.fail(ErrorKind::LocalDevice);
            }
        }
    }
}

impl Drop for TcpQueuePair {
    fn drop(&mut self) {
        // Nothing in flight may touch memory that its owner takes for free now.
        self.quiesce();
    }
}

//! The compute side's end of a connection: a window of work requests, driven by its owner's thread.
//!
//! ```text
//!   post --> window --- sendmsg: all that is unsent, in one call ---------> socket
//!   poll <-- window <-- recvmsg: all that is expected, payloads in place -- socket
//!                                  readiness: epoll { socket, timer }
//! ```
//!
//! Plain non-blocking calls, each for as many requests as there are: with one socket and one thread
//! an io_uring has nothing to batch, and was a little slower when it was tried (`examples/
//! tcp_against_sockets.rs` compares with bare sockets). So nothing is ever left with the kernel: when a
//! call returns, no memory of a request is touched until the next one, and a queue pair may go from
//! thread to thread. Nothing blocks but `wait`.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::message::Message;
use super::socket;
use super::window::Window;
use crate::transport::registry::RegistryView;
use crate::transport::{
    Armed, Completion, ErrorKind, PostError, QueuePair, QueuePairConfig, WorkError, WorkRequest,
};
use crate::units::Epoch;

/// How often one call goes back to the socket for more before it hands out what it has.
const MAX_TURNS: usize = 8;
/// How often an idle queue pair that is polled looks whether its peer is still there.
const IDLE_LOOK: Duration = Duration::from_millis(10);

/// A queue pair over one TCP connection. See [`QueuePair`].
pub struct TcpQueuePair {
    stream: TcpStream,
    window: Window,
    view: RegistryView,
    message: Message,
    /// The peer takes nothing any more; what it said before is still to be read.
    deaf: Option<ErrorKind>,
    /// The socket took less than there was to send.
    clogged: bool,
    /// Somebody waited: look at the socket even if nothing is expected.
    look: bool,
    readiness: Readiness,
    /// How long a blocking receive waits, as the socket was last told.
    receive_timeout: Duration,
    /// When a byte last moved, or an idle socket was last looked at, by the coarse clock.
    progress: Duration,
    response_timeout: Duration,
}

/// Coarse monotonic time: a few nanoseconds to read, a few milliseconds of resolution.
fn coarse_now() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from)
}

/// The descriptor that a waiter takes, and what it is told to look at.
struct Readiness {
    epoll: Epoll,
    timer: TimerFd,
    /// When the timer rings, by the coarse clock.
    rings_at: Option<Duration>,
    wants_to_send: bool,
}

const OF_SOCKET: u64 = 0;
const OF_TIMER: u64 = 1;

impl Readiness {
    fn new(stream: &TcpStream) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let listens = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        epoll.add(stream, EpollEvent::new(listens, OF_SOCKET))?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, OF_TIMER))?;
        Ok(Self {
            epoll,
            timer,
            rings_at: None,
            wants_to_send: false,
        })
    }

    /// Also ready when the socket takes more, or no longer.
    fn want_to_send(&mut self, stream: &TcpStream, wants: bool) -> io::Result<()> {
        if wants != self.wants_to_send {
            let mut events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
            events.set(EpollFlags::EPOLLOUT, wants);
            self.epoll
                .modify(stream, &mut EpollEvent::new(events, OF_SOCKET))?;
            self.wants_to_send = wants;
        }
        Ok(())
    }

    /// Ready at the latest when `patience` from `now` is over. The timer is left alone while it rings
    /// early enough: a waiter is woken in vain once in a while, and not one call a wait is spent on it.
    fn ring_within(&mut self, now: Duration, patience: Duration) -> io::Result<()> {
        match self.rings_at {
            Some(at) if at > now && at <= now + patience => return Ok(()),
            _ => {}
        }
        // Never zero: that would stop the timer. Setting it also forgets that it rang.
        let patience = patience.max(Duration::from_millis(1));
        self.timer.set(
            Expiration::OneShot(patience.into()),
            TimerSetTimeFlags::empty(),
        )?;
        self.rings_at = Some(now + patience);
        Ok(())
    }

    /// A timer that rang is not to wake anybody again.
    fn hush(&mut self, now: Duration) -> io::Result<()> {
        if self.rings_at.is_some_and(|at| at <= now) {
            self.timer.unset()?;
            self.rings_at = None;
        }
        Ok(())
    }
}

impl TcpQueuePair {
    pub(super) fn new(
        stream: TcpStream,
        peer: SocketAddr,
        epoch: Epoch,
        view: RegistryView,
        config: &QueuePairConfig,
    ) -> io::Result<Self> {
        Ok(Self {
            readiness: Readiness::new(&stream)?,
            stream,
            window: Window::new(peer, epoch, config.depth as usize),
            view,
            message: Message::new(),
            deaf: None,
            clogged: false,
            look: false,
            receive_timeout: Duration::ZERO,
            progress: coarse_now(),
            response_timeout: Duration::from_millis(config.response_timeout_ms.max(1).into()),
        })
    }

    /// Sends what is unsent, as far as the socket takes it.
    fn send(&mut self) {
        self.clogged = false;
        for _ in 0..MAX_TURNS {
            if !self.window.has_unsent() || self.deaf.is_some() {
                return;
            }
            self.window.fill_send(&mut self.message);
            match self.message.send(&self.stream) {
                Ok(sent) => {
                    self.progress = coarse_now();
                    self.window.sent(sent);
                }
                Err(libc::EINTR) => {}
                Err(libc::EAGAIN) => break,
                // Why, may stand in what the peer sent before.
                Err(errno) => self.deaf = Some(socket::kind_of(errno)),
            }
        }
        self.clogged = self.window.has_unsent() && self.deaf.is_none();
    }

    /// Receives what is there; where nothing is, and `block` is set, waits for it as long as the socket
    /// was told.
    fn receive(&mut self, mut block: bool) {
        for _ in 0..MAX_TURNS {
            let asked = self.window.fill_receive(&mut self.message);
            let flags = if block { 0 } else { libc::MSG_DONTWAIT };
            match self.message.receive(&self.stream, flags) {
                Ok(0) => return self.fail(self.deaf.unwrap_or(ErrorKind::PeerDisconnected)),
                Ok(received) => {
                    self.progress = coarse_now();
                    if let Err(kind) = self.window.received(received) {
                        return self.fail(kind);
                    }
                    // Less than asked for: the socket is empty. Nothing more expected: so it should be.
                    if received < asked || !self.window.is_waiting() {
                        return;
                    }
                }
                Err(libc::EINTR) => {}
                Err(libc::EAGAIN) => return self.check_deadline(),
                Err(errno) => {
                    return self.fail(self.deaf.unwrap_or_else(|| socket::kind_of(errno)));
                }
            }
            block = false;
        }
    }

    /// Moves what can be moved now.
    fn drive(&mut self) {
        if self.window.broken().is_some() {
            return;
        }
        if self.clogged {
            self.send();
        }
        if self.window.is_waiting() {
            self.receive(false);
        } else if self.look || coarse_now().saturating_sub(self.progress) >= IDLE_LOOK {
            self.look = false;
            self.progress = coarse_now();
            self.receive(false);
        }
    }

    fn fail(&mut self, kind: ErrorKind) {
        self.window.break_with(kind);
        socket::shut(&self.stream);
    }

    /// How long the peer may go on being silent; `None` if nothing is expected of it.
    fn patience(&self) -> Option<Duration> {
        self.window.is_waiting().then(|| {
            let silent = coarse_now().saturating_sub(self.progress);
            self.response_timeout.saturating_sub(silent)
        })
    }

    fn check_deadline(&mut self) {
        if self.patience() == Some(Duration::ZERO) {
            self.fail(ErrorKind::PeerUnreachable);
        }
    }

    fn has_news(&self) -> bool {
        self.window.has_reportable() || self.window.broken().is_some()
    }

    /// Sets up the readiness descriptor for what is to come.
    fn set_readiness(&mut self) -> io::Result<()> {
        let now = coarse_now();
        self.readiness.want_to_send(&self.stream, self.clogged)?;
        self.readiness.hush(now)?;
        match self.patience() {
            Some(patience) => self.readiness.ring_within(now, patience),
            None => Ok(()),
        }
    }

    /// Waits in the kernel, at most `left`, until something may have happened.
    fn sleep(&mut self, left: Duration, first: bool) -> io::Result<()> {
        let left = self.patience().map_or(left, |patience| patience.min(left));
        if first && !self.clogged && self.window.is_waiting() {
            // One call that waits and receives; the timeout of the last time will mostly do.
            let span = left.min(self.response_timeout);
            if self.receive_timeout > span || self.receive_timeout < span / 2 {
                let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX).max(1);
                let timeout = TimeVal::milliseconds(millis);
                setsockopt(&self.stream, sockopt::ReceiveTimeout, &timeout)?;
                self.receive_timeout = span;
            }
            self.receive(true);
            return Ok(());
        }
        let mut events = PollFlags::POLLIN;
        events.set(PollFlags::POLLOUT, self.clogged);
        // Rounded up, or the last millisecond would be spent spinning.
        let millis = u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.stream.as_fd(), events)], timeout) {
            Ok(1) => {
                if self.clogged {
                    self.send();
                }
                self.receive(false);
                Ok(())
            }
            Ok(_) | Err(nix::Error::EINTR) => {
                self.check_deadline();
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
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
        if !self.clogged {
            self.send();
        }
        Ok(())
    }

    fn poll(&mut self, into: &mut Vec<Completion>) -> usize {
        if !self.window.has_reportable() {
            self.drive();
        }
        self.window.collect(into)
    }

    fn arm(&mut self) -> Armed {
        if !self.has_news() {
            self.look = true;
            // What is in the socket keeps the descriptor readable, so it is not looked at here again:
            // whoever polled in vain may wait at once.
            if self.clogged {
                self.send();
            }
            if self.patience() == Some(Duration::ZERO) {
                // Late: but what came in time may lie in the socket, because nobody looked.
                self.drive();
            }
            if self.window.broken().is_none() && self.set_readiness().is_err() {
                self.fail(ErrorKind::LocalDevice);
            }
        }
        if self.has_news() {
            Armed::Ready
        } else {
            Armed::Waiting
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor is open as long as the epoll lives, and the borrow is of `self`.
        Some(unsafe { BorrowedFd::borrow_raw(self.readiness.epoll.0.as_raw_fd()) })
    }

    fn broken(&self) -> Option<WorkError> {
        self.window.broken()
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        if self.has_news() {
            return true;
        }
        let begun = Instant::now();
        let mut left = timeout;
        let mut first = true;
        while !left.is_zero() {
            if self.sleep(left, first).is_err() {
                self.fail(ErrorKind::LocalDevice);
            }
            if self.has_news() {
                return true;
            }
            first = false;
            left = timeout.saturating_sub(begun.elapsed());
        }
        false
    }
}

impl Drop for TcpQueuePair {
    fn drop(&mut self) {
        // The kernel holds no memory of a request; the peer is told that nobody reads any more.
        socket::shut(&self.stream);
    }
}

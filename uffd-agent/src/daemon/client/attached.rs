//! A mapping that a daemon serves, as its program sees it.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mycoram_fabric::units::{ByteCount, PageCount, PageIndex};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::connection::{AttachError, ConnectError, Connection, Held};
use crate::daemon::message::{self, Kind, Notice, Refusal, Reply, Request};
use crate::daemon::socket::{Socket, SocketError};
use crate::kernel::{Poisoned, TargetRange};
use crate::{Advice, RegionName, RegionStats};

/// How long a request waits for a daemon that is away: 10 s.
pub const AWAY_PATIENCE: Duration = Duration::from_secs(10);
/// First and longest pause between two tries to connect again, ms.
const FIRST_PAUSE_MS: u16 = 20;
const LONGEST_PAUSE_MS: u16 = 500;

/// What happens to a mapping without being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramNotice {
    /// The daemon has gone. The mapping waits for the next one.
    Away,
    /// A daemon serves the mapping again.
    Back,
    /// So many pages are lost, all in all: an access to one raises SIGBUS.
    Lost {
        /// Since the mapping was attached.
        total: u64,
    },
    /// Another owner has the region: nothing of it is served here any more.
    Fenced,
    /// There is a daemon, and it does not know the region any more: pages that are not resident are
    /// lost, and an access to one raises SIGBUS (SIGSEGV on kernels before 6.6).
    Unknown,
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// No daemon.
    #[error("the daemon has been away for {} s", AWAY_PATIENCE.as_secs())]
    Away,
    /// A daemon that does not know the region.
    #[error("the daemon does not know this region any more")]
    Unknown,
    /// It says no.
    #[error("the daemon refuses")]
    Refused(#[source] Refusal),
    /// It answers another question.
    #[error("the daemon gives an answer that fits no question")]
    Unexpected,
}

/// The connection as both the program's threads and the listening thread see it.
#[derive(Default)]
struct Link {
    socket: Option<Arc<Socket>>,
    reply: Option<Reply>,
    unknown: bool,
}

struct Inner {
    path: PathBuf,
    held: Held,
    range: TargetRange,
    resume: Request,
    link: Mutex<Link>,
    changed: Condvar,
    /// One request at a time.
    orders: Mutex<()>,
    /// Readable when the mapping is not needed any more.
    closing: EventFd,
    /// The next answer is the last: the daemon hangs up behind it.
    ending: AtomicBool,
}

/// A mapping that is being served. Dropping it ends the region, as [`Self::end`] does.
pub struct Attached {
    inner: Arc<Inner>,
    name: RegionName,
    listener: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attached {
    pub(super) fn start(
        path: PathBuf,
        socket: Socket,
        held: Held,
        range: TargetRange,
        name: RegionName,
        resume: Request,
        notices: impl Fn(ProgramNotice) + Send + 'static,
    ) -> Result<Self, AttachError> {
        let link = Link {
            socket: Some(Arc::new(socket)),
            ..Link::default()
        };
        let inner = Arc::new(Inner {
            path,
            held,
            range,
            resume,
            link: Mutex::new(link),
            changed: Condvar::new(),
            orders: Mutex::new(()),
            closing: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            ending: AtomicBool::new(false),
        });
        let listening = Arc::clone(&inner);
        let listener = std::thread::Builder::new()
            .name("myco-daemon".into())
            .spawn(move || listening.listen(&notices))
            .map_err(AttachError::Thread)?;
        Ok(Self {
            inner,
            name,
            listener: Some(listener),
        })
    }

    /// The region's name, by which the daemon's figures and logs call it.
    #[must_use]
    pub fn name(&self) -> &RegionName {
        &self.name
    }

    /// Whether there is a daemon now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        lock(&self.inner.link).socket.is_some()
    }

    /// Tells the daemon about coming accesses to `pages` pages at `first`.
    pub fn advise(
        &self,
        first: PageIndex,
        pages: PageCount,
        advice: Advice,
    ) -> Result<(), OrderError> {
        self.inner.order_done(&Request::Advise {
            first: first.get(),
            pages: pages.get(),
            advice,
        })
    }

    /// Returns when what was written to the mapping before is on the memory nodes.
    pub fn flush(&self) -> Result<(), OrderError> {
        self.inner.order_done(&Request::Flush)
    }

    /// Another budget.
    pub fn set_budget(&self, local_budget: ByteCount) -> Result<(), OrderError> {
        self.inner.order_done(&Request::SetBudget { local_budget })
    }

    /// Figures. They count from the start of the daemon that serves the mapping now.
    pub fn stats(&self) -> Result<RegionStats, OrderError> {
        match self.inner.order(&Request::Stats)? {
            Reply::Stats(stats) => Ok(*stats),
            _ => Err(OrderError::Unexpected),
        }
    }

    /// Ends the region: its remote memory is freed. Pages that are not resident are gone, so unmap the
    /// mapping, and do not touch it meanwhile.
    pub fn end(mut self) -> Result<(), OrderError> {
        self.end_once()
    }

    fn end_once(&mut self) -> Result<(), OrderError> {
        let Some(listener) = self.listener.take() else {
            return Ok(());
        };
        self.inner.ending.store(true, Ordering::Release);
        let ended = match self.inner.order_done(&Request::End) {
            Err(OrderError::Unknown) => Ok(()),
            other => other,
        };
        // It can only fail when it has rung 2^64 times.
        let _ = self.inner.closing.write(1);
        // A thread that panicked has said so.
        let _ = listener.join();
        ended
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Nobody is left to be told. When there is no daemon, the next one finds out.
        let _ = self.end_once();
    }
}

impl Inner {
    fn order_done(&self, request: &Request) -> Result<(), OrderError> {
        match self.order(request)? {
            Reply::Done => Ok(()),
            _ => Err(OrderError::Unexpected),
        }
    }

    /// Asks the daemon. If it dies before it has answered the next one is asked: no request does harm
    /// when it is made twice.
    fn order(&self, request: &Request) -> Result<Reply, OrderError> {
        let _one_at_a_time = lock(&self.orders);
        let bytes = message::encode(Kind::Request, request).map_err(|_| OrderError::Unexpected)?;
        loop {
            let socket = self.await_daemon()?;
            let mut link = lock(&self.link);
            link.reply = None;
            if socket.send(&bytes, &[]).is_err() {
                // The listener notices too, and connects again.
                link = self.await_change(link, &socket);
                drop(link);
                continue;
            }
            loop {
                if let Some(reply) = link.reply.take() {
                    return match reply {
                        Reply::Refused(refusal) => Err(OrderError::Refused(refusal)),
                        reply => Ok(reply),
                    };
                }
                if !is_current(&link, &socket) {
                    break;
                }
                link = self
                    .changed
                    .wait(link)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn await_change<'a>(
        &self,
        mut link: MutexGuard<'a, Link>,
        socket: &Arc<Socket>,
    ) -> MutexGuard<'a, Link> {
        while is_current(&link, socket) {
            link = self
                .changed
                .wait(link)
                .unwrap_or_else(PoisonError::into_inner);
        }
        link
    }

    fn await_daemon(&self) -> Result<Arc<Socket>, OrderError> {
        let until = Instant::now() + AWAY_PATIENCE;
        let mut link = lock(&self.link);
        loop {
            if link.unknown {
                return Err(OrderError::Unknown);
            }
            if let Some(socket) = &link.socket {
                return Ok(Arc::clone(socket));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(OrderError::Away);
            }
            link = self
                .changed
                .wait_timeout(link, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The listening thread: until the mapping is not needed any more.
    fn listen(&self, notices: &impl Fn(ProgramNotice)) {
        loop {
            let Some(socket) = lock(&self.link).socket.clone() else {
                match self.connect_again() {
                    Again::Connected => notices(ProgramNotice::Back),
                    Again::Closing => return,
                    Again::Unknown => {
                        self.give_up();
                        notices(ProgramNotice::Unknown);
                        return;
                    }
                }
                continue;
            };
            let mut fds = [
                PollFd::new(self.closing.as_fd(), PollFlags::POLLIN),
                PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            }
            if fds[0].any() == Some(true) {
                return;
            }
            match self.hear(&socket, notices) {
                Heard::Something => {}
                Heard::TheLast => return,
                Heard::Gone => {
                    lock(&self.link).socket = None;
                    self.changed.notify_all();
                    notices(ProgramNotice::Away);
                }
            }
        }
    }

    fn hear(&self, socket: &Socket, notices: &impl Fn(ProgramNotice)) -> Heard {
        let packet = match socket.receive() {
            Ok(packet) => packet,
            Err(SocketError::Timeout) => return Heard::Something,
            Err(_) => return Heard::Gone,
        };
        if let Ok(reply) = message::decode::<Reply>(Kind::Reply, &packet.bytes) {
            // Asked before the answer is given: behind it the program may begin to end.
            let last = self.ending.load(Ordering::Acquire);
            lock(&self.link).reply = Some(reply);
            self.changed.notify_all();
            return if last {
                Heard::TheLast
            } else {
                Heard::Something
            };
        }
        match message::decode::<Notice>(Kind::Notice, &packet.bytes) {
            Ok(Notice::Lost { total }) => notices(ProgramNotice::Lost { total }),
            Ok(Notice::Fenced) => notices(ProgramNotice::Fenced),
            Err(_) => return Heard::Gone,
        }
        Heard::Something
    }

    /// Tries until there is a daemon that serves the mapping on.
    fn connect_again(&self) -> Again {
        let mut pause = FIRST_PAUSE_MS;
        loop {
            match self.resume_once() {
                Ok(socket) => {
                    lock(&self.link).socket = Some(Arc::new(socket));
                    self.changed.notify_all();
                    return Again::Connected;
                }
                Err(ConnectError::Refused {
                    source: Refusal::UnknownRegion | Refusal::Over,
                    ..
                }) => {
                    lock(&self.link).unknown = true;
                    self.changed.notify_all();
                    return Again::Unknown;
                }
                Err(_) => {}
            }
            let mut fds = [PollFd::new(self.closing.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(pause)) {
                Ok(0) | Err(Errno::EINTR) => pause = (pause * 2).min(LONGEST_PAUSE_MS),
                _ => return Again::Closing,
            }
        }
    }

    fn resume_once(&self) -> Result<Socket, ConnectError> {
        let connection = Connection::greet(&self.path, false)?;
        match connection.ask(&self.resume, &self.held.descriptors())? {
            (Reply::Attached { .. }, _) => Ok(connection.into_socket()),
            _ => Err(connection.unexpected()),
        }
    }

    /// No daemon will ever give the pages that are not here: threads that wait for them, and all that come
    /// later, get a signal instead of waiting for ever or reading zeros.
    fn give_up(&self) {
        for page in self.range.pages().indexes() {
            let Some(one) = self.range.slice(page, PageCount::new(1)) else {
                return;
            };
            match self.held.userfault.poison(one) {
                Poisoned::Done | Poisoned::Exists | Poisoned::Again => {}
                Poisoned::Gone(_) => return,
                Poisoned::Unsupported => {
                    self.forbid_access();
                    break;
                }
            }
        }
        let _ = self.held.userfault.wake(self.range);
    }

    fn forbid_access(&self) {
        let start = self.range.start().get() as *mut libc::c_void;
        // SAFETY: the range is the program's mapping, which it gave to this library to page; what is
        // forbidden are accesses that cannot be served.
        let answer = unsafe { libc::mprotect(start, self.range.bytes() as usize, libc::PROT_NONE) };
        if answer != 0 {
            tracing::error!(error = %io::Error::last_os_error(), "lost pages cannot be forbidden");
        }
    }
}

/// What the listening thread heard.
enum Heard {
    Something,
    TheLast,
    Gone,
}

/// How trying to connect again came out.
enum Again {
    Connected,
    Closing,
    Unknown,
}

fn is_current(link: &Link, socket: &Arc<Socket>) -> bool {
    link.socket
        .as_ref()
        .is_some_and(|current| Arc::ptr_eq(current, socket))
}

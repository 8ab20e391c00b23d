//! One client's keeper: the thread that owns its region, hears its requests, and sees its end.
//!
//! ```text
//!              request            -> done here, answered
//!   socket  <  end, garbage       -> the socket is closed; the region is served on
//!   pidfd      the process ended  -> the region is ended, its remote memory freed
//!   mailbox <  a new socket       -> the program has connected again
//!              news of the region -> told to the program; the region's end
//!   closing    the daemon ends    -> the region is left as it is, for the next daemon
//!   a panic    the region failed  -> it is left as by a killed daemon; its program connects again, and has it taken over
//! ```

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use mycoram_fabric::units::{ByteCount, PageCount, PageIndex};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::message::{self, Kind, Notice, Refusal, Reply, Request, in_words};
use super::record::Record;
use super::shared::{Promise, Shared};
use super::socket::{Socket, SocketError};
use crate::kernel::PidFd;
use crate::{Region, RegionEvent};

/// Most letters in a mailbox; news beyond it is dropped, for newer news says more.
const MAX_MAIL: usize = 64;

/// What a keeper is told by other threads.
#[derive(Debug)]
pub(super) enum Mail {
    /// The program has connected again; it is told `Attached`.
    Socket(Socket),
    /// The region says something.
    News(RegionEvent),
}

/// The way to a keeper.
#[derive(Debug)]
pub(super) struct Mailbox {
    letters: Mutex<VecDeque<Mail>>,
    bell: EventFd,
}

impl Mailbox {
    pub(super) fn new() -> Result<Arc<Self>, Errno> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Arc::new(Self {
            letters: Mutex::new(VecDeque::new()),
            bell,
        }))
    }

    pub(super) fn put(&self, mail: Mail) {
        let mut letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        if letters.len() < MAX_MAIL || !matches!(mail, Mail::News(RegionEvent::Lost { .. })) {
            letters.push_back(mail);
        }
        drop(letters);
        // It can only fail when it has rung 2^64 times.
        let _ = self.bell.write(1);
    }

    fn take(&self) -> Option<Mail> {
        self.letters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

/// How a region's service came to its end.
pub(super) enum Ending {
    /// It is over: nothing of it is left.
    Over,
    /// It waits for the next daemon.
    Left,
    /// It cannot be served any more as it is: see [`crate::RegionEvent::Failed`].
    Failed(Failed),
}

/// What is left when a region has failed: everything that a successor needs.
pub(super) struct Failed {
    pub(super) process: PidFd,
    pub(super) promise: Promise,
    pub(super) record: Record,
    /// To be closed when the region can be had again: then its program asks for it.
    pub(super) socket: Option<Socket>,
}

/// See the module.
pub(super) struct Keeper {
    region: Region,
    process: PidFd,
    socket: Option<Socket>,
    pub(super) mailbox: Arc<Mailbox>,
    promise: Promise,
    pub(super) record: Record,
    state_dir: std::path::PathBuf,
    /// Readable when the daemon ends.
    closing: Arc<EventFd>,
}

/// What a turn of the loop leads to.
enum Turn {
    On,
    End,
    /// Its remote pages are another owner's.
    Abandon,
    Leave,
    Failed,
}

impl Keeper {
    /// Keeps a region; its program's connection comes through the mailbox.
    pub(super) fn new(
        shared: &Shared,
        (region, mailbox): (Region, Arc<Mailbox>),
        process: PidFd,
        promise: Promise,
        record: Record,
    ) -> Self {
        Self {
            region,
            process,
            socket: None,
            mailbox,
            promise,
            record,
            state_dir: shared.config.state_dir.clone(),
            closing: Arc::clone(&shared.closing),
        }
    }

    /// Serves until the region is over or the daemon ends.
    pub(super) fn run(mut self) -> Ending {
        loop {
            // A request that panics on this thread leaves pages in states that nobody ends.
            let turn = catch_unwind(AssertUnwindSafe(|| self.wait_and_serve()));
            match turn.unwrap_or(Turn::Failed) {
                Turn::On => {}
                Turn::Leave => return Ending::Left,
                Turn::Failed => {
                    // Its page table is closed with it.
                    drop(self.region);
                    return Ending::Failed(Failed {
                        process: self.process,
                        promise: self.promise,
                        record: self.record,
                        socket: self.socket,
                    });
                }
                Turn::Abandon => {
                    self.record.remove(&self.state_dir);
                    return Ending::Over;
                }
                Turn::End => {
                    tracing::info!(region = %self.record.name, pid = self.record.pid, "a client's region ends");
                    self.region.end();
                    self.record.remove(&self.state_dir);
                    // Only now: by now the program may start another one with the same budget.
                    if let Some(socket) = &self.socket {
                        let _ = say(socket, Kind::Reply, &Reply::Done);
                    }
                    return Ending::Over;
                }
            }
        }
    }

    fn wait_and_serve(&mut self) -> Turn {
        let mut fds = vec![
            PollFd::new(self.mailbox.bell.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.process.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.closing.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(socket) = &self.socket {
            fds.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "a keeper cannot wait; its region is left for a successor");
                return Turn::Leave;
            }
        }
        let ready: Vec<bool> = fds
            .iter()
            .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
            .collect();
        drop(fds);
        if ready[0] {
            let _ = self.mailbox.bell.read();
            while let Some(mail) = self.mailbox.take() {
                match self.open_mail(mail) {
                    Turn::On => {}
                    other => return other,
                }
            }
        }
        if ready[1] {
            self.socket = None;
            return Turn::End;
        }
        if ready[2] {
            return Turn::Leave;
        }
        if ready.get(3) == Some(&true) {
            return self.serve_request();
        }
        Turn::On
    }

    fn open_mail(&mut self, mail: Mail) -> Turn {
        match mail {
            Mail::Socket(socket) => {
                let attached = Reply::Attached {
                    name: self.record.name.clone(),
                    token: self.record.token.clone(),
                };
                self.socket = say(&socket, Kind::Reply, &attached)
                    .is_ok()
                    .then_some(socket);
                Turn::On
            }
            Mail::News(RegionEvent::TargetExited) => {
                self.socket = None;
                Turn::End
            }
            Mail::News(RegionEvent::Lost { total, .. }) => {
                tracing::warn!(region = %self.record.name, total, "pages of a client are lost");
                self.notify(Notice::Lost { total });
                Turn::On
            }
            Mail::News(RegionEvent::Fenced) => {
                tracing::error!(region = %self.record.name, "a client's region has another owner");
                self.notify(Notice::Fenced);
                Turn::Abandon
            }
            // Those who have to know of it were told by the region.
            Mail::News(RegionEvent::Failed(_)) => Turn::Failed,
        }
    }

    fn notify(&mut self, notice: Notice) {
        if let Some(socket) = &self.socket
            && say(socket, Kind::Notice, &notice).is_err()
        {
            self.socket = None;
        }
    }

    fn serve_request(&mut self) -> Turn {
        let Some(socket) = &self.socket else {
            return Turn::On;
        };
        let request = match hear(socket) {
            Ok(Some(request)) => request,
            Ok(None) => return Turn::On,
            Err(refusal) => {
                if let Some(refusal) = refusal {
                    tracing::warn!(region = %self.record.name, pid = self.record.pid, %refusal, "a client is cut off");
                    let _ = say(socket, Kind::Reply, &Reply::Refused(refusal));
                }
                self.socket = None;
                return Turn::On;
            }
        };
        let reply = match request {
            // Answered when it is done: see `run`.
            Request::End => return Turn::End,
            Request::Hello { .. } | Request::Attach { .. } | Request::Resume { .. } => {
                let _ = say(socket, Kind::Reply, &Reply::Refused(Refusal::Malformed));
                self.socket = None;
                return Turn::On;
            }
            Request::Stats => Ok(Reply::Stats(Box::new(self.region.stats()))),
            Request::Flush => self.region.flush().map(|()| Reply::Done),
            Request::Advise {
                first,
                pages,
                advice,
            } => match PageIndex::new(first).checked_add(PageCount::new(pages)) {
                Some(end) => self
                    .region
                    .advise(first..end.get(), advice)
                    .map(|()| Reply::Done),
                None => Ok(Reply::Refused(Refusal::Malformed)),
            },
            Request::SetBudget { local_budget } => Ok(self.set_budget(local_budget)),
        };
        let reply = reply.unwrap_or_else(|error| {
            Reply::Refused(Refusal::Engine {
                words: in_words(&error),
            })
        });
        if let Some(socket) = &self.socket
            && say(socket, Kind::Reply, &reply).is_err()
        {
            self.socket = None;
        }
        Turn::On
    }

    /// More is promised before it is used; less is given back after it was asked for.
    fn set_budget(&mut self, local_budget: ByteCount) -> Reply {
        let before = self.record.local_budget;
        if local_budget > before
            && let Err(refusal) = self.promise.resize(local_budget)
        {
            return Reply::Refused(refusal);
        }
        if let Err(error) = self.region.set_budget(local_budget) {
            let _ = self.promise.resize(before);
            return Reply::Refused(Refusal::Engine {
                words: in_words(&error),
            });
        }
        let _ = self.promise.resize(local_budget);
        self.record.local_budget = local_budget;
        if let Err(error) = self.record.write(&self.state_dir) {
            tracing::warn!(%error, "a changed budget was not written down");
        }
        Reply::Done
    }
}

/// Sends a message without descriptors.
pub(super) fn say<T: serde::Serialize>(
    socket: &Socket,
    kind: Kind,
    body: &T,
) -> Result<(), SocketError> {
    let bytes = message::encode(kind, body).map_err(|_| SocketError::TooLong)?;
    socket.send(&bytes, &[])
}

/// The next request of an attached client, which brings no descriptors. `None`: it was a false alarm. An
/// error is the end of the connection, with what to say before it is closed.
fn hear(socket: &Socket) -> Result<Option<Request>, Option<Refusal>> {
    match socket.receive() {
        Ok(packet) => message::decode(Kind::Request, &packet.bytes)
            .map(Some)
            .map_err(|_| Some(Refusal::Malformed)),
        Err(SocketError::Timeout) => Ok(None),
        Err(SocketError::TooLong) => Err(Some(Refusal::Malformed)),
        Err(_) => Err(None),
    }
}

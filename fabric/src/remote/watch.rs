//! The watch thread of one memory node of a region: keeps the session alive, notices the node's end
//! within moments, and connects new queue pairs for the lanes.
//!
//! It waits on three things at once: messages of lanes, the end of the control connection (a process
//! that dies closes it, whatever it was doing), and the time for the next sign of life or try.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::bell::Bell;
use super::clock::Clock;
use super::link::{NodeLink, Trouble};
use super::redial::{Job, Mailbox, Outcome};
use crate::transport::Ticket;

/// How often the node hears that the owner lives. Far below the node's idle limit.
const KEEP_ALIVE_MS: u64 = 1000;

/// What a watch thread is told.
pub(super) enum Message {
    /// Replace a queue pair; the answer goes into the mailbox. At most one per lane at a time.
    Redial(Job, Mailbox),
    /// A queue pair is gone for good.
    Dismiss(Ticket),
    /// End.
    Stop,
}

/// How others speak to a watch thread.
#[derive(Clone)]
pub(super) struct WatchHandle {
    messages: Sender<Message>,
    bell: Arc<Bell>,
}

impl WatchHandle {
    /// Never blocks.
    pub(super) fn send(&self, message: Message) {
        // The thread ends when the region does, after all lanes; then nothing is wanted of it.
        let _ = self.messages.send(message);
        self.bell.ring();
    }
}

/// The thread itself, ended when dropped.
pub(super) struct Watch {
    handle: WatchHandle,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(link: Arc<NodeLink>, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let (messages, received) = unbounded();
        let bell = Arc::new(Bell::new()?);
        let handle = WatchHandle {
            messages,
            bell: Arc::clone(&bell),
        };
        let name = format!("myco-watch-{}", link.record.entry.name);
        let mut watcher = Watcher {
            link,
            clock,
            bell,
            received,
            jobs: Vec::new(),
            next_sign_ms: 0,
            draining: false,
        };
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || watcher.run())?;
        Ok(Self {
            handle,
            thread: Some(thread),
        })
    }

    pub(super) fn handle(&self) -> WatchHandle {
        self.handle.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.handle.send(Message::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a memory node's watch thread panicked");
        }
    }
}

struct Watcher {
    link: Arc<NodeLink>,
    clock: Arc<dyn Clock>,
    bell: Arc<Bell>,
    received: Receiver<Message>,
    jobs: Vec<(Job, Mailbox)>,
    next_sign_ms: u64,
    draining: bool,
}

impl Watcher {
    fn run(&mut self) {
        self.next_sign_ms = self.clock.now_ms() + KEEP_ALIVE_MS;
        loop {
            let ended = self.wait();
            self.bell.silence();
            // Bounded by the lanes: each has at most one job here.
            while let Ok(message) = self.received.try_recv() {
                match message {
                    Message::Redial(job, mailbox) => self.jobs.push((job, mailbox)),
                    Message::Dismiss(ticket) => self.link.dismiss(ticket),
                    Message::Stop => return,
                }
            }
            if self.is_final() {
                // Nothing to watch any more.
            } else if ended || self.clock.now_ms() >= self.next_sign_ms {
                self.sign_of_life();
            }
            self.try_jobs();
        }
    }

    fn is_final(&self) -> bool {
        self.link.is_lost() || self.link.is_fenced()
    }

    /// Waits for something to do. True if the control connection ended.
    fn wait(&self) -> bool {
        let now = self.clock.now_ms();
        let next_try = self.jobs.iter().map(|(job, _)| job.next_try_ms()).min();
        let sign = (!self.is_final()).then_some(self.next_sign_ms);
        let until = [next_try, sign].into_iter().flatten().min();
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            let left = Duration::from_millis(until.saturating_sub(now));
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let ending = sign.and_then(|_| self.link.ending());
        let bell = PollFd::new(self.bell.as_fd(), PollFlags::POLLIN);
        match &ending {
            Some(ending) => {
                let ending = PollFd::new(ending.as_fd(), PollFlags::POLLIN);
                let mut both = [bell, ending];
                let _ = poll(&mut both, timeout);
                both[1].any().unwrap_or(false)
            }
            None => {
                let _ = poll(&mut [bell], timeout);
                false
            }
        }
    }

    fn sign_of_life(&mut self) {
        match self.link.keep_alive() {
            Ok(alive) => {
                if let Some(ms) = alive.drain_ms
                    && !self.draining
                {
                    self.draining = true;
                    tracing::warn!(
                        node = %self.link.record.entry.name,
                        within_ms = ms,
                        "a memory node is being stopped; the pages that it holds will be lost"
                    );
                }
            }
            Err(Trouble::Dead(death)) => self.link.give_up(death),
            Err(Trouble::Fenced) => self.link.fence(),
            Err(Trouble::Again(cause)) => tracing::debug!(
                node = %self.link.record.entry.name,
                ?cause,
                "a memory node gave no sign of life"
            ),
        }
        self.next_sign_ms = self.clock.now_ms() + KEEP_ALIVE_MS;
    }

    fn try_jobs(&mut self) {
        let (link, clock) = (&self.link, &self.clock);
        self.jobs.retain_mut(|(job, mailbox)| {
            let outcome: Option<Outcome> = job.attempt(link, &**clock);
            match outcome {
                Some(outcome) => {
                    if let Err(Outcome::Up(queue_pair, ticket)) = mailbox.put(link.index, outcome) {
                        drop(queue_pair);
                        link.dismiss(ticket);
                    }
                    false
                }
                None => true,
            }
        });
    }
}

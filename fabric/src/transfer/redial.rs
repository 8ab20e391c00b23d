//! Replacing rails that broke, beside the path of chunks.
//!
//! ```text
//!   session --Job: the broken queue pair--> its own thread:  drop it, ticket  -> Gone
//!           <------ events, and a bell ----                  connect, again   -> Up | Ended | Lost
//! ```
//!
//! A thread a broken rail, for as long as it is being replaced: an endpoint that does not answer holds up
//! nobody else. In simulated time the session does the same steps itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::endpoint::{Endpoint, EndpointError};
use super::piece::Why;
use crate::remote::Clock;
use crate::transport::{QueuePair, QueuePairConfig, Ticket};

/// How long after a failed try the next one comes, at first, ms; it doubles up to [`RETRY_MOST_MS`].
const RETRY_FIRST_MS: u64 = 20;
/// See [`RETRY_FIRST_MS`].
const RETRY_MOST_MS: u64 = 320;

/// How far the replacing of a rail is.
pub(super) enum Event {
    /// Nothing of the broken queue pair can land any more.
    Gone,
    /// Here is a new one.
    Up(Box<dyn QueuePair>, Ticket),
    /// There will be no new one; the endpoint still answers, so others of its rails may do.
    Ended(Option<Ticket>),
    /// The endpoint takes part no more.
    Lost(Why),
}

/// A rail that is to be replaced.
pub(super) struct Job {
    rail: usize,
    endpoint: Arc<dyn Endpoint>,
    /// Dropped before anything else: when that is done it touches no local memory any more.
    broken: Option<Box<dyn QueuePair>>,
    ticket: Option<Ticket>,
    /// The ticket was not used yet.
    fresh: bool,
    said_gone: bool,
    config: QueuePairConfig,
    next_try_ms: u64,
    retry_ms: u64,
    give_up_ms: u64,
}

impl Job {
    pub(super) fn new(
        rail: usize,
        endpoint: Arc<dyn Endpoint>,
        broken: Box<dyn QueuePair>,
        ticket: Option<Ticket>,
        config: QueuePairConfig,
        (now_ms, deadline_ms): (u64, u64),
    ) -> Self {
        Self {
            rail,
            endpoint,
            broken: Some(broken),
            ticket,
            fresh: false,
            said_gone: false,
            config,
            next_try_ms: now_ms,
            retry_ms: RETRY_FIRST_MS,
            give_up_ms: now_ms.saturating_add(deadline_ms),
        }
    }

    /// One step, if it is time for one. `None`: again at `next_try_ms`. After [`Event::Gone`] there is more.
    fn attempt(&mut self, clock: &dyn Clock) -> Option<Event> {
        self.broken = None;
        let now = clock.now_ms();
        if now < self.next_try_ms {
            return None;
        }
        let tried = if self.fresh {
            self.connect(now)
        } else {
            self.endpoint.ticket(self.ticket).map(|ticket| {
                (self.ticket, self.fresh) = (Some(ticket), true);
                None
            })
        };
        match tried {
            Ok(Some(event)) => Some(event),
            Ok(None) if !self.said_gone => {
                self.said_gone = true;
                Some(Event::Gone)
            }
            Ok(None) => None,
            Err(EndpointError::Lost) => Some(Event::Lost(Why::Lost)),
            Err(EndpointError::Fenced) => Some(Event::Lost(Why::Fenced)),
            Err(_) => {
                let now = clock.now_ms();
                if now >= self.give_up_ms {
                    return Some(if self.said_gone {
                        Event::Ended(self.ticket)
                    } else {
                        Event::Lost(Why::Lost)
                    });
                }
                self.next_try_ms = (now + self.retry_ms).min(self.give_up_ms);
                self.retry_ms = (2 * self.retry_ms).min(RETRY_MOST_MS);
                None
            }
        }
    }

    fn connect(&mut self, now_ms: u64) -> Result<Option<Event>, EndpointError> {
        // A try may take no longer than there is time left.
        let left = self.give_up_ms.saturating_sub(now_ms).max(1);
        let mut config = self.config;
        config.connect_timeout_ms = config
            .connect_timeout_ms
            .min(u32::try_from(left).unwrap_or(u32::MAX));
        self.fresh = false;
        match self.ticket {
            Some(ticket) => {
                let queue_pair = self.endpoint.connect(&ticket, &config)?;
                Ok(Some(Event::Up(queue_pair, ticket)))
            }
            None => Ok(None),
        }
    }

    fn is_done(event: &Event) -> bool {
        !matches!(event, Event::Gone)
    }
}

/// Where broken rails are handed to.
pub(super) enum Redial {
    /// Threads do it.
    Threads(Threads),
    /// The session does it when it asks what has happened.
    Inline(Vec<Job>),
}

/// See [`Redial::Threads`].
pub(super) struct Threads {
    clock: Arc<dyn Clock>,
    events: Receiver<(usize, Event)>,
    sender: Sender<(usize, Event)>,
    bell: Arc<EventFd>,
    /// Dropped to end them.
    stop: Option<Sender<()>>,
    stopped: Receiver<()>,
    running: Vec<JoinHandle<()>>,
}

impl Redial {
    pub(super) fn threads(clock: Arc<dyn Clock>) -> io::Result<Self> {
        // Bounded by the rails: each has at most one job, and a job has two events.
        let (sender, events) = unbounded();
        let (stop, stopped) = bounded(0);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self::Threads(Threads {
            clock,
            events,
            sender,
            bell: Arc::new(EventFd::from_flags(flags)?),
            stop: Some(stop),
            stopped,
            running: Vec::new(),
        }))
    }

    /// Begins to replace a rail.
    pub(super) fn start(&mut self, job: Job) {
        match self {
            Self::Inline(jobs) => jobs.push(job),
            Self::Threads(threads) => threads.start(job),
        }
    }

    /// What has happened.
    pub(super) fn event(&mut self, clock: &dyn Clock) -> Option<(usize, Event)> {
        match self {
            Self::Threads(threads) => {
                // Fails only when it was not rung.
                let _ = threads.bell.read();
                threads.running.retain(|thread| !thread.is_finished());
                let event = threads.events.try_recv().ok()?;
                // Silencing may have swallowed the ring for the next one.
                let _ = threads.bell.write(1);
                Some(event)
            }
            Self::Inline(jobs) => {
                for at in 0..jobs.len() {
                    let rail = jobs[at].rail;
                    if let Some(event) = jobs[at].attempt(clock) {
                        if Job::is_done(&event) {
                            jobs.swap_remove(at);
                        }
                        return Some((rail, event));
                    }
                }
                None
            }
        }
    }

    /// Ends what is under way; its last events may still be asked for.
    pub(super) fn stop(&mut self) {
        match self {
            Self::Inline(jobs) => jobs.clear(),
            Self::Threads(threads) => threads.end(),
        }
    }

    /// Where to wait for something to happen.
    pub(super) fn bell(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Threads(threads) => Some(threads.bell.as_fd()),
            Self::Inline(_) => None,
        }
    }
}

impl Threads {
    fn start(&mut self, mut job: Job) {
        let (clock, sender) = (Arc::clone(&self.clock), self.sender.clone());
        let (bell, stopped) = (Arc::clone(&self.bell), self.stopped.clone());
        let rail = job.rail;
        let run = move || {
            loop {
                if let Some(event) = job.attempt(&*clock) {
                    let done = Job::is_done(&event);
                    let sent = sender.send((job.rail, event));
                    // Fails only when it has been rung 2^64 - 2 times unheard: it is readable then.
                    let _ = bell.write(1);
                    if let Err(unsent) = sent
                        && let (_, Event::Up(queue_pair, ticket)) = unsent.into_inner()
                    {
                        drop(queue_pair);
                        job.endpoint.dismiss(ticket);
                    }
                    if done {
                        return;
                    }
                }
                let left = job.next_try_ms.saturating_sub(clock.now_ms());
                let stop = stopped.recv_timeout(Duration::from_millis(left));
                if stop == Err(RecvTimeoutError::Disconnected) {
                    if let Some(ticket) = job.ticket {
                        job.endpoint.dismiss(ticket);
                    }
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("myco-redial".into())
            .spawn(run);
        match thread {
            Ok(thread) => self.running.push(thread),
            Err(error) => {
                // The job went with its closure, and with it the broken queue pair.
                tracing::error!(%error, "no thread to replace a broken rail with");
                let _ = self.sender.send((rail, Event::Lost(Why::Lost)));
                let _ = self.bell.write(1);
            }
        }
    }

    fn end(&mut self) {
        self.stop = None;
        for thread in self.running.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that replaces a rail panicked");
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end();
    }
}

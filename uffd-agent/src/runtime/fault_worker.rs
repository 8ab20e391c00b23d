//! A fault worker: reads events, serves faults, polls its own lane, fetches ahead when all that is done.
//!
//! ```text
//!   +-> read events -> serve faults -> ring -> fetch ahead -> poll the lane -> install --+
//!   |      (gate: reading)                                     (gate: changing)          |
//!   +------------- nothing to do: yield for `spin_us`, then sleep in poll <--------------+
//! ```
//!
//! It owns its frames, its queue pairs and its operations. After it is made it allocates nothing, takes
//! no lock that anybody sleeps on, and logs nothing, unless something is broken or lost.
//!
//! Its rooms: `serving` faults, fetching `ahead`, what is `arriving`, `installing` it, huge pages on their
//! `stages`; `strays` are faults where the region has no page. The loop is here, and what all of them share.

mod ahead;
mod arriving;
mod installing;
mod serving;
mod stages;
mod strays;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;
use mycoram_fabric::pages::{
    Direction, FrameIndex, NodeSet, PageDone, PageLane, PageRequest, Which,
};
use mycoram_fabric::transport::Armed;
use mycoram_fabric::units::{PAGE_BYTES, PageCount, PageIndex};

use self::stages::Stages;
use self::strays::Strays;
use super::frames::FramePool;
use super::shared::{Shared, Standing, SuspectRange, count, service_histogram};
use crate::config::Advice;
use crate::kernel::{EventReader, ParkingPipe, TargetEvent};
use crate::policy::{AdmissionSender, FaultKind, FetchRun, Prefetch};

/// Events read at once.
const EVENTS: usize = 64;
/// Faults that wait for a credit or for an evictor's next step; more are woken, to fault again.
const MAX_WAITING: usize = 1024;
/// Runs that a policy may name at once.
const MAX_PLAN: usize = 64;
/// Pages kept in their frames until they are asked for.
const MAX_HELD: usize = 32;
/// How long a held page waits for its fault, ns, before it is installed unasked.
const HOLD_NS: u64 = 50_000_000;
/// Lane slots that prefetching leaves to faults.
const DEMAND_SLOTS: usize = 8;
/// Longest sleep, ms: a bound on how long anything that rings no bell goes unnoticed.
const LONGEST_SLEEP_MS: i32 = 1000;
/// How often service times are handed over while there is always something to do, ns.
const PUBLISH_NS: u64 = 250_000_000;
/// No frame: the page is zeros.
const NO_FRAME: FrameIndex = FrameIndex(u32::MAX);

/// A fault that was read.
#[derive(Clone, Copy, Debug)]
struct Fault {
    page: PageIndex,
    tid: i32,
    since: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Free,
    /// Somebody waits.
    Asked,
    /// Fetched ahead.
    Ahead,
    /// Comes out of a parking pipe.
    Parked {
        batch: u8,
        slot: u8,
    },
}

/// A run of pages on its way in.
#[derive(Clone, Copy, Debug)]
struct Operation {
    kind: Kind,
    page: PageIndex,
    run: u32,
    frame: FrameIndex,
    since: u64,
    /// Bit set: this page of the run is no longer this operation's.
    gone: u32,
    /// The page of the run that is to be held.
    hold: Option<u16>,
    /// Nodes whose replica of the page was wrong. They are written before it is installed.
    wrong: NodeSet,
    /// No replica was right: what comes now is final.
    last: bool,
    /// The stage whose frames it uses; none of the pool's then.
    stage: Option<u8>,
    /// It waits on its stage for the others.
    landed: bool,
}

const FREE: Operation = Operation {
    kind: Kind::Free,
    page: PageIndex::new(0),
    run: 0,
    frame: NO_FRAME,
    since: 0,
    gone: 0,
    hold: None,
    wrong: NodeSet::NONE,
    last: false,
    stage: None,
    landed: false,
};

#[derive(Clone, Copy, Debug)]
struct Held {
    page: PageIndex,
    frame: FrameIndex,
    since: u64,
}

/// See the module.
pub(crate) struct FaultWorker {
    shared: Arc<Shared>,
    index: usize,
    lane: Box<dyn PageLane>,
    policy: Box<dyn Prefetch>,
    advice: crossbeam_channel::Receiver<AdviceGiven>,
    admissions: AdmissionSender,
    reader: EventReader,
    scratch: ParkingPipe,
    pool: FramePool,
    operations: Vec<Operation>,
    free: Vec<u32>,
    /// Operations whose bytes are there.
    ready: Vec<u32>,
    stages: Stages,
    faults: Vec<Fault>,
    strays: Strays,
    waiting: Vec<Fault>,
    /// Swapped with `waiting` while it is gone through.
    retried: Vec<Fault>,
    wants_credit: bool,
    wants_soon: bool,
    held: Vec<Held>,
    /// Faults that the policy has not been told of yet.
    heard: Vec<(PageIndex, FaultKind)>,
    plan: Vec<FetchRun>,
    done: Vec<PageDone>,
    poll_fds: Vec<libc::pollfd>,
    service: Histogram<u64>,
    published: u64,
}

/// Advice of the program, on its way to the policies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdviceGiven {
    pub(crate) page: PageIndex,
    pub(crate) pages: PageCount,
    pub(crate) advice: Advice,
}

/// What a worker is made of.
pub(crate) struct FaultWorkerParts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) index: usize,
    pub(crate) lane: Box<dyn PageLane>,
    pub(crate) policy: Box<dyn Prefetch>,
    pub(crate) advice: crossbeam_channel::Receiver<AdviceGiven>,
    pub(crate) admissions: AdmissionSender,
    pub(crate) scratch: ParkingPipe,
}

impl FaultWorker {
    pub(crate) fn new(parts: FaultWorkerParts) -> Self {
        let frames = parts.shared.config.lane.frames;
        let stages = Stages::of(parts.shared.huge.as_deref(), parts.lane.as_ref());
        let operations = frames as usize + EVENTS + stages.operations();
        Self {
            shared: parts.shared,
            index: parts.index,
            lane: parts.lane,
            policy: parts.policy,
            advice: parts.advice,
            admissions: parts.admissions,
            reader: EventReader::new(EVENTS),
            scratch: parts.scratch,
            pool: FramePool::new(frames),
            operations: vec![FREE; operations],
            free: (0..operations as u32).rev().collect(),
            ready: Vec::with_capacity(operations),
            stages,
            faults: Vec::with_capacity(EVENTS),
            strays: Strays::new(EVENTS),
            waiting: Vec::with_capacity(MAX_WAITING),
            retried: Vec::with_capacity(MAX_WAITING),
            wants_credit: false,
            wants_soon: false,
            held: Vec::with_capacity(MAX_HELD),
            heard: Vec::with_capacity(2 * EVENTS),
            plan: Vec::with_capacity(MAX_PLAN),
            done: Vec::with_capacity(operations),
            poll_fds: Vec::with_capacity(64),
            service: service_histogram(),
            published: 0,
        }
    }

    /// Serves until the region is over.
    pub(crate) fn run(mut self) {
        let spin = u64::from(self.shared.config.spin_us) * 1000;
        let mut active = self.shared.now();
        while self.shared.is_serving() {
            let mut busy = self.read_events();
            busy |= self.serve_faults();
            busy |= self.poll_lane();
            if self.install_ready() | self.look_at_stages() {
                busy = true;
                // Whoever waited may have to run on this very processor.
                std::thread::yield_now();
            }
            busy |= self.retry_waiting();
            if !self.held.is_empty() {
                self.look_at_held();
            }
            let now = self.shared.now();
            if busy {
                active = now;
                if now - self.published > PUBLISH_NS {
                    self.publish(now);
                }
            } else if self.fetch_what_is_wanted() {
                active = now;
            } else if now - active < spin || self.wants_soon || !self.ready.is_empty() {
                std::thread::yield_now();
            } else {
                self.publish(now);
                self.sleep();
            }
        }
        self.publish(u64::MAX);
    }

    /// Hands service times over, if nobody is at them just now.
    fn publish(&mut self, now: u64) {
        if self.service.is_empty() {
            return;
        }
        if let Ok(mut all) = self.shared.service.try_lock() {
            // Same bounds, so that it fits without growing.
            let _ = all.add(&self.service);
            self.service.reset();
            self.published = now;
        }
    }

    fn read_events(&mut self) -> bool {
        let Self {
            shared,
            reader,
            faults,
            strays,
            index,
            ..
        } = self;
        let section = shared.gate.read(*index);
        let mut removed = 0;
        let answer = reader.read(&shared.userfault, |event| match event {
            TargetEvent::Fault {
                addr,
                tid,
                protected,
                ..
            } => {
                let page = shared.address.page_at(addr);
                match page {
                    // `faults` was emptied and has room for all that one read can bring.
                    Some(page) if !protected && faults.len() < faults.capacity() => {
                        faults.push(Fault {
                            page,
                            tid,
                            since: 0,
                        });
                    }
                    Some(page) => shared.wake_page(page),
                    None => strays.met(addr, tid),
                }
            }
            TargetEvent::Remove { start, end } => {
                shared.address.overlaps(start, end, |page, pages| {
                    removed += discard(shared, page, pages)
                });
            }
            TargetEvent::Unmap { start, end } => {
                shared.address.overlaps(start, end, |page, pages| {
                    removed += discard(shared, page, pages)
                });
                shared.address.unmap(start, end);
                shared.keeper_bell.ring();
            }
            TargetEvent::Remap { from, to, bytes } => {
                shared.address.remap(from, to, bytes);
                shared.keeper_bell.ring();
            }
            TargetEvent::Fork(_) => {}
        });
        drop(section);
        strays.settle(shared);
        if removed > 0 {
            count(&shared.counters.discarded, removed);
            shared.keeper_bell.ring();
        }
        if !faults.is_empty() {
            let now = shared.now();
            faults.iter_mut().for_each(|fault| fault.since = now);
        }
        match answer {
            Ok(events) => events > 0,
            Err(error) => {
                tracing::error!(%error, "the target's faults cannot be read any more");
                shared.finish(Standing::TargetGone);
                false
            }
        }
    }

    /// Queues the READ of an operation whose pages are already marked as being fetched. Its frames are
    /// taken here.
    fn read(&mut self, operation: Operation) -> bool {
        let Some(frame) = self.pool.take(operation.run) else {
            return false;
        };
        self.read_into(frame, operation)
    }

    /// As [`Self::read`], into frames that were taken; they go back if it cannot be queued.
    fn read_into(&mut self, frame: FrameIndex, operation: Operation) -> bool {
        let Some(id) = self.free.pop() else {
            self.give_frames(frame, operation);
            return false;
        };
        let request = PageRequest {
            tag: u64::from(id),
            direction: Direction::Read,
            page: operation.page,
            run: operation.run as u16,
            frame,
            which: match operation.wrong.is_empty() {
                true => Which::Live,
                false => Which::Except(operation.wrong),
            },
        };
        if self.lane.queue(request).is_err() {
            self.free.push(id);
            self.give_frames(frame, operation);
            return false;
        }
        self.operations[id as usize] = Operation { frame, ..operation };
        true
    }

    /// Frames that are not needed any more. Those of a stage are its own.
    fn give_frames(&mut self, frame: FrameIndex, operation: Operation) {
        if operation.stage.is_none() {
            self.pool.give(frame, operation.run);
        }
    }

    fn drop_fetch(&self, page: PageIndex) {
        if self.shared.pages.fetch_dropped(page) {
            self.shared.wake_page(page);
        }
        self.shared.credits_came();
    }

    fn poll_lane(&mut self) -> bool {
        self.lane.poll(&mut self.done);
        if self.done.is_empty() {
            return false;
        }
        for at in 0..self.done.len() {
            let done = self.done[at];
            self.arrived(done);
        }
        self.done.clear();
        self.lane.ring();
        true
    }

    fn frame_bytes(&self, frame: FrameIndex) -> *mut u8 {
        // SAFETY: frames come from the pool, which has as many as the lane.
        unsafe {
            self.lane
                .frames()
                .as_ptr()
                .add(frame.0 as usize * PAGE_BYTES)
        }
    }

    fn release(&mut self, id: u32) {
        let operation = std::mem::replace(&mut self.operations[id as usize], FREE);
        if operation.frame != NO_FRAME {
            self.give_frames(operation.frame, operation);
        }
        if let Some(stage) = operation.stage {
            self.left_stage(stage, operation);
        }
        if let Kind::Parked { batch, .. } = operation.kind {
            self.shared.pages.reader_done(batch);
            self.shared.ring_evictors();
        }
        self.free.push(id);
    }

    fn sleep(&mut self) {
        let bell = &self.shared.worker_bells[self.index];
        bell.lie_down();
        let credit = self.wants_credit && self.shared.pages.credits.free() > 0;
        if credit || !self.shared.is_serving() || self.lane.arm() == Armed::Ready {
            bell.get_up();
            return;
        }
        let wait_for = |fd: std::os::fd::RawFd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        self.poll_fds.clear();
        self.poll_fds
            .push(wait_for(self.shared.userfault.as_fd().as_raw_fd()));
        self.poll_fds.push(wait_for(bell.as_fd().as_raw_fd()));
        let fds = &mut self.poll_fds;
        self.lane
            .readiness(&mut |fd| fds.push(wait_for(fd.as_raw_fd())));
        let timeout = if self.held.is_empty() && self.stages.are_empty() {
            LONGEST_SLEEP_MS
        } else {
            (HOLD_NS / 1_000_000) as i32
        };
        // SAFETY: the vector holds as many descriptions as its length says and outlives the call.
        unsafe {
            libc::poll(
                self.poll_fds.as_mut_ptr(),
                self.poll_fds.len() as libc::nfds_t,
                timeout,
            )
        };
        bell.get_up();
        let faults = self.poll_fds[0].revents;
        if faults & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0 {
            self.shared.finish(Standing::TargetGone);
        }
    }
}

/// Applies a discard to pages, inside a reading section. Answers how many there were.
fn discard(shared: &Shared, page: PageIndex, pages: PageCount) -> u64 {
    shared.part_huge(page, pages.get());
    let mut look_later = false;
    for at in 0..pages.get() {
        look_later |= shared.pages.discard(PageIndex::new(page.get() + at));
    }
    if look_later {
        let range = SuspectRange {
            page,
            pages,
            at: shared.now(),
        };
        if shared.suspects.try_send(range).is_err() {
            shared.suspects_missed.store(true, Ordering::SeqCst);
        }
    }
    u64::from(pages.get())
}

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
//! Long because the steps of its one loop share all of its state, and nobody else may touch that.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;
use mycoram_fabric::pages::{
    Direction, FrameIndex, MAX_RUN_PAGES, PageDone, PageError, PageLane, PageRequest,
};
use mycoram_fabric::transport::Armed;
use mycoram_fabric::units::{PAGE_BYTES, PageCount, PageIndex};
use twox_hash::XxHash3_64;

use super::frames::FramePool;
use super::shared::{Fill, Shared, Standing, SuspectRange, count, service_histogram};
use crate::config::Advice;
use crate::engine::{Content, FaultStep};
use crate::kernel::{EventReader, ParkingPipe, TargetEvent};
use crate::page_table::Source;
use crate::policy::{Admission, AdmissionKind, AdmissionSender, FaultKind, FetchRun, Prefetch};

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
    /// It was read twice: a wrong checksum now is final.
    again: bool,
}

const FREE: Operation = Operation {
    kind: Kind::Free,
    page: PageIndex::new(0),
    run: 0,
    frame: NO_FRAME,
    since: 0,
    gone: 0,
    hold: None,
    again: false,
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
    faults: Vec<Fault>,
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
        let operations = frames as usize + EVENTS;
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
            faults: Vec::with_capacity(EVENTS),
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
            busy |= self.install_ready();
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
                    None => {}
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

    fn serve_faults(&mut self) -> bool {
        if self.faults.is_empty() {
            return false;
        }
        for at in 0..self.faults.len() {
            let fault = self.faults[at];
            count(&self.shared.counters.faults, 1);
            self.serve(fault);
        }
        // What is asked for goes out before anything is thought about what may be asked next.
        self.lane.ring();
        self.install_ready();
        self.faults.clear();
        self.think_ahead();
        true
    }

    /// Tells the policy of the faults that were served, and fetches what it names.
    fn think_ahead(&mut self) {
        for at in 0..self.heard.len() {
            let (page, kind) = self.heard[at];
            self.policy.on_fault(page, kind, &mut self.plan);
        }
        self.heard.clear();
        self.fetch_ahead();
        self.plan.clear();
    }

    fn hear(&mut self, page: PageIndex, kind: FaultKind) {
        if self.heard.len() < self.heard.capacity() {
            self.heard.push((page, kind));
        }
    }

    /// One fault: begins what has to be done, or puts it on the waiting list.
    fn serve(&mut self, fault: Fault) {
        // A stale word is looked at again; each round the target or an evictor has changed it.
        for _ in 0..4 {
            match self.shared.pages.fault(fault.page) {
                FaultStep::Zero => return self.begin(fault, Kind::Asked, NO_FRAME),
                FaultStep::Read => {
                    return self.begin_read(fault);
                }
                FaultStep::Parked { batch, slot } => {
                    count(&self.shared.counters.rescued, 1);
                    return self.begin(fault, Kind::Parked { batch, slot }, NO_FRAME);
                }
                FaultStep::Wait => {
                    count(&self.shared.counters.prefetch_used, 1);
                    self.hear(fault.page, FaultKind::FetchedAhead);
                    self.ask_for_held(fault.page);
                    return;
                }
                FaultStep::Again => {
                    self.wants_soon = true;
                    return self.wait(fault);
                }
                FaultStep::NoCredit => {
                    count(&self.shared.counters.waited_for_budget, 1);
                    self.shared.pages.credits.was_short();
                    if !self.wants_credit {
                        self.wants_credit = true;
                        self.shared.waiting.fetch_add(1, Ordering::SeqCst);
                    }
                    self.shared.ring_evictors();
                    return self.wait(fault);
                }
                FaultStep::LookForHole(word) => match self.shared.memory.has_data(fault.page) {
                    Ok(false) => {
                        self.shared.pages.hole_found(fault.page, word);
                    }
                    _ => {
                        // It is there: the event is older than the page.
                        count(&self.shared.counters.stale, 1);
                        self.shared.wake_page(fault.page);
                        return;
                    }
                },
                FaultStep::Poison => {
                    if !self.shared.poison(fault.page, Some(fault.tid)) {
                        self.wants_soon = true;
                        self.wait(fault);
                    }
                    return;
                }
                FaultStep::NotWanted => return,
            }
        }
        self.wants_soon = true;
        self.wait(fault);
    }

    fn wait(&mut self, fault: Fault) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push(fault);
        } else {
            self.shared.wake_page(fault.page);
        }
    }

    fn retry_waiting(&mut self) -> bool {
        let credit = self.wants_credit && self.shared.pages.credits.free() > 0;
        if self.waiting.is_empty() || !(credit || self.wants_soon) {
            return false;
        }
        if self.wants_credit {
            self.wants_credit = false;
            self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        self.wants_soon = false;
        std::mem::swap(&mut self.waiting, &mut self.retried);
        for at in 0..self.retried.len() {
            let fault = self.retried[at];
            self.serve(fault);
        }
        self.retried.clear();
        self.lane.ring();
        self.install_ready();
        self.think_ahead();
        // Only what went on counts as something done.
        self.waiting.is_empty()
    }

    fn begin(&mut self, fault: Fault, kind: Kind, frame: FrameIndex) {
        // There are more operations than frames and events together.
        let Some(id) = self.free.pop() else {
            unreachable!("an operation for every frame and every event of a read")
        };
        self.operations[id as usize] = Operation {
            kind,
            page: fault.page,
            run: 1,
            frame,
            since: fault.since,
            ..FREE
        };
        self.ready.push(id);
    }

    fn begin_read(&mut self, fault: Fault) {
        if self.read_run(fault.page, 1, Kind::Asked, fault.since, None, false) {
            count(&self.shared.counters.majors, 1);
            self.hear(fault.page, FaultKind::Missing);
        } else {
            // No room on the lane: as if it had not been looked at yet.
            if self.shared.pages.fetch_dropped(fault.page) {
                self.shared.wake_page(fault.page);
            }
            self.wants_soon = true;
            self.wait(fault);
        }
    }

    /// Queues a READ of a run of pages that are already marked as being fetched.
    fn read_run(
        &mut self,
        page: PageIndex,
        run: u32,
        kind: Kind,
        since: u64,
        hold: Option<u16>,
        again: bool,
    ) -> bool {
        let Some(frame) = self.pool.take(run) else {
            return false;
        };
        self.read_into(frame, page, run, kind, since, hold, again)
    }

    #[allow(clippy::too_many_arguments)]
    fn read_into(
        &mut self,
        frame: FrameIndex,
        page: PageIndex,
        run: u32,
        kind: Kind,
        since: u64,
        hold: Option<u16>,
        again: bool,
    ) -> bool {
        let Some(id) = self.free.pop() else {
            self.pool.give(frame, run);
            return false;
        };
        let request = PageRequest {
            tag: u64::from(id),
            direction: Direction::Read,
            page,
            run: run as u16,
            frame,
        };
        if self.lane.queue(request).is_err() {
            self.free.push(id);
            self.pool.give(frame, run);
            return false;
        }
        self.operations[id as usize] = Operation {
            kind,
            page,
            run,
            frame,
            since,
            gone: 0,
            hold,
            again,
        };
        true
    }

    /// Fetches what is planned, as far as there is room; answers how many runs of the plan that was.
    fn fetch_ahead(&mut self) -> usize {
        if self.plan.is_empty() {
            return 0;
        }
        let now = self.shared.now();
        let keep = self.shared.pages.credits.reserve();
        let most = self.pool.free().saturating_sub(self.demand_frames());
        let mut left = most as u32;
        let mut fetched = 0;
        while fetched < self.plan.len() {
            let plan = self.plan[fetched];
            if !self.fetch_run(plan, now, keep, &mut left) {
                break;
            }
            fetched += 1;
        }
        self.lane.ring();
        if self.shared.wants_eviction() {
            self.shared.ring_evictors();
        }
        fetched
    }

    fn demand_frames(&self) -> usize {
        self.shared.config.lane.frames as usize / 4
    }

    /// False: there is no room for more.
    fn fetch_run(&mut self, plan: FetchRun, now: u64, keep: i64, left: &mut u32) -> bool {
        let pages = self.shared.pages.table.pages().get();
        let mut at = 0;
        while at < u32::from(plan.pages) {
            let Some(first) = plan.page.checked_add(PageCount::new(at)) else {
                return true;
            };
            let want = (u32::from(plan.pages) - at)
                .min(u32::from(MAX_RUN_PAGES))
                .min(pages.saturating_sub(first.get()));
            if want == 0 {
                return true;
            }
            if *left < want || self.lane.free_slots() <= DEMAND_SLOTS || self.free.len() < EVENTS {
                return false;
            }
            let Some(frame) = self.pool.take(want) else {
                return false;
            };
            let mut claimed = 0;
            let mut room = true;
            while claimed < want {
                let page = PageIndex::new(first.get() + claimed);
                match self.shared.pages.prefetch(page, keep) {
                    FaultStep::Read => claimed += 1,
                    FaultStep::NoCredit => {
                        self.shared.pages.credits.was_short();
                        room = false;
                        break;
                    }
                    _ => break,
                }
            }
            if claimed < want {
                self.pool
                    .give(FrameIndex(frame.0 + claimed), want - claimed);
            }
            if claimed > 0 {
                let hold = plan
                    .held
                    .and_then(|h| u32::from(h).checked_sub(at))
                    .filter(|h| *h < claimed)
                    .map(|h| h as u16);
                if !self.read_into(frame, first, claimed, Kind::Ahead, now, hold, false) {
                    for i in 0..claimed {
                        self.drop_fetch(PageIndex::new(first.get() + i));
                    }
                    return false;
                }
                count(&self.shared.counters.prefetch_issued, u64::from(claimed));
                *left -= claimed;
            }
            if !room {
                return false;
            }
            // The page that was not remote is skipped.
            at += claimed + u32::from(claimed < want);
        }
        true
    }

    fn drop_fetch(&self, page: PageIndex) {
        if self.shared.pages.fetch_dropped(page) {
            self.shared.wake_page(page);
        }
        self.shared.credits_came();
    }

    /// With nothing else to do: takes advice, and fetches what was advised as needed soon.
    fn fetch_what_is_wanted(&mut self) -> bool {
        while let Ok(given) = self.advice.try_recv() {
            self.policy.advise(given.page, given.pages, given.advice);
        }
        let credits = &self.shared.pages.credits;
        let spare = u32::try_from(credits.free() - credits.reserve()).unwrap_or(0);
        let frames = self.pool.free().saturating_sub(self.demand_frames()) as u32;
        // No more than there is room for: the policy names each page once.
        let room = frames.min(spare);
        if room == 0 || self.lane.free_slots() <= DEMAND_SLOTS {
            return false;
        }
        self.policy.wanted(room, &mut self.plan);
        let fetched = self.fetch_ahead();
        // Faults were quicker to take the room: the rest is wanted still.
        for at in fetched..self.plan.len() {
            let rest = self.plan[at];
            let pages = PageCount::new(u32::from(rest.pages));
            self.policy.advise(rest.page, pages, Advice::WillNeed);
        }
        self.plan.clear();
        fetched > 0
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

    fn arrived(&mut self, done: PageDone) {
        let id = done.tag as u32;
        let Some(operation) = self.operations.get(id as usize).copied() else {
            return;
        };
        match done.result {
            Ok(()) => {
                self.verify(id, operation);
                self.ready.push(id);
            }
            Err(PageError::Fenced) => {
                self.shared.finish(Standing::Fenced);
                self.release(id);
            }
            Err(PageError::Lost { .. }) if operation.run > 1 => {
                for i in 0..operation.run {
                    let page = PageIndex::new(operation.page.get() + i);
                    self.read_again(page, operation, false);
                }
                self.release(id);
            }
            Err(PageError::Lost { node }) => {
                self.lose(operation.page, Some(node));
                self.release(id);
            }
        }
    }

    /// One page of a run is read once more, alone.
    fn read_again(&mut self, page: PageIndex, of: Operation, again: bool) {
        let kind = of.kind;
        if !self.read_run(page, 1, kind, of.since, None, again) {
            // No room: whoever waits is woken and asks again.
            let waited = self.shared.pages.fetch_dropped(page);
            if waited || kind == Kind::Asked {
                self.shared.wake_page(page);
            }
        }
    }

    /// Compares what came with what was written. A page that differs is read once more, then lost.
    fn verify(&mut self, id: u32, operation: Operation) {
        for i in 0..operation.run {
            let page = PageIndex::new(operation.page.get() + i);
            let word = self.shared.pages.table.word(page);
            if word.source() != Source::Remote {
                continue;
            }
            let bytes = self.frame_bytes(FrameIndex(operation.frame.0 + i));
            // SAFETY: the READ is done and the frame is this worker's alone until it is given back.
            let bytes = unsafe { std::slice::from_raw_parts(bytes, PAGE_BYTES) };
            if XxHash3_64::oneshot(bytes) == self.shared.pages.table.checksum(page) {
                continue;
            }
            count(&self.shared.counters.checksum_mismatches, 1);
            self.operations[id as usize].gone |= 1 << i;
            if operation.again {
                self.lose(page, None);
            } else {
                self.read_again(page, operation, true);
            }
        }
    }

    fn lose(&mut self, page: PageIndex, node: Option<u16>) {
        if self.shared.pages.fetch_failed(page) {
            self.shared.report_loss(page, node);
            self.shared.credits_came();
            if !self.shared.poison(page, None) {
                // An event waits to be read: whoever waits faults again, and meets a lost page.
                self.shared.wake_page(page);
            }
        } else {
            // The target discarded it meanwhile: zeros are right.
            let fault = Fault {
                page,
                tid: 0,
                since: self.shared.now(),
            };
            self.begin(fault, Kind::Ahead, NO_FRAME);
        }
    }

    fn release(&mut self, id: u32) {
        let operation = std::mem::replace(&mut self.operations[id as usize], FREE);
        if operation.frame != NO_FRAME {
            self.pool.give(operation.frame, operation.run);
        }
        if let Kind::Parked { batch, .. } = operation.kind {
            self.shared.pages.reader_done(batch);
            self.shared.ring_evictors();
        }
        self.free.push(id);
    }

    /// Installs what has arrived. What has to wait for an event to be read stays in the list.
    fn install_ready(&mut self) -> bool {
        let mut any = false;
        let mut at = 0;
        while at < self.ready.len() {
            let id = self.ready[at];
            if self.install(id) {
                any = true;
                self.ready.swap_remove(at);
            } else {
                at += 1;
            }
        }
        any
    }

    /// False: later.
    fn install(&mut self, id: u32) -> bool {
        let mut operation = self.operations[id as usize];
        if let Kind::Parked { batch, slot } = operation.kind {
            return self.install_parked(id, operation, batch, slot);
        }
        let hold = operation.hold.map(u32::from).filter(|_| {
            operation.kind == Kind::Ahead
                && self.held.len() < MAX_HELD
                && operation.frame != NO_FRAME
        });
        let section = self.shared.gate.change(self.index);
        let mut at = 0;
        let mut finished = true;
        while at < operation.run {
            if operation.gone & (1 << at) != 0 {
                at += 1;
                continue;
            }
            let page = PageIndex::new(operation.page.get() + at);
            if hold == Some(at) && !self.shared.pages.table.word(page).waiters() {
                at += 1;
                continue;
            }
            let content = self.content(page, operation.frame);
            let mut run = 1;
            while at + run < operation.run
                && operation.gone & (1 << (at + run)) == 0
                && hold != Some(at + run)
                && self.content(PageIndex::new(page.get() + run), operation.frame) == content
            {
                run += 1;
            }
            let bytes = (content == Content::Fetched).then(|| {
                self.frame_bytes(FrameIndex(operation.frame.0 + at))
                    .cast_const()
            });
            // SAFETY: the run's frames are this operation's, behind each other, `run` pages long.
            let (filled, then) = unsafe { self.shared.fill(page, run, bytes) };
            for i in 0..filled {
                operation.gone |= 1 << (at + i);
            }
            at += filled;
            match then {
                Fill::Done => {}
                Fill::Later => {
                    finished = false;
                    break;
                }
                Fill::Gone => {
                    self.shared.pages.discard(page);
                    self.drop_fetch(page);
                    operation.gone |= 1 << at;
                    at += 1;
                }
            }
        }
        drop(section);
        self.operations[id as usize].gone = operation.gone;
        if !finished {
            return false;
        }
        self.finished(id, operation, hold);
        true
    }

    fn content(&self, page: PageIndex, frame: FrameIndex) -> Content {
        if frame == NO_FRAME {
            Content::Zero
        } else {
            self.shared.pages.content(page)
        }
    }

    /// Everything of the operation is in, save a page that is held.
    fn finished(&mut self, id: u32, operation: Operation, hold: Option<u32>) {
        let now = self.shared.now();
        let kind = match operation.kind {
            Kind::Ahead => AdmissionKind::Ahead,
            Kind::Parked { .. } => AdmissionKind::Again,
            _ => AdmissionKind::Asked,
        };
        if kind != AdmissionKind::Ahead {
            self.service
                .saturating_record(now.saturating_sub(operation.since));
        }
        let mut kept = None;
        for i in 0..operation.run {
            let page = PageIndex::new(operation.page.get() + i);
            if hold == Some(i) && operation.gone & (1 << i) == 0 {
                let frame = FrameIndex(operation.frame.0 + i);
                self.held.push(Held {
                    page,
                    frame,
                    since: now,
                });
                kept = Some(i);
                continue;
            }
            self.admissions.push(Admission { page, kind });
        }
        if let Some(kept) = kept {
            // All frames but the held one go back here; release must not give them again.
            for i in (0..operation.run).filter(|i| *i != kept) {
                self.pool.give(FrameIndex(operation.frame.0 + i), 1);
            }
            self.operations[id as usize].frame = NO_FRAME;
        }
        self.release(id);
    }

    /// A page out of a parking pipe: from the evictor's frames if it has copied it out already.
    fn install_parked(&mut self, id: u32, operation: Operation, batch: u8, slot: u8) -> bool {
        let shared = Arc::clone(&self.shared);
        let parking = &shared.parking[usize::from(batch)];
        let mut frame = None;
        let bytes = match parking.bytes_of(slot) {
            Some(bytes) => bytes,
            None => {
                let Some(taken) = self.pool.take(1) else {
                    return false;
                };
                frame = Some(taken);
                let into = self.frame_bytes(taken);
                // SAFETY: the frame is ours, a page long, and nobody else writes to it.
                let peeked = unsafe {
                    parking
                        .pipe
                        .peek_to(slot.into(), &self.scratch, self.shared.sink.as_fd(), into)
                };
                if let Err(error) = peeked {
                    tracing::error!(%error, page = operation.page.get(), "a parked page is not in its pipe");
                    self.pool.give(taken, 1);
                    self.lose(operation.page, None);
                    self.release(id);
                    return true;
                }
                into.cast_const()
            }
        };
        let section = self.shared.gate.change(self.index);
        let bytes =
            (self.shared.pages.content(operation.page) == Content::Fetched).then_some(bytes);
        // SAFETY: a page's bytes, either in our frame or in the evictor's, which keeps them while we are
        // a reader of the pipe.
        let (filled, then) = unsafe { self.shared.fill(operation.page, 1, bytes) };
        drop(section);
        if let Some(frame) = frame {
            self.pool.give(frame, 1);
        }
        match (filled, then) {
            (_, Fill::Later) => return false,
            (0, _) => {
                self.shared.pages.discard(operation.page);
                self.drop_fetch(operation.page);
                self.release(id);
            }
            _ => self.finished(id, operation, None),
        }
        true
    }

    /// A page that somebody fetches is asked for: if it is one that we hold, it goes in now.
    fn ask_for_held(&mut self, page: PageIndex) {
        if let Some(at) = self.held.iter().position(|h| h.page == page) {
            self.install_held(at);
        } else if self.shared.worker_bells.len() > 1 {
            // Another worker may hold it.
            self.shared.ring_workers();
        }
    }

    fn install_held(&mut self, at: usize) {
        let held = self.held.swap_remove(at);
        let Some(id) = self.free.pop() else {
            self.held.push(held);
            return;
        };
        self.operations[id as usize] = Operation {
            kind: Kind::Ahead,
            page: held.page,
            run: 1,
            frame: held.frame,
            since: held.since,
            ..FREE
        };
        self.ready.push(id);
    }

    /// Held pages that are asked for, or too old, go in.
    fn look_at_held(&mut self) {
        let now = self.shared.now();
        let mut at = 0;
        while at < self.held.len() {
            let held = self.held[at];
            let asked = self.shared.pages.table.word(held.page).waiters();
            if asked || now.saturating_sub(held.since) > HOLD_NS {
                if !asked {
                    self.policy.wasted(held.page);
                }
                let before = self.held.len();
                self.install_held(at);
                if self.held.len() == before {
                    return;
                }
            } else {
                at += 1;
            }
        }
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
        let timeout = if self.held.is_empty() {
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

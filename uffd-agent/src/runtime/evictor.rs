//! An evictor: keeps credits free, in the background, many batches at a time.
//!
//! ```text
//!   pick -> choose -> splice -> [gate: punch] -> settle -> copy out -> judge -> WRITE .. -> drain
//!     batch 0  ######################------------####~~~~~~~~~~~~~~~##
//!     batch 1        ######################------------####~~~~~~~~~~~~~~~##     # CPU  - waiting  ~ network
//! ```
//!
//! It owns a part of the places where pages wait while they leave, a lane, and its frames in blocks of such
//! a place's size. It never waits for one batch while another one could go on. How a page leaves depends on
//! the memory behind the region: see `leaving`. Huge pages leave as one, as `halls` says.

mod halls;
mod leaving;

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use mycoram_fabric::pages::{
    Direction, FrameIndex, PageDone, PageError, PageLane, PageRequest, Which,
};
use mycoram_fabric::transport::Armed;
use mycoram_fabric::units::{PAGE_BYTES, PageIndex};

pub(crate) use self::halls::PARTS as HALL_PARTS;
use self::halls::{Hall, PARTS};
use super::direct_io::DirectIo;
use super::parking::Parking;
use super::shared::{Fill, NOTHING_LEAVES, Shared, Standing};
use super::victim_desk::VictimDesk;
use crate::engine::{Action, Batch, BatchStep, Content, Run};
use crate::kernel::ParkingPipe;
use crate::page_table::PageState;
use crate::target::SLOTS_PER_PIPE;

/// Longest sleep, ns.
const LONGEST_SLEEP_NS: u64 = 1_000_000_000;
/// How long to wait when every victim refused, ns.
const REFUSED_SLEEP_NS: u64 = 1_000_000;

struct Working {
    batch: Batch,
    /// Its frames, from copying out to draining.
    block: Option<FrameIndex>,
    /// It has pages that may have to wait for a place on a memory node.
    unplaced: bool,
    /// When its pages were chosen, ns.
    since: u64,
    /// Some of its pages had to be written.
    wrote: bool,
    /// It is part of a hall, and waits for the others of it to be emptied together.
    left: bool,
}

/// See the module.
pub(crate) struct Evictor {
    shared: Arc<Shared>,
    index: usize,
    /// Its number at the gate.
    thread: usize,
    lane: Box<dyn PageLane>,
    desk: Arc<Mutex<VictimDesk>>,
    batches: Vec<Working>,
    halls: Vec<Hall>,
    blocks: Vec<FrameIndex>,
    scratch: ParkingPipe,
    direct_io: DirectIo,
    victims: Vec<PageIndex>,
    refused: Vec<PageIndex>,
    done: Vec<PageDone>,
    poll_fds: Vec<libc::pollfd>,
    /// Nobody could be chosen last time.
    nobody: bool,
    /// The node that refused a page last.
    lost_node: Option<u16>,
}

/// What an evictor is made of.
pub(crate) struct EvictorParts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) index: usize,
    pub(crate) thread: usize,
    pub(crate) lane: Box<dyn PageLane>,
    pub(crate) desk: Arc<Mutex<VictimDesk>>,
    /// One for each of its pipes; those of a dead predecessor hold pages already.
    pub(crate) batches: Vec<Batch>,
    /// How many of its pipes are parts of halls: the first ones.
    pub(crate) in_halls: usize,
    pub(crate) scratch: ParkingPipe,
}

impl Evictor {
    pub(crate) fn new(parts: EvictorParts) -> Self {
        let block = u32::from(SLOTS_PER_PIPE);
        let blocks = parts.shared.config.lane.frames / block;
        let direct_io = DirectIo::of(parts.shared.target_pid);
        let now = parts.shared.now();
        let slots = parts.batches.len() * usize::from(SLOTS_PER_PIPE);
        for batch in &parts.batches {
            if let Parking::Pipe(pipe) = &parts.shared.parking[usize::from(batch.pipe())] {
                pipe.owned_by(Arc::clone(parts.lane.frames()));
            }
        }
        Self {
            shared: parts.shared,
            index: parts.index,
            thread: parts.thread,
            lane: parts.lane,
            desk: parts.desk,
            batches: parts
                .batches
                .into_iter()
                .map(|batch| Working {
                    batch,
                    block: None,
                    unplaced: false,
                    since: now,
                    wrote: false,
                    left: false,
                })
                .collect(),
            halls: Hall::all_of(parts.in_halls),
            blocks: (0..blocks).map(|b| FrameIndex(b * block)).collect(),
            scratch: parts.scratch,
            direct_io,
            victims: Vec::with_capacity(slots),
            refused: Vec::with_capacity(slots),
            done: Vec::with_capacity(1024),
            poll_fds: Vec::with_capacity(64),
            nobody: false,
            lost_node: None,
        }
    }

    /// Evicts until the region is over.
    pub(crate) fn run(mut self) {
        while self.shared.is_serving() {
            let mut busy = self.poll_lane();
            let mut until = u64::MAX;
            for at in 0..self.batches.len() {
                busy |= self.advance(at, &mut until);
            }
            self.lane.ring();
            self.tell_oldest();
            self.nobody = false;
            if self.shared.wants_eviction() && self.has_idle() {
                let started = self.start_huge() || self.start();
                self.nobody = !started;
                busy |= started;
                self.tell_oldest();
            }
            if !busy {
                self.sleep(until);
            }
        }
    }

    /// What monitors know as the lag of write-back.
    fn tell_oldest(&self) {
        let busy = self.batches.iter().filter(|w| !w.batch.is_idle());
        let oldest = busy.map(|w| w.since).min().unwrap_or(NOTHING_LEAVES);
        self.shared.leaving.since[self.index].store(oldest, Ordering::Relaxed);
    }

    /// Batches of single pages.
    fn singles(&self) -> std::ops::RangeFrom<usize> {
        self.halls.len() * PARTS..
    }

    /// Whether something more can be begun.
    fn has_idle(&self) -> bool {
        self.batches[self.singles()]
            .iter()
            .any(|w| w.batch.is_idle())
            || self.empty_one().is_some()
    }

    /// Chooses victims for as many idle batches as are needed. False: nobody may leave now.
    fn start(&mut self) -> bool {
        let (size, now) = (self.shared.eviction_size(), self.shared.now());
        let singles = self.singles();
        let idle = self.batches[singles.clone()].iter();
        let idle = idle.filter(|w| w.batch.is_idle()).count();
        if idle == 0 {
            return false;
        }
        let wanted = usize::try_from(self.shared.eviction_need()).unwrap_or(0);
        let wanted = wanted.clamp(size, size * idle);
        let desk = Arc::clone(&self.desk);
        let mut desk = desk.lock().unwrap_or_else(PoisonError::into_inner);
        self.victims.clear();
        desk.pick(&self.shared.pages, wanted, &mut self.victims);
        // Neighbours leave together: one splice, one punch, one WRITE.
        self.victims.sort_unstable();
        let mut victims = self.victims.iter();
        let mut any = false;
        // One batch at a time may find out that memory nodes have no place: all others go on meanwhile.
        let mut waits = self
            .batches
            .iter()
            .any(|w| w.unplaced && !w.batch.is_idle());
        let singles = self.batches[singles].iter_mut();
        for working in singles.filter(|w| w.batch.is_idle()) {
            let batch = &mut working.batch;
            (working.unplaced, working.wrote) = (false, false);
            working.since = now;
            while batch.len() < size
                && let Some(page) = victims.next()
            {
                if !self.shared.remote.is_placed(*page) {
                    if waits && !working.unplaced {
                        self.refused.push(*page);
                        continue;
                    }
                    (waits, working.unplaced) = (true, true);
                }
                if !batch.choose(&self.shared.pages, *page) {
                    let word = self.shared.pages.table.word(*page);
                    if word.state() == PageState::Resident && !word.homeless() {
                        self.refused.push(*page);
                    }
                }
            }
            any |= !batch.is_idle();
        }
        for page in self.refused.drain(..) {
            desk.stays(page);
        }
        any
    }

    /// Takes a batch as far as it goes now. `until` becomes the time at which it wants to go on.
    fn advance(&mut self, at: usize, until: &mut u64) -> bool {
        let short = u64::from(self.shared.config.settle_ms) * 1_000_000;
        let long = short.max(u64::from(self.shared.config.direct_settle_ms) * 1_000_000);
        let mut any = false;
        loop {
            let now = self.shared.now();
            let settle = match self.batches[at].batch.settling_since() {
                // A page that anything might still be writing was not moved.
                _ if self.shared.memory.is_private() => 0,
                Some(since) => self.direct_io.settle(since, now, short, long),
                None => short,
            };
            let step = self.batches[at].batch.step(&self.shared.pages, now, settle);
            match step {
                BatchStep::Idle | BatchStep::Wait => return any,
                BatchStep::Settle { until: then } => {
                    *until = then.min(*until);
                    return any;
                }
                BatchStep::Splice(run) => self.take_reference(at, run),
                BatchStep::Punch => self.take_away(at),
                BatchStep::Read => {
                    if !self.look_at_pages(at) {
                        return any;
                    }
                }
                BatchStep::Write(run) => {
                    if !self.write(at, run) {
                        return any;
                    }
                }
                BatchStep::Home(run) => self.bring_home(at, run.slot),
                BatchStep::Drain => {
                    if !self.leave(at) {
                        return any;
                    }
                }
            }
            any = true;
        }
    }

    fn bytes(&self, frame: FrameIndex) -> *mut u8 {
        // SAFETY: frames come from `blocks`, which lie within the lane's frames.
        unsafe {
            self.lane
                .frames()
                .as_ptr()
                .add(frame.0 as usize * PAGE_BYTES)
        }
    }

    /// False: the lane is full.
    fn write(&mut self, at: usize, run: Run) -> bool {
        let Some(block) = self.batches[at].block else {
            return false;
        };
        let request = PageRequest {
            tag: (at as u64) << 32 | (run.slot as u64) << 16 | u64::from(run.count),
            direction: Direction::Write,
            page: run.page,
            run: run.count as u16,
            frame: FrameIndex(block.0 + run.slot as u32),
            which: Which::Live,
        };
        if self.lane.queue(request).is_err() {
            return false;
        }
        self.batches[at].batch.writing(run);
        self.batches[at].wrote = true;
        true
    }

    fn poll_lane(&mut self) -> bool {
        self.lane.poll(&mut self.done);
        let any = !self.done.is_empty();
        for i in 0..self.done.len() {
            let done = self.done[i];
            let at = (done.tag >> 32) as usize;
            let slot = (done.tag >> 16) as usize & 0xffff;
            let pages = done.tag as usize & 0xffff;
            match done.result {
                Ok(()) => self.batches[at]
                    .batch
                    .written(&self.shared.pages, slot, pages),
                Err(error @ (PageError::Lost { .. } | PageError::Unplaced)) => {
                    if let PageError::Lost { node } = error {
                        self.lost_node = Some(node);
                    }
                    self.batches[at]
                        .batch
                        .write_failed(&self.shared.pages, slot, pages);
                }
                Err(PageError::Fenced) => self.shared.finish(Standing::Fenced),
            }
        }
        self.done.clear();
        any
    }

    /// A page whose memory node is gone stays here, as long as no more than half of the budget does.
    fn bring_home(&mut self, at: usize, slot: usize) {
        let homeless = self.shared.homeless.load(Ordering::SeqCst);
        if homeless >= self.shared.pages.credits.budget() / 2 {
            return self.lose(at, slot, self.lost_node);
        }
        let shared = Arc::clone(&self.shared);
        let Working { batch, block, .. } = &mut self.batches[at];
        let page = batch.page(slot);
        let (Action::ReadParked, Some(block)) =
            (batch.bring_home(&shared.pages, slot, true), *block)
        else {
            return;
        };
        shared.homeless.fetch_add(1, Ordering::SeqCst);
        let bytes = self.bytes(FrameIndex(block.0 + slot as u32)).cast_const();
        while shared.is_serving() {
            let section = shared.gate.change(self.thread);
            let bytes = (shared.pages.content(page) == Content::Fetched).then_some(bytes);
            // SAFETY: the frame holds the page until the pipe is drained.
            let (_, then) = unsafe { shared.fill(page, 1, bytes) };
            drop(section);
            match then {
                Fill::Done => return,
                // A fault worker reads the event that stands in the way.
                Fill::Later => std::thread::yield_now(),
                Fill::Gone => {
                    shared.pages.discard(page);
                    shared.pages.fetch_dropped(page);
                    return;
                }
            }
        }
    }

    fn lose(&mut self, at: usize, slot: usize, node: Option<u16>) {
        let page = self.batches[at].batch.page(slot);
        if self.batches[at]
            .batch
            .bring_home(&self.shared.pages, slot, false)
            == Action::Poison
        {
            self.shared.report_loss(page, node);
            self.shared.poison(page, None);
        }
    }

    fn sleep(&mut self, until: u64) {
        let bell = &self.shared.evictor_bells[self.index];
        bell.lie_down();
        let now = self.shared.now();
        let idle = self.has_idle();
        let wanted = self.shared.wants_eviction() && idle && !self.nobody;
        if wanted || !self.shared.is_serving() || self.lane.arm() == Armed::Ready {
            bell.get_up();
            return;
        }
        let mut sleep = until.saturating_sub(now).min(LONGEST_SLEEP_NS);
        if self.nobody {
            sleep = sleep.min(REFUSED_SLEEP_NS);
        }
        let wait_for = |fd: RawFd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        self.poll_fds.clear();
        self.poll_fds.push(wait_for(bell.as_fd().as_raw_fd()));
        let fds = &mut self.poll_fds;
        self.lane
            .readiness(&mut |fd| fds.push(wait_for(fd.as_raw_fd())));
        let timeout = libc::timespec {
            tv_sec: (sleep / 1_000_000_000) as libc::time_t,
            tv_nsec: (sleep % 1_000_000_000) as libc::c_long,
        };
        // SAFETY: the vector and the time outlive the call; no signal mask is given.
        unsafe {
            libc::ppoll(
                self.poll_fds.as_mut_ptr(),
                self.poll_fds.len() as libc::nfds_t,
                &raw const timeout,
                std::ptr::null(),
            )
        };
        bell.get_up();
    }
}

/// Whether a page is all zero; most pages are not from the first bytes on.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // SAFETY: every bit pattern is a u128; the parts that do not fit are returned beside.
    let (head, words, tail) = unsafe { bytes.align_to::<u128>() };
    words.iter().all(|w| *w == 0) && head.iter().chain(tail).all(|b| *b == 0)
}

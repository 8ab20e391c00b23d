//! The keeper: what a region has to do that is not urgent. Figures once a second, discards that have to be
//! looked at again, losses that have to be told, the target's end.
//!
//! ```text
//!   suspects --> look after 1, 10, 100 ms: a hole? then never written     after GRACE: it stays
//!   losses   --> one event a second
//!   pidfd    --> the target has exited: everything stops, remote memory goes back
//!   a panic  --> nobody can come after us: whoever needs a page that is not there gets SIGBUS
//! ```

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;
use mycoram_fabric::units::{PageCount, PageIndex};

use super::check::Checks;
use super::failure;
use super::region::{EventHandler, LostPage, RegionEvent};
use super::shared::{LossReport, Shared, Standing, SuspectRange};
use super::snapshot;
use crate::page_table::{Header, PageState, StateFile};

/// When pages whose discard was announced are looked at, ns after the announcement. After the last time
/// the discard must be over: a page that is still there then is taken for kept (MADV_DONTNEED keeps the
/// pages of a shared file).
const LOOKS_NS: [u64; 4] = [1_000_000, 10_000_000, 100_000_000, 250_000_000];
/// How often figures are written and losses are told, ns.
const FIGURES_NS: u64 = 1_000_000_000;
/// Its thread.
const NAME: &str = "myco-keeper";
/// Most lost pages named in one event.
const NAMED: usize = 64;

struct Suspect {
    range: SuspectRange,
    looks: usize,
}

/// See the module.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    pidfd: OwnedFd,
    threads: Vec<JoinHandle<()>>,
    losses: Receiver<LossReport>,
    suspects: Receiver<SuspectRange>,
    looking: Vec<Suspect>,
    events: EventHandler,
    state: Arc<Mutex<StateFile>>,
    /// The version of the address map that the state file has.
    address: u64,
    named: Vec<LostPage>,
    told: u64,
    /// `None`: nobody is to read them.
    figures: Option<PathBuf>,
    figures_at: u64,
    checks: Checks,
}

/// What a keeper is made of.
pub(crate) struct KeeperParts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pidfd: OwnedFd,
    /// The workers and evictors, which it waits for at the end.
    pub(crate) threads: Vec<JoinHandle<()>>,
    pub(crate) losses: Receiver<LossReport>,
    pub(crate) suspects: Receiver<SuspectRange>,
    pub(crate) events: EventHandler,
    pub(crate) state: Arc<Mutex<StateFile>>,
    pub(crate) figures: Option<PathBuf>,
}

impl Keeper {
    pub(crate) fn new(parts: KeeperParts) -> Self {
        Self {
            shared: parts.shared,
            pidfd: parts.pidfd,
            threads: parts.threads,
            losses: parts.losses,
            suspects: parts.suspects,
            looking: Vec::new(),
            events: parts.events,
            state: parts.state,
            address: 0,
            named: Vec::new(),
            told: 0,
            figures: parts.figures,
            figures_at: 0,
            checks: Checks::default(),
        }
    }

    /// Keeps until the region is over and all its threads have ended.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        failure::watch(&shared, NAME, || self.keep());
        for thread in self.threads.drain(..) {
            // Its panic was caught.
            let _ = thread.join();
        }
        self.checks.end();
        self.shared.flush_lane.close();
        failure::watch(&shared, NAME, || self.tell_the_last());
        self.end();
    }

    fn keep(&mut self) {
        self.write_figures();
        while self.shared.is_serving() {
            self.keep_address();
            self.take_suspects();
            self.look_at_suspects();
            let now = self.shared.now();
            if now >= self.figures_at {
                self.figures_at = now + FIGURES_NS;
                self.shared.pages.credits.relax();
                self.write_figures();
                self.tell_losses();
                self.checks.tend(&self.shared);
            }
            self.sleep();
        }
    }

    fn tell_the_last(&mut self) {
        self.keep_address();
        self.tell_losses();
        self.write_figures();
    }

    fn end(mut self) {
        match self.shared.standing() {
            Standing::TargetGone => {
                self.shared.remote.release();
                if let Some(figures) = &self.figures {
                    let _ = std::fs::remove_file(figures);
                }
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.remove();
                drop(state);
                self.tell(RegionEvent::TargetExited);
            }
            Standing::Fenced => self.tell(RegionEvent::Fenced),
            Standing::Failed => {
                if let Some(panic) = self.shared.failure().cloned() {
                    self.tell(RegionEvent::Failed(panic));
                }
                if !self.shared.config.has_successor {
                    failure::refuse_all(&self.shared);
                }
            }
            Standing::Serving | Standing::Stopping => {}
        }
    }

    /// A listener that panics does no harm to the region.
    fn tell(&mut self, event: RegionEvent) {
        let told = catch_unwind(AssertUnwindSafe(|| (self.events)(event)));
        if told.is_err() {
            tracing::error!(region = %self.shared.config.name, "who listens to the region's events panicked");
        }
    }

    fn write_figures(&self) {
        let Some(path) = &self.figures else { return };
        let stats = snapshot::take(&self.shared);
        if let Err(error) = snapshot::write(&stats, path) {
            tracing::warn!(%error, path = %path.display(), "the region's figures cannot be written");
        }
    }

    /// A successor has to know where the target has moved its mapping.
    fn keep_address(&mut self) {
        let version = self.shared.address.version();
        if version == self.address {
            return;
        }
        self.address = version;
        let segments = self.shared.address.segments();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let header = Header {
            segments: segments.iter().map(|s| (s.addr, s.page, s.pages)).collect(),
            ..state.header().clone()
        };
        if let Err(error) = state.set_header(header) {
            tracing::error!(%error, "a successor would not find the target's mapping");
        }
    }

    fn tell_losses(&mut self) {
        for loss in self.losses.try_iter() {
            if self.named.len() < NAMED {
                let node = loss.node.map(|node| self.shared.remote.node_name(node));
                self.named.push(LostPage {
                    page: loss.page,
                    node,
                });
            }
        }
        let total = self.shared.counters.lost.load(Ordering::Relaxed);
        if total > self.told {
            self.told = total;
            let pages = std::mem::take(&mut self.named);
            self.tell(RegionEvent::Lost { pages, total });
        }
    }

    fn take_suspects(&mut self) {
        let taken = self.suspects.try_iter();
        self.looking
            .extend(taken.map(|range| Suspect { range, looks: 0 }));
        if self.shared.suspects_missed.swap(false, Ordering::SeqCst) {
            let range = SuspectRange {
                page: PageIndex::new(0),
                pages: self.shared.pages.table.pages(),
                at: self.shared.now(),
            };
            self.looking.push(Suspect { range, looks: 0 });
        }
    }

    fn look_at_suspects(&mut self) {
        let now = self.shared.now();
        let shared = Arc::clone(&self.shared);
        let mut freed = false;
        self.looking.retain_mut(|suspect| {
            while suspect.looks < LOOKS_NS.len()
                && now.saturating_sub(suspect.range.at) >= LOOKS_NS[suspect.looks]
            {
                suspect.looks += 1;
                let last = suspect.looks == LOOKS_NS.len();
                freed |= look(&shared, suspect.range, last);
            }
            suspect.looks < LOOKS_NS.len()
        });
        if freed {
            shared.credits_came();
            shared.ring_evictors();
        }
    }

    fn sleep(&self) {
        let bell = &self.shared.keeper_bell;
        bell.lie_down();
        let now = self.shared.now();
        let next_look = self
            .looking
            .iter()
            .map(|s| s.range.at + LOOKS_NS[s.looks.min(LOOKS_NS.len() - 1)])
            .min()
            .unwrap_or(u64::MAX);
        let until = next_look.min(self.figures_at).saturating_sub(now);
        if !self.shared.is_serving()
            || !self.suspects.is_empty()
            || self.shared.suspects_missed.load(Ordering::SeqCst)
        {
            bell.get_up();
            return;
        }
        let wait_for = |fd: RawFd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds = vec![
            wait_for(bell.as_fd().as_raw_fd()),
            wait_for(self.pidfd.as_raw_fd()),
        ];
        self.shared
            .flush_lane
            .tend(now, &mut |fd| fds.push(wait_for(fd.as_raw_fd())));
        let timeout = i32::try_from(until.div_ceil(1_000_000)).unwrap_or(1000);
        // SAFETY: the list outlives the call.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        bell.get_up();
        if fds[1].revents != 0 {
            self.shared.finish(Standing::TargetGone);
        }
    }
}

/// Looks which suspect pages of a range are gone. At the `last` look those that are there are kept.
fn look(shared: &Shared, range: SuspectRange, last: bool) -> bool {
    let mut any = false;
    for at in 0..range.pages.get() {
        let Some(page) = range.page.checked_add(PageCount::new(at)) else {
            break;
        };
        let word = shared.pages.table.word(page);
        if !word.suspect() || word.state() != PageState::Resident {
            continue;
        }
        match shared.has_data(page) {
            Ok(false) => any |= shared.pages.hole_found(page, word),
            Ok(true) if last => {
                shared.pages.data_found(page, word);
                any = true;
            }
            _ => {}
        }
    }
    any
}

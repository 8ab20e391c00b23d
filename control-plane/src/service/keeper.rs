//! The thread that owns the state and the store.
//!
//! ```text
//!   jobs --> apply, apply, apply ... (a group) --> one commit --> the answers of the group
//!                                                   | fails
//!                                                   '--> undo in reverse; all are told to ask again
//! ```
//!
//! After a commit of which it is not known whether it was done, the state is loaded anew from the store;
//! until that works, nothing is answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::cluster::{Batch, Changes, Cluster, Command, Tick};
use crate::store::{Revision, Store, StoreError};

/// Jobs that wait; each has a caller.
const QUEUE: usize = 1024;
/// Steps that share a commit.
const GROUP: usize = 64;
/// How often time passes for the state.
const TICK: Duration = Duration::from_millis(200);

/// Why a job was not done. Its caller may ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotDone {
    /// The queue is full.
    #[error("the control plane is busy: ask again")]
    Busy,
    /// The thread has ended.
    #[error("the control plane is ending")]
    Ending,
    /// The store did not take it; the log has the reason.
    #[error("the control plane's store did not take the change: see its log")]
    Store,
}

/// Something for the keeper.
trait Job: Send {
    /// Does it. Changes are to be committed before [`Self::finish`].
    fn apply(&mut self, now_ms: u64, cluster: &mut Cluster) -> Option<Changes>;
    /// Gives the answer, or says that nothing was done.
    fn finish(self: Box<Self>, stored: bool);
}

type Answered<T> = oneshot::Sender<Result<T, NotDone>>;

fn answer<T>(to: Answered<T>, outcome: Option<T>, stored: bool) {
    let outcome = outcome.filter(|_| stored).ok_or(NotDone::Store);
    // Nobody waits any more if the caller has given up.
    let _ = to.send(outcome);
}

struct Apply<C: Command> {
    command: C,
    outcome: Option<Result<C::Answer, C::Refusal>>,
    to: Answered<Result<C::Answer, C::Refusal>>,
}

impl<C> Job for Apply<C>
where
    C: Command + Send,
    C::Answer: Send,
    C::Refusal: Send,
{
    fn apply(&mut self, now_ms: u64, cluster: &mut Cluster) -> Option<Changes> {
        let (outcome, changes) = match cluster.apply(now_ms, &self.command) {
            Ok(step) => (Ok(step.answer), Some(step.changes)),
            Err(refusal) => (Err(refusal), None),
        };
        self.outcome = Some(outcome);
        changes
    }

    fn finish(self: Box<Self>, stored: bool) {
        answer(self.to, self.outcome, stored);
    }
}

struct Look<F, T> {
    look: Option<F>,
    outcome: Option<T>,
    to: Answered<T>,
}

impl<F, T> Job for Look<F, T>
where
    F: FnOnce(&Cluster) -> T + Send,
    T: Send,
{
    fn apply(&mut self, _now_ms: u64, cluster: &mut Cluster) -> Option<Changes> {
        self.outcome = self.look.take().map(|look| look(cluster));
        None
    }

    fn finish(self: Box<Self>, stored: bool) {
        answer(self.to, self.outcome, stored);
    }
}

/// What the keeper counts.
#[derive(Debug, Default)]
pub(super) struct Counted {
    store_failures: AtomicU64,
    waiting: AtomicU64,
    copied: AtomicU64,
}

impl Counted {
    /// Commits that the store did not take.
    pub(super) fn store_failures(&self) -> u64 {
        self.store_failures.load(Ordering::Relaxed)
    }

    /// Extents that wait for a copy.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Replicas that were made anew.
    pub(super) fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    /// One more was made.
    pub(super) fn add_copied(&self) {
        self.copied.fetch_add(1, Ordering::Relaxed);
    }
}

/// To the keeper's thread.
#[derive(Clone)]
pub(super) struct Keeper {
    jobs: SyncSender<Box<dyn Job>>,
    counted: Arc<Counted>,
}

impl Keeper {
    /// Starts the thread; it ends when the last handle is gone.
    pub(super) fn start(
        cluster: Cluster,
        store: Box<dyn Store>,
        revision: Revision,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, received) = sync_channel(QUEUE);
        let counted = Arc::<Counted>::default();
        let thread = Thread {
            cluster,
            store,
            revision,
            doubtful: false,
            started: Instant::now(),
            counted: Arc::clone(&counted),
        };
        let thread = std::thread::Builder::new()
            .name("myco-keeper".to_owned())
            .spawn(move || thread.run(&received))?;
        Ok((Self { jobs, counted }, thread))
    }

    /// Does a command; the answer comes when it is durable.
    pub(super) async fn apply<C>(
        &self,
        command: C,
    ) -> Result<Result<C::Answer, C::Refusal>, NotDone>
    where
        C: Command + Send + 'static,
        C::Answer: Send + 'static,
        C::Refusal: Send + 'static,
    {
        let (to, answered) = oneshot::channel();
        let outcome = None;
        self.send(Box::new(Apply {
            command,
            outcome,
            to,
        }))?;
        answered.await.unwrap_or(Err(NotDone::Ending))
    }

    /// Looks at the state. What is seen is durable.
    pub(super) async fn look<F, T>(&self, look: F) -> Result<T, NotDone>
    where
        F: FnOnce(&Cluster) -> T + Send + 'static,
        T: Send + 'static,
    {
        let (to, answered) = oneshot::channel();
        self.send(Box::new(Look {
            look: Some(look),
            outcome: None,
            to,
        }))?;
        answered.await.unwrap_or(Err(NotDone::Ending))
    }

    /// What was counted so far.
    pub(super) fn counted(&self) -> &Counted {
        &self.counted
    }

    fn send(&self, job: Box<dyn Job>) -> Result<(), NotDone> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => NotDone::Busy,
            TrySendError::Disconnected(_) => NotDone::Ending,
        })
    }
}

struct Thread {
    cluster: Cluster,
    store: Box<dyn Store>,
    revision: Revision,
    /// Whether the last commit was done is not known.
    doubtful: bool,
    started: Instant,
    counted: Arc<Counted>,
}

impl Thread {
    fn run(mut self, jobs: &Receiver<Box<dyn Job>>) {
        let mut next_tick = self.started + TICK;
        loop {
            match jobs.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(first) => self.group(first, jobs),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn group(&mut self, first: Box<dyn Job>, jobs: &Receiver<Box<dyn Job>>) {
        let mut group = Vec::new();
        let mut changes = Vec::new();
        let mut next = Some(first);
        while let Some(mut job) = next {
            if !self.doubtful {
                changes.extend(job.apply(self.now_ms(), &mut self.cluster));
            }
            group.push(job);
            next = (group.len() < GROUP)
                .then(|| jobs.try_recv().ok())
                .flatten();
        }
        let stored = !self.doubtful && self.commit(changes);
        for job in group {
            job.finish(stored);
        }
    }

    fn tick(&mut self) {
        if self.doubtful && !self.load_again() {
            return;
        }
        match self.cluster.apply(self.now_ms(), &Tick) {
            Ok(step) => {
                let waiting = u64::from(step.answer.waiting);
                self.counted.waiting.store(waiting, Ordering::Relaxed);
                self.commit(vec![step.changes]);
            }
            Err(refusal) => tracing::error!(
                error = &refusal as &dyn std::error::Error,
                "time does not pass"
            ),
        }
    }

    /// Makes the changes durable, or undoes them.
    fn commit(&mut self, changes: Vec<Changes>) -> bool {
        let mut merged = BTreeMap::new();
        for (key, record) in changes.iter().flat_map(|changes| &changes.batch().changes) {
            merged.insert(*key, record.clone());
        }
        if merged.is_empty() {
            return true;
        }
        let batch = Batch {
            changes: merged.into_iter().collect(),
        };
        match self.store.commit(self.revision, &batch) {
            Ok(revision) => {
                self.revision = revision;
                true
            }
            Err(error) => {
                self.doubtful = !matches!(error, StoreError::Full(_));
                self.store_failed(&error);
                for changes in changes.into_iter().rev() {
                    self.cluster.undo(changes);
                }
                false
            }
        }
    }

    fn load_again(&mut self) -> bool {
        let loaded = self.store.load().map(|loaded| {
            let cluster = Cluster::load(*self.cluster.limits(), loaded.records);
            (loaded.revision, cluster)
        });
        match loaded {
            Ok((revision, Ok(cluster))) => {
                tracing::warn!(%revision, "the state was loaded anew from the store");
                self.cluster = cluster;
                self.revision = revision;
                self.doubtful = false;
            }
            Ok((_, Err(error))) => self.store_failed(&error),
            Err(error) => self.store_failed(&error),
        }
        !self.doubtful
    }

    fn store_failed(&self, error: &(dyn std::error::Error + 'static)) {
        tracing::error!(error, "the store does not work; changes wait");
        self.counted.store_failures.fetch_add(1, Ordering::Relaxed);
    }
}

//! The thread that owns the state and the store.
//!
//! ```text
//!   jobs --> apply, apply, apply ... (a group) --> one commit --> the answers of the group
//!                                                   | fails
//!                                                   '--> undo in reverse; all are told to ask again
//! ```
//!
//! After a commit of which it is not known whether it was done, the state is loaded anew from the store;
//! until that works, nothing is answered. A group without changes is answered when the store has confirmed that
//! what is remembered holds.
//!
//! ```text
//!   follows --the lead is free--> loads, begins a term --> leads --another one leads--> follows
//! ```
//!
//! Who follows looks into the store for those who only look, and tells all others where the leader is. A
//! store of one process is led from the start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::serve::ServeError;
use crate::cluster::{Batch, BeginTerm, Changes, Cluster, Command, Limits, Tick};
use crate::store::{Lead, Revision, Store, StoreError};

/// Jobs that wait; each has a caller.
const QUEUE: usize = 1024;
/// Steps that share a commit.
const GROUP: usize = 64;
/// How often time passes for the state.
const TICK: Duration = Duration::from_millis(200);

/// Why a job was not done. Its caller may ask again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotDone {
    /// The queue is full.
    #[error("the control plane is busy: ask again")]
    Busy,
    /// The thread has ended.
    #[error("the control plane is ending")]
    Ending,
    /// Another process of the control plane leads, or none for a moment.
    #[error("another control plane leads: {}", .leader.as_deref().unwrap_or("it is being found out which"))]
    NotLeader {
        /// Where it is reached, if that is known.
        leader: Option<Arc<str>>,
    },
    /// The store did not take it; the log has the reason.
    #[error("the control plane's store did not take the change: see its log")]
    Store,
}

/// Something for the keeper.
trait Job: Send {
    /// Does it. Changes are to be committed before [`Self::finish`].
    fn apply(&mut self, now_ms: u64, cluster: &mut Cluster) -> Option<Changes>;
    /// Whether it only looks, and who does not lead may do it.
    fn is_for_all(&self) -> bool {
        false
    }
    /// Gives the answer, or says that nothing was done.
    fn finish(self: Box<Self>, stored: &Result<(), NotDone>);
}

type Answered<T> = oneshot::Sender<Result<T, NotDone>>;

fn answer<T>(to: Answered<T>, outcome: Option<T>, stored: &Result<(), NotDone>) {
    let outcome = match stored {
        Ok(()) => outcome.ok_or(NotDone::Store),
        Err(not_done) => Err(not_done.clone()),
    };
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

    fn finish(self: Box<Self>, stored: &Result<(), NotDone>) {
        answer(self.to, self.outcome, stored);
    }
}

struct Look<F, T> {
    look: Option<F>,
    for_all: bool,
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

    fn is_for_all(&self) -> bool {
        self.for_all
    }

    fn finish(self: Box<Self>, stored: &Result<(), NotDone>) {
        answer(self.to, self.outcome, stored);
    }
}

/// What the keeper counts.
#[derive(Debug, Default)]
pub(super) struct Counted {
    store_failures: AtomicU64,
    waiting: AtomicU64,
    copied: AtomicU64,
    leads: AtomicBool,
    terms: AtomicU64,
    deposed: AtomicU64,
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

    /// This process leads.
    pub(super) fn leads(&self) -> bool {
        self.leads.load(Ordering::Relaxed)
    }

    /// How often it began to lead.
    pub(super) fn terms(&self) -> u64 {
        self.terms.load(Ordering::Relaxed)
    }

    /// How often another one led before it gave the lead back.
    pub(super) fn deposed(&self) -> u64 {
        self.deposed.load(Ordering::Relaxed)
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
    /// Starts the thread; it ends when the last handle is gone. A store of one process is led by then. Of a
    /// store that several share the lead is wanted from then on, for the process that is reached at `address`.
    pub(super) fn start(
        limits: Limits,
        store: Box<dyn Store>,
        address: String,
    ) -> Result<(Self, JoinHandle<()>), ServeError> {
        let (jobs, received) = sync_channel(QUEUE);
        let counted = Arc::<Counted>::default();
        let mut thread = Thread {
            limits,
            store,
            address,
            standing: Standing::Follows { leader: None },
            started: Instant::now(),
            counted: Arc::clone(&counted),
        };
        if !thread.store.is_shared()
            && let Lead::Ours { guard } = thread.store.lead(&thread.address)?
        {
            thread.begin(guard)?;
        }
        let thread = std::thread::Builder::new()
            .name("myco-keeper".to_owned())
            .spawn(move || thread.run(&received))
            .map_err(ServeError::Threads)?;
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

    /// Looks at the state of who leads. What is seen is durable.
    pub(super) async fn look<F, T>(&self, look: F) -> Result<T, NotDone>
    where
        F: FnOnce(&Cluster) -> T + Send + 'static,
        T: Send + 'static,
    {
        self.look_as(false, look).await
    }

    /// Looks at the state, or, who does not lead, at what the store holds.
    pub(super) async fn look_for_all<F, T>(&self, look: F) -> Result<T, NotDone>
    where
        F: FnOnce(&Cluster) -> T + Send + 'static,
        T: Send + 'static,
    {
        self.look_as(true, look).await
    }

    async fn look_as<F, T>(&self, for_all: bool, look: F) -> Result<T, NotDone>
    where
        F: FnOnce(&Cluster) -> T + Send + 'static,
        T: Send + 'static,
    {
        let (to, answered) = oneshot::channel();
        self.send(Box::new(Look {
            look: Some(look),
            for_all,
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

/// What the leader knows.
struct Reign {
    /// Of the lead that it was begun with.
    guard: u64,
    cluster: Cluster,
    revision: Revision,
    /// Whether the last commit was done is not known.
    doubtful: bool,
}

enum Standing {
    Leads(Box<Reign>),
    Follows { leader: Option<Arc<str>> },
}

struct Thread {
    limits: Limits,
    store: Box<dyn Store>,
    address: String,
    standing: Standing,
    started: Instant,
    counted: Arc<Counted>,
}

impl Thread {
    fn run(mut self, jobs: &Receiver<Box<dyn Job>>) {
        let mut next_tick = self.started;
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
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(job) = jobs.try_recv()
        {
            group.push(job);
        }
        let now_ms = self.now_ms();
        match &mut self.standing {
            Standing::Leads(reign) if !reign.doubtful => {
                let changes = group
                    .iter_mut()
                    .filter_map(|job| job.apply(now_ms, &mut reign.cluster));
                let changes = changes.collect();
                let stored = self.commit(changes);
                group.into_iter().for_each(|job| job.finish(&stored));
            }
            Standing::Leads(_) => {
                let doubtful = Err(NotDone::Store);
                group.into_iter().for_each(|job| job.finish(&doubtful));
            }
            Standing::Follows { leader } => {
                let leader = leader.clone();
                let elsewhere = Err(NotDone::NotLeader { leader });
                let (looks, others): (Vec<_>, Vec<_>) =
                    group.into_iter().partition(|job| job.is_for_all());
                others.into_iter().for_each(|job| job.finish(&elsewhere));
                if !looks.is_empty() {
                    self.look_into_store(looks);
                }
            }
        }
    }

    /// For those who only look, without the lead.
    fn look_into_store(&mut self, mut looks: Vec<Box<dyn Job>>) {
        let seen = match self.read() {
            Ok((mut cluster, _)) => {
                for job in &mut looks {
                    job.apply(0, &mut cluster);
                }
                Ok(())
            }
            Err(error) => {
                self.store_failed(&error);
                Err(NotDone::Store)
            }
        };
        looks.into_iter().for_each(|job| job.finish(&seen));
    }

    fn read(&mut self) -> Result<(Cluster, Revision), ServeError> {
        let loaded = self.store.load()?;
        let cluster = Cluster::load(self.limits, loaded.records)?;
        Ok((cluster, loaded.revision))
    }

    fn tick(&mut self) {
        let guard = match self.store.lead(&self.address) {
            Ok(Lead::Ours { guard }) => guard,
            Ok(Lead::Theirs(leader)) => return self.follow(Some(leader)),
            Ok(Lead::Nobodys) => return self.follow(None),
            Err(error) => {
                self.store_failed(&error);
                return self.follow(None);
            }
        };
        match &self.standing {
            Standing::Leads(reign) if reign.guard == guard && !reign.doubtful => {}
            Standing::Leads(reign) if reign.guard == guard => {
                if let Err(error) = self.load_again() {
                    return self.refused(&error);
                }
            }
            standing => {
                if matches!(standing, Standing::Leads(_)) {
                    // Lost and taken again between two looks: others may have led.
                    self.follow(None);
                }
                if let Err(error) = self.begin(guard) {
                    return self.store_failed(&error);
                }
            }
        }
        let now_ms = self.now_ms();
        let Standing::Leads(reign) = &mut self.standing else {
            return;
        };
        match reign.cluster.apply(now_ms, &Tick) {
            Ok(step) => {
                let waiting = u64::from(step.answer.waiting);
                self.counted.waiting.store(waiting, Ordering::Relaxed);
                if !step.changes.batch().is_empty() {
                    // What could not be committed is due at the next tick, too.
                    let _ = self.commit(vec![step.changes]);
                }
            }
            Err(refusal) => tracing::error!(
                error = &refusal as &dyn std::error::Error,
                "time does not pass"
            ),
        }
    }

    /// Begins to lead, where the store stands.
    fn begin(&mut self, guard: u64) -> Result<(), ServeError> {
        let (mut cluster, revision) = self.read()?;
        let Ok(begun) = cluster.apply(self.now_ms(), &BeginTerm);
        let revision = self.store.commit(revision, begun.changes.batch())?;
        tracing::info!(term = begun.answer, %revision, "the control plane leads");
        self.counted.terms.fetch_add(1, Ordering::Relaxed);
        self.counted.leads.store(true, Ordering::Relaxed);
        self.standing = Standing::Leads(Box::new(Reign {
            guard,
            cluster,
            revision,
            doubtful: false,
        }));
        Ok(())
    }

    fn follow(&mut self, leader: Option<String>) {
        let leader: Option<Arc<str>> = leader.map(Arc::from);
        match &mut self.standing {
            Standing::Follows { leader: known } if *known == leader => {}
            Standing::Follows { leader: known } => {
                tracing::info!(leader = leader.as_deref(), "another control plane leads");
                *known = leader;
            }
            Standing::Leads(_) => {
                tracing::warn!(
                    leader = leader.as_deref(),
                    "this control plane leads no more"
                );
                self.counted.deposed.fetch_add(1, Ordering::Relaxed);
                self.counted.leads.store(false, Ordering::Relaxed);
                self.standing = Standing::Follows { leader };
            }
        }
    }

    /// Makes the changes durable, or undoes them. Without changes: has it confirmed that what is remembered
    /// holds.
    fn commit(&mut self, changes: Vec<Changes>) -> Result<(), NotDone> {
        let Standing::Leads(reign) = &mut self.standing else {
            return Err(NotDone::NotLeader { leader: None });
        };
        let mut merged = BTreeMap::new();
        for (key, record) in changes.iter().flat_map(|changes| &changes.batch().changes) {
            merged.insert(*key, record.clone());
        }
        let done = if merged.is_empty() {
            self.store.confirm(reign.revision).map(|()| reign.revision)
        } else {
            let batch = Batch {
                changes: merged.into_iter().collect(),
            };
            self.store.commit(reign.revision, &batch)
        };
        match done {
            Ok(revision) => {
                reign.revision = revision;
                Ok(())
            }
            Err(error) => {
                for changes in changes.into_iter().rev() {
                    reign.cluster.undo(changes);
                }
                self.refused(&error);
                Err(match &self.standing {
                    Standing::Leads(_) => NotDone::Store,
                    Standing::Follows { leader } => NotDone::NotLeader {
                        leader: leader.clone(),
                    },
                })
            }
        }
    }

    /// The store did not do it.
    fn refused(&mut self, error: &StoreError) {
        self.store_failed(error);
        match error {
            StoreError::Deposed { leader } => self.follow(leader.clone()),
            // Nothing was written.
            StoreError::Full(_) => {}
            _ => {
                if let Standing::Leads(reign) = &mut self.standing {
                    reign.doubtful = true;
                }
            }
        }
    }

    fn load_again(&mut self) -> Result<(), StoreError> {
        let loaded = self.store.load()?;
        let Standing::Leads(reign) = &mut self.standing else {
            return Ok(());
        };
        match Cluster::load(self.limits, loaded.records) {
            Ok(cluster) => {
                tracing::warn!(revision = %loaded.revision, "the state was loaded anew from the store");
                reign.cluster = cluster;
                reign.revision = loaded.revision;
                reign.doubtful = false;
            }
            Err(error) => self.store_failed(&error),
        }
        Ok(())
    }

    fn store_failed(&self, error: &(dyn std::error::Error + 'static)) {
        tracing::error!(error, "the store does not work; changes wait");
        self.counted.store_failures.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Disk, Loaded, MemoryStore, Probe};

    /// How long anything may take before it counts as a hang.
    const HANG: Duration = Duration::from_secs(60);

    /// A store that is led under whatever guard a test says.
    struct Led {
        guard: Arc<AtomicU64>,
        store: MemoryStore,
    }

    impl Store for Led {
        fn is_shared(&self) -> bool {
            true
        }

        fn lead(&mut self, _address: &str) -> Result<Lead, StoreError> {
            let guard = self.guard.load(Ordering::Acquire);
            Ok(Lead::Ours { guard })
        }

        fn load(&mut self) -> Result<Loaded, StoreError> {
            self.store.load()
        }

        fn commit(&mut self, at: Revision, batch: &Batch) -> Result<Revision, StoreError> {
            self.store.commit(at, batch)
        }

        fn probe(&self) -> Arc<dyn Probe> {
            self.store.probe()
        }
    }

    #[test]
    fn a_lead_that_was_lost_and_taken_again_is_begun_anew() {
        let disk = Disk::default();
        let guard = Arc::new(AtomicU64::new(1));
        let store = Led {
            guard: Arc::clone(&guard),
            store: MemoryStore::new(disk.clone()),
        };
        let started = Keeper::start(Limits::default(), Box::new(store), "here:1".to_owned());
        let (keeper, thread) = started.expect("threads");
        let until = Instant::now() + HANG;
        let begun = |terms| {
            while keeper.counted().terms() < terms {
                assert!(Instant::now() < until, "term {terms} does not begin");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        begun(1);

        // Another one led, and left something; then this one has the lead again, before it looked.
        let mut other = MemoryStore::new(disk);
        let left = loop {
            let loaded = other.load().expect("readable");
            let mut cluster =
                Cluster::load(Limits::default(), loaded.records).expect("its own records");
            let Ok(theirs) = cluster.apply(0, &BeginTerm);
            match other.commit(loaded.revision, theirs.changes.batch()) {
                Ok(revision) => break revision,
                Err(StoreError::Overtaken { .. }) => assert!(Instant::now() < until),
                Err(error) => panic!("{error}"),
            }
        };
        guard.store(2, Ordering::Release);
        begun(2);
        assert_eq!(keeper.counted().deposed(), 1);
        assert!(other.load().expect("readable").revision > left);
        drop(keeper);
        thread.join().expect("no panic");
    }
}

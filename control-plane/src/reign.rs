//! Who leads, what it knows by then, and when a step counts. Pure but for the store: no thread, no clock.
//!
//! ```text
//!   jobs, now --group--> apply, apply, apply ... --> one commit --> the answers of the group
//!                                                     | fails
//!                                                     '--> undo in reverse; all are told to ask again
//!   now       --tick---> follows --the lead is free--> loads, begins a term --> leads --another one leads--> follows
//! ```
//!
//! After a commit of which it is not known whether it was done, the state is loaded anew from the store;
//! until that works, nothing is answered. A group without changes is answered when the store has confirmed that
//! what is remembered holds.
//!
//! Who follows looks into the store for those who only look, and tells all others where the leader is. A
//! store of one process is led from the start.
//!
//! The service's keeper drives it with a thread and the machine's clock, the simulation with virtual time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::oneshot;

use crate::cluster::{Batch, BeginTerm, Changes, Cluster, Command, Limits, LoadError, Tick};
use crate::store::{Lead, Revision, Store, StoreError};

/// Why a job was not done. Its caller may ask again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
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

/// Something that is to be done with the state.
pub trait Job: Send {
    /// Does it. Changes are to be committed before [`Self::finish`].
    fn apply(&mut self, now_ms: u64, cluster: &mut Cluster) -> Option<Changes>;
    /// Whether it only looks, and who does not lead may do it.
    fn is_for_all(&self) -> bool {
        false
    }
    /// Gives the answer, or says that nothing was done.
    fn finish(self: Box<Self>, stored: &Result<(), NotDone>);
}

/// What becomes of a command that is done or refused.
pub type Outcome<C> = Result<<C as Command>::Answer, <C as Command>::Refusal>;
/// Where an answer comes from: once, after the group of its job.
pub type Answers<T> = oneshot::Receiver<Result<T, NotDone>>;
/// Where an answer goes.
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

/// Does a command; the answer comes when it is durable.
pub fn apply<C>(command: C) -> (Box<dyn Job>, Answers<Outcome<C>>)
where
    C: Command + Send + 'static,
    C::Answer: Send + 'static,
    C::Refusal: Send + 'static,
{
    let (to, answered) = oneshot::channel();
    let outcome = None;
    let job = Apply {
        command,
        outcome,
        to,
    };
    (Box::new(job), answered)
}

/// Looks at the state of who leads, or, with `for_all`, of who does not lead at what the store holds. What is
/// seen is durable.
pub fn look<F, T>(for_all: bool, look: F) -> (Box<dyn Job>, Answers<T>)
where
    F: FnOnce(&Cluster) -> T + Send + 'static,
    T: Send + 'static,
{
    let (to, answered) = oneshot::channel();
    let job = Look {
        look: Some(look),
        for_all,
        outcome: None,
        to,
    };
    (Box::new(job), answered)
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Counted {
    store_failures: AtomicU64,
    waiting: AtomicU64,
    copied: AtomicU64,
    leads: AtomicBool,
    terms: AtomicU64,
    deposed: AtomicU64,
}

impl Counted {
    /// Commits that the store did not take.
    pub fn store_failures(&self) -> u64 {
        self.store_failures.load(Ordering::Relaxed)
    }

    /// Extents that wait for a copy.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// This process leads.
    pub fn leads(&self) -> bool {
        self.leads.load(Ordering::Relaxed)
    }

    /// How often it began to lead.
    pub fn terms(&self) -> u64 {
        self.terms.load(Ordering::Relaxed)
    }

    /// How often another one led before it gave the lead back.
    pub fn deposed(&self) -> u64 {
        self.deposed.load(Ordering::Relaxed)
    }

    /// Replicas that were made anew.
    pub fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    /// One more was made.
    pub fn add_copied(&self) {
        self.copied.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the leader knows.
struct Reign {
    /// Of the lead that it was begun with.
    guard: u64,
    /// Which of all reigns it is.
    term: u64,
    cluster: Cluster,
    revision: Revision,
    /// Whether the last commit was done is not known.
    doubtful: bool,
}

enum Standing {
    Leads(Box<Reign>),
    Follows { leader: Option<Arc<str>> },
}

/// Why nobody could begin to lead.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The store.
    #[error("the control plane's store does not work")]
    Store(#[from] StoreError),
    /// What the store holds.
    #[error("what the store holds is no cluster")]
    Load(#[from] LoadError),
}

/// See the module: a process of the control plane, with its hold of the store.
pub struct Seat {
    limits: Limits,
    store: Box<dyn Store>,
    address: String,
    standing: Standing,
    counted: Arc<Counted>,
}

impl Seat {
    /// A store of one process is led from now on. Of a store that several share the lead is wanted, for the process
    /// that is reached at `address`, from the first tick on.
    pub fn take(
        now_ms: u64,
        limits: Limits,
        store: Box<dyn Store>,
        address: String,
    ) -> Result<Self, BeginError> {
        let mut seat = Self {
            limits,
            store,
            address,
            standing: Standing::Follows { leader: None },
            counted: Arc::default(),
        };
        if !seat.store.is_shared()
            && let Lead::Ours { guard } = seat.store.lead(&seat.address)?
        {
            seat.begin(now_ms, guard)?;
        }
        Ok(seat)
    }

    /// What is counted here.
    #[must_use]
    pub fn counted(&self) -> &Arc<Counted> {
        &self.counted
    }

    /// Which of all reigns its own is, while it leads. Grows from leader to leader.
    #[must_use]
    pub fn term(&self) -> Option<u64> {
        match &self.standing {
            Standing::Leads(reign) => Some(reign.term),
            Standing::Follows { .. } => None,
        }
    }

    /// Does these, which are answered together.
    pub fn group(&mut self, now_ms: u64, mut group: Vec<Box<dyn Job>>) {
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

    fn read(&mut self) -> Result<(Cluster, Revision), BeginError> {
        let loaded = self.store.load()?;
        let cluster = Cluster::load(self.limits, loaded.records)?;
        Ok((cluster, loaded.revision))
    }

    /// Time has passed: looks who leads, and does what is due. To be called several times within a leader's lease.
    pub fn tick(&mut self, now_ms: u64) {
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
                if let Err(error) = self.begin(now_ms, guard) {
                    return self.store_failed(&error);
                }
            }
        }
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
    fn begin(&mut self, now_ms: u64, guard: u64) -> Result<(), BeginError> {
        let (mut cluster, revision) = self.read()?;
        let Ok(begun) = cluster.apply(now_ms, &BeginTerm);
        let revision = self.store.commit(revision, begun.changes.batch())?;
        tracing::info!(term = begun.answer, %revision, "the control plane leads");
        self.counted.terms.fetch_add(1, Ordering::Relaxed);
        self.counted.leads.store(true, Ordering::Relaxed);
        self.standing = Standing::Leads(Box::new(Reign {
            guard,
            term: begun.answer,
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

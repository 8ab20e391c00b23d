//! The thread that owns the state and the store.
//!
//! ```text
//!   jobs --bounded queue--> a group of them --> Seat::group
//!   the machine's clock ----------------------> Seat::tick
//! ```
//!
//! What is done with a job, and who leads, is `reign`'s.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::serve::ServeError;
use crate::cluster::{Cluster, Command, Limits};
pub(super) use crate::reign::NotDone;
use crate::reign::{self, Answers, Counted, Job, Seat};
use crate::store::Store;

/// Jobs that wait; each has a caller.
const QUEUE: usize = 1024;
/// Steps that share a commit.
const GROUP: usize = 64;
/// How often time passes for the state.
const TICK: Duration = Duration::from_millis(200);

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
        let seat = Seat::take(0, limits, store, address)?;
        let counted = Arc::clone(seat.counted());
        let thread = Thread {
            seat,
            started: Instant::now(),
        };
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
        self.send(reign::apply(command)).await
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
        self.send(reign::look(for_all, look)).await
    }

    /// What was counted so far.
    pub(super) fn counted(&self) -> &Counted {
        &self.counted
    }

    async fn send<T>(&self, (job, answer): (Box<dyn Job>, Answers<T>)) -> Result<T, NotDone> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => NotDone::Busy,
            TrySendError::Disconnected(_) => NotDone::Ending,
        })?;
        answer.await.unwrap_or(Err(NotDone::Ending))
    }
}

struct Thread {
    seat: Seat,
    started: Instant,
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
                self.seat.tick(self.now_ms());
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
        self.seat.group(self.now_ms(), group);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::cluster::{Batch, BeginTerm};
    use crate::store::{Disk, Lead, Loaded, MemoryStore, Probe, Revision, StoreError};

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

//! What all threads of a daemon share: its configuration, who was promised what, and which regions there
//! are. No lock here is held while anything waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use mycoram_fabric::random;
use mycoram_fabric::units::ByteCount;
use nix::sys::eventfd::EventFd;

use super::config::DaemonConfig;
use super::keeper::{Mail, Mailbox};
use super::ledger::{Ledger, Shortage};
use super::message::{Refusal, Resource, in_words};
use super::record::Record;
use super::socket::Peer;
use super::source::RemoteSource;
use crate::kernel::UserfaultDevice;
use crate::{Patience, RegionConfig, RegionName};

/// What is known of a region.
pub(super) enum State {
    /// It is being attached or taken over.
    Busy,
    /// It is served.
    Served(Arc<Mailbox>),
    /// It is not served, and its program is to connect again: an earlier daemon served it whose rights we have not, or
    /// it has failed here.
    Waiting(Promise),
    /// It has failed too often. Its program, told so, gets a signal at each page that is not resident.
    GivenUp(Promise),
}

pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) state: State,
    /// With its failures here.
    pub(super) patience: Patience,
}

pub(super) struct Shared {
    pub(super) config: DaemonConfig,
    pub(super) own_uid: u32,
    pub(super) source: Arc<dyn RemoteSource>,
    pub(super) device: Option<UserfaultDevice>,
    pub(super) local: Mutex<Ledger>,
    pub(super) far: Mutex<Ledger>,
    pub(super) connections: Mutex<Ledger>,
    pub(super) regions: Mutex<HashMap<RegionName, Entry>>,
    pub(super) random: Mutex<random::System>,
    pub(super) threads: Mutex<Vec<JoinHandle<()>>>,
    /// Readable when the daemon ends; never read.
    pub(super) closing: Arc<EventFd>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory that a region was promised, given back when it is dropped.
pub(super) struct Promise {
    shared: Arc<Shared>,
    uid: u32,
    local: ByteCount,
    far: ByteCount,
}

fn refusal(what: Resource, asked: ByteCount, shortage: Shortage) -> Refusal {
    Refusal::Budget {
        what,
        of_user: shortage.of_user,
        asked,
        free: ByteCount::new(shortage.free),
        limit: ByteCount::new(shortage.limit),
    }
}

impl Promise {
    /// Of a region that comes in.
    pub(super) fn make(
        shared: &Arc<Shared>,
        uid: u32,
        local: ByteCount,
        far: ByteCount,
    ) -> Result<Self, Refusal> {
        lock(&shared.local)
            .reserve(uid, local.get())
            .map_err(|shortage| refusal(Resource::Local, local, shortage))?;
        if let Err(shortage) = lock(&shared.far).reserve(uid, far.get()) {
            lock(&shared.local).release(uid, local.get());
            return Err(refusal(Resource::Far, far, shortage));
        }
        Ok(Self {
            shared: Arc::clone(shared),
            uid,
            local,
            far,
        })
    }

    /// Of a region that has it already, from an earlier daemon.
    pub(super) fn inherit(shared: &Arc<Shared>, record: &Record) -> Self {
        lock(&shared.local).add(record.uid, record.local_budget.get());
        lock(&shared.far).add(record.uid, record.bytes.get());
        Self {
            shared: Arc::clone(shared),
            uid: record.uid,
            local: record.local_budget,
            far: record.bytes,
        }
    }

    /// Promises more local memory, or less, which is always granted.
    pub(super) fn resize(&mut self, local: ByteCount) -> Result<(), Refusal> {
        let mut ledger = lock(&self.shared.local);
        if let Some(more) = local.get().checked_sub(self.local.get()) {
            ledger
                .reserve(self.uid, more)
                .map_err(|shortage| refusal(Resource::Local, local, shortage))?;
        } else {
            ledger.release(self.uid, self.local.get() - local.get());
        }
        self.local = local;
        Ok(())
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        lock(&self.shared.local).release(self.uid, self.local.get());
        lock(&self.shared.far).release(self.uid, self.far.get());
    }
}

/// Runs `work` on a thread of its own, which the daemon's end waits for.
pub(super) fn spawn(
    shared: &Arc<Shared>,
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(work)?;
    let mut threads = lock(&shared.threads);
    threads.retain(|thread| !thread.is_finished());
    threads.push(thread);
    Ok(())
}

pub(super) fn engine(error: impl std::error::Error + 'static) -> Refusal {
    Refusal::Engine {
        words: in_words(&error),
    }
}

pub(super) fn news(mailbox: &Arc<Mailbox>) -> crate::EventHandler {
    let mailbox = Arc::clone(mailbox);
    Box::new(move |event| mailbox.put(Mail::News(event)))
}

pub(super) fn new_name(shared: &Shared, peer: Peer) -> RegionName {
    let number = lock(&shared.random).number();
    format!("client-{}-{number:016x}", peer.pid)
        .parse()
        .expect("letters, digits and dashes, shorter than a name may be")
}

pub(super) fn region_config(shared: &Shared, record: &Record) -> RegionConfig {
    let mut config = RegionConfig::new(record.name.clone(), record.local_budget);
    config.state_dir.clone_from(&shared.config.state_dir);
    config.fault_workers = record.fault_workers;
    config.seal_key.clone_from(&shared.config.seal_key);
    config
}

pub(super) fn set_state(shared: &Shared, name: &RegionName, state: State) {
    if let Some(entry) = lock(&shared.regions).get_mut(name) {
        entry.state = state;
    }
}

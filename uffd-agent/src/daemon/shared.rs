//! What all threads of a daemon share: its configuration, who was promised what, and which regions there
//! are. No lock here is held while anything waits.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use mycoram_fabric::random;
use mycoram_fabric::units::ByteCount;
use nix::sys::eventfd::EventFd;

use super::config::DaemonConfig;
use super::keeper::{Mail, Mailbox};
use super::ledger::Ledger;
use super::message::{Refusal, in_words};
use super::record::Record;
use super::socket::Peer;
use super::source::RemoteSource;
use crate::kernel::UserfaultDevice;
use crate::{RegionConfig, RegionName};

/// What is known of a region.
#[derive(Debug)]
pub(super) enum State {
    /// It is being attached or taken over.
    Busy,
    /// It is served.
    Served(Arc<Mailbox>),
    /// An earlier daemon served it, and its process may not be reached from here.
    Waiting,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) state: State,
}

pub(super) struct Shared {
    pub(super) config: DaemonConfig,
    pub(super) own_uid: u32,
    pub(super) source: Arc<dyn RemoteSource>,
    pub(super) device: Option<UserfaultDevice>,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) regions: Mutex<HashMap<RegionName, Entry>>,
    pub(super) connections: AtomicUsize,
    pub(super) random: Mutex<random::System>,
    pub(super) threads: Mutex<Vec<JoinHandle<()>>>,
    /// Readable when the daemon ends; never read.
    pub(super) closing: Arc<EventFd>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Budget that a region was promised, given back when it is dropped.
pub(super) struct Promise {
    pub(super) shared: Arc<Shared>,
    pub(super) uid: u32,
    pub(super) bytes: ByteCount,
}

impl Promise {
    pub(super) fn make(shared: &Arc<Shared>, uid: u32, bytes: ByteCount) -> Result<Self, Refusal> {
        lock(&shared.ledger).reserve(uid, bytes)?;
        Ok(Self {
            shared: Arc::clone(shared),
            uid,
            bytes,
        })
    }

    /// Changes it; what is smaller is always granted.
    pub(super) fn resize(&mut self, bytes: ByteCount) -> Result<(), Refusal> {
        let mut ledger = lock(&self.shared.ledger);
        ledger.release(self.uid, self.bytes);
        match ledger.reserve(self.uid, bytes) {
            Ok(()) => {
                self.bytes = bytes;
                Ok(())
            }
            Err(refusal) => {
                ledger.add(self.uid, self.bytes);
                Err(refusal)
            }
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        lock(&self.shared.ledger).release(self.uid, self.bytes);
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
    config
}

pub(super) fn set_state(shared: &Shared, name: &RegionName, state: State) {
    if let Some(entry) = lock(&shared.regions).get_mut(name) {
        entry.state = state;
    }
}

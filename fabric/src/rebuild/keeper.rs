//! The thread that rebuilds a region's replicas, for as long as the region lives.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::pace::Pace;
use super::work::{Rebuild, RebuildConfig, RebuildProgress};
use crate::remote::Remote;
use crate::transfer::OpenTransferError;

/// The longest wait while something is being copied: pages that their owner is writing are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What the thread and its owner share.
#[derive(Debug, Default)]
struct Shown {
    progress: RebuildProgress,
    pace: Option<Pace>,
}

/// The thread, ended when dropped. It does not keep the region alive.
#[derive(Debug)]
pub struct Rebuilder {
    shown: Arc<Mutex<Shown>>,
    /// A message wakes the thread, the end of the channel ends it.
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

fn lock(shown: &Mutex<Shown>) -> MutexGuard<'_, Shown> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rebuilder {
    /// Begins to carry out the orders of `remote`'s authority.
    pub fn start(remote: &Arc<Remote>, config: RebuildConfig) -> Result<Self, OpenTransferError> {
        let rebuild = Rebuild::new(Arc::downgrade(remote), config)?;
        let shown = Arc::new(Mutex::new(Shown::default()));
        let (wake, woken) = bounded(1);
        let for_thread = Arc::clone(&shown);
        let thread = std::thread::Builder::new()
            .name("myco-rebuild".into())
            .spawn(move || keep(rebuild, &for_thread, &woken))
            .map_err(OpenTransferError::Bell)?;
        Ok(Self {
            shown,
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> RebuildProgress {
        lock(&self.shown).progress
    }

    /// Changes how fast replicas are copied.
    pub fn set_pace(&self, pace: Pace) {
        lock(&self.shown).pace = Some(pace);
        if let Some(wake) = &self.wake {
            // Full: it is woken already.
            let _ = wake.try_send(());
        }
    }
}

fn keep(mut rebuild: Rebuild, shown: &Mutex<Shown>, woken: &Receiver<()>) {
    loop {
        let going = rebuild.step();
        let pace = {
            let mut shown = lock(shown);
            shown.progress = rebuild.progress();
            shown.pace.take()
        };
        if let Some(pace) = pace {
            rebuild.set_pace(pace);
        }
        if !going {
            return;
        }
        let patience = if rebuild.is_copying() {
            rebuild.wait(LOOK_AGAIN);
            Duration::ZERO
        } else {
            Duration::from_millis(rebuild.wake_ms().saturating_sub(rebuild.now_ms()))
        };
        if woken.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

impl Drop for Rebuilder {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take()
            // The last owner of the region may have been the thread itself.
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the thread that rebuilds replicas panicked");
        }
    }
}

//! The keeper: the thread of a region that deals with lost nodes, so that no lane waits for the authority.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::changes::Losses;
use super::region::Shared;

/// How long after a failed try the next one comes, at first; it doubles up to [`RETRY_MOST`].
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// See [`RETRY_FIRST`].
const RETRY_MOST: Duration = Duration::from_millis(1600);

/// The thread, ended when dropped.
pub(super) struct Keeper {
    losses: Arc<Losses>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Begins to keep `shared`, which owns it.
    pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<Self> {
        let losses = Arc::clone(&shared.losses);
        let stop = Arc::new(AtomicBool::new(false));
        let (weak, bell, stopped) = (
            Arc::downgrade(shared),
            Arc::clone(&losses),
            Arc::clone(&stop),
        );
        let thread = std::thread::Builder::new()
            .name("myco-replicas".to_owned())
            .spawn(move || keep(&weak, &bell, &stopped))?;
        Ok(Self {
            losses,
            stop,
            thread: Some(thread),
        })
    }
}

fn keep(shared: &Weak<Shared>, losses: &Losses, stop: &AtomicBool) {
    let Some(bell) = &losses.bell else { return };
    let mut retry = RETRY_FIRST;
    let mut timeout = PollTimeout::NONE;
    // Something may have been lost before the region was opened.
    let mut rung = true;
    loop {
        if !rung {
            let _ = poll(&mut [PollFd::new(bell.as_fd(), PollFlags::POLLIN)], timeout);
        }
        rung = false;
        bell.silence();
        if stop.load(Ordering::Acquire) {
            return;
        }
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if shared.tend() {
            retry = RETRY_FIRST;
            timeout = PollTimeout::NONE;
        } else {
            timeout = PollTimeout::try_from(retry).unwrap_or(PollTimeout::MAX);
            retry = (2 * retry).min(RETRY_MOST);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(bell) = &self.losses.bell {
            bell.ring();
        }
        if let Some(thread) = self.thread.take()
            // The last owner of the region may have been the keeper itself.
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("a region's keeper panicked");
        }
    }
}

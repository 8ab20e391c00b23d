//! A keeper: a thread of a region that does what blocks, so that no lane waits for the authority. One deals
//! with lost nodes, another one places extents ahead of need.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::bell::Bell;
use super::region::Shared;

/// How long after a failed try the next one comes, at first; it doubles up to [`RETRY_MOST`].
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// See [`RETRY_FIRST`].
const RETRY_MOST: Duration = Duration::from_millis(1600);

/// What a keeper does when its bell rings. False: something is left to be tried again.
pub(super) type Tend = fn(&Shared) -> bool;

/// The thread, ended when dropped.
pub(super) struct Keeper {
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Begins to tend `shared`, which owns it, and at first without a ring.
    pub(super) fn start(
        name: &str,
        shared: &Arc<Shared>,
        bell: Arc<Bell>,
        tend: Tend,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (weak, rung, stopped) = (Arc::downgrade(shared), Arc::clone(&bell), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || keep(&weak, &rung, &stopped, tend))?;
        Ok(Self {
            bell,
            stop,
            thread: Some(thread),
        })
    }
}

fn keep(shared: &Weak<Shared>, bell: &Bell, stop: &AtomicBool, tend: Tend) {
    let mut retry = RETRY_FIRST;
    let mut timeout = PollTimeout::NONE;
    // There may have been something to do before the region was opened.
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
        if tend(&shared) {
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
        self.bell.ring();
        if let Some(thread) = self.thread.take()
            // The last owner of the region may have been the keeper itself.
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("a region's keeper panicked");
        }
    }
}

//! What becomes of a region one of whose threads panics. That is a bug; what it must not be is a hang that nobody
//! notices.
//!
//! ```text
//!   a panic --> caught at the thread's top, counted, said --> the region stands as failed: its other threads end
//!                                                         --> the keeper tells the owner
//!                 a successor may come                    --> the target waits for it, as for one of a killed agent
//!                 nobody can come (private memory, ...)   --> SIGBUS at every page that is not resident
//! ```
//!
//! No thread is started anew in place: what the panicked one held (pages marked as being fetched, batches, frames)
//! is known to nobody. A successor sorts that out from the page table, as it does after a kill.

use std::any::Any;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use mycoram_fabric::units::PAGE_BYTES;

use super::shared::{Shared, Standing};
use crate::kernel::{EventReader, TargetAddr, TargetEvent, TargetRange};

/// Events read at once.
const EVENTS: usize = 64;
/// Longest sleep, ms.
const LONGEST_SLEEP_MS: i32 = 1000;

/// A panic of one of a region's threads. Where in the code it was, the process's panic hook has said: without one of
/// its own, that is a line on standard error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its thread {thread} panicked: {said}")]
pub struct ThreadPanic {
    /// The thread: `myco-fault-N`, `myco-evict-N`, `myco-keeper`, `myco-check`; `flush` or `detach` for the owner's
    /// own, while it had that done.
    pub thread: String,
    /// The panic's words.
    pub said: String,
}

/// Runs the body of a thread, or an order on the owner's; its panic is the end of the region, and nothing is answered.
pub(super) fn watch<T>(shared: &Shared, thread: &str, body: impl FnOnce() -> T) -> Option<T> {
    // Nothing of what the body was at is used again, but for what all threads share. Its locks are taken in spite of
    // a panic, its words change at once or not at all.
    let panic = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(answer) => return Some(answer),
        Err(panic) => panic,
    };
    shared.fail(ThreadPanic {
        thread: thread.to_owned(),
        said: words(panic.as_ref()),
    });
    None
}

fn words(panic: &(dyn Any + Send)) -> String {
    let fixed = panic.downcast_ref::<&str>().copied();
    let words = fixed.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    words.unwrap_or("something that is no text").to_owned()
}

/// Answers every fault with SIGBUS, until the owner stops the region. Its other threads have ended.
pub(super) fn refuse_all(shared: &Shared) {
    let mut reader = EventReader::new(EVENTS);
    let mut faults = Vec::with_capacity(EVENTS);
    // Those that the panicked thread had read ask again.
    shared.wake_all();
    while shared.standing() == Standing::Failed {
        match refuse_some(shared, &mut reader, &mut faults) {
            Ok(true) => {}
            Ok(false) => sleep(shared),
            Err(error) => {
                tracing::error!(%error, "the target's faults cannot be read any more");
                return;
            }
        }
    }
}

/// Whether there was an event.
fn refuse_some(
    shared: &Shared,
    reader: &mut EventReader,
    faults: &mut Vec<(TargetAddr, i32)>,
) -> Result<bool, crate::kernel::ReadEventsError> {
    // Whoever asks where the pages are waits for it.
    let section = shared.gate.read(0);
    let events = reader.read(&shared.userfault, |event| match event {
        TargetEvent::Fault { addr, tid, .. } => faults.push((addr, tid)),
        TargetEvent::Unmap { start, end } => shared.address.unmap(start, end),
        TargetEvent::Remap { from, to, bytes } => shared.address.remap(from, to, bytes),
        TargetEvent::Remove { .. } | TargetEvent::Fork(_) => {}
    });
    drop(section);
    for (addr, tid) in faults.drain(..) {
        let Ok(range) = TargetRange::new(addr, PAGE_BYTES as u64) else {
            continue;
        };
        if !shared.poison_range(range, Some(tid)) {
            // An event stands in the way: by the next fault it is read.
            shared.wake(range);
        }
    }
    events.map(|events| events > 0)
}

fn sleep(shared: &Shared) {
    let bell = &shared.keeper_bell;
    bell.lie_down();
    if shared.standing() == Standing::Failed {
        let wait_for = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds = [
            wait_for(bell.as_fd().as_raw_fd()),
            wait_for(shared.userfault.as_fd().as_raw_fd()),
        ];
        // SAFETY: the array outlives the call.
        unsafe {
            libc::poll(
                fds.as_mut_ptr(),
                fds.len() as libc::nfds_t,
                LONGEST_SLEEP_MS,
            )
        };
    }
    bell.get_up();
}

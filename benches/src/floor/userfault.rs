//! The bare fault: a thread touches a missing page of a shared mapping, another one reads the event and
//! copies a page in. No table, no budget, no remote page.
//!
//! ```text
//!   toucher: load -> sleeps ........................ -> goes on
//!   handler:          read(uffd) -> UFFDIO_COPY
//! ```

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use userfaultfd::{Event, FeatureFlags, Uffd, UffdBuilder};

use super::Waiting;
use crate::memory::SharedMemory;
use crate::samples::Latencies;

const PAGE_BYTES: usize = 4096;
/// A sleeping handler looks this often whether it is to end, ms.
const LOOK_MS: u8 = 50;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FloorError {
    #[error("userfaultfd refused")]
    Userfault(#[from] userfaultfd::Error),
    #[error("memory could not be mapped")]
    Memory(#[from] std::io::Error),
    #[error("the handler broke down")]
    Handler,
}

/// Touches `count` missing pages, one after the other, from the calling thread. The handler is a thread
/// of the same processors.
pub(crate) fn faults(count: u32, waiting: Waiting) -> Result<Latencies, FloorError> {
    let memory = SharedMemory::new(count as usize * PAGE_BYTES)?;
    let uffd = UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        .user_mode_only(false)
        .require_features(FeatureFlags::MISSING_SHMEM)
        .create()?;
    uffd.register(memory.as_ptr().cast(), memory.len())?;
    let done = AtomicBool::new(false);
    let mut latencies = Latencies::new();
    let served = std::thread::scope(|scope| {
        let handler = scope.spawn(|| serve(&uffd, waiting, &done));
        for page in 0..count as usize {
            let start = Instant::now();
            memory.read_byte(page * PAGE_BYTES);
            latencies.record(start.elapsed());
            if handler.is_finished() {
                break;
            }
        }
        done.store(true, Ordering::Release);
        handler.join()
    });
    served.map_err(|_| FloorError::Handler)??;
    Ok(latencies)
}

fn serve(uffd: &Uffd, waiting: Waiting, done: &AtomicBool) -> Result<(), FloorError> {
    let page = Box::new([0x5au8; PAGE_BYTES]);
    while !done.load(Ordering::Acquire) {
        match uffd.read_event()? {
            Some(Event::Pagefault { addr, .. }) => {
                let start = (addr as usize & !(PAGE_BYTES - 1)) as *mut libc::c_void;
                // SAFETY: `start` is the page of the registered mapping that is missing; `page` is a page.
                unsafe { uffd.copy(page.as_ptr().cast(), start, PAGE_BYTES, true)? };
            }
            Some(_) => return Err(FloorError::Handler),
            None if waiting == Waiting::Polling => std::thread::yield_now(),
            None => {
                // SAFETY: `uffd` is open for as long as the borrow lives.
                let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(uffd.as_raw_fd()) };
                let _ = poll(
                    &mut [PollFd::new(fd, PollFlags::POLLIN)],
                    PollTimeout::from(LOOK_MS),
                );
            }
        }
    }
    Ok(())
}

//! The agent's own memory. It must never wait for a page that it would have to serve itself, so what
//! the fault path touches is locked; and memory that is paged by 4 KiB must not be backed by huge pages.

use std::sync::Arc;

use mycoram_fabric::transport::Mapping;
use nix::sys::mman::{MlockAllFlags, MmapAdvise, madvise, mlock, mlockall};

use super::{CallFailed, TargetRange};

/// A mapping that is locked while this lives.
#[derive(Debug)]
pub struct MemoryLock {
    mapping: Arc<Mapping>,
    offset: usize,
}

impl MemoryLock {
    /// Locks a mapping of the agent's own. ENOMEM or EPERM: RLIMIT_MEMLOCK (`ulimit -l`) is too low.
    pub fn of(mapping: Arc<Mapping>) -> Result<Self, CallFailed> {
        Self::of_part(mapping, 0)
    }

    /// As [`Self::of`], from `offset` to the end of the mapping.
    pub fn of_part(mapping: Arc<Mapping>, offset: usize) -> Result<Self, CallFailed> {
        let lock = Self { mapping, offset };
        let (start, bytes) = lock.range().ok_or(CallFailed {
            call: "mlock",
            source: nix::errno::Errno::EINVAL,
        })?;
        // SAFETY: the range is a part of a live mapping; locking changes no byte.
        unsafe { mlock(start, bytes) }.map_err(CallFailed::of("mlock"))?;
        Ok(lock)
    }

    fn range(&self) -> Option<(std::ptr::NonNull<libc::c_void>, usize)> {
        let bytes = self.mapping.len().checked_sub(self.offset)?;
        // SAFETY: checked to lie inside of the mapping.
        let start = unsafe { self.mapping.as_ptr().add(self.offset) };
        std::ptr::NonNull::new(start.cast()).map(|start| (start, bytes))
    }
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        if let Some((start, bytes)) = self.range() {
            // SAFETY: the range is still mapped: we hold the mapping. A failure leaves it locked.
            let _ = unsafe { nix::sys::mman::munlock(start, bytes) };
        }
    }
}

/// Locks all memory of the calling process, now and later, as it is touched. For a daemon; never for a
/// process that maps a region, whose pages would be locked too and never leave.
pub fn lock_process() -> Result<(), CallFailed> {
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | ON_FAULT)
        .map_err(CallFailed::of("mlockall"))
}

/// Not named by `nix`: pages are locked when they are touched first, instead of being brought in at once.
const ON_FAULT: MlockAllFlags = MlockAllFlags::from_bits_retain(4);

/// Asks that `range`, in the calling process, be never backed by huge pages.
///
/// # Safety
/// The range is mapped by the calling process and stays so during the call.
pub unsafe fn forbid_huge_pages(range: TargetRange) -> Result<(), CallFailed> {
    let Some(start) = std::ptr::NonNull::new(range.start().get() as *mut libc::c_void) else {
        return Err(CallFailed {
            call: "madvise(MADV_NOHUGEPAGE)",
            source: nix::errno::Errno::EINVAL,
        });
    };
    // SAFETY: the caller vouches for the range; the advice changes no byte.
    match unsafe { madvise(start, range.bytes() as usize, MmapAdvise::MADV_NOHUGEPAGE) } {
        // EINVAL: a kernel without transparent huge pages, which is what was asked for.
        Ok(()) | Err(nix::errno::Errno::EINVAL) => Ok(()),
        Err(source) => Err(CallFailed {
            call: "madvise(MADV_NOHUGEPAGE)",
            source,
        }),
    }
}

/// Whether this machine gives memfds huge pages without being asked: then one page in brings its
/// neighbours along as zeros that never fault. `None`: the kernel has no such setting.
#[must_use]
pub fn shmem_huge_pages() -> Option<bool> {
    let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").ok()?;
    Some(text.contains("[always]") || text.contains("[within_size]") || text.contains("[force]"))
}

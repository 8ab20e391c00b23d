//! [`FarMap`]: one mapping. Its bytes are ordinary memory.

use std::mem::ManuallyDrop;
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mycoram_fabric::units::{ByteCount, ByteOffset, PAGE_BYTES, PageIndex};

use crate::Advice;
use crate::backend::Backing;
use crate::error::{AdviseError, FlushError, MAX_MAPPINGS, StatsError, UnmapError};
use crate::fork;
use crate::pages::Pages;
use crate::signals::Blocked;
use crate::stats::Stats;

static MAPPINGS: AtomicUsize = AtomicUsize::new(0);

/// The right to one of the process's [`MAX_MAPPINGS`] mappings; given back when dropped.
pub(crate) struct Permit(());

impl Permit {
    pub(crate) fn take() -> Option<Self> {
        MAPPINGS
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < MAX_MAPPINGS).then_some(taken + 1)
            })
            .ok()
            .map(|_| Self(()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        MAPPINGS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Far memory, mapped. Use it as a slice; unmapped when dropped.
///
/// - All of it may be read and written by any thread and by the kernel on a thread's behalf.
/// - A page that no memory node has any more raises SIGBUS where it is touched (or `EFAULT` from a
///   system call); the rest goes on.
/// - After `fork`, the child does not have it: an access there is SIGSEGV. The parent's is unharmed.
/// - C programs may move it, or a part of it, with `mremap`, and unmap parts of it with `munmap`: pages go on
///   where they are. One that grows raises SIGBUS behind its old end. Slices of this type know nothing of that.
pub struct FarMap {
    backing: ManuallyDrop<Box<dyn Backing>>,
    /// The backing's: at hand, because every access through this type asks where it starts.
    pages: Arc<Pages>,
    bytes: ByteCount,
    _permit: Permit,
}

impl std::fmt::Debug for FarMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FarMap({} at {:p})", self.bytes, self.as_ptr())
    }
}

impl FarMap {
    pub(crate) fn new(backing: Box<dyn Backing>, bytes: ByteCount, permit: Permit) -> Self {
        Self {
            pages: Arc::clone(backing.pages()),
            backing: ManuallyDrop::new(backing),
            bytes,
            _permit: permit,
        }
    }

    /// First byte.
    #[must_use]
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.pages.start().as_ptr()
    }

    /// Where in the mapping `addr` lies now, wherever the program has moved it.
    pub(crate) fn offset_of(&self, addr: usize) -> Option<usize> {
        self.pages.parts().iter().find_map(|part| {
            let within = addr
                .checked_sub(part.start)
                .filter(|&within| within < part.len)?;
            Some(part.offset + within).filter(|&offset| offset < self.size())
        })
    }

    /// Number of bytes; whole pages.
    #[must_use]
    #[inline]
    pub fn size(&self) -> usize {
        self.bytes.as_usize()
    }

    /// Says what is going to happen to a range of bytes. [`Advice::WillNeed`] takes every page that the
    /// range touches, [`Advice::DontNeed`] those that lie wholly inside; the others take the whole
    /// mapping whatever the range.
    pub fn advise(
        &self,
        range: impl RangeBounds<usize>,
        advice: Advice,
    ) -> Result<(), AdviseError> {
        fork::check()?;
        let outside = || AdviseError::OutOfBounds { bytes: self.bytes };
        let start = match range.start_bound() {
            Bound::Included(&at) => at,
            Bound::Excluded(&at) => at.checked_add(1).ok_or_else(outside)?,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&at) => at.checked_add(1).ok_or_else(outside)?,
            Bound::Excluded(&at) => at,
            Bound::Unbounded => self.size(),
        };
        if start > end || end > self.size() {
            return Err(outside());
        }
        let (start, end) = match advice {
            Advice::DontNeed => (
                start.next_multiple_of(PAGE_BYTES),
                end / PAGE_BYTES * PAGE_BYTES,
            ),
            _ => (
                start / PAGE_BYTES * PAGE_BYTES,
                end.next_multiple_of(PAGE_BYTES),
            ),
        };
        if start >= end {
            return Ok(());
        }
        let page =
            |at: usize| PageIndex::containing(ByteOffset::new(at as u64)).ok_or_else(outside);
        let _blocked = Blocked::all();
        self.backing.advise(page(start)?..page(end)?, advice)
    }

    /// Waits until all that was written before the call has a copy on its memory node. Pages stay local.
    /// What other threads write meanwhile may or may not be in it.
    pub fn flush(&self) -> Result<(), FlushError> {
        fork::check()?;
        let _blocked = Blocked::all();
        self.backing.flush()
    }

    /// Figures since it was mapped.
    pub fn stats(&self) -> Result<Stats, StatsError> {
        fork::check()?;
        self.backing.stats()
    }

    /// Unmaps it, gives the remote memory back, and says whether all of that could be done. Whatever it
    /// says, the memory is gone from this process.
    pub fn unmap(self) -> Result<(), UnmapError> {
        fork::check()?;
        let mut this = ManuallyDrop::new(self);
        let _blocked = Blocked::all();
        // SAFETY: `this` is never dropped, so neither field is used again after it is taken here.
        let (backing, _permit) = unsafe {
            (
                ManuallyDrop::take(&mut this.backing),
                std::ptr::read(&this._permit),
            )
        };
        backing.unmap()
    }
}

impl Deref for FarMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range stays mapped, readable and writable until `unmap` or drop take `self` (in
        // a forked child it is not mapped: an access traps, nothing is read). A page that is moved in
        // or out never changes what a byte holds.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.size()) }
    }
}

impl DerefMut for FarMap {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.size()) }
    }
}

impl Drop for FarMap {
    fn drop(&mut self) {
        // The child has neither the mapping nor the threads: nothing to tear down, and joining would hang.
        if fork::check().is_err() {
            return;
        }
        let _blocked = Blocked::all();
        // SAFETY: taken once, in drop; `unmap` does not run drop.
        let backing = unsafe { ManuallyDrop::take(&mut self.backing) };
        if let Err(error) = backing.unmap() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a far mapping was not unmapped cleanly"
            );
        }
    }
}

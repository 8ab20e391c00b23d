//! Local memory that work requests read from and write into.
//!
//! A [`Mapping`] is pages that stay where they are; a [`LocalMemory`] is a mapping registered with one
//! transport. Bytes of a mapping are changed behind the compiler's back (by a device, by the kernel on
//! behalf of a ring, by other processes), so it is read and written through copies and raw pointers only.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Why memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// A mapping has at least one byte.
    #[error("a mapping of no bytes was asked for")]
    Empty,
    /// The kernel refused.
    #[error("mapping {bytes} bytes failed")]
    Kernel {
        /// How many bytes.
        bytes: usize,
        /// The kernel's reason.
        #[source]
        source: nix::Error,
    },
}

/// A range that reaches outside of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {offset} reach outside of {bytes} bytes")]
pub struct OutOfBounds {
    /// Where the range starts.
    pub offset: usize,
    /// How long it is.
    pub len: usize,
    /// What there is.
    pub bytes: usize,
}

/// Page-aligned memory at a fixed address, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a `Mapping` is an address range; its bytes are reached by copies and raw pointers whose
// users order their accesses themselves, so sharing the handle between threads adds no race.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private zeroed memory, populated at once.
    pub fn anonymous(bytes: usize) -> Result<Self, MappingError> {
        Self::private(bytes, MapFlags::MAP_POPULATE)
    }

    /// Private memory, not populated: pages come with their first use.
    pub fn reserved(bytes: usize) -> Result<Self, MappingError> {
        Self::private(bytes, MapFlags::MAP_NORESERVE)
    }

    /// As [`Self::reserved`], at an address that is a multiple of `align`, a power of two and whole pages.
    pub fn reserved_at(align: usize, bytes: usize) -> Result<Self, MappingError> {
        let length = bytes.checked_add(align).ok_or(MappingError::Kernel {
            bytes,
            source: nix::Error::ENOMEM,
        })?;
        let mut room = Self::reserved(length)?;
        let start = room.as_ptr();
        let before = start.align_offset(align);
        let end = (before + bytes).next_multiple_of(4096);
        for (at, spare) in [(0, before), (end, bytes + align - end)] {
            if spare > 0 {
                // SAFETY: within the room, outside of what is kept, and handed to nobody yet.
                let _ = unsafe { munmap(room.start.add(at).cast(), spare) };
            }
        }
        // SAFETY: `before` is less than `align`, so it lies within the room.
        room.start = unsafe { room.start.add(before) };
        room.bytes = bytes;
        Ok(room)
    }

    /// Its first address: from now on the caller unmaps it.
    pub fn into_start(self) -> NonNull<u8> {
        let start = self.start;
        std::mem::forget(self);
        start
    }

    fn private(bytes: usize, flags: MapFlags) -> Result<Self, MappingError> {
        let length = NonZeroUsize::new(bytes).ok_or(MappingError::Empty)?;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe {
            mmap_anonymous(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | flags,
            )
        }
        .map_err(|source| MappingError::Kernel { bytes, source })?;
        Ok(Self {
            start: start.cast(),
            bytes,
        })
    }

    /// Shared mapping of the first `bytes` of a file or memfd that is at least that long.
    pub fn shared(file: impl AsFd, bytes: usize) -> Result<Self, MappingError> {
        let length = NonZeroUsize::new(bytes).ok_or(MappingError::Empty)?;
        // SAFETY: a new mapping at an address of the kernel's choice; others may change its bytes,
        // which is why no reference to them is ever made.
        let start = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                file,
                0,
            )
        }
        .map_err(|source| MappingError::Kernel { bytes, source })?;
        Ok(Self {
            start: start.cast(),
            bytes,
        })
    }

    /// First byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Number of bytes; never 0.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Never: kept for the convention of `len`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether `len` bytes at `offset` lie inside.
    pub fn check(&self, offset: usize, len: usize) -> Result<(), OutOfBounds> {
        match offset.checked_add(len) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(OutOfBounds {
                offset,
                len,
                bytes: self.bytes,
            }),
        }
    }

    /// Copies `into.len()` bytes at `offset` out. Bytes that a peer is writing meanwhile may be mixed.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        self.check(offset, into.len())?;
        // SAFETY: checked to be inside of the mapping, which lives as long as `self`; `into` is
        // exclusive, so the ranges do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(self.as_ptr().add(offset), into.as_mut_ptr(), into.len())
        };
        Ok(())
    }

    /// Copies `bytes` bytes from one place of it to another.
    pub fn copy_within(&self, from: usize, to: usize, bytes: usize) -> Result<(), OutOfBounds> {
        self.check(from, bytes)?;
        self.check(to, bytes)?;
        // SAFETY: both checked to be inside of the mapping; they may overlap.
        unsafe { std::ptr::copy(self.as_ptr().add(from), self.as_ptr().add(to), bytes) };
        Ok(())
    }

    /// The 8 aligned bytes at `offset`, for operations that are atomic towards all who use this.
    /// `None` if they are not aligned or not inside.
    #[must_use]
    pub fn word(&self, offset: usize) -> Option<&AtomicU64> {
        if !offset.is_multiple_of(8) || self.check(offset, 8).is_err() {
            return None;
        }
        // SAFETY: inside of the mapping, which lives as long as the borrow of `self`; aligned, because
        // a mapping starts at a page; and reached by atomics, copies and the kernel only.
        Some(unsafe { AtomicU64::from_ptr(self.as_ptr().add(offset).cast()) })
    }

    /// Copies `from` to `offset`.
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        self.check(offset, from.len())?;
        // SAFETY: checked to be inside of the mapping; `from` cannot lie in it, because no
        // reference into a mapping is ever handed out.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.as_ptr().add(offset), from.len())
        };
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `bytes` are what mmap gave and are unmapped once; registrations hold an
        // `Arc` of the mapping, so no device writes to it any more.
        let _ = unsafe { munmap(self.start.cast(), self.bytes) };
    }
}

/// A mapping registered with one transport. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalMemory {
    mapping: Arc<Mapping>,
    lkey: u32,
}

impl LocalMemory {
    /// For providers: `lkey` is the provider's name of the registration.
    #[must_use]
    pub fn new(mapping: Arc<Mapping>, lkey: u32) -> Self {
        Self { mapping, lkey }
    }

    /// The bytes themselves.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// A part of it for a work request.
    pub fn slice(&self, offset: usize, len: usize) -> Result<LocalSlice, OutOfBounds> {
        self.mapping.check(offset, len)?;
        let bytes = self.mapping.len();
        let len = u32::try_from(len).map_err(|_| OutOfBounds { offset, len, bytes })?;
        Ok(LocalSlice {
            addr: self.mapping.as_ptr() as u64 + offset as u64,
            len,
            lkey: self.lkey,
        })
    }
}

/// A checked part of a [`LocalMemory`]; only [`LocalMemory::slice`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalSlice {
    addr: u64,
    len: u32,
    lkey: u32,
}

impl LocalSlice {
    /// Address of the first byte in this process.
    #[must_use]
    pub fn addr(self) -> u64 {
        self.addr
    }
    /// Number of bytes.
    #[must_use]
    pub fn len(self) -> usize {
        self.len as usize
    }
    /// No bytes?
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
    /// The provider's name of the registration.
    #[must_use]
    pub fn lkey(self) -> u32 {
        self.lkey
    }
}

/// Waits until `fd` is readable or in error; false after `timeout`.
pub(super) fn poll_readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    matches!(poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout), Ok(n) if n > 0)
}

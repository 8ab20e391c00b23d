//! The memory that is touched: far, or one of the kinds it is compared with.

use std::error::Error;
use std::num::NonZeroUsize;

use mycoram::{Advice, FarMap, FarMemory};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use serde::{Deserialize, Serialize};

use super::orders::FarStats;
use crate::memory::SharedMemory;

/// Which memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MemoryKind {
    /// Far memory at this place, without advice.
    Far(String),
    /// Far memory at this place, advised to be touched in random order.
    FarRandom(String),
    /// Plain shared memory (a memfd): what far memory is when all of it is local.
    Shared,
    /// Plain private memory: what the kernel can swap out.
    Private,
}

/// Mapped memory.
pub(super) enum Memory {
    Far(FarMap),
    Shared(SharedMemory),
    Private {
        start: std::ptr::NonNull<libc::c_void>,
        bytes: usize,
    },
}

impl Memory {
    pub(super) fn map(kind: &MemoryKind, bytes: usize) -> Result<Self, Box<dyn Error>> {
        Ok(match kind {
            MemoryKind::Far(place) => Self::Far(FarMemory::open(place)?.map(bytes)?),
            MemoryKind::FarRandom(place) => {
                let map = FarMemory::open(place)?.map(bytes)?;
                map.advise(.., Advice::Random)?;
                Self::Far(map)
            }
            MemoryKind::Shared => Self::Shared(SharedMemory::new(bytes)?),
            MemoryKind::Private => {
                let length = NonZeroUsize::new(bytes).ok_or("a mapping of no bytes")?;
                let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
                let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
                // SAFETY: a new mapping at an address of the kernel's choice.
                let start = unsafe { mmap_anonymous(None, length, protection, flags) }?;
                Self::Private { start, bytes }
            }
        })
    }

    pub(super) fn start(&self) -> *mut u8 {
        match self {
            Self::Far(map) => map.as_ptr(),
            Self::Shared(memory) => memory.as_ptr(),
            Self::Private { start, .. } => start.as_ptr().cast(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Far(map) => map.size(),
            Self::Shared(memory) => memory.len(),
            Self::Private { bytes, .. } => *bytes,
        }
    }

    pub(super) fn stats(&self) -> Option<FarStats> {
        let Self::Far(map) = self else { return None };
        let stats = map.stats().ok()?;
        Some(FarStats {
            faults: stats.faults,
            major_faults: stats.major_faults,
            prefetched_pages: stats.prefetched_pages,
            evicted_pages: stats.evicted_pages,
            resident_bytes: stats.resident_bytes,
            fault_p50_ns: stats.fault_p50_ns,
            fault_p99_ns: stats.fault_p99_ns,
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Self::Private { start, bytes } = self {
            // SAFETY: what mmap gave, unmapped once.
            let _ = unsafe { munmap(*start, *bytes) };
        }
    }
}

//! What is behind a region: a part of a file, or private memory of this very process.
//!
//! ```text
//!   File      any target's memfd   asked and emptied through its descriptor; pages leave through pipes
//!   Private   this process's own   asked through pagemap, its pages leave by a move into rooms
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use mycoram_fabric::units::{PAGE_BYTES, PageCount, PageIndex};
use nix::errno::Errno;

use super::address::AddressMap;
use crate::kernel::{
    CallFailed, MemoryFile, Park, ParkingError, ParkingPipe, ParkingRooms, TargetRange,
    is_one_huge_page,
};

/// See the module.
#[derive(Debug)]
pub(crate) enum RegionMemory {
    File(FileMemory),
    Private(PrivateMemory),
}

impl RegionMemory {
    /// Whether it is private.
    pub(crate) fn is_private(&self) -> bool {
        matches!(self, Self::Private(_))
    }

    /// Huge pages that can be on their way out as one.
    pub(crate) fn halls(&self) -> u32 {
        match self {
            Self::File(_) => 0,
            Self::Private(private) => private.rooms.halls(),
        }
    }

    /// Whether a range of this process is one huge page.
    pub(crate) fn is_one_huge_page(&self, range: TargetRange) -> bool {
        match self {
            Self::File(_) => false,
            Self::Private(private) => is_one_huge_page(&private.pagemap, range),
        }
    }

    /// Whether the page is resident.
    pub(crate) fn has_data(
        &self,
        page: PageIndex,
        address: &AddressMap,
    ) -> Result<bool, CallFailed> {
        match self {
            Self::File(file) => file.has_data(page),
            Self::Private(private) => private.has_data(page, address),
        }
    }

    /// Copies at most `count` neighbouring pages out, which are resident; how many, at least one.
    ///
    /// # Safety
    /// `into` is writable for so many pages' bytes, and nobody else uses them meanwhile.
    pub(crate) unsafe fn read_pages_to(
        &self,
        page: PageIndex,
        count: u32,
        address: &AddressMap,
        into: *mut u8,
    ) -> Result<u32, CallFailed> {
        match self {
            // SAFETY: the caller's promise is the same.
            Self::File(file) => unsafe { file.read_pages_to(page, count, into) },
            // SAFETY: as above.
            Self::Private(_) => unsafe { read_own_pages(page, count, address, into) },
        }
    }
}

/// Bits of a pagemap entry: the page is there, or it is in the swap.
const PRESENT_OR_SWAPPED: u64 = 1 << 63 | 1 << 62;

/// Private anonymous memory of this process.
#[derive(Debug)]
pub(crate) struct PrivateMemory {
    pub(crate) rooms: Arc<ParkingRooms>,
    pagemap: File,
}

impl PrivateMemory {
    pub(crate) fn new(rooms: ParkingRooms) -> Result<Self, CallFailed> {
        let pagemap = File::open("/proc/self/pagemap")
            .map_err(|_| CallFailed::last("open(/proc/self/pagemap)"))?;
        Ok(Self {
            rooms: Arc::new(rooms),
            pagemap,
        })
    }

    /// A page that is not mapped any more has none.
    fn has_data(&self, page: PageIndex, address: &AddressMap) -> Result<bool, CallFailed> {
        let Some(range) = address.range_of(page, 1) else {
            return Ok(false);
        };
        let mut entry = [0; 8];
        self.pagemap
            .read_exact_at(&mut entry, range.start().get() / PAGE_BYTES as u64 * 8)
            .map_err(|_| CallFailed::last("pread(/proc/self/pagemap)"))?;
        Ok(u64::from_ne_bytes(entry) & PRESENT_OR_SWAPPED != 0)
    }
}

/// Through the kernel, so that a page which is lost, or was unmapped, is an error and no signal. One that has
/// left meanwhile is brought in by a fault worker: not for the threads of the region.
///
/// # Safety
/// `into` is writable for so many pages' bytes, and nobody else uses them meanwhile.
unsafe fn read_own_pages(
    page: PageIndex,
    count: u32,
    address: &AddressMap,
    into: *mut u8,
) -> Result<u32, CallFailed> {
    let gone = CallFailed {
        call: "process_vm_readv",
        source: Errno::EFAULT,
    };
    let Some(range) = address.range_of(page, count) else {
        return Err(gone);
    };
    // At most the bytes of `count` pages.
    let bytes = range.bytes() as usize;
    let local = libc::iovec {
        iov_base: into.cast(),
        iov_len: bytes,
    };
    let remote = libc::iovec {
        iov_base: range.start().get() as *mut libc::c_void,
        iov_len: bytes,
    };
    // SAFETY: the caller vouches for `into`; the kernel checks the other range.
    match unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    } {
        -1 => Err(CallFailed::last("process_vm_readv")),
        n if n < PAGE_BYTES as isize => Err(gone),
        n => Ok((n as usize / PAGE_BYTES) as u32),
    }
}

/// The file, and where in it the region starts.
#[derive(Debug)]
pub(crate) struct FileMemory {
    file: MemoryFile,
    first: u32,
    pages: PageCount,
}

impl FileMemory {
    /// `None` if the region reaches outside of the file.
    pub(crate) fn new(file: MemoryFile, first: u32, pages: PageCount) -> Option<Self> {
        let end = first.checked_add(pages.get())?;
        (end <= file.pages().get()).then_some(Self { file, first, pages })
    }

    fn of(&self, page: PageIndex) -> PageIndex {
        PageIndex::new(self.first + page.get())
    }

    pub(crate) fn punch(&self, page: PageIndex, count: u32) -> Result<(), CallFailed> {
        self.file.punch(self.of(page), PageCount::new(count))
    }

    fn has_data(&self, page: PageIndex) -> Result<bool, CallFailed> {
        self.file.has_data(self.of(page))
    }

    pub(crate) fn park(
        &self,
        pipe: &ParkingPipe,
        page: PageIndex,
        count: u32,
    ) -> Result<Park, ParkingError> {
        pipe.park(&self.file, self.of(page), PageCount::new(count))
    }

    /// # Safety
    /// As [`MemoryFile::read_pages_to`].
    unsafe fn read_pages_to(
        &self,
        page: PageIndex,
        count: u32,
        into: *mut u8,
    ) -> Result<u32, CallFailed> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.file.read_pages_to(self.of(page), count, into) }
    }

    /// Calls `each` with every run of resident pages.
    pub(crate) fn each_resident(
        &self,
        mut each: impl FnMut(PageIndex, u32),
    ) -> Result<(), CallFailed> {
        for extent in self.file.resident_extents(PageIndex::new(self.first)) {
            let extent = extent?;
            let start = extent.page.get().max(self.first) - self.first;
            let end = (extent.page.get() + extent.pages.get()).saturating_sub(self.first);
            let end = end.min(self.pages.get());
            if start >= self.pages.get() {
                break;
            }
            if start < end {
                each(PageIndex::new(start), end - start);
            }
        }
        Ok(())
    }
}

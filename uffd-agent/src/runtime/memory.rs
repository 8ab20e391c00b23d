//! A region's part of its file: pages counted from the region's start.

use mycoram_fabric::units::{PageCount, PageIndex};

use crate::kernel::{CallFailed, MemoryFile, Park, ParkingError, ParkingPipe};

/// The file, and where in it the region starts.
#[derive(Debug)]
pub(crate) struct RegionMemory {
    file: MemoryFile,
    first: u32,
    pages: PageCount,
}

impl RegionMemory {
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

    pub(crate) fn has_data(&self, page: PageIndex) -> Result<bool, CallFailed> {
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
    /// As [`MemoryFile::read_page_to`].
    pub(crate) unsafe fn read_page_to(
        &self,
        page: PageIndex,
        into: *mut u8,
    ) -> Result<(), CallFailed> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.file.read_page_to(self.of(page), into) }
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

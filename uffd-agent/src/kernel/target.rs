//! Addresses in the target: the process whose memory is paged. They are numbers here, never pointers,
//! for they mean something in another address space.

use std::fmt;

use mycoram_fabric::units::{ByteOffset, PAGE_BYTES, PageCount, PageIndex};

/// An address as the target counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TargetAddr(u64);

impl TargetAddr {
    /// Wraps an address.
    #[must_use]
    pub const fn new(addr: u64) -> Self {
        Self(addr)
    }
    /// The address as a number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for TargetAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Why this is no range of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetRangeError {
    /// Start or length is not a multiple of the page size.
    #[error("the range {start} + {bytes:#x} does not consist of whole pages")]
    NotPages {
        /// Where it would start.
        start: TargetAddr,
        /// How long it would be.
        bytes: u64,
    },
    /// No bytes, more than 2^32 pages, or past the end of the address space.
    #[error("the range {start} + {bytes:#x} is empty or larger than a region can be")]
    Size {
        /// Where it would start.
        start: TargetAddr,
        /// How long it would be.
        bytes: u64,
    },
}

/// A run of whole pages in the target, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetRange {
    start: TargetAddr,
    pages: PageCount,
}

impl TargetRange {
    /// A range of `bytes` bytes at `start`; both are multiples of the page size.
    pub fn new(start: TargetAddr, bytes: u64) -> Result<Self, TargetRangeError> {
        let page = PAGE_BYTES as u64;
        if !start.0.is_multiple_of(page) || !bytes.is_multiple_of(page) {
            return Err(TargetRangeError::NotPages { start, bytes });
        }
        let pages = u32::try_from(bytes / page)
            .ok()
            .filter(|pages| *pages > 0 && start.0.checked_add(bytes).is_some())
            .ok_or(TargetRangeError::Size { start, bytes })?;
        Ok(Self {
            start,
            pages: PageCount::new(pages),
        })
    }

    /// Where it starts.
    #[must_use]
    pub const fn start(self) -> TargetAddr {
        self.start
    }

    /// How many pages it has.
    #[must_use]
    pub const fn pages(self) -> PageCount {
        self.pages
    }

    /// How many bytes it has.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.pages.bytes().get()
    }

    /// First address behind it.
    #[must_use]
    pub const fn end(self) -> TargetAddr {
        TargetAddr(self.start.0 + self.bytes())
    }

    /// The page, counted from this range's start, that holds `addr`.
    #[must_use]
    pub fn page_at(self, addr: TargetAddr) -> Option<PageIndex> {
        if addr >= self.end() {
            return None;
        }
        let offset = addr.0.checked_sub(self.start.0)?;
        PageIndex::containing(ByteOffset::new(offset))
    }

    /// Where `page`, counted from this range's start, lies; `None` outside.
    #[must_use]
    pub fn addr_of(self, page: PageIndex) -> Option<TargetAddr> {
        (page.get() < self.pages.get()).then(|| TargetAddr(self.start.0 + page.offset().get()))
    }

    /// The sub-range of `count` pages at `page`; `None` if it reaches outside.
    #[must_use]
    pub fn slice(self, page: PageIndex, count: PageCount) -> Option<Self> {
        let start = self.addr_of(page)?;
        let end = page.get().checked_add(count.get())?;
        (count.get() > 0 && end <= self.pages.get()).then_some(Self {
            start,
            pages: count,
        })
    }

    /// The pages of this range that `[start, end)` touches: first page and how many; `None` if none.
    #[must_use]
    pub fn overlap(self, start: TargetAddr, end: TargetAddr) -> Option<(PageIndex, PageCount)> {
        let start = start.max(self.start);
        let end = end.min(self.end());
        if start >= end {
            return None;
        }
        let first = self.page_at(start)?;
        let last = self.page_at(TargetAddr(end.0 - 1))?;
        Some((first, PageCount::new(last.get() - first.get() + 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::{TargetAddr, TargetRange, TargetRangeError};
    use mycoram_fabric::units::{PageCount, PageIndex};

    #[test]
    fn what_is_not_whole_pages_is_refused() {
        let at = TargetAddr::new;
        assert!(matches!(
            TargetRange::new(at(1), 4096),
            Err(TargetRangeError::NotPages { .. })
        ));
        assert!(matches!(
            TargetRange::new(at(4096), 5),
            Err(TargetRangeError::NotPages { .. })
        ));
        for (start, bytes) in [(4096, 0), (u64::MAX - 4095, 4096), (0, 1 << 44)] {
            assert!(matches!(
                TargetRange::new(at(start), bytes),
                Err(TargetRangeError::Size { .. })
            ));
        }
    }

    #[test]
    fn addresses_and_pages_convert_both_ways() {
        let range = TargetRange::new(TargetAddr::new(0x10000), 4 * 4096).expect("whole pages");
        for page in range.pages().indexes() {
            let addr = range.addr_of(page).expect("inside");
            assert_eq!(range.page_at(addr), Some(page));
            assert_eq!(
                range.page_at(TargetAddr::new(addr.get() + 4095)),
                Some(page)
            );
        }
        assert_eq!(range.page_at(TargetAddr::new(0xffff)), None);
        assert_eq!(range.page_at(range.end()), None);
        assert_eq!(range.addr_of(PageIndex::new(4)), None);
        assert_eq!(range.slice(PageIndex::new(3), PageCount::new(2)), None);
        assert_eq!(
            range.overlap(TargetAddr::new(0), TargetAddr::new(0x11001)),
            Some((PageIndex::new(0), PageCount::new(2)))
        );
        assert_eq!(range.overlap(range.end(), TargetAddr::new(u64::MAX)), None);
    }
}

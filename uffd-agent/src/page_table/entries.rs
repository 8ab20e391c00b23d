//! What is kept of each page: some words a page, atomics over mapped memory, which another process may map after
//! us. What they mean, their users know.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::{PageCount, PageIndex};

/// `WORDS` words of each page. Cheap to share; every access is atomic.
#[derive(Debug)]
pub(super) struct Entries<const WORDS: usize> {
    mapping: Arc<Mapping>,
    offset: usize,
    pages: PageCount,
}

impl<const WORDS: usize> Entries<WORDS> {
    /// What a page costs.
    pub(super) const BYTES: usize = WORDS * size_of::<AtomicU64>();

    /// For `pages` pages at `offset` of a mapping; `None` if they do not fit there.
    pub(super) fn over(mapping: Arc<Mapping>, offset: usize, pages: PageCount) -> Option<Self> {
        let bytes = pages.as_usize().checked_mul(Self::BYTES)?;
        mapping.check(offset, bytes).ok()?;
        offset
            .is_multiple_of(align_of::<AtomicU64>())
            .then_some(Self {
                mapping,
                offset,
                pages,
            })
    }

    pub(super) fn pages(&self) -> PageCount {
        self.pages
    }

    /// A page's words.
    pub(super) fn of(&self, page: PageIndex) -> &[AtomicU64; WORDS] {
        assert!(
            page.get() < self.pages.get(),
            "{page} is outside of the region"
        );
        // SAFETY: `over` checked that `pages` entries lie in the mapping, aligned (mappings start on a page); the
        // page was checked above. An entry is atomics only, so sharing it is sound, with other processes too,
        // and every bit pattern is a value. The mapping lives as long as `self`.
        unsafe {
            &*self
                .mapping
                .as_ptr()
                .add(self.offset + page.as_usize() * Self::BYTES)
                .cast::<[AtomicU64; WORDS]>()
        }
    }
}

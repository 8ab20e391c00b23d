//! The entries as atomics over mapped memory, which another process may map after us.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::{PageCount, PageIndex};

use super::word::Word;

/// What a page costs.
pub(crate) const ENTRY_BYTES: usize = 16;

/// One page's entry.
#[repr(C)]
struct Entry {
    word: AtomicU64,
    checksum: AtomicU64,
}

const _: () = assert!(size_of::<Entry>() == ENTRY_BYTES);

/// All entries of a region. Cheap to share; every access is atomic.
#[derive(Debug)]
pub(crate) struct PageTable {
    mapping: Arc<Mapping>,
    offset: usize,
    pages: PageCount,
}

impl PageTable {
    /// Over `pages` entries at `offset` of a mapping; `None` if they do not fit there.
    pub(crate) fn over(mapping: Arc<Mapping>, offset: usize, pages: PageCount) -> Option<Self> {
        let bytes = pages.as_usize().checked_mul(ENTRY_BYTES)?;
        mapping.check(offset, bytes).ok()?;
        offset.is_multiple_of(align_of::<Entry>()).then_some(Self {
            mapping,
            offset,
            pages,
        })
    }

    /// In private memory: for the model.
    #[cfg(test)]
    pub(crate) fn anonymous(
        pages: PageCount,
    ) -> Result<Self, mycoram_fabric::transport::MappingError> {
        let mapping = Arc::new(Mapping::anonymous(pages.as_usize() * ENTRY_BYTES)?);
        Ok(Self {
            mapping,
            offset: 0,
            pages,
        })
    }

    pub(crate) fn pages(&self) -> PageCount {
        self.pages
    }

    fn entry(&self, page: PageIndex) -> &Entry {
        assert!(
            page.get() < self.pages.get(),
            "{page} is outside of the region"
        );
        // SAFETY: `over` checked that `pages` entries lie in the mapping, aligned (mappings start on a
        // page); the page was checked above. An entry is two atomics, so sharing it, with other
        // processes too, is sound; every bit pattern is a value. The mapping lives as long as `self`.
        unsafe {
            &*self
                .mapping
                .as_ptr()
                .add(self.offset + page.as_usize() * ENTRY_BYTES)
                .cast::<Entry>()
        }
    }

    pub(crate) fn word(&self, page: PageIndex) -> Word {
        Word::from_bits(self.entry(page).word.load(Ordering::SeqCst))
    }

    /// Stores `after` if the word still is `before`; else answers what it is.
    pub(crate) fn swap(&self, page: PageIndex, before: Word, after: Word) -> Result<(), Word> {
        self.entry(page)
            .word
            .compare_exchange(
                before.bits(),
                after.bits(),
                Ordering::SeqCst,
                Ordering::SeqCst,
            )
            .map(|_| ())
            .map_err(Word::from_bits)
    }

    /// Without comparing: only while nobody else serves the region (take-over, attach).
    pub(crate) fn set(&self, page: PageIndex, word: Word) {
        self.entry(page).word.store(word.bits(), Ordering::SeqCst);
    }

    /// Of what the memory node holds; means something only while the word is `synced`.
    pub(crate) fn checksum(&self, page: PageIndex) -> u64 {
        self.entry(page).checksum.load(Ordering::SeqCst)
    }

    /// Only by who has set `writing` in the word.
    pub(crate) fn set_checksum(&self, page: PageIndex, checksum: u64) {
        self.entry(page).checksum.store(checksum, Ordering::SeqCst);
    }
}

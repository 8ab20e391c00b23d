//! A page's word, which says where the page is, and the checksum of what the memory nodes hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::{PageCount, PageIndex};

use super::entries::Entries;
use super::word::Word;

/// The word, and the checksum.
type PageEntries = Entries<2>;

/// What a page costs.
pub(crate) const ENTRY_BYTES: usize = PageEntries::BYTES;

const _: () = assert!(ENTRY_BYTES == 16);

/// All entries of a region. Cheap to share; every access is atomic.
#[derive(Debug)]
pub(crate) struct PageTable(PageEntries);

impl PageTable {
    /// Over `pages` entries at `offset` of a mapping; `None` if they do not fit there.
    pub(crate) fn over(mapping: Arc<Mapping>, offset: usize, pages: PageCount) -> Option<Self> {
        PageEntries::over(mapping, offset, pages).map(Self)
    }

    /// In private memory: for the model.
    #[cfg(test)]
    pub(crate) fn anonymous(
        pages: PageCount,
    ) -> Result<Self, mycoram_fabric::transport::MappingError> {
        let mapping = Arc::new(Mapping::anonymous(pages.as_usize() * ENTRY_BYTES)?);
        Ok(Self::over(mapping, 0, pages).expect("it is as large as that"))
    }

    pub(crate) fn pages(&self) -> PageCount {
        self.0.pages()
    }

    fn word_of(&self, page: PageIndex) -> &AtomicU64 {
        let [word, _] = self.0.of(page);
        word
    }

    fn checksum_of(&self, page: PageIndex) -> &AtomicU64 {
        let [_, checksum] = self.0.of(page);
        checksum
    }

    pub(crate) fn word(&self, page: PageIndex) -> Word {
        Word::from_bits(self.word_of(page).load(Ordering::SeqCst))
    }

    /// Stores `after` if the word still is `before`; else answers what it is.
    pub(crate) fn swap(&self, page: PageIndex, before: Word, after: Word) -> Result<(), Word> {
        self.word_of(page)
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
        self.word_of(page).store(word.bits(), Ordering::SeqCst);
    }

    /// Of what the memory node holds; means something only while the word is `synced`.
    pub(crate) fn checksum(&self, page: PageIndex) -> u64 {
        self.checksum_of(page).load(Ordering::SeqCst)
    }

    /// Only by who has set `writing` in the word.
    pub(crate) fn set_checksum(&self, page: PageIndex, checksum: u64) {
        self.checksum_of(page).store(checksum, Ordering::SeqCst);
    }
}

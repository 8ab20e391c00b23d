//! What is kept of each sealed page: the version that was sealed last, and its tag. Atomics over mapped memory,
//! behind the page table of a sealed region; they outlive the agent.
//!
//! Version and tag belong together, and to what the memory node holds, while the page's word says `synced`.
//! They are changed by who has set `writing` in the word; nobody needs the memory node's copy meanwhile, as
//! the page is here.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::{PageCount, PageIndex};

use super::entries::Entries;

/// The version, and the two halves of the tag.
type SealEntries = Entries<3>;

/// What a sealed page costs besides its entry in the page table.
pub(crate) const SEAL_BYTES: usize = SealEntries::BYTES;

/// See the module.
#[derive(Debug)]
pub(crate) struct SealTable(SealEntries);

impl SealTable {
    /// Over `pages` entries at `offset` of a mapping; `None` if they do not fit there.
    pub(crate) fn over(mapping: Arc<Mapping>, offset: usize, pages: PageCount) -> Option<Self> {
        SealEntries::over(mapping, offset, pages).map(Self)
    }

    /// A version that was never used for this page. It is in the file before anything is sealed with it, so
    /// that a successor does not use it again.
    pub(crate) fn next_version(&self, page: PageIndex) -> u64 {
        // 2^64 versions of a page are more than can be written.
        let [version, ..] = self.0.of(page);
        version.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn version(&self, page: PageIndex) -> u64 {
        let [version, ..] = self.0.of(page);
        version.load(Ordering::SeqCst)
    }

    pub(crate) fn tag(&self, page: PageIndex) -> [u8; 16] {
        let [_, halves @ ..] = self.0.of(page);
        let mut tag = [0; 16];
        for (half, bytes) in halves.iter().zip(tag.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&half.load(Ordering::SeqCst).to_le_bytes());
        }
        tag
    }

    pub(crate) fn set_tag(&self, page: PageIndex, tag: [u8; 16]) {
        let [_, halves @ ..] = self.0.of(page);
        for (half, bytes) in halves.iter().zip(tag.chunks_exact(8)) {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            half.store(u64::from_le_bytes(word), Ordering::SeqCst);
        }
    }
}

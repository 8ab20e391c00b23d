//! The map of a region: which extent lives where. Made when the region is opened, read on every fault.

use crate::transport::RemoteSlice;
use crate::units::{ByteCount, ExtentIndex, PAGE_SHIFT, PageIndex, RemoteAddr, Rkey};

/// One copy of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// Which of the region's nodes.
    pub(super) node: u16,
    /// Where it starts there.
    pub(super) addr: RemoteAddr,
    /// With which key.
    pub(super) rkey: Rkey,
}

/// A run of pages inside of one extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The extent.
    pub(super) extent: ExtentIndex,
    /// Bytes from the extent's start.
    pub(super) offset: u64,
    /// Pages of the run that were in earlier pieces.
    pub(super) skipped: u16,
    /// Pages of this piece.
    pub(super) pages: u16,
}

/// See the module. An extent has `copies` locations; what is written goes to all of them, what is read
/// comes from the first.
#[derive(Debug)]
pub(super) struct Homes {
    extent_pages: u64,
    copies: usize,
    locations: Box<[Location]>,
}

impl Homes {
    /// `locations` has `copies` entries an extent, in the extents' order.
    pub(super) fn new(extent_bytes: ByteCount, copies: usize, locations: Box<[Location]>) -> Self {
        Self {
            extent_pages: extent_bytes.get() >> PAGE_SHIFT,
            copies,
            locations,
        }
    }

    /// The copies of an extent.
    pub(super) fn of(&self, extent: ExtentIndex) -> &[Location] {
        let first = extent.get() as usize * self.copies;
        &self.locations[first..first + self.copies]
    }

    /// How many extents have a copy on `node`.
    pub(super) fn on(&self, node: u16) -> usize {
        self.locations
            .iter()
            .filter(|location| location.node == node)
            .count()
    }

    /// The most pieces, over all copies, that a run of `run` pages comes to.
    pub(super) fn most_parts(&self, run: u16) -> usize {
        let run = u64::from(run);
        let pieces = (run + self.extent_pages - 2) / self.extent_pages + 1;
        pieces.min(run) as usize * self.copies
    }

    /// Cuts a run at the borders of extents.
    pub(super) fn pieces(&self, page: PageIndex, run: u16) -> impl Iterator<Item = Piece> {
        let extent_pages = self.extent_pages;
        let mut skipped = 0;
        std::iter::from_fn(move || {
            if skipped >= run {
                return None;
            }
            let at = u64::from(page.get()) + u64::from(skipped);
            let within = at % extent_pages;
            // At most `run`, so it fits.
            let pages = (extent_pages - within).min(u64::from(run - skipped)) as u16;
            let piece = Piece {
                // A region has at most 2^32 extents, as it has at most that many pages.
                extent: ExtentIndex::new((at / extent_pages) as u32),
                offset: within << PAGE_SHIFT,
                skipped,
                pages,
            };
            skipped += pages;
            Some(piece)
        })
    }
}

impl Location {
    /// `offset` bytes behind the extent's start, which lies inside of the extent.
    pub(super) fn at(&self, offset: u64) -> RemoteSlice {
        RemoteSlice {
            addr: RemoteAddr::new(self.addr.get().wrapping_add(offset)),
            rkey: self.rkey,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PAGE_BYTES;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_cover_a_run_once_and_stay_in_their_extent(
            extent_pages in 1..40u64, page in 0..1000u32, run in 1..=16u16,
        ) {
            let homes = Homes::new(ByteCount::new(extent_pages * PAGE_BYTES as u64), 1, Box::new([]));
            let mut covered = 0;
            let mut count = 0;
            for piece in homes.pieces(PageIndex::new(page), run) {
                prop_assert_eq!(piece.skipped, covered);
                let first = u64::from(piece.extent.get()) * extent_pages + (piece.offset >> PAGE_SHIFT);
                prop_assert_eq!(first, u64::from(page) + u64::from(covered));
                prop_assert!((piece.offset >> PAGE_SHIFT) + u64::from(piece.pages) <= extent_pages);
                prop_assert!(piece.pages > 0);
                covered += piece.pages;
                count += 1;
            }
            prop_assert_eq!(covered, run);
            prop_assert!(count <= homes.most_parts(run));
        }
    }
}

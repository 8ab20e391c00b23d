//! The map of a region: which extent lives where, and which lives nowhere yet. A snapshot that never changes;
//! whoever changes homes makes the next one, which shares all chunks with it but those that differ.

use std::sync::Arc;

use super::copy::CopyTracker;
use crate::transport::RemoteSlice;
use crate::units::{ByteCount, ExtentIndex, PAGE_SHIFT, PageIndex, RemoteAddr, Rkey};

/// Extents of a chunk: what a change of one extent copies. As many as a word has bits.
const CHUNK_EXTENTS: usize = u64::BITS as usize;

/// Some extents in a row.
#[derive(Clone, Debug, Default)]
struct Chunk {
    /// One bit an extent: it is placed. Of the others no page was ever written.
    placed: u64,
    /// `width` places an extent.
    locations: Vec<Option<Location>>,
}

/// What a replica is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Written and read.
    Live,
    /// Written; not read before it is complete.
    Copying,
}

/// One replica of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// Where it starts on its node.
    pub(super) addr: RemoteAddr,
    /// With which key.
    pub(super) rkey: Rkey,
    /// Which of the region's nodes.
    pub(super) node: u16,
    pub(super) standing: Standing,
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

/// See the module. What is written goes to all replicas of an extent, what is read comes from a live one.
#[derive(Clone, Debug)]
pub(super) struct Homes {
    version: u64,
    extent_pages: u64,
    /// Most replicas of an extent, those that are being copied included.
    width: usize,
    chunks: Vec<Arc<Chunk>>,
    /// Of extents that have a replica which is being copied.
    trackers: Vec<(ExtentIndex, Arc<CopyTracker>)>,
}

impl Homes {
    /// Version 0; `replicas` of each extent come in the extents' order, at most `width` of each. `None`: it
    /// is not placed yet.
    pub(super) fn new(
        extent_bytes: ByteCount,
        width: usize,
        extents: impl Iterator<Item = Option<Vec<Location>>>,
    ) -> Self {
        let mut chunk = Chunk::default();
        let mut chunks = Vec::new();
        for (nth, replicas) in extents.enumerate() {
            let nth = nth % CHUNK_EXTENTS;
            chunk.placed |= u64::from(replicas.is_some()) << nth;
            let replicas = replicas.unwrap_or_default();
            let places = (0..width).map(|nth| replicas.get(nth).copied());
            chunk.locations.extend(places);
            if nth + 1 == CHUNK_EXTENTS {
                chunks.push(Arc::new(std::mem::take(&mut chunk)));
            }
        }
        chunks.push(Arc::new(chunk));
        Self {
            version: 0,
            extent_pages: extent_bytes.get() >> PAGE_SHIFT,
            width,
            chunks,
            trackers: Vec::new(),
        }
    }

    /// Which snapshot this is.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The next snapshot, with other replicas of some extents, which are placed; the live ones come first.
    pub(super) fn next(
        &self,
        changed: impl Iterator<Item = (ExtentIndex, Vec<Location>)>,
        trackers: Vec<(ExtentIndex, Arc<CopyTracker>)>,
    ) -> Self {
        let mut next = Self {
            version: self.version + 1,
            trackers,
            ..self.clone()
        };
        for (extent, mut replicas) in changed {
            replicas.sort_by_key(|replica| replica.standing != Standing::Live);
            let extent = extent.get() as usize;
            let first = extent % CHUNK_EXTENTS * self.width;
            let chunk = Arc::make_mut(&mut next.chunks[extent / CHUNK_EXTENTS]);
            chunk.placed |= 1 << (extent % CHUNK_EXTENTS);
            let places = &mut chunk.locations[first..first + self.width];
            for (nth, place) in places.iter_mut().enumerate() {
                *place = replicas.get(nth).copied();
            }
        }
        next
    }

    /// Whether an extent lives anywhere, or did. If not, all its pages are zeros.
    pub(super) fn is_placed(&self, extent: ExtentIndex) -> bool {
        let extent = extent.get() as usize;
        let placed = self.chunks[extent / CHUNK_EXTENTS].placed;
        placed >> (extent % CHUNK_EXTENTS) & 1 == 1
    }

    /// The replicas of an extent, the live ones first.
    pub(super) fn of(&self, extent: ExtentIndex) -> impl Iterator<Item = Location> + '_ {
        let extent = extent.get() as usize;
        let first = extent % CHUNK_EXTENTS * self.width;
        let chunk = &self.chunks[extent / CHUNK_EXTENTS];
        let places = &chunk.locations[first..first + self.width];
        places.iter().map_while(|place| *place)
    }

    /// The live replicas of an extent.
    pub(super) fn live(&self, extent: ExtentIndex) -> impl Iterator<Item = Location> + '_ {
        self.of(extent)
            .take_while(|replica| replica.standing == Standing::Live)
    }

    /// Who follows the writes to an extent that is being copied.
    pub(super) fn tracker(&self, extent: ExtentIndex) -> Option<&Arc<CopyTracker>> {
        let mut trackers = self.trackers.iter();
        trackers.find(|(of, _)| *of == extent).map(|(_, t)| t)
    }

    /// Who follows the writes to which extents.
    pub(super) fn trackers(&self) -> &[(ExtentIndex, Arc<CopyTracker>)] {
        &self.trackers
    }

    /// The most pieces that a run of `run` pages comes to.
    pub(super) fn most_pieces(&self, run: u16) -> usize {
        let run = u64::from(run);
        let pieces = (run + self.extent_pages - 2) / self.extent_pages + 1;
        pieces.min(run) as usize
    }

    /// The most parts, over all replicas, that a run of `run` pages comes to.
    pub(super) fn most_parts(&self, run: u16) -> usize {
        self.most_pieces(run) * self.width
    }

    /// Cuts a run at the borders of extents.
    pub(super) fn pieces(&self, page: PageIndex, run: u16) -> impl Iterator<Item = Piece> + use<> {
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
            let bytes = ByteCount::new(extent_pages * PAGE_BYTES as u64);
            let homes = Homes::new(bytes, 1, std::iter::empty());
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

    #[test]
    fn a_change_leaves_the_former_snapshot_and_all_other_extents_alone() {
        let at = |node, standing| Location {
            addr: RemoteAddr::new(u64::from(node) << 20),
            rkey: Rkey::new(1),
            node,
            standing,
        };
        // The last one is not placed.
        let one = |extent: u32| (extent < 199).then(|| vec![at(extent as u16 % 3, Standing::Live)]);
        let before = Homes::new(ByteCount::mib(1), 3, (0..200).map(one));
        let extent = ExtentIndex::new(70);
        let two = vec![at(7, Standing::Copying), at(1, Standing::Live)];
        let after = before.next([(extent, two)].into_iter(), Vec::new());
        let nodes = |homes: &Homes, extent| {
            let replicas = homes.of(ExtentIndex::new(extent));
            replicas.map(|replica| replica.node).collect::<Vec<_>>()
        };
        assert_eq!(nodes(&after, 70), [1, 7]);
        assert_eq!(after.live(extent).count(), 1);
        assert_eq!(nodes(&before, 70), [1]);
        assert_eq!((before.version(), after.version()), (0, 1));
        for other in (0..200).filter(|other| *other != 70) {
            assert_eq!(nodes(&after, other), nodes(&before, other));
        }
        let last = ExtentIndex::new(199);
        assert!((0..199).all(|extent| after.is_placed(ExtentIndex::new(extent))));
        assert!(!after.is_placed(last));
        let placed = vec![at(0, Standing::Live)];
        let placed = after.next([(last, placed)].into_iter(), Vec::new());
        assert!(placed.is_placed(last) && !after.is_placed(last));
    }
}

//! Neighbouring pages make one piece. Pure.

use super::replicate::PageFrom;
use crate::units::{ExtentIndex, PAGE_BYTES};

/// Pages that are neighbours in the region, in one extent, and in local memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) extent: ExtentIndex,
    /// Bytes from the extent's start.
    pub(super) at: u64,
    /// Bytes from the local memory's start.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// The runs that `pages`, in ascending order, come to.
pub(super) fn runs(pages: &[PageFrom], extent_bytes: u64) -> Vec<Run> {
    let page_bytes = PAGE_BYTES as u64;
    let mut runs: Vec<Run> = Vec::new();
    for page in pages {
        let at = page.page.offset().get();
        // A region has at most 2^32 extents, as it has at most that many pages.
        let extent = ExtentIndex::new((at / extent_bytes) as u32);
        let within = at % extent_bytes;
        match runs.last_mut() {
            Some(last)
                if last.extent == extent
                    && last.at + last.bytes == within
                    && last.offset + last.bytes == page.offset =>
            {
                last.bytes += page_bytes;
            }
            _ => runs.push(Run {
                extent,
                at: within,
                offset: page.offset,
                bytes: page_bytes,
            }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PageIndex;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn each_page_is_in_one_run_and_no_run_leaves_its_extent(
            extent_pages in 1..9_u64,
            pages in prop::collection::btree_map(0..64_u32, 0..4_u64, 0..40),
        ) {
            let extent_bytes = extent_pages * PAGE_BYTES as u64;
            // Mostly as near in memory as in the region.
            let list: Vec<_> = pages
                .iter()
                .map(|(page, far)| PageFrom {
                    page: PageIndex::new(*page),
                    offset: (u64::from(*page) + far / 3 * 1000) * PAGE_BYTES as u64,
                })
                .collect();
            let mut found = BTreeMap::new();
            let runs = runs(&list, extent_bytes);
            for run in &runs {
                prop_assert!(run.at + run.bytes <= extent_bytes);
                for nth in 0..run.bytes / PAGE_BYTES as u64 {
                    let within = run.at / PAGE_BYTES as u64 + nth;
                    let page = u64::from(run.extent.get()) * extent_pages + within;
                    let before = found.insert(page as u32, run.offset + nth * PAGE_BYTES as u64);
                    prop_assert_eq!(before, None);
                }
            }
            let wanted = list.iter().map(|page| (page.page.get(), page.offset)).collect();
            prop_assert_eq!(found, wanted);
            // No two runs that could be one.
            for two in runs.windows(2) {
                let joined = two[0].extent == two[1].extent
                    && two[0].at + two[0].bytes == two[1].at
                    && two[0].offset + two[0].bytes == two[1].offset;
                prop_assert!(!joined);
            }
        }
    }
}

//! Where a region's pages lie in the target's address space, readable at any time without a lock.
//!
//! One segment, until the target moves or unmaps a part. A version number around the segments makes a
//! reader that met a change read again.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use mycoram_fabric::units::{PAGE_BYTES, PAGE_SHIFT, PageCount, PageIndex};

use crate::kernel::{TargetAddr, TargetRange};

/// Most pieces that a region's mapping may be cut into: 16. Beyond, the pieces that do not fit count as
/// unmapped.
pub(crate) const MAX_SEGMENTS: usize = 16;

/// Pages that lie one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) addr: u64,
    pub(crate) page: u32,
    pub(crate) pages: u32,
}

impl Segment {
    fn end(self) -> u64 {
        self.addr + (u64::from(self.pages) << PAGE_SHIFT)
    }
}

#[derive(Debug, Default)]
struct Cell {
    addr: AtomicU64,
    /// First page and number of pages in one word.
    pages: AtomicU64,
}

/// The segments of a region.
#[derive(Debug)]
pub(crate) struct AddressMap {
    /// Odd while a change is being made.
    version: AtomicU64,
    cells: [Cell; MAX_SEGMENTS],
    /// Held by who changes; readers do not take it.
    segments: Mutex<Vec<Segment>>,
}

impl AddressMap {
    pub(crate) fn new(segments: Vec<Segment>) -> Self {
        let map = Self {
            version: AtomicU64::new(0),
            cells: Default::default(),
            segments: Mutex::new(Vec::with_capacity(2 * MAX_SEGMENTS)),
        };
        map.change(|all| *all = segments);
        map
    }

    /// All segments, by page.
    pub(crate) fn segments(&self) -> Vec<Segment> {
        self.segments
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Another number after every change.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    fn change(&self, edit: impl FnOnce(&mut Vec<Segment>)) {
        let mut segments = self
            .segments
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        edit(&mut segments);
        segments.retain(|s| s.pages > 0);
        segments.sort_by_key(|s| s.page);
        segments.truncate(MAX_SEGMENTS);
        self.version.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        for (i, cell) in self.cells.iter().enumerate() {
            let (addr, pages) = segments.get(i).map_or((0, 0), |s| {
                (s.addr, u64::from(s.page) << 32 | u64::from(s.pages))
            });
            cell.addr.store(addr, Ordering::Relaxed);
            cell.pages.store(pages, Ordering::Relaxed);
        }
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    fn find<T>(&self, look: impl Fn(Segment) -> Option<T>) -> Option<T> {
        loop {
            let version = self.version.load(Ordering::Acquire);
            if version.is_multiple_of(2) {
                let mut found = None;
                for cell in &self.cells {
                    let addr = cell.addr.load(Ordering::Relaxed);
                    let pages = cell.pages.load(Ordering::Relaxed);
                    let segment = Segment {
                        addr,
                        page: (pages >> 32) as u32,
                        pages: pages as u32,
                    };
                    if segment.pages == 0 {
                        break;
                    }
                    found = look(segment);
                    if found.is_some() {
                        break;
                    }
                }
                fence(Ordering::Acquire);
                if self.version.load(Ordering::Relaxed) == version {
                    return found;
                }
            }
            std::hint::spin_loop();
        }
    }

    /// The page at an address.
    pub(crate) fn page_at(&self, addr: TargetAddr) -> Option<PageIndex> {
        let addr = addr.get();
        self.find(|s| {
            let inside = addr >= s.addr && addr < s.end();
            inside.then(|| PageIndex::new(s.page + ((addr - s.addr) >> PAGE_SHIFT) as u32))
        })
    }

    /// Where `page` lies, with at most `count` pages that follow it there; `None` if it is not mapped.
    pub(crate) fn range_of(&self, page: PageIndex, count: u32) -> Option<TargetRange> {
        let page = page.get();
        let (addr, pages) = self.find(|s| {
            let at = page.checked_sub(s.page).filter(|at| *at < s.pages)?;
            let addr = s.addr + (u64::from(at) << PAGE_SHIFT);
            Some((addr, (s.pages - at).min(count)))
        })?;
        TargetRange::new(TargetAddr::new(addr), u64::from(pages) * PAGE_BYTES as u64).ok()
    }

    /// Calls `each` with the pages that lie in `[start, end)`.
    pub(crate) fn overlaps(
        &self,
        start: TargetAddr,
        end: TargetAddr,
        mut each: impl FnMut(PageIndex, PageCount),
    ) {
        // Not on the path of a fault: the lock is held by who changes segments, for nanoseconds.
        for segment in self.segments() {
            let from = start.get().max(segment.addr);
            let to = end.get().min(segment.end());
            if from < to {
                let first = segment.page + ((from - segment.addr) >> PAGE_SHIFT) as u32;
                let last = segment.page + ((to - 1 - segment.addr) >> PAGE_SHIFT) as u32;
                each(PageIndex::new(first), PageCount::new(last - first + 1));
            }
        }
    }

    /// The target unmapped `[start, end)`.
    pub(crate) fn unmap(&self, start: TargetAddr, end: TargetAddr) {
        self.change(|all| {
            cut(all, start.get(), end.get());
        });
    }

    /// The target moved `bytes` bytes.
    pub(crate) fn remap(&self, from: TargetAddr, to: TargetAddr, bytes: u64) {
        self.change(|all| {
            let moved = cut(all, from.get(), from.get().saturating_add(bytes));
            all.extend(moved.into_iter().map(|s| Segment {
                addr: to.get() + (s.addr - from.get()),
                ..s
            }));
        });
    }
}

/// Takes what lies in `[start, end)` out of `all`.
fn cut(all: &mut Vec<Segment>, start: u64, end: u64) -> Vec<Segment> {
    let mut inside = Vec::new();
    let mut outside = Vec::new();
    for s in all.drain(..) {
        let (from, to) = (start.clamp(s.addr, s.end()), end.clamp(s.addr, s.end()));
        let part = |from: u64, to: u64| Segment {
            addr: from,
            page: s.page + ((from - s.addr) >> PAGE_SHIFT) as u32,
            pages: (to.saturating_sub(from) >> PAGE_SHIFT) as u32,
        };
        if from < to {
            outside.extend([part(s.addr, from), part(to, s.end())]);
            inside.push(part(from, to));
        } else {
            outside.push(s);
        }
    }
    *all = outside;
    inside.retain(|s| s.pages > 0);
    inside
}

#[cfg(test)]
mod tests {
    use super::{AddressMap, Segment};
    use crate::kernel::TargetAddr;
    use mycoram_fabric::units::PageIndex;

    fn map() -> AddressMap {
        AddressMap::new(vec![Segment {
            addr: 0x10000,
            page: 0,
            pages: 8,
        }])
    }

    #[test]
    fn a_whole_move_and_a_part_of_it() {
        let map = map();
        let at = TargetAddr::new;
        map.remap(at(0x10000), at(0x90000), 8 * 4096);
        assert_eq!(map.page_at(at(0x10000)), None);
        assert_eq!(map.page_at(at(0x91fff)), Some(PageIndex::new(1)));
        map.remap(at(0x92000), at(0x40000), 2 * 4096);
        assert_eq!(map.page_at(at(0x92000)), None);
        assert_eq!(map.page_at(at(0x41000)), Some(PageIndex::new(3)));
        assert_eq!(map.page_at(at(0x94000)), Some(PageIndex::new(4)));
        let range = map.range_of(PageIndex::new(1), 4).expect("mapped");
        assert_eq!((range.start().get(), range.pages().get()), (0x91000, 1));
        map.unmap(at(0x40000), at(0x41000));
        assert_eq!(map.range_of(PageIndex::new(2), 1), None);
        assert!(map.range_of(PageIndex::new(3), 1).is_some());
        let mut seen = Vec::new();
        map.overlaps(at(0), at(u64::MAX), |p, n| seen.push((p.get(), n.get())));
        assert_eq!(seen, [(0, 2), (3, 1), (4, 4)]);
    }
}

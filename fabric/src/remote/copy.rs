//! A replica that is being copied while its owner goes on writing: which pages of it are right. Pure.
//!
//! ```text
//!   begin_copy: the replica is written from now on, by every lane   (`is_ready`: all have heard of it)
//!      next --> a run of pages that no write is under way to --> read it, write it to the new replica
//!        ^                                                                |
//!        +---- no: a write began meanwhile, what was copied may be old ---+-- settled: is it right?
//!   finish_copy: all pages are right; the replica is live
//! ```
//!
//! A write of the owner goes to the live replicas and to the new one. The copier must not put an older
//! version over it. So lanes count, page by page, the writes that they have begun and ended: what was
//! copied counts only if none was under way when it was read, and none has begun since.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::waits::LanesHeard;
use crate::pages::MAX_RUN_PAGES;
use crate::units::{ExtentIndex, PageCount, PageIndex};

/// Writes to the pages of an extent that is being copied, as its lanes tell of them.
#[derive(Debug)]
pub(super) struct CopyTracker {
    /// The node of the new replica.
    pub(super) node: u16,
    pages: Box<[PageWrites]>,
}

#[derive(Debug, Default)]
struct PageWrites {
    begun: AtomicU32,
    ended: AtomicU32,
}

impl CopyTracker {
    pub(super) fn new(node: u16, pages: u32) -> Self {
        Self {
            node,
            pages: (0..pages).map(|_| PageWrites::default()).collect(),
        }
    }

    /// A write to `count` pages from `first` of the extent on is about to be posted.
    pub(super) fn begin(&self, first: u32, count: u16) {
        for page in &self.pages[first as usize..first as usize + usize::from(count)] {
            page.begun.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// It has been answered, however.
    pub(super) fn end(&self, first: u32, count: u16) {
        for page in &self.pages[first as usize..first as usize + usize::from(count)] {
            page.ended.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// How many writes have begun, if none is under way.
    pub(super) fn quiet(&self, page: u32) -> Option<u32> {
        let page = &self.pages[page as usize];
        // In this order: what has ended by now had begun before.
        let ended = page.ended.load(Ordering::SeqCst);
        let begun = page.begun.load(Ordering::SeqCst);
        (begun == ended).then_some(begun)
    }

    fn begun(&self, page: u32) -> u32 {
        self.pages[page as usize].begun.load(Ordering::SeqCst)
    }
}

/// A run of pages that is being copied.
#[derive(Clone, Copy, Debug)]
pub struct CopyRun {
    /// Its first page, in the region.
    pub page: PageIndex,
    /// How many, at most [`MAX_RUN_PAGES`].
    pub run: u16,
    within: u32,
    seen: [u32; MAX_RUN_PAGES as usize],
}

/// What a copier does next.
#[derive(Clone, Copy, Debug)]
pub enum CopyStep {
    /// Read this run (from any replica), write it to the new replica only, then [`ExtentCopy::settled`].
    Copy(CopyRun),
    /// Nothing now: lanes have not heard of the copy yet, runs are under way, or pages are being written.
    Wait,
    /// Every page is right: [`crate::remote::Remote::finish_copy`].
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageState {
    Left,
    UnderWay,
    Right,
}

/// A replica that is being copied. See the module. Made by [`crate::remote::Remote::begin_copy`].
#[derive(Debug)]
pub struct ExtentCopy {
    extent: ExtentIndex,
    node: u16,
    first: PageIndex,
    states: Vec<PageState>,
    right: usize,
    /// Where the search goes on.
    cursor: usize,
    pub(super) tracker: Arc<CopyTracker>,
    heard: LanesHeard,
}

impl ExtentCopy {
    pub(super) fn new(
        extent: ExtentIndex,
        node: u16,
        first: PageIndex,
        pages: u32,
        tracker: Arc<CopyTracker>,
        heard: LanesHeard,
    ) -> Self {
        Self {
            extent,
            node,
            first,
            states: vec![PageState::Left; pages as usize],
            right: 0,
            cursor: 0,
            tracker,
            heard,
        }
    }

    /// Which extent.
    #[must_use]
    pub fn extent(&self) -> ExtentIndex {
        self.extent
    }

    /// The new replica's node: where runs are written, with [`crate::pages::Which::Only`].
    #[must_use]
    pub fn node(&self) -> u16 {
        self.node
    }

    /// Pages that are not right yet.
    #[must_use]
    pub fn left(&self) -> PageCount {
        // An extent's pages are counted in 32 bits.
        PageCount::new((self.states.len() - self.right) as u32)
    }

    /// What to do next; runs of at most `most` pages. Several runs may be under way at a time.
    pub fn next(&mut self, most: u16) -> CopyStep {
        if self.right == self.states.len() {
            return CopyStep::Done;
        }
        if !self.heard.all() {
            return CopyStep::Wait;
        }
        let most = usize::from(most.clamp(1, MAX_RUN_PAGES));
        for _ in 0..self.states.len() {
            let at = self.cursor;
            self.cursor = (at + 1) % self.states.len();
            let mut seen = [0; MAX_RUN_PAGES as usize];
            let mut run = 0;
            while run < most && at + run < self.states.len() {
                // An extent's pages are counted in 32 bits.
                let quiet = self.tracker.quiet((at + run) as u32);
                match (self.states[at + run], quiet) {
                    (PageState::Left, Some(begun)) => seen[run] = begun,
                    _ => break,
                }
                run += 1;
            }
            if run > 0 {
                self.states[at..at + run].fill(PageState::UnderWay);
                self.cursor = (at + run) % self.states.len();
                return CopyStep::Copy(CopyRun {
                    page: PageIndex::new(self.first.get() + at as u32),
                    run: run as u16,
                    within: at as u32,
                    seen,
                });
            }
        }
        CopyStep::Wait
    }

    /// What became of a run: `written` says that its pages were read and written, every one. A run that
    /// was not, or that a write came across, is given out again. Call it only when no request of the run
    /// is under way any more.
    pub fn settled(&mut self, run: &CopyRun, written: bool) {
        for nth in 0..usize::from(run.run) {
            let page = run.within as usize + nth;
            let right = written && self.tracker.begun(page as u32) == run.seen[nth];
            self.states[page] = if right {
                self.right += 1;
                PageState::Right
            } else {
                PageState::Left
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn copy(pages: u32) -> ExtentCopy {
        let tracker = Arc::new(CopyTracker::new(1, pages));
        let first = PageIndex::new(100);
        let heard = LanesHeard::everybody();
        ExtentCopy::new(ExtentIndex::new(3), 1, first, pages, tracker, heard)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u32),
        LandLive(prop::sample::Index),
        LandNew(prop::sample::Index),
        End(prop::sample::Index),
        Next,
        Read(prop::sample::Index),
        Put(prop::sample::Index, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        let index = any::<prop::sample::Index>;
        prop_oneof![
            2 => (0..4u32).prop_map(Step::Write),
            3 => index().prop_map(Step::LandLive),
            3 => index().prop_map(Step::LandNew),
            3 => index().prop_map(Step::End),
            3 => Just(Step::Next),
            3 => index().prop_map(Step::Read),
            3 => (index(), prop::bool::weighted(0.9)).prop_map(|(at, ok)| Step::Put(at, ok)),
        ]
    }

    proptest! {
        /// Writes and copies interleave in every way; a page that counts as right is, when all is quiet.
        #[test]
        fn what_is_right_is_what_the_live_replica_has(
            steps in proptest::collection::vec(step(), 0..400),
        ) {
            const PAGES: usize = 4;
            let mut copy = copy(PAGES as u32);
            let (mut live, mut new) = ([0u64; PAGES], [u64::MAX; PAGES]);
            let mut version = 0;
            // Owner's writes: page, version, landed on the live and on the new replica.
            let mut writes: Vec<(u32, u64, bool, bool)> = Vec::new();
            let mut runs: Vec<(CopyRun, Option<Vec<u64>>)> = Vec::new();
            for step in steps {
                match step {
                    Step::Write(page) if writes.iter().all(|write| write.0 != page) => {
                        version += 1;
                        copy.tracker.begin(page, 1);
                        writes.push((page, version, false, false));
                    }
                    Step::LandLive(at) if !writes.is_empty() => {
                        let write = at.index(writes.len());
                        let write = &mut writes[write];
                        live[write.0 as usize] = write.1;
                        write.2 = true;
                    }
                    Step::LandNew(at) if !writes.is_empty() => {
                        let write = at.index(writes.len());
                        let write = &mut writes[write];
                        new[write.0 as usize] = write.1;
                        write.3 = true;
                    }
                    Step::End(at) if !writes.is_empty() => {
                        let at = at.index(writes.len());
                        if writes[at].2 && writes[at].3 {
                            let write = writes.swap_remove(at);
                            copy.tracker.end(write.0, 1);
                        }
                    }
                    Step::Next => {
                        if let CopyStep::Copy(run) = copy.next(2) {
                            runs.push((run, None));
                        }
                    }
                    Step::Read(at) if !runs.is_empty() => {
                        let at = at.index(runs.len());
                        let (run, read) = &mut runs[at];
                        let first = run.within as usize;
                        read.get_or_insert(live[first..first + usize::from(run.run)].to_vec());
                    }
                    Step::Put(at, ok) if !runs.is_empty() => {
                        let at = at.index(runs.len());
                        if let (run, Some(read)) = &runs[at] {
                            let first = run.within as usize;
                            if ok {
                                new[first..first + usize::from(run.run)].copy_from_slice(read);
                            }
                            copy.settled(&run.clone(), ok);
                            runs.swap_remove(at);
                        }
                    }
                    _ => {}
                }
            }
            for write in writes {
                live[write.0 as usize] = write.1;
                new[write.0 as usize] = write.1;
            }
            for page in 0..PAGES {
                let right = copy.states[page] == PageState::Right;
                prop_assert!(!right || live[page] == new[page], "page {page} is not right");
            }
        }
    }

    #[test]
    fn a_page_that_is_being_written_is_left_for_later() {
        let mut copy = copy(3);
        copy.tracker.begin(1, 1);
        let CopyStep::Copy(first) = copy.next(16) else {
            panic!("page 0 is quiet")
        };
        assert_eq!((first.page.get(), first.run), (100, 1));
        let CopyStep::Copy(last) = copy.next(16) else {
            panic!("page 2 is quiet")
        };
        assert_eq!((last.page.get(), last.run), (102, 1));
        assert!(matches!(copy.next(16), CopyStep::Wait));
        copy.settled(&first, true);
        copy.settled(&last, false);
        copy.tracker.end(1, 1);
        let CopyStep::Copy(rest) = copy.next(16) else {
            panic!("two pages are left")
        };
        assert_eq!((rest.page.get(), rest.run), (101, 2));
        copy.settled(&rest, true);
        assert!(matches!(copy.next(16), CopyStep::Done));
    }
}

//! What is fetched before it is asked for: the trait, and the choice of a policy.

use std::sync::Arc;

use mycoram_fabric::units::{PageCount, PageIndex};

use super::huge::HugeMap;
use super::streams::{StreamPrefetch, Strides};
use crate::config::{Advice, PrefetchPolicy};

/// Most ranges whose advice is remembered; the oldest is forgotten: 64.
pub const MAX_ADVISED_RANGES: usize = 64;

/// What a fault met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A page that nobody had asked for: the thread waits for a whole round trip.
    Missing,
    /// A page that was fetched ahead, and is on its way or held: the prefetch was right, and just in time.
    FetchedAhead,
    /// The first page of a huge page, which is fetched as one because what is before it was in use.
    Huge,
}

/// A run of pages to fetch: at most [`mycoram_fabric::pages::MAX_RUN_PAGES`], or a huge page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchRun {
    /// Lowest page.
    pub page: PageIndex,
    /// How many.
    pub pages: u16,
    /// The page of the run (0 is the lowest) that is best kept in its frame and given to the target only
    /// when it asks: its fault is how the policy hears, half a window early, that the stream goes on.
    /// Without it the target waits for a round trip at the end of every window.
    pub held: Option<u16>,
}

/// Decides what to fetch. One for each fault worker, or one that they try to lock without waiting: a
/// fault that the policy does not hear of costs little.
pub trait Prefetch: Send {
    /// A fault on `page`, which is being served. Appends what to fetch behind it, the nearest first, as far
    /// as `out` has capacity; never allocates. Pages that are not remote are skipped by the caller.
    fn on_fault(&mut self, page: PageIndex, kind: FaultKind, out: &mut Vec<FetchRun>);

    /// `page` was fetched ahead and dropped before anybody asked for it.
    fn wasted(&mut self, page: PageIndex);

    /// The program says what it will do with the `pages` pages at `first`.
    fn advise(&mut self, first: PageIndex, pages: PageCount, advice: Advice);

    /// Appends up to `pages` pages of what was advised as needed soon, in order; each is given once. For
    /// when there is nothing more urgent.
    fn wanted(&mut self, pages: u32, out: &mut Vec<FetchRun>);
}

/// The policy that a configuration asks for, for a region of `region` pages, with up to `window` pages ahead
/// of each stream. With `huge` it names huge pages, where they are whole, to a stream that has proved long.
#[must_use]
pub fn prefetch_for(
    policy: PrefetchPolicy,
    region: PageCount,
    window: u32,
    huge: Option<Arc<HugeMap>>,
) -> Box<dyn Prefetch> {
    let strides = match policy {
        PrefetchPolicy::Off => return Box::new(NoPrefetch),
        PrefetchPolicy::Sequential => Strides::One,
        PrefetchPolicy::Stride => Strides::Any,
    };
    let streams = StreamPrefetch::new(region, window, strides);
    Box::new(match huge {
        Some(huge) => streams.with_huge_pages(huge),
        None => streams,
    })
}

/// Fetches nothing ahead.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPrefetch;

impl Prefetch for NoPrefetch {
    fn on_fault(&mut self, _page: PageIndex, _kind: FaultKind, _out: &mut Vec<FetchRun>) {}
    fn wasted(&mut self, _page: PageIndex) {}
    fn advise(&mut self, _first: PageIndex, _pages: PageCount, _advice: Advice) {}
    fn wanted(&mut self, _pages: u32, _out: &mut Vec<FetchRun>) {}
}

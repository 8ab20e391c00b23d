//! Prefetch by streams: faults at equal distances, in either direction, several streams interleaved.
//!
//! ```text
//!   fault of no stream --> history of the last faults --(enough at equal distances)--> a stream
//!
//!   stream:   last .......... frontier          window = how far frontier is kept ahead of last
//!             ^ newest fault  ^ first page not yet asked for
//!     a fault on a fetched page in the window, or at the frontier: the stream goes on; the window
//!     doubles up to its limit, and when half of it is used up the next half is fetched, in runs of 16
//!     a fault on a page in the window that was not fetched: there was no room; the window halves,
//!     and what is behind the page is asked for again
//! ```
//!
//! A stream of neighbours whose window has grown to its limit goes on by huge pages where they are whole: the
//! next ones are fetched, each is given to the target when its first page is asked for, and that fault
//! is how the stream is heard of.
//!
//! Random accesses are never at equal distances often enough, so they fetch nothing. When streams turn out
//! to end right after they were believed in (short runs at random places), more faults are
//! needed before the next one is believed in.

use std::sync::Arc;

use mycoram_fabric::pages::{HUGE_PAGES, MAX_RUN_PAGES};
use mycoram_fabric::units::{PageCount, PageIndex};

use super::huge::HugeMap;
use super::prefetch::{FaultKind, FetchRun, MAX_ADVISED_RANGES, Prefetch};
use crate::config::Advice;

/// Streams that are followed at once: 16. The one that was silent longest gives way.
const STREAMS: usize = 16;
/// Faults that are remembered while they belong to no stream: 32.
const HISTORY: usize = 32;
/// How many of these, the newest, are searched for strides: 16.
const STRIDE_HISTORY: usize = 16;
/// Widest stride, pages: 1024 (4 MiB).
const MAX_STRIDE: i64 = 1024;
/// Faults at equal distances that make a stream, where streams have proved right.
const LEAST_FAULTS: u8 = 3;
/// The same where they have proved wrong.
const MOST_FAULTS: u8 = 8;
/// Pages fetched when a stream is new.
const FIRST_WINDOW: u32 = 4;

/// Huge pages that are fetched ahead of the one that was asked for: 2.
const HUGE_AHEAD: i64 = 2;

/// Below this a window does not shrink: one run.
const LEAST_WINDOW: u32 = MAX_RUN_PAGES as u32;

/// Which distances make a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strides {
    /// Neighbours, up or down.
    One,
    /// Any up to 1024 pages, up or down.
    Any,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// Distance between two pages; never 0.
    stride: i64,
    last: PageIndex,
    /// First page not asked for yet, as a number that may lie outside of the region.
    frontier: i64,
    window: u32,
    /// Has gone on to the end of its first window: it was right to believe in it.
    proved: bool,
    /// How many steps that is still away.
    unproved_steps: i64,
    /// When it last went on, in faults.
    heard: u64,
}

impl Stream {
    /// How many steps ahead of the newest fault `page` is; `None` if it is not on the stream.
    fn steps_to(&self, page: PageIndex) -> Option<i64> {
        let distance = page.distance_from(self.last);
        (distance % self.stride == 0).then_some(distance / self.stride)
    }

    /// How many steps ahead of the newest fault the frontier is.
    fn ahead(&self) -> i64 {
        (self.frontier - i64::from(self.last.get())) / self.stride
    }

    /// How many pages between the two were asked for.
    fn pages_ahead(&self) -> i64 {
        self.ahead() - 1
    }

    /// Is it time to fetch more?
    fn is_half_used(&self) -> bool {
        self.pages_ahead() <= i64::from(self.window / 2)
    }
}

#[derive(Clone, Copy, Debug)]
struct Advised {
    first: u32,
    /// Exclusive.
    end: u64,
    advice: Advice,
}

impl Advised {
    fn holds(&self, page: PageIndex) -> bool {
        page.get() >= self.first && u64::from(page.get()) < self.end
    }
}

/// Prefetch by streams. One page of memory; a fault that belongs to a stream costs some ten
/// comparisons, one that does not some hundred.
#[derive(Debug)]
pub struct StreamPrefetch {
    region: PageCount,
    limit: u32,
    strides: Strides,
    huge: Option<Arc<HugeMap>>,
    streams: Vec<Stream>,
    history: [Option<PageIndex>; HISTORY],
    history_at: usize,
    needed: u8,
    faults: u64,
    advised: Vec<Advised>,
    backlog: Vec<(u32, u64)>,
}

impl StreamPrefetch {
    /// For a region of `region` pages; each stream is kept up to `limit` pages ahead.
    #[must_use]
    pub fn new(region: PageCount, limit: u32, strides: Strides) -> Self {
        Self {
            region,
            limit,
            strides,
            huge: None,
            streams: Vec::with_capacity(STREAMS),
            history: [None; HISTORY],
            history_at: 0,
            needed: LEAST_FAULTS,
            faults: 0,
            advised: Vec::with_capacity(MAX_ADVISED_RANGES),
            backlog: Vec::with_capacity(MAX_ADVISED_RANGES),
        }
    }

    /// Long streams are fetched by huge pages, where these are whole.
    #[must_use]
    pub fn with_huge_pages(mut self, huge: Arc<HugeMap>) -> Self {
        self.huge = Some(huge);
        self
    }

    fn advice_for(&self, page: PageIndex) -> Advice {
        self.advised
            .iter()
            .rev()
            .find(|a| a.holds(page))
            .map_or(Advice::Normal, |a| a.advice)
    }

    /// The stream that `page` continues: the one it is nearest to.
    fn stream_of(&self, page: PageIndex) -> Option<usize> {
        self.streams
            .iter()
            .enumerate()
            .filter_map(|(at, stream)| {
                let steps = stream.steps_to(page)?;
                // Behind: a fault that was overtaken by a later one. Beyond the frontier: pages between
                // were there already.
                let reach = stream.ahead() + i64::from(stream.window.max(FIRST_WINDOW));
                (-2..=reach).contains(&steps).then_some((steps.abs(), at))
            })
            .min()
            .map(|(_, at)| at)
    }

    fn remembers(&self, page: i64, newest: usize) -> bool {
        let Ok(page) = u32::try_from(page) else {
            return false;
        };
        (1..=newest).any(|back| {
            self.history[(self.history_at + HISTORY - back) % HISTORY] == Some(PageIndex::new(page))
        })
    }

    /// Are there `faults - 1` earlier faults at this distance behind `page`?
    fn is_row(&self, page: PageIndex, stride: i64, faults: u8, newest: usize) -> bool {
        (1..i64::from(faults))
            .all(|back| self.remembers(i64::from(page.get()) - back * stride, newest))
    }

    /// The distance at which `page` continues earlier faults.
    fn stride_ending_at(&self, page: PageIndex) -> Option<i64> {
        if let Some(one) = [1, -1]
            .into_iter()
            .find(|one| self.is_row(page, *one, self.needed, HISTORY))
        {
            return Some(one);
        }
        if self.strides == Strides::One {
            return None;
        }
        (1..=STRIDE_HISTORY)
            .filter_map(|back| self.history[(self.history_at + HISTORY - back) % HISTORY])
            .map(|earlier| page.distance_from(earlier))
            .filter(|stride| (2..=MAX_STRIDE).contains(&stride.abs()))
            .find(|stride| self.is_row(page, *stride, self.needed + 1, STRIDE_HISTORY))
    }

    fn remember(&mut self, page: PageIndex) {
        let newest = self.history[(self.history_at + HISTORY - 1) % HISTORY];
        if newest != Some(page) {
            self.history[self.history_at] = Some(page);
            self.history_at = (self.history_at + 1) % HISTORY;
        }
    }

    fn believe(&mut self, page: PageIndex, stride: i64, window: u32) -> usize {
        let stream = Stream {
            stride,
            last: page,
            frontier: i64::from(page.get()) + stride,
            window: window.clamp(1, self.limit),
            proved: false,
            unproved_steps: i64::from(FIRST_WINDOW),
            heard: self.faults,
        };
        if self.streams.len() < STREAMS {
            self.streams.push(stream);
            return self.streams.len() - 1;
        }
        let oldest = (0..STREAMS)
            .min_by_key(|at| self.streams[*at].heard)
            .unwrap_or(0);
        if !self.streams[oldest].proved {
            self.needed = (self.needed + 1).min(MOST_FAULTS);
        }
        self.streams[oldest] = stream;
        oldest
    }

    /// A fault has continued the stream at `at`.
    fn go_on(&mut self, at: usize, page: PageIndex, kind: FaultKind) {
        let faults = self.faults;
        let limit = self.limit;
        let stream = &mut self.streams[at];
        stream.heard = faults;
        let steps = stream.steps_to(page).unwrap_or(0);
        if steps <= 0 {
            return;
        }
        let inside = steps < stream.ahead();
        stream.last = page;
        if kind == FaultKind::Missing && inside {
            // What was to be fetched from here on was not (there was no room for it), or it is gone
            // again: ask once more, and for less.
            stream.frontier = i64::from(page.get()) + stream.stride;
            stream.window = stream.window.min((stream.window / 2).max(LEAST_WINDOW));
            return;
        }
        if stream.ahead() <= 0 {
            stream.frontier = i64::from(page.get()) + stream.stride;
        }
        if stream.is_half_used() || kind == FaultKind::Missing {
            stream.window = stream.window.saturating_mul(2).min(limit);
        }
        stream.unproved_steps -= steps;
        if !stream.proved && stream.unproved_steps <= 0 {
            stream.proved = true;
            self.needed = self.needed.saturating_sub(1).max(LEAST_FAULTS);
        }
    }

    /// How many pages are left, from the frontier on, before a whole huge page begins; `None` if this stream does
    /// not go by huge pages, or the next one is not whole.
    fn pages_to_huge(&self, stream: &Stream) -> Option<i64> {
        let huge = self.huge.as_ref()?;
        if stream.stride.abs() != 1 || !stream.proved || stream.window < self.limit {
            return None;
        }
        let size = i64::from(HUGE_PAGES);
        let left = match stream.stride > 0 {
            true => (-stream.frontier).rem_euclid(size),
            false => (stream.frontier + 1).rem_euclid(size),
        };
        let next = u32::try_from(stream.frontier + stream.stride * left).ok()?;
        huge.is_whole(PageIndex::new(next)).then_some(left)
    }

    /// Fetches huge pages from the frontier on.
    fn fetch_huge(&mut self, at: usize, out: &mut Vec<FetchRun>) {
        let size = i64::from(HUGE_PAGES);
        while out.len() < out.capacity()
            && self.pages_to_huge(&self.streams[at]) == Some(0)
            && let stream = &mut self.streams[at]
            && let ahead = stream.frontier / size - i64::from(stream.last.get()) / size
            && ahead.abs() <= HUGE_AHEAD
        {
            let first = stream.frontier / size * size;
            let asked_first = if stream.stride > 0 { 0 } else { size - 1 };
            out.push(FetchRun {
                page: PageIndex::new(first as u32),
                pages: size as u16,
                held: Some(asked_first as u16),
            });
            stream.frontier += stream.stride * size;
        }
    }

    /// Fetches from the frontier to the end of the window, once half of it is used up.
    fn fetch_ahead(&mut self, at: usize, out: &mut Vec<FetchRun>) {
        let region = i64::from(self.region.get());
        let before_huge = self.pages_to_huge(&self.streams[at]);
        let stream = &mut self.streams[at];
        if !stream.is_half_used() {
            return;
        }
        let window = i64::from(stream.window);
        let run_pages = if stream.stride.abs() == 1 {
            i64::from(MAX_RUN_PAGES)
        } else {
            1
        };
        // No more than there is room to say.
        let room = (out.capacity() - out.len()) as i64 * run_pages;
        let mut left = (window - stream.pages_ahead()).min(room);
        if let Some(most) = before_huge {
            left = left.min(most);
        }
        // The page in the middle of what is ahead then: half a window is left when it is asked for.
        let ahead = stream.pages_ahead() + left;
        let middle = stream.frontier + stream.stride * (left - 1 - ahead / 2).max(0);
        let mut held = window >= 2 * i64::from(FIRST_WINDOW);
        while left > 0 && (0..region).contains(&stream.frontier) {
            let run = if stream.stride.abs() == 1 {
                let room = if stream.stride > 0 {
                    region - stream.frontier
                } else {
                    stream.frontier + 1
                };
                left.min(run_pages).min(room)
            } else {
                1
            };
            let lowest = stream
                .frontier
                .min(stream.frontier + stream.stride.signum() * (run - 1));
            let inside = (lowest..lowest + run).contains(&middle);
            out.push(FetchRun {
                page: PageIndex::new(lowest as u32),
                pages: run as u16,
                held: (held && inside).then_some((middle - lowest) as u16),
            });
            held &= !inside;
            stream.frontier += stream.stride * run;
            left -= run;
        }
    }
}

impl Prefetch for StreamPrefetch {
    fn on_fault(&mut self, page: PageIndex, kind: FaultKind, out: &mut Vec<FetchRun>) {
        if self.limit == 0 {
            return;
        }
        self.faults += 1;
        let advice = self.advice_for(page);
        if advice == Advice::Random {
            return;
        }
        if kind == FaultKind::Huge {
            let at = self.stream_of(page);
            let at = at.filter(|at| self.streams[*at].stride == 1);
            let at = at.unwrap_or_else(|| self.believe(page, 1, self.limit));
            let stream = &mut self.streams[at];
            stream.last = page;
            stream.frontier = i64::from(page.get()) + i64::from(HUGE_PAGES);
            (stream.heard, stream.window, stream.proved) = (self.faults, self.limit, true);
            self.fetch_huge(at, out);
            return;
        }
        if let Some(at) = self.stream_of(page) {
            self.go_on(at, page, kind);
            self.fetch_ahead(at, out);
            self.fetch_huge(at, out);
            return;
        }
        let at = if advice == Advice::Sequential {
            Some(self.believe(page, 1, self.limit / 2))
        } else {
            self.stride_ending_at(page)
                .map(|stride| self.believe(page, stride, FIRST_WINDOW))
        };
        match at {
            Some(at) => self.fetch_ahead(at, out),
            None => self.remember(page),
        }
    }

    fn wasted(&mut self, page: PageIndex) {
        let of = self.streams.iter_mut().find(|stream| {
            stream
                .steps_to(page)
                .is_some_and(|steps| steps > 0 && steps < stream.ahead())
        });
        if let Some(stream) = of {
            stream.window = (stream.window / 2).max(FIRST_WINDOW.min(self.limit));
        }
    }

    fn advise(&mut self, first: PageIndex, pages: PageCount, advice: Advice) {
        let end = u64::from(first.get()) + u64::from(pages.get());
        let end = end.min(u64::from(self.region.get()));
        if u64::from(first.get()) >= end {
            return;
        }
        let range = Advised {
            first: first.get(),
            end,
            advice,
        };
        match advice {
            Advice::WillNeed => {
                if self.backlog.len() == MAX_ADVISED_RANGES {
                    self.backlog.remove(0);
                }
                self.backlog.push((range.first, end));
            }
            Advice::DontNeed => {
                self.backlog
                    .retain(|(start, stop)| *start < range.first || *stop > end);
            }
            Advice::Normal | Advice::Random | Advice::Sequential => {
                self.advised
                    .retain(|old| old.first < range.first || old.end > end);
                if self.advised.len() == MAX_ADVISED_RANGES {
                    self.advised.remove(0);
                }
                self.advised.push(range);
            }
        }
    }

    fn wanted(&mut self, pages: u32, out: &mut Vec<FetchRun>) {
        let mut left = pages;
        while left > 0 && out.len() < out.capacity() {
            let Some((start, end)) = self.backlog.first_mut() else {
                return;
            };
            let run = (*end - u64::from(*start))
                .min(u64::from(left))
                .min(u64::from(MAX_RUN_PAGES)) as u16;
            out.push(FetchRun {
                page: PageIndex::new(*start),
                pages: run,
                held: None,
            });
            left -= u32::from(run);
            if u64::from(*start) + u64::from(run) == *end {
                self.backlog.remove(0);
            } else {
                *start += u32::from(run);
            }
        }
    }
}

//! How many pages are in each state, counted by many threads at once without waiting for each other.
//!
//! Each thread counts in a row of its own: on one that all share, two threads on two processors would spend more
//! on passing it to and fro than on the pages themselves.

use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use crate::page_table::PageState;

/// Rows. With more threads than that some share one.
const ROWS: usize = 16;

/// A thread's own counts, alone on its cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Row([AtomicI64; PageState::ALL.len()]);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tally([Row; ROWS]);

thread_local! {
    static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn own_row() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    OWN.with(|own| {
        if own.get() == usize::MAX {
            own.set(NEXT.fetch_add(1, Ordering::Relaxed) % ROWS);
        }
        own.get()
    })
}

impl Tally {
    /// A page has gone from one state to another.
    pub(super) fn moved(&self, from: PageState, to: PageState) {
        let Row(row) = &self.0[own_row()];
        row[from as usize].fetch_sub(1, Ordering::Relaxed);
        row[to as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// From now on there are so many, by state.
    pub(super) fn set(&self, counts: [i64; PageState::ALL.len()]) {
        for (number, Row(row)) in self.0.iter().enumerate() {
            for (state, count) in row.iter().enumerate() {
                let count_now = if number == 0 { counts[state] } else { 0 };
                count.store(count_now, Ordering::Relaxed);
            }
        }
    }

    /// How many are in a state, now.
    pub(super) fn count(&self, state: PageState) -> u64 {
        let counts = self.0.iter().map(|Row(row)| &row[state as usize]);
        let sum: i64 = counts.map(|count| count.load(Ordering::Relaxed)).sum();
        u64::try_from(sum).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::{ROWS, Tally};
    use crate::page_table::PageState;

    #[test]
    fn what_threads_count_adds_up() {
        let tally = Tally::default();
        let mut counts = [0; PageState::ALL.len()];
        counts[PageState::Remote as usize] = 4000;
        tally.set(counts);
        // More threads than rows; each takes pages from where another one has put them.
        std::thread::scope(|scope| {
            for thread in 0..2 * ROWS {
                let tally = &tally;
                scope.spawn(move || {
                    for _ in 0..100 {
                        tally.moved(PageState::Remote, PageState::Resident);
                        if thread % 2 == 0 {
                            tally.moved(PageState::Resident, PageState::Leaving);
                        }
                    }
                });
            }
        });
        let all = 200 * ROWS as u64;
        assert_eq!(tally.count(PageState::Remote), 4000 - all);
        assert_eq!(tally.count(PageState::Resident), all / 2);
        assert_eq!(tally.count(PageState::Leaving), all / 2);
        tally.set(counts);
        assert_eq!(tally.count(PageState::Remote), 4000);
        assert_eq!(tally.count(PageState::Leaving), 0);
    }
}

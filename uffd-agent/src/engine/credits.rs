//! The local budget as credits: one for each physical page that may be alive.
//!
//! A page that is fetched takes a credit before anything is read; it keeps it while it is resident; when
//! it leaves, the credit goes with it into the parking pipe, whose reference keeps the physical page alive,
//! and comes back when the pipe is drained. So `fetching + resident + parked <= budget` at any time.
//! Two things may overdraw: a smaller budget, and a file that had pages in it at attach; and pages that
//! cannot be written out come home even so. Evictors pay it back.

use std::sync::atomic::{AtomicI64, Ordering};

/// Shared by all threads of a region.
#[derive(Debug)]
pub(crate) struct Credits {
    free: AtomicI64,
    budget: AtomicI64,
    least_free: AtomicI64,
    target: AtomicI64,
}

/// Bounds of what evictors keep free or on its way to be free: at rest, and when a scan needs more.
const REST: std::ops::RangeInclusive<i64> = 16..=512;
const MOST: std::ops::RangeInclusive<i64> = 32..=8192;
/// What prefetching leaves to faults.
const RESERVE: std::ops::RangeInclusive<i64> = 4..=64;

fn within(n: i64, bounds: &std::ops::RangeInclusive<i64>) -> i64 {
    n.clamp(*bounds.start(), *bounds.end())
}

impl Credits {
    pub(crate) fn new(budget: u64) -> Self {
        let budget = i64::try_from(budget).unwrap_or(i64::MAX);
        Self {
            free: AtomicI64::new(budget),
            budget: AtomicI64::new(budget),
            least_free: AtomicI64::new(budget),
            target: AtomicI64::new(0),
        }
    }

    pub(crate) fn budget(&self) -> i64 {
        self.budget.load(Ordering::Relaxed)
    }

    pub(crate) fn free(&self) -> i64 {
        self.free.load(Ordering::SeqCst)
    }

    /// Most pages that were alive at once, against the budget as it is now.
    pub(crate) fn peak_used(&self) -> u64 {
        let used = self.budget() - self.least_free.load(Ordering::Relaxed);
        u64::try_from(used).unwrap_or(0)
    }

    /// What evictors keep free, or on its way to be free. A sixteenth of the budget at rest; doubled each
    /// time that somebody found none, up to a quarter.
    pub(crate) fn target(&self) -> i64 {
        let budget = self.budget();
        let least = within(budget / 16, &REST);
        let most = within(budget / 4, &MOST);
        self.target.load(Ordering::Relaxed).clamp(least, most)
    }

    /// Somebody found no credit: more should be kept free.
    pub(crate) fn was_short(&self) {
        let target = self.target();
        self.target
            .store(target.saturating_mul(2), Ordering::Relaxed);
    }

    /// Nobody knows whether so much is still needed: a little less, now and then.
    pub(crate) fn relax(&self) {
        let target = self.target();
        self.target.store(target - target / 4, Ordering::Relaxed);
    }

    /// What prefetching leaves to faults.
    pub(crate) fn reserve(&self) -> i64 {
        within(self.target() / 8, &RESERVE)
    }

    /// Takes one credit if `keep` stay free.
    pub(crate) fn take(&self, keep: i64) -> bool {
        let mut free = self.free.load(Ordering::SeqCst);
        while free > keep {
            match self.free.compare_exchange_weak(
                free,
                free - 1,
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) {
                Ok(_) => {
                    self.least_free.fetch_min(free - 1, Ordering::Relaxed);
                    return true;
                }
                Err(now) => free = now,
            }
        }
        false
    }

    /// Takes `count` in any case.
    pub(crate) fn overdraw(&self, count: u64) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let before = self.free.fetch_sub(count, Ordering::SeqCst);
        self.least_free.fetch_min(before - count, Ordering::Relaxed);
    }

    /// Gives `count` back.
    pub(crate) fn give(&self, count: u64) {
        let count = i64::try_from(count).unwrap_or(0);
        self.free.fetch_add(count, Ordering::SeqCst);
    }

    /// A new budget. What is alive stays so; `free` may become negative until enough has left.
    pub(crate) fn set_budget(&self, budget: u64) {
        let budget = i64::try_from(budget).unwrap_or(i64::MAX);
        let before = self.budget.swap(budget, Ordering::SeqCst);
        self.free.fetch_add(budget - before, Ordering::SeqCst);
        self.least_free
            .fetch_add(budget - before, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::Credits;

    #[test]
    fn a_reserve_is_not_touched_and_a_smaller_budget_is_a_debt() {
        let credits = Credits::new(4);
        assert!(credits.take(3));
        assert!(!credits.take(3));
        assert!(credits.take(0));
        assert_eq!(credits.peak_used(), 2);
        credits.set_budget(1);
        assert_eq!(credits.free(), -1);
        assert!(!credits.take(0));
        credits.give(2);
        assert!(credits.take(0));
        assert_eq!(credits.peak_used(), 2);
    }
}

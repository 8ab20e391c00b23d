//! How often a region that fails is taken over again. Pure.

use std::time::{Duration, Instant};

/// Failures after which it is, within [`WINDOW`]: 3. What fails more often fails at the same page each time.
const MOST: usize = 3;
/// 10 minutes.
const WINDOW: Duration = Duration::from_secs(600);

/// Whoever keeps a region that may have a successor counts its failures ([`crate::RegionEvent::Failed`]) here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    /// The last ones, in turn.
    failed: [Option<Instant>; MOST],
    next: usize,
    total: u64,
}

impl Patience {
    /// It has failed. Whether it is to be taken over again.
    pub fn again(&mut self, now: Instant) -> bool {
        let oldest = self.failed[self.next].replace(now);
        self.next = (self.next + 1) % MOST;
        self.total += 1;
        oldest.is_none_or(|then| now.saturating_duration_since(then) > WINDOW)
    }

    /// How often it has failed in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_now_and_then_goes_on_and_what_fails_at_once_again_does_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut seldom = Patience::default();
        assert!((0..50).all(|n| seldom.again(at(n * 250))));
        assert_eq!(seldom.total(), 50);
        let mut often = Patience::default();
        let gone_on = (0..50).take_while(|n| often.again(at(n * 2))).count();
        assert_eq!(gone_on, MOST);
        // Time heals.
        assert!(often.again(at(1000)));
    }
}

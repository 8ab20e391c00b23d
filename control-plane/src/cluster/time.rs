//! A time that only goes forward, out of a clock that may jump.
//!
//! Leases run in this time. When nobody called for long (the process was paused, or the machine's
//! clock was set), only a bounded step is taken: nobody could renew a lease meanwhile, so nobody
//! loses one for it. Nothing that must be safe rests on time; only how soon something is noticed.

/// The largest step at once, ms.
pub const LARGEST_STEP_MS: u64 = 1_000;

/// Milliseconds of the steady time; 0 is when the control plane started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Steady(u64);

impl Steady {
    /// So many ms later.
    pub(super) fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// ms until `later`; 0 if that has passed.
    pub(super) fn until(self, later: Self) -> u64 {
        later.0.saturating_sub(self.0)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct SteadyTime {
    clock_ms: Option<u64>,
    now: Steady,
}

impl SteadyTime {
    /// The clock shows `clock_ms`.
    pub(super) fn advance(&mut self, clock_ms: u64) -> Steady {
        let step = self
            .clock_ms
            .replace(clock_ms)
            .map_or(0, |before| clock_ms.saturating_sub(before));
        self.now = self.now.after(step.min(LARGEST_STEP_MS));
        self.now
    }

    /// Without a look at the clock.
    pub(super) fn now(&self) -> Steady {
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_moves_time_a_little_and_forward_only() {
        let mut time = SteadyTime::default();
        time.advance(1_000_000);
        assert_eq!(time.advance(1_000_300), Steady(300));
        assert_eq!(time.advance(9_000_000), Steady(300 + LARGEST_STEP_MS));
        assert_eq!(time.advance(5), Steady(300 + LARGEST_STEP_MS));
        assert_eq!(time.advance(25), Steady(320 + LARGEST_STEP_MS));
    }
}

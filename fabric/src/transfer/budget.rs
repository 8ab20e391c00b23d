//! A share of the bandwidth: a bucket of bytes that fills at a rate. Pure.

use std::time::Duration;

/// How long the bucket fills before it is full. Long enough that a thread that sleeps and wakes some
/// milliseconds late uses all of its share; short enough that nobody else notices the burst.
const FULL_AFTER: Duration = Duration::from_millis(20);
const NANOS_A_SECOND: u128 = 1_000_000_000;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Bytes a second; `None`: no limit.
    rate: Option<u64>,
    /// The bucket holds one chunk more than is saved up: what is waited for is not lost by waking late.
    chunk_bytes: u64,
    /// Bytes, times a billion: exact at every rate.
    nano_bytes: u128,
    filled_at: Duration,
}

impl Budget {
    /// Full at `now`.
    pub(super) fn new(rate: Option<u64>, chunk_bytes: u64, now: Duration) -> Self {
        let mut budget = Self {
            rate: None,
            chunk_bytes,
            nano_bytes: 0,
            filled_at: now,
        };
        budget.set_rate(rate, now);
        budget.nano_bytes = budget.most();
        budget
    }

    /// Another rate from `now` on. What has been saved up stays, as far as the new bucket holds it.
    pub(super) fn set_rate(&mut self, rate: Option<u64>, now: Duration) {
        self.fill(now);
        if self.rate.is_none() {
            self.nano_bytes = 0;
        }
        self.rate = rate.map(|rate| rate.max(1));
        self.nano_bytes = self.nano_bytes.min(self.most());
    }

    fn most(&self) -> u128 {
        let saved = u128::from(self.rate.unwrap_or(0)) * FULL_AFTER.as_nanos();
        saved + u128::from(self.chunk_bytes) * NANOS_A_SECOND
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.filled_at);
        self.filled_at = self.filled_at.max(now);
        if let Some(rate) = self.rate {
            let gained = u128::from(rate) * passed.as_nanos();
            self.nano_bytes = self.nano_bytes.saturating_add(gained).min(self.most());
        }
    }

    /// Takes `bytes`, at most a chunk, if they are there. `Err`: in how long they will be.
    pub(super) fn take(&mut self, bytes: u64, now: Duration) -> Result<(), Duration> {
        let Some(rate) = self.rate else {
            return Ok(());
        };
        self.fill(now);
        let wanted = u128::from(bytes.min(self.chunk_bytes)) * NANOS_A_SECOND;
        match self.nano_bytes.checked_sub(wanted) {
            Some(left) => {
                self.nano_bytes = left;
                Ok(())
            }
            None => {
                let nanos = (wanted - self.nano_bytes).div_ceil(u128::from(rate));
                Err(Duration::from_nanos(
                    u64::try_from(nanos).unwrap_or(u64::MAX),
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_one_bucket_and_no_less_than_the_rate(
            rate in 1_000..10_000_000_000_u64,
            chunk in 4096..(1_u64 << 20),
            late_us in prop::collection::vec(0..2_000_u64, 1..200),
        ) {
            let mut now = Duration::from_secs(5);
            let begun = now;
            let mut budget = Budget::new(Some(rate), chunk, now);
            let bucket = budget.most() / NANOS_A_SECOND;
            let mut taken = 0_u128;
            for late in late_us {
                // As many as there are, and then sleep as long as it says, and a little longer.
                let wait = loop {
                    match budget.take(chunk, now) {
                        Ok(()) => taken += u128::from(chunk),
                        Err(wait) => break wait,
                    }
                };
                let given = u128::from(rate) * (now - begun).as_nanos() / NANOS_A_SECOND;
                prop_assert!(taken <= given + bucket + 1);
                prop_assert!(taken + u128::from(chunk) >= given);
                // Lateness that the bucket holds loses nothing.
                now += wait + Duration::from_micros(late).min(FULL_AFTER / 4);
            }
        }
    }

    #[test]
    fn without_a_rate_everything_goes() {
        let mut budget = Budget::new(None, 1, Duration::ZERO);
        for _ in 0..100 {
            assert_eq!(budget.take(u64::MAX, Duration::ZERO), Ok(()));
        }
        budget.set_rate(Some(1), Duration::ZERO);
        assert!(budget.take(1, Duration::ZERO).is_err());
    }
}

//! How fast replicas are copied: a share of the bandwidth, which is measured now and then. Pure.
//!
//! ```text
//!   idle --copying--> measuring: no limit, for 16 MiB --> keeping: the share of what was measured, for 5 s
//!                         ^                                        |
//!                         '----------------------------------------'
//! ```

use crate::units::ByteCount;

/// Bytes that are moved without a limit to see how fast it can go.
const MEASURED_BYTES: u64 = 16 << 20;
/// The shortest measurement, ms: the clock counts in them.
const SHORTEST_MS: u64 = 10;
/// How long a share is kept before it is measured anew, ms.
const KEPT_MS: u64 = 5000;

/// How fast replicas are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Percent of the bandwidth that a copy reaches alone, 1 to 100. It is measured at the start of a
    /// rebuild and every 5 s, over 16 MiB at full speed.
    Share(u8),
    /// Bytes a second.
    Rate(ByteCount),
    /// As fast as it goes.
    Unlimited,
}

impl Default for Pace {
    fn default() -> Self {
        Self::Share(50)
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Idle,
    Measuring { since_ms: u64, from: u64 },
    Keeping { until_ms: u64 },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pacer {
    pace: Pace,
    state: State,
    /// To be said by the next [`Self::rate`].
    news: Option<Option<ByteCount>>,
}

impl Pacer {
    pub(super) fn new(pace: Pace) -> Self {
        let mut pacer = Self {
            pace,
            state: State::Idle,
            news: None,
        };
        pacer.set(pace);
        pacer
    }

    pub(super) fn set(&mut self, pace: Pace) {
        self.pace = pace;
        self.state = State::Idle;
        self.news = Some(match pace {
            Pace::Rate(rate) => Some(rate),
            Pace::Share(_) | Pace::Unlimited => None,
        });
    }

    /// The rate from now on, if it is another one. `bytes` have been moved so far.
    pub(super) fn rate(
        &mut self,
        now_ms: u64,
        bytes: u64,
        copying: bool,
    ) -> Option<Option<ByteCount>> {
        let Pace::Share(percent) = self.pace else {
            return self.news.take();
        };
        match self.state {
            State::Measuring { .. } if !copying => self.state = State::Idle,
            State::Idle if copying => self.measure(now_ms, bytes),
            State::Keeping { until_ms } if copying && now_ms >= until_ms => {
                self.measure(now_ms, bytes);
            }
            State::Measuring { since_ms, from } => {
                let (moved, took_ms) = (bytes - from, now_ms - since_ms);
                if moved >= MEASURED_BYTES && took_ms >= SHORTEST_MS {
                    let share = u64::from(percent.clamp(1, 100));
                    let rate = moved * 1000 / took_ms * share / 100;
                    self.news = Some(Some(ByteCount::new(rate)));
                    self.state = State::Keeping {
                        until_ms: now_ms + KEPT_MS,
                    };
                }
            }
            State::Idle | State::Keeping { .. } => {}
        }
        self.news.take()
    }

    fn measure(&mut self, now_ms: u64, bytes: u64) {
        self.state = State::Measuring {
            since_ms: now_ms,
            from: bytes,
        };
        self.news = Some(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moves bytes as fast as `bandwidth` and the pacer allow; bytes moved in `ms`.
    fn moved(pacer: &mut Pacer, bandwidth: u64, ms: u64) -> u64 {
        let (mut bytes, mut rate) = (0, None);
        for now in 0..ms {
            if let Some(changed) = pacer.rate(now, bytes, true) {
                rate = changed;
            }
            let limit = rate.map_or(bandwidth, |rate: ByteCount| rate.get().min(bandwidth));
            bytes += limit / 1000;
        }
        bytes
    }

    #[test]
    fn a_share_is_kept_whatever_the_bandwidth() {
        for bandwidth in [100 << 20, 1 << 30, 10 << 30] {
            for percent in [10, 50, 100] {
                let ms = 20_000;
                let moved = moved(&mut Pacer::new(Pace::Share(percent)), bandwidth, ms);
                let share = moved as f64 / (bandwidth as f64 * 20.0);
                // What is measured with comes on top.
                let most = f64::from(percent) / 100.0 + 0.04;
                let least = f64::from(percent) / 100.0 - 0.01;
                assert!((least..=most).contains(&share), "{share} at {percent}%");
            }
        }
    }

    #[test]
    fn a_rate_is_a_rate_and_no_limit_is_none() {
        let rate = ByteCount::mib(3);
        let mut pacer = Pacer::new(Pace::Rate(rate));
        assert_eq!(pacer.rate(0, 0, true), Some(Some(rate)));
        assert_eq!(pacer.rate(1, 5 << 20, true), None);
        pacer.set(Pace::Unlimited);
        assert_eq!(pacer.rate(2, 9 << 20, true), Some(None));
        assert_eq!(pacer.rate(9000, 90 << 20, true), None);
    }

    #[test]
    fn a_measurement_that_was_broken_off_does_not_count() {
        let mut pacer = Pacer::new(Pace::Share(50));
        assert_eq!(pacer.rate(0, 0, true), Some(None));
        assert_eq!(pacer.rate(5, 1 << 20, false), None);
        // Much later; the time between is no part of it.
        assert_eq!(pacer.rate(100_000, 1 << 20, true), Some(None));
        let rate = pacer.rate(100_100, 33 << 20, true);
        assert_eq!(rate, Some(Some(ByteCount::mib(160))));
    }
}

//! Latencies of one round: nanoseconds in, percentiles in microseconds out.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest latency that is told apart: 10 s.
const MOST_NS: u64 = 10_000_000_000;

pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, MOST_NS, 3).expect("constant bounds that fit"))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(MOST_NS);
        self.0.saturating_record(ns.clamp(1, MOST_NS));
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// Not a number when nothing was recorded.
    pub(crate) fn percentile_us(&self, percent: f64) -> f64 {
        if self.0.is_empty() {
            return f64::NAN;
        }
        self.0.value_at_percentile(percent) as f64 / 1000.0
    }
}

//! Time, as far as deadlines and delays need it: the system's, or a simulation's.

use std::time::Instant;

/// Time since some moment; never goes back.
pub trait Clock: Send + Sync {
    /// Now, in microseconds.
    fn now_us(&self) -> u64;

    /// Now, in milliseconds.
    fn now_ms(&self) -> u64 {
        self.now_us() / 1000
    }
}

/// The system's monotonic clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

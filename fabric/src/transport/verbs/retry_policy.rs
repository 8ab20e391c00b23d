//! How long a queue pair tries before it calls its peer unreachable. Pure arithmetic.
//!
//! A device sends again when nothing came back for `4.096 us * 2^exponent`, `retries` times, and then
//! gives up: after about `(retries + 1)` such waits. Seven retries or an exponent of zero can mean
//! "for ever" and are never used. Many short waits survive a lossy or flapping link better than few long
//! ones, as long as a wait is longer than a busy peer takes to answer.

use std::time::Duration;

/// Most retries: 7 means infinitely many to some devices.
const MAX_RETRIES: u8 = 6;
/// 4.096 us * 2^10 = 4.2 ms: shorter waits send again to live peers that are merely busy.
const MIN_EXPONENT: u8 = 10;
/// 4.096 us * 2^21 = 8.6 s a wait, a minute in all.
const MAX_EXPONENT: u8 = 21;

/// "Receiver not ready" answers that are waited out; one-sided work gets none on a healthy peer.
pub(super) const RNR_RETRIES: u8 = 6;
/// The wait that such an answer asks for: code 12 is 0.64 ms. (Code 0, what rdma_cm fills in, is 655 ms.)
pub(super) const MIN_RNR_TIMER: u8 = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RetryPolicy {
    /// The local ACK timeout as a queue pair takes it.
    pub(super) ack_timeout_exponent: u8,
    /// How often it sends again.
    pub(super) retries: u8,
}

impl RetryPolicy {
    /// The most retries that fit into `response_timeout_ms`, one at least.
    pub(super) fn within(response_timeout_ms: u32) -> Self {
        let budget = Duration::from_millis(u64::from(response_timeout_ms));
        let mut policy = Self {
            ack_timeout_exponent: MIN_EXPONENT,
            retries: MAX_RETRIES,
        };
        while policy.retries > 1 && policy.gives_up_after() > budget {
            policy.retries -= 1;
        }
        while policy.ack_timeout_exponent < MAX_EXPONENT {
            let longer = Self {
                ack_timeout_exponent: policy.ack_timeout_exponent + 1,
                ..policy
            };
            if longer.gives_up_after() > budget {
                break;
            }
            policy = longer;
        }
        policy
    }

    /// When the device gives up, at the earliest. Devices may take up to four times as long.
    pub(super) fn gives_up_after(self) -> Duration {
        let wait = Duration::from_nanos(4096 << self.ack_timeout_exponent);
        wait * (u32::from(self.retries) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_EXPONENT, MAX_RETRIES, MIN_EXPONENT, RetryPolicy};
    use std::time::Duration;

    #[test]
    fn the_default_gives_up_after_about_a_quarter_of_a_second() {
        let policy = RetryPolicy::within(300);
        assert_eq!(policy.retries, 6);
        assert_eq!(policy.ack_timeout_exponent, 13);
        assert!(policy.gives_up_after() > Duration::from_millis(200));
    }

    #[test]
    fn every_policy_is_finite_and_within_its_budget_where_that_is_possible() {
        for ms in [0, 1, 5, 10, 20, 29, 30, 50, 299, 1000, 60_000, u32::MAX] {
            let policy = RetryPolicy::within(ms);
            assert!(
                (1..=MAX_RETRIES).contains(&policy.retries),
                "{ms}: {policy:?}"
            );
            assert!(
                (MIN_EXPONENT..=MAX_EXPONENT).contains(&policy.ack_timeout_exponent),
                "{ms}: {policy:?}"
            );
            if ms >= 9 {
                assert!(policy.gives_up_after() <= Duration::from_millis(ms.into()));
            }
        }
    }
}

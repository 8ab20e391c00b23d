//! Two sides that take turns, so short that what else the machine does at a time meets both; what each took,
//! and what each sent.

use super::{Unmeasured, median};

/// What both sides took and sent.
#[derive(Default)]
pub(super) struct Turns {
    first_s: Vec<f64>,
    second_s: Vec<f64>,
    /// What both have sent; `None`: nobody counts.
    bytes: Option<(u64, u64)>,
}

impl Turns {
    /// A turn of each; they answer how many seconds of it count.
    pub(super) fn take(
        &mut self,
        first: impl FnOnce() -> Result<f64, Unmeasured>,
        second: impl FnOnce() -> Result<f64, Unmeasured>,
    ) -> Result<(), Unmeasured> {
        let begun = sent_bytes();
        self.first_s.push(first()?);
        let between = sent_bytes();
        self.second_s.push(second()?);
        let ended = sent_bytes();
        if let (Some(begun), Some(between), Some(ended)) = (begun, between, ended) {
            let (first, second) = self.bytes.unwrap_or_default();
            self.bytes = Some((first + between - begun, second + ended - between));
        }
        Ok(())
    }

    /// The medians of both, seconds.
    pub(super) fn medians(&self) -> (f64, f64) {
        (median(self.first_s.clone()), median(self.second_s.clone()))
    }

    /// What the second side sent, over the first.
    pub(super) fn bytes_ratio(&self) -> Option<f64> {
        self.bytes
            .map(|(first, second)| second as f64 / first as f64)
    }
}

/// Bytes that all network interfaces of this machine have sent, as the kernel counts them.
fn sent_bytes() -> Option<u64> {
    let table = std::fs::read_to_string("/proc/net/dev").ok()?;
    let sent = table.lines().skip(2).filter_map(|line| {
        let (_, figures) = line.split_once(':')?;
        figures.split_whitespace().nth(8)?.parse::<u64>().ok()
    });
    Some(sent.sum())
}

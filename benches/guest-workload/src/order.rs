//! A random order of all pages without a table of them: a Feistel network over the next even number
//! of bits, walked past what lies outside. A table would be memory that is not being tested.

use crate::pattern::mix;

/// Rounds of the network; four make the order look random.
const ROUNDS: u64 = 4;

/// All numbers below `count`, once each, in an order that follows from the seed.
pub(crate) struct Permutation {
    count: u64,
    half_bits: u32,
    seed: u64,
    next: u64,
}

impl Permutation {
    pub(crate) fn new(count: u64, seed: u64) -> Self {
        let bits = 64 - count.max(2).saturating_sub(1).leading_zeros();
        Self {
            count,
            half_bits: bits.div_ceil(2),
            seed,
            next: 0,
        }
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            (left, right) = (
                right,
                left ^ (mix(self.seed ^ mix(right ^ (round << 56))) & mask),
            );
        }
        left << self.half_bits | right
    }
}

impl Iterator for Permutation {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        // The network permutes 2^(2 * half_bits) numbers, less than 4 times `count` of them.
        while self.next < 1 << (2 * self.half_bits) {
            let value = self.encrypt(self.next);
            self.next += 1;
            if value < self.count {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::Permutation;

    #[test]
    fn every_number_comes_once_and_not_in_order() {
        for count in [1, 2, 3, 100, 1000, 102_400] {
            let order: Vec<u64> = Permutation::new(count, 7).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(0..count), "{count}");
            if count >= 100 {
                let neighbours = order
                    .windows(2)
                    .filter(|pair| pair[1] == pair[0] + 1)
                    .count();
                assert!((neighbours as u64) < count / 10, "{neighbours} of {count}");
                assert_ne!(order, Permutation::new(count, 8).collect::<Vec<_>>());
            }
        }
    }
}

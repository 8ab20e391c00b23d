//! Who has how much of something that is shared: local memory, remote memory, connections. What is promised
//! never adds up to more than there is, and no user takes all. Pure.

use std::collections::HashMap;

/// Why something is not promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    /// The user has had its share; else all users together have had all.
    pub(super) of_user: bool,
    /// What could be had.
    pub(super) free: u64,
    /// The bound that was met.
    pub(super) limit: u64,
}

/// What was promised, in units of its user's choice.
#[derive(Debug)]
pub(super) struct Ledger {
    total: u64,
    per_user: u64,
    used: u64,
    by_user: HashMap<u32, u64>,
}

impl Ledger {
    pub(super) fn new(total: u64, per_user: u64) -> Self {
        Self {
            total,
            per_user,
            used: 0,
            by_user: HashMap::new(),
        }
    }

    /// Promises `amount` to `user`, or says how much could be promised.
    pub(super) fn reserve(&mut self, user: u32, amount: u64) -> Result<(), Shortage> {
        let of_user = self.by_user.get(&user).copied().unwrap_or(0);
        let user_free = self.per_user.saturating_sub(of_user);
        if amount > user_free {
            return Err(Shortage {
                of_user: true,
                free: user_free,
                limit: self.per_user,
            });
        }
        if amount > self.free() {
            return Err(Shortage {
                of_user: false,
                free: self.free(),
                limit: self.total,
            });
        }
        self.add(user, amount);
        Ok(())
    }

    /// Promises without asking: what was promised by an earlier daemon.
    pub(super) fn add(&mut self, user: u32, amount: u64) {
        self.used = self.used.saturating_add(amount);
        let of_user = self.by_user.entry(user).or_insert(0);
        *of_user = of_user.saturating_add(amount);
    }

    /// Takes a promise back.
    pub(super) fn release(&mut self, user: u32, amount: u64) {
        self.used = self.used.saturating_sub(amount);
        if let Some(of_user) = self.by_user.get_mut(&user) {
            *of_user = of_user.saturating_sub(amount);
            if *of_user == 0 {
                self.by_user.remove(&user);
            }
        }
    }

    /// What nobody was promised.
    pub(super) fn free(&self) -> u64 {
        self.total.saturating_sub(self.used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_user_takes_all_and_a_refusal_says_what_is_free() {
        let mut ledger = Ledger::new(100, 60);
        ledger.reserve(1, 50).expect("there is room");
        assert_eq!(
            ledger.reserve(1, 20),
            Err(Shortage {
                of_user: true,
                free: 10,
                limit: 60
            })
        );
        assert_eq!(
            ledger.reserve(2, 51),
            Err(Shortage {
                of_user: false,
                free: 50,
                limit: 100
            })
        );
        ledger.release(1, 50);
        ledger.reserve(2, 60).expect("there is room again");
    }

    #[test]
    fn what_was_inherited_counts_even_above_the_bounds() {
        let mut ledger = Ledger::new(100, 60);
        ledger.add(1, 130);
        assert_eq!(ledger.free(), 0);
        assert!(ledger.reserve(2, 1).is_err());
        ledger.release(1, 130);
        assert_eq!(ledger.free(), 100);
    }

    proptest! {
        #[test]
        fn promises_never_add_up_to_more_than_there_is(
            asked in proptest::collection::vec((0_u32..4, 0_u64..50, any::<bool>()), 0..100),
        ) {
            let mut ledger = Ledger::new(100, 60);
            let mut held: Vec<(u32, u64)> = Vec::new();
            for (user, amount, give_back) in asked {
                if give_back {
                    if let Some((user, amount)) = held.pop() {
                        ledger.release(user, amount);
                    }
                } else if ledger.reserve(user, amount).is_ok() {
                    held.push((user, amount));
                }
                let sum: u64 = held.iter().map(|(_, amount)| amount).sum();
                prop_assert!(sum <= 100);
                prop_assert_eq!(ledger.free(), 100 - sum);
                for user in 0..4 {
                    let of_user: u64 = held.iter().filter(|h| h.0 == user).map(|h| h.1).sum();
                    prop_assert!(of_user <= 60);
                }
            }
        }
    }
}

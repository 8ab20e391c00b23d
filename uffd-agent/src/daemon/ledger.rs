//! Who has how much of the machine's memory: the daemon's promise that budgets never add up to more than
//! there is, and that no user takes all. Pure.

use std::collections::HashMap;

use mycoram_fabric::units::ByteCount;

use super::message::Refusal;

/// What was promised.
#[derive(Debug)]
pub(super) struct Ledger {
    total: u64,
    per_user: u64,
    used: u64,
    by_user: HashMap<u32, u64>,
}

impl Ledger {
    pub(super) fn new(total: ByteCount, per_user: ByteCount) -> Self {
        Self {
            total: total.get(),
            per_user: per_user.get(),
            used: 0,
            by_user: HashMap::new(),
        }
    }

    /// Promises `bytes` to `user`, or says how much could be promised.
    pub(super) fn reserve(&mut self, user: u32, bytes: ByteCount) -> Result<(), Refusal> {
        let of_user = self.by_user.get(&user).copied().unwrap_or(0);
        let user_free = self.per_user.saturating_sub(of_user);
        if bytes.get() > user_free {
            return Err(Refusal::UserBudget {
                asked: bytes,
                free: ByteCount::new(user_free),
                limit: ByteCount::new(self.per_user),
            });
        }
        if bytes.get() > self.free().get() {
            return Err(Refusal::Budget {
                asked: bytes,
                free: self.free(),
            });
        }
        self.add(user, bytes);
        Ok(())
    }

    /// Promises without asking: what a region has that was promised by an earlier daemon.
    pub(super) fn add(&mut self, user: u32, bytes: ByteCount) {
        self.used = self.used.saturating_add(bytes.get());
        let of_user = self.by_user.entry(user).or_insert(0);
        *of_user = of_user.saturating_add(bytes.get());
    }

    /// Takes a promise back.
    pub(super) fn release(&mut self, user: u32, bytes: ByteCount) {
        self.used = self.used.saturating_sub(bytes.get());
        if let Some(of_user) = self.by_user.get_mut(&user) {
            *of_user = of_user.saturating_sub(bytes.get());
            if *of_user == 0 {
                self.by_user.remove(&user);
            }
        }
    }

    /// What nobody was promised.
    pub(super) fn free(&self) -> ByteCount {
        ByteCount::new(self.total.saturating_sub(self.used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: fn(u64) -> ByteCount = ByteCount::mib;

    #[test]
    fn no_user_takes_all_and_a_refusal_says_what_is_free() {
        let mut ledger = Ledger::new(MIB(100), MIB(60));
        ledger.reserve(1, MIB(50)).expect("there is room");
        assert_eq!(
            ledger.reserve(1, MIB(20)),
            Err(Refusal::UserBudget {
                asked: MIB(20),
                free: MIB(10),
                limit: MIB(60)
            })
        );
        assert_eq!(
            ledger.reserve(2, MIB(51)),
            Err(Refusal::Budget {
                asked: MIB(51),
                free: MIB(50)
            })
        );
        ledger.release(1, MIB(50));
        ledger.reserve(2, MIB(60)).expect("there is room again");
    }

    proptest! {
        #[test]
        fn promises_never_add_up_to_more_than_there_is(
            asked in proptest::collection::vec((0_u32..4, 0_u64..50, any::<bool>()), 0..100),
        ) {
            let mut ledger = Ledger::new(MIB(100), MIB(60));
            let mut held: Vec<(u32, u64)> = Vec::new();
            for (user, mib, give_back) in asked {
                if give_back {
                    if let Some((user, mib)) = held.pop() {
                        ledger.release(user, MIB(mib));
                    }
                } else if ledger.reserve(user, MIB(mib)).is_ok() {
                    held.push((user, mib));
                }
                let sum: u64 = held.iter().map(|(_, mib)| mib).sum();
                prop_assert!(sum <= 100);
                prop_assert_eq!(ledger.free(), MIB(100 - sum));
                for user in 0..4 {
                    let of_user: u64 = held.iter().filter(|h| h.0 == user).map(|h| h.1).sum();
                    prop_assert!(of_user <= 60);
                }
            }
        }
    }
}

//! Runs of bytes: which parts of the pool are free, and which free parts are still to be zeroed.
//!
//! Neighbouring runs are always joined, so a pool that is given back whole is one run again.

use std::collections::BTreeMap;

/// A run of bytes of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Where it starts, in bytes from the pool's start.
    pub(super) offset: u64,
    /// How long it is.
    pub(super) bytes: u64,
}

impl Run {
    fn end(self) -> u64 {
        self.offset + self.bytes
    }
}

/// A set of bytes, kept as runs. All runs lie inside of a pool, so sums of offsets cannot overflow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    by_offset: BTreeMap<u64, u64>,
    bytes: u64,
}

impl Runs {
    /// One run from 0 on.
    #[must_use]
    pub(super) fn whole(bytes: u64) -> Self {
        let mut runs = Self::default();
        runs.insert(Run { offset: 0, bytes });
        runs
    }

    /// Bytes in the set.
    #[must_use]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether any byte of `run` is in the set.
    #[must_use]
    pub(super) fn touches(&self, run: Run) -> bool {
        run.bytes > 0
            && self
                .by_offset
                .range(..run.end())
                .next_back()
                .is_some_and(|(&offset, &bytes)| offset + bytes > run.offset)
    }

    /// Adds `run`, none of whose bytes may be in the set: giving a byte back twice is a bug that is
    /// worth the whole process, because somebody else may have been given it meanwhile.
    pub(super) fn insert(&mut self, run: Run) {
        if run.bytes == 0 {
            return;
        }
        assert!(
            !self.touches(run),
            "bytes of the pool given back twice: {run:?}"
        );
        self.bytes += run.bytes;
        let mut joined = run;
        if let Some((&offset, &bytes)) = self.by_offset.range(..run.offset).next_back()
            && offset + bytes == run.offset
        {
            self.by_offset.remove(&offset);
            joined = Run {
                offset,
                bytes: bytes + joined.bytes,
            };
        }
        if let Some(bytes) = self.by_offset.remove(&run.end()) {
            joined.bytes += bytes;
        }
        self.by_offset.insert(joined.offset, joined.bytes);
    }

    /// Takes the first `bytes` in a row out of the set.
    pub(super) fn take(&mut self, bytes: u64) -> Option<Run> {
        let (&offset, &found) = self.by_offset.iter().find(|(_, found)| **found >= bytes)?;
        self.by_offset.remove(&offset);
        if found > bytes {
            self.by_offset.insert(offset + bytes, found - bytes);
        }
        self.bytes -= bytes;
        Some(Run { offset, bytes })
    }

    /// Takes up to `most` bytes from the start of the first run out of the set.
    pub(super) fn take_some(&mut self, most: u64) -> Option<Run> {
        let (_, &bytes) = self.by_offset.first_key_value()?;
        self.take_first(bytes.min(most))
    }

    fn take_first(&mut self, bytes: u64) -> Option<Run> {
        let (offset, found) = self.by_offset.pop_first()?;
        if found > bytes {
            self.by_offset.insert(offset + bytes, found - bytes);
        }
        self.bytes -= bytes;
        Some(Run { offset, bytes })
    }

    /// Takes one run that lies in `within` out of the set, if any of its bytes is in the set.
    pub(super) fn take_within(&mut self, within: Run) -> Option<Run> {
        let (&offset, &bytes) = self.by_offset.range(..within.end()).next_back()?;
        let found = Run { offset, bytes };
        let start = found.offset.max(within.offset);
        let end = found.end().min(within.end());
        if start >= end {
            return None;
        }
        self.by_offset.remove(&offset);
        if start > found.offset {
            self.by_offset.insert(found.offset, start - found.offset);
        }
        if found.end() > end {
            self.by_offset.insert(end, found.end() - end);
        }
        self.bytes -= end - start;
        Some(Run {
            offset: start,
            bytes: end - start,
        })
    }

    /// Bytes that could be taken in pieces of `bytes`.
    #[must_use]
    pub(super) fn available(&self, bytes: u64) -> u64 {
        match bytes {
            0 => 0,
            _ => self
                .by_offset
                .values()
                .map(|found| found - found % bytes)
                .sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The pool of the model: a flag a byte.
    const POOL: u64 = 64;

    fn model(runs: &Runs) -> Vec<bool> {
        let mut flags = vec![false; POOL as usize];
        let mut previous_end = None;
        for (&offset, &bytes) in &runs.by_offset {
            assert!(bytes > 0, "an empty run is kept");
            assert!(
                previous_end.is_none_or(|end| end < offset),
                "neighbours are not joined"
            );
            previous_end = Some(offset + bytes);
            flags[offset as usize..(offset + bytes) as usize].fill(true);
        }
        assert_eq!(runs.bytes(), flags.iter().filter(|f| **f).count() as u64);
        flags
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(u64),
        TakeSome(u64),
        TakeWithin(u64, u64),
        GiveBack(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..20u64).prop_map(Step::Take),
            (1..20u64).prop_map(Step::TakeSome),
            (0..POOL, 1..20u64).prop_map(|(at, n)| Step::TakeWithin(at, n.min(POOL - at))),
            any::<prop::sample::Index>().prop_map(Step::GiveBack),
        ]
    }

    proptest! {
        #[test]
        fn what_is_taken_was_in_the_set_and_comes_back(steps in proptest::collection::vec(step(), 0..60)) {
            let mut runs = Runs::whole(POOL);
            let mut taken: Vec<Run> = Vec::new();
            for step in steps {
                let before = model(&runs);
                let got = match step {
                    Step::Take(bytes) => {
                        let longest = before.split(|f| !f).map(<[bool]>::len).max().unwrap_or(0) as u64;
                        prop_assert_eq!(runs.available(bytes) > 0, longest >= bytes);
                        let got = runs.take(bytes);
                        prop_assert_eq!(got.map(|run| run.bytes), (longest >= bytes).then_some(bytes));
                        got
                    }
                    Step::TakeSome(most) => runs.take_some(most),
                    Step::TakeWithin(offset, bytes) => {
                        let within = Run { offset, bytes };
                        let got = runs.take_within(within);
                        prop_assert_eq!(
                            got.is_some(),
                            before[offset as usize..(offset + bytes) as usize].contains(&true)
                        );
                        if let Some(run) = got {
                            prop_assert!(run.offset >= offset && run.end() <= offset + bytes);
                        }
                        got
                    }
                    Step::GiveBack(index) => {
                        if !taken.is_empty() {
                            let run = taken.swap_remove(index.index(taken.len()));
                            prop_assert!(!runs.touches(run));
                            runs.insert(run);
                        }
                        None
                    }
                };
                if let Some(run) = got {
                    let range = run.offset as usize..run.end() as usize;
                    prop_assert!(before[range.clone()].iter().all(|f| *f));
                    prop_assert!(!model(&runs)[range].contains(&true));
                    taken.push(run);
                }
            }
            for run in taken {
                runs.insert(run);
            }
            prop_assert_eq!(runs, Runs::whole(POOL));
        }
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn giving_back_twice_is_noticed() {
        let mut runs = Runs::whole(POOL);
        runs.insert(Run {
            offset: 3,
            bytes: 1,
        });
    }
}

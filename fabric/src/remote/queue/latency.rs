//! How long reads take, and from that: which replica is nearest, and when a second one is asked. Pure.

/// How much the newest measurement counts in the average of a node, as a shift: an eighth.
const AVERAGE_SHIFT: u32 = 3;
/// Reads of one lane after which its tail is looked at again.
const WINDOW: u32 = 128;
/// Steps of the histogram: four to each doubling, up to more than a minute.
const STEPS: usize = 4 * 27;
/// A second read is sent no sooner than this, us.
const HEDGE_LEAST_US: u64 = 200;
/// And no later, us.
const HEDGE_MOST_US: u64 = 50_000;
/// While too little is known of the tail, us.
const HEDGE_AT_FIRST_US: u64 = 5000;
/// One read in so many may be asked for twice, in the long run.
const HEDGE_ONE_IN: u32 = 16;
/// And so many in a row.
const HEDGES_IN_A_ROW: u32 = 8;

/// The average of a node, in eighths of 1 us. 0: nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Average(u32);

impl Average {
    pub(super) fn measured(&mut self, us: u64) {
        let us = us.clamp(1, 100_000_000) as u32;
        self.0 = match self.0 {
            0 => us << AVERAGE_SHIFT,
            known => known - (known >> AVERAGE_SHIFT) + us,
        };
    }

    /// What is old counts less and less, so that a node that was slow is tried again.
    pub(super) fn fade(&mut self) {
        self.0 -= self.0 >> AVERAGE_SHIFT;
    }
}

/// The tail of a lane's reads.
#[derive(Debug)]
pub(super) struct Tail {
    steps: [u32; STEPS],
    count: u32,
    delay_us: u64,
    /// In parts of [`HEDGE_ONE_IN`].
    budget: u32,
}

impl Tail {
    pub(super) fn new() -> Self {
        Self {
            steps: [0; STEPS],
            count: 0,
            delay_us: HEDGE_AT_FIRST_US,
            budget: HEDGES_IN_A_ROW * HEDGE_ONE_IN,
        }
    }

    /// A read took so long. True once in a while: it is time to let averages fade.
    pub(super) fn measured(&mut self, us: u64) -> bool {
        self.budget = (self.budget + 1).min(HEDGES_IN_A_ROW * HEDGE_ONE_IN);
        self.steps[step(us)] += 1;
        self.count += 1;
        if self.count.is_multiple_of(WINDOW) {
            let p99 = self.p99_us();
            self.delay_us = p99.clamp(HEDGE_LEAST_US, HEDGE_MOST_US);
            // What is old counts less and less.
            self.steps.iter_mut().for_each(|step| *step /= 2);
            self.count = self.steps.iter().sum::<u32>() / WINDOW * WINDOW;
            return true;
        }
        false
    }

    fn p99_us(&self) -> u64 {
        let all: u32 = self.steps.iter().sum();
        let mut above = 0;
        for (step, count) in self.steps.iter().enumerate().rev() {
            above += count;
            if u64::from(above) * 100 > u64::from(all) {
                return upper_us(step);
            }
        }
        0
    }

    /// How long a read is waited for before another replica is asked, us.
    pub(super) fn delay_us(&self) -> u64 {
        self.delay_us
    }

    /// Whether one more read may be asked for twice now.
    pub(super) fn take(&mut self) -> bool {
        let enough = self.budget >= HEDGE_ONE_IN;
        if enough {
            self.budget -= HEDGE_ONE_IN;
        }
        enough
    }
}

fn step(us: u64) -> usize {
    let us = us.max(4);
    let octave = us.ilog2();
    let quarter = (us >> (octave - 2)) & 3;
    (((octave - 2) * 4) as usize + quarter as usize).min(STEPS - 1)
}

/// The first value above a step.
fn upper_us(step: usize) -> u64 {
    let octave = (step / 4) as u32;
    (5 + (step % 4) as u64) << octave
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_hold_what_falls_into_them() {
        let mut last = 0;
        for us in 4..100_000 {
            let step = step(us);
            assert!(upper_us(step) > us, "{us}");
            assert!(step == 0 || upper_us(step - 1) <= us, "{us}");
            assert!(step >= last);
            last = step;
        }
        assert_eq!(step(u64::MAX), STEPS - 1);
    }

    #[test]
    fn the_delay_follows_the_tail_within_its_bounds() {
        let mut tail = Tail::new();
        assert_eq!(tail.delay_us(), HEDGE_AT_FIRST_US);
        for nth in 0..10_000 {
            tail.measured(if nth % 50 == 0 { 3000 } else { 60 });
        }
        assert!(
            (3000..4000).contains(&tail.delay_us()),
            "{}",
            tail.delay_us()
        );
        (0..10_000).for_each(|_| _ = tail.measured(10));
        assert_eq!(tail.delay_us(), HEDGE_LEAST_US);
        (0..10_000).for_each(|_| _ = tail.measured(10_000_000));
        assert_eq!(tail.delay_us(), HEDGE_MOST_US);
    }

    #[test]
    fn no_more_than_its_share_is_asked_for_twice() {
        let mut tail = Tail::new();
        let mut twice = 0;
        for _ in 0..1600 {
            tail.measured(100);
            while tail.take() {
                twice += 1;
            }
        }
        assert_eq!(twice, HEDGES_IN_A_ROW + 1600 / HEDGE_ONE_IN - 1);
    }

    #[test]
    fn an_average_starts_with_the_first_and_follows_the_rest() {
        let mut average = Average::default();
        average.measured(800);
        assert_eq!(average, Average(8 * 800));
        (0..100).for_each(|_| average.measured(100));
        assert!(average < Average(8 * 110));
        assert!(Average::default() < average);
    }
}

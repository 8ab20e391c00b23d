//! Which of a lane's frames are in use. Runs of neighbouring frames, so that a run of pages is one READ and
//! one COPY.

use mycoram_fabric::pages::FrameIndex;

/// Bits of one word.
const WORD: usize = 64;

/// Free and used frames.
#[derive(Debug)]
pub(crate) struct FramePool {
    /// Bit set: free.
    free: Vec<u64>,
    count: usize,
    /// Where the last search ended.
    next: usize,
}

impl FramePool {
    pub(crate) fn new(frames: u32) -> Self {
        let frames = frames as usize;
        let words = frames.div_ceil(WORD);
        let mut free = vec![u64::MAX; words];
        if !frames.is_multiple_of(WORD) {
            free[words - 1] = (1 << (frames % WORD)) - 1;
        }
        Self {
            free,
            count: frames,
            next: 0,
        }
    }

    /// Free frames.
    pub(crate) fn free(&self) -> usize {
        self.count
    }

    /// Takes `run` neighbouring frames (at most 64, within one word of the map).
    pub(crate) fn take(&mut self, run: u32) -> Option<FrameIndex> {
        if run == 0 || run as usize > WORD || self.count < run as usize {
            return None;
        }
        for step in 0..self.free.len() {
            let word = (self.next + step) % self.free.len();
            let mut starts = self.free[word];
            for shift in 1..run {
                starts &= self.free[word] >> shift;
            }
            if starts != 0 {
                let bit = starts.trailing_zeros();
                let mask = if run as usize == WORD {
                    u64::MAX
                } else {
                    ((1 << run) - 1) << bit
                };
                self.free[word] &= !mask;
                self.count -= run as usize;
                self.next = word;
                return Some(FrameIndex((word * WORD) as u32 + bit));
            }
        }
        None
    }

    /// Gives frames back.
    pub(crate) fn give(&mut self, frame: FrameIndex, run: u32) {
        for frame in frame.0..frame.0 + run {
            let (word, bit) = (frame as usize / WORD, frame as usize % WORD);
            debug_assert!(
                self.free[word] & (1 << bit) == 0,
                "frame {frame} given twice"
            );
            self.free[word] |= 1 << bit;
            self.count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FramePool;

    #[test]
    fn runs_do_not_overlap_and_come_back() {
        let mut pool = FramePool::new(100);
        let mut used = [false; 100];
        let mut taken = Vec::new();
        for run in [1, 16, 3, 16, 16, 1, 16, 5].iter().cycle() {
            let Some(frame) = pool.take(*run) else { break };
            for f in frame.0..frame.0 + run {
                assert!(!std::mem::replace(&mut used[f as usize], true));
            }
            taken.push((frame, *run));
        }
        for (frame, run) in taken {
            pool.give(frame, run);
        }
        assert_eq!(pool.free(), 100);
        assert_eq!(pool.take(64).map(|f| f.0), Some(0));
        assert!(pool.take(64).is_none());
        assert!(pool.take(36).is_some());
    }
}

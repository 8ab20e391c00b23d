//! Which extents of a thin region are to be placed next. Whoever touches a page says so here, in passing; the
//! region's placer asks for places, ahead of need.
//!
//! ```text
//!   extents   0 ............... touched ............. placed ....................... all
//!             [ written, or soon ][ the reserve: placed ahead ][ nowhere; reads as zeros ]
//!                                   below `low`: ask for more, up to `high`
//!
//!   an extent that is touched out of its turn is asked for first
//! ```
//!
//! A page is touched long before it is written back: it has to be faulted in, and to leave the local budget.
//! So also extents that no reserve covers are mostly placed by the time. No asking here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bell::Bell;
use crate::units::{ByteCount, ExtentIndex};

/// Extents of one word.
const WORD: u32 = u64::BITS;
/// Most extents that are asked for at a time.
const MOST: usize = 256;

/// How far ahead of need the extents of a thin region are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// With less than this placed that nobody has touched yet, more is asked for. Default 64 MiB. More outlives a
    /// longer absence of the control plane.
    pub low: ByteCount,
    /// So much is to be placed then. Default 256 MiB. It is taken from the pool, once for each replica,
    /// whether it is ever used or not.
    pub high: ByteCount,
}

impl Default for Ahead {
    fn default() -> Self {
        Self {
            low: ByteCount::mib(64),
            high: ByteCount::mib(256),
        }
    }
}

impl Ahead {
    /// Up to `high`, filled up when a quarter is left.
    #[must_use]
    pub fn up_to(high: ByteCount) -> Self {
        Self {
            low: ByteCount::new(high.get() / 4),
            high,
        }
    }

    /// Extents of `bytes`, at least one.
    fn extents(bytes: ByteCount, extent_bytes: ByteCount) -> usize {
        let extents = bytes.get().div_ceil(extent_bytes.get().max(1));
        usize::try_from(extents).unwrap_or(usize::MAX).max(1)
    }

    /// How many extents are to be placed ahead.
    pub(super) fn high_extents(&self, extent_bytes: ByteCount) -> usize {
        Self::extents(self.high.max(self.low), extent_bytes)
    }
}

/// How the last request for places ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// There is nothing to be asked for, or it was given.
    #[default]
    Fine,
    /// Nobody could be asked.
    Away,
    /// There was no room for an extent that is needed.
    Full,
}

/// Bits, one an extent.
struct Bits(Box<[AtomicU64]>);

impl Bits {
    fn new(extents: u32) -> Self {
        let words = extents.div_ceil(WORD);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    fn has(&self, extent: ExtentIndex) -> bool {
        let word = self.0[(extent.get() / WORD) as usize].load(Ordering::Relaxed);
        word >> (extent.get() % WORD) & 1 == 1
    }

    /// False: it was set before.
    fn set(&self, extent: ExtentIndex) -> bool {
        let bit = 1 << (extent.get() % WORD);
        let before = self.0[(extent.get() / WORD) as usize].fetch_or(bit, Ordering::AcqRel);
        before & bit == 0
    }
}

/// What only the placer uses. Its lock makes requests for places one at a time.
#[derive(Debug)]
pub(super) struct Asking {
    /// Most extents of the next request.
    pub(super) most: usize,
    pub(super) standing: Standing,
}

/// See the module. Shared by all who touch pages and by the placer.
pub(super) struct Thin {
    extents: u32,
    low: usize,
    high: usize,
    /// A page of it was touched.
    touched: Bits,
    placed: Bits,
    /// The extent that was touched last.
    last: AtomicU64,
    /// There may be something to ask for.
    stirred: AtomicBool,
    /// The placer's; none in simulated time.
    bell: Option<Arc<Bell>>,
    asking: Mutex<Asking>,
    /// There is no room for an extent that is needed.
    full: AtomicBool,
    /// Writes that are held, over all lanes.
    pub(super) held: AtomicU64,
    /// Requests for places that nobody could be asked.
    pub(super) away: AtomicU64,
    /// Requests for places that were refused for want of memory.
    pub(super) refused: AtomicU64,
}

impl Thin {
    /// Of a region with so many extents, those that `is_placed` says are.
    pub(super) fn new(
        extents: u32,
        extent_bytes: ByteCount,
        ahead: &Ahead,
        bell: Option<Arc<Bell>>,
        is_placed: impl Fn(ExtentIndex) -> bool,
    ) -> Self {
        let thin = Self {
            extents,
            low: Ahead::extents(ahead.low, extent_bytes),
            high: ahead.high_extents(extent_bytes),
            touched: Bits::new(extents),
            placed: Bits::new(extents),
            last: AtomicU64::new(0),
            // Its owner may have died while it asked.
            stirred: AtomicBool::new(true),
            bell,
            asking: Mutex::new(Asking {
                most: MOST,
                standing: Standing::Fine,
            }),
            full: AtomicBool::new(false),
            held: AtomicU64::new(0),
            away: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        for extent in (0..extents).map(ExtentIndex::new) {
            if is_placed(extent) {
                thin.placed.set(extent);
            }
        }
        thin
    }

    /// Whether an extent is placed, by what was published last.
    pub(super) fn is_placed(&self, extent: ExtentIndex) -> bool {
        self.placed.has(extent)
    }

    /// A page of the extent is used, and may be written back before long. On the path of faults: a load, for
    /// all but the first page of an extent.
    pub(super) fn touch(&self, extent: ExtentIndex) {
        if !self.touched.has(extent) && self.touched.set(extent) {
            self.last.store(u64::from(extent.get()), Ordering::Relaxed);
            self.stir();
        }
    }

    fn stir(&self) {
        self.stirred.store(true, Ordering::Release);
        if let Some(bell) = &self.bell {
            bell.ring();
        }
    }

    /// Whether there may be something to ask for.
    pub(super) fn is_stirred(&self) -> bool {
        self.stirred.load(Ordering::Acquire)
    }

    /// There is no room for an extent that is needed.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Begins to ask: whoever touches an extent from now on is heard later.
    pub(super) fn ask(&self) -> MutexGuard<'_, Asking> {
        let asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        self.stirred.store(false, Ordering::Release);
        asking
    }

    /// What to ask for now: what is needed, then what is to be placed ahead.
    pub(super) fn next(&self, asking: &Asking) -> Vec<ExtentIndex> {
        let indexes = || (0..self.extents).map(ExtentIndex::new);
        let unplaced = |extent: &ExtentIndex| !self.placed.has(*extent);
        let needed = indexes().filter(|e| unplaced(e) && self.touched.has(*e));
        let mut next: Vec<_> = needed.take(asking.most).collect();
        let reserve = indexes().filter(|e| !unplaced(e) && !self.touched.has(*e));
        let reserve = reserve.take(self.low).count();
        if reserve < self.low {
            // The next ones to be touched, as far as anybody can say.
            let last = self.last.load(Ordering::Relaxed) as u32;
            let following = indexes()
                .skip(last as usize)
                .chain(indexes().take(last as usize));
            let ahead = following.filter(|e| unplaced(e) && !self.touched.has(*e));
            let room = asking.most.saturating_sub(next.len());
            next.extend(ahead.take(room.min(self.high - reserve)));
        }
        next
    }

    /// Whether somebody waits for one of these, or soon will.
    pub(super) fn are_needed(&self, extents: &[ExtentIndex]) -> bool {
        extents.iter().any(|extent| self.touched.has(*extent))
    }

    /// They were placed.
    pub(super) fn placed(&self, asking: &mut Asking, extents: &[ExtentIndex]) {
        for extent in extents {
            self.placed.set(*extent);
        }
        asking.most = (asking.most * 2).min(MOST);
        self.stands(asking, Standing::Fine);
    }

    /// There is no room for these. True: ask again, for fewer; else later.
    ///
    /// What is only to be placed ahead is left out first, and is not tried one by one: the last room there is
    /// belongs to what is needed.
    pub(super) fn too_many(&self, asking: &mut Asking, asked: &[ExtentIndex]) -> bool {
        let needed = asked.iter().filter(|extent| self.touched.has(**extent));
        let needed = needed.count();
        asking.most = match needed {
            0 => MOST,
            _ if needed < asked.len() => needed,
            _ => (needed / 2).max(1),
        };
        needed > 0 && asking.most < asked.len()
    }

    /// How the request ended; true if the one before ended otherwise.
    pub(super) fn stands(&self, asking: &mut Asking, standing: Standing) -> bool {
        self.full
            .store(standing == Standing::Full, Ordering::Release);
        std::mem::replace(&mut asking.standing, standing) != standing
    }

    /// What was to be placed is not: it is tried again.
    pub(super) fn again(&self) {
        self.stirred.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENTS: u32 = 200;

    fn thin(placed: u32) -> Thin {
        let ahead = Ahead {
            low: ByteCount::mib(4),
            high: ByteCount::mib(10),
        };
        let extent = ByteCount::mib(1);
        Thin::new(EXTENTS, extent, &ahead, None, |extent| {
            extent.get() < placed
        })
    }

    fn next(thin: &Thin) -> Vec<u32> {
        let asking = thin.ask();
        thin.next(&asking)
            .into_iter()
            .map(ExtentIndex::get)
            .collect()
    }

    fn place(thin: &Thin, extents: &[u32]) {
        let extents: Vec<_> = extents.iter().copied().map(ExtentIndex::new).collect();
        thin.placed(&mut thin.ask(), &extents);
    }

    #[test]
    fn the_reserve_is_filled_when_it_is_low_and_not_before() {
        let thin = thin(10);
        assert!(next(&thin).is_empty());
        for extent in 0..6 {
            thin.touch(ExtentIndex::new(extent));
        }
        assert!(next(&thin).is_empty(), "four are left");
        assert!(!thin.is_stirred());
        thin.touch(ExtentIndex::new(6));
        assert!(thin.is_stirred());
        assert_eq!(next(&thin), [10, 11, 12, 13, 14, 15, 16]);
        thin.touch(ExtentIndex::new(6));
        assert!(!thin.is_stirred(), "touched before");
        place(&thin, &[10, 11, 12, 13, 14, 15, 16]);
        assert!(next(&thin).is_empty());
    }

    #[test]
    fn what_is_touched_out_of_turn_comes_first_and_what_follows_it_next() {
        let thin = thin(4);
        thin.touch(ExtentIndex::new(0));
        thin.touch(ExtentIndex::new(197));
        // Three are left of the reserve, which is filled up from there on, and round the end.
        assert_eq!(next(&thin), [197, 198, 199, 4, 5, 6, 7, 8]);
        place(&thin, &[197, 198]);
        assert!(thin.is_placed(ExtentIndex::new(198)));
        assert!(!thin.is_placed(ExtentIndex::new(199)));
    }

    #[test]
    fn with_too_little_room_what_is_needed_comes_first_and_fewer_are_asked_for() {
        let thin = thin(0);
        thin.touch(ExtentIndex::new(50));
        thin.touch(ExtentIndex::new(60));
        thin.touch(ExtentIndex::new(70));
        let refused = |thin: &Thin| {
            let asked = next(thin);
            let extents: Vec<_> = asked.iter().copied().map(ExtentIndex::new).collect();
            (asked, thin.too_many(&mut thin.ask(), &extents))
        };
        let (asked, again) = refused(&thin);
        assert!(asked.len() == 13 && again);
        assert_eq!(refused(&thin), (vec![50, 60, 70], true));
        assert_eq!(refused(&thin), (vec![50], false));
        assert!(thin.are_needed(&[ExtentIndex::new(50)]));
        assert!(thin.stands(&mut thin.ask(), Standing::Full));
        assert!(!thin.stands(&mut thin.ask(), Standing::Full), "said before");
        assert!(thin.is_full());
        for extent in [50, 60, 70] {
            place(&thin, &[extent]);
        }
        assert!(!thin.is_full());
        // The reserve alone is asked for whole, or later: it does not take the last room.
        assert!(!refused(&thin).1);
        let whole = next(&thin);
        assert_eq!(whole.len(), 10);
        assert_eq!(refused(&thin), (whole.clone(), false));
        assert_eq!(next(&thin), whole);
    }
}

//! One page's state in 64 bits.
//!
//! ```text
//!   63        32 31   24 23   16 15  12 11     10       9      8       7       6       5      4-3    2-0
//!   generation | slot  | batch | zero |unseen|homeless|parked|waiters|suspect|writing|synced|source|state
//! ```
//!
//! A word is a plain value. It is changed by `engine::transition` only, and stored by compare-and-swap.

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(crate) enum PageState {
    /// Reads as zeros: never written, discarded, or all zero when it left.
    NeverWritten = 0,
    /// On a memory node only.
    Remote = 1,
    /// On its way in; a fault worker has it.
    Fetching = 2,
    /// In the file.
    Resident = 3,
    /// On its way out; an evictor has it.
    Leaving = 4,
    /// Gone for good.
    Lost = 5,
}

impl PageState {
    pub(crate) const ALL: [Self; 6] = [
        Self::NeverWritten,
        Self::Remote,
        Self::Fetching,
        Self::Resident,
        Self::Leaving,
        Self::Lost,
    ];
}

/// Where a page that is fetched comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(crate) enum Source {
    /// Nowhere: it is zeros.
    Zero = 0,
    /// A memory node.
    Remote = 1,
    /// The reference in a parking pipe.
    Reference = 2,
}

const STATE_MASK: u64 = 0b111;
const SOURCE_SHIFT: u32 = 3;
const SOURCE_MASK: u64 = 0b11 << SOURCE_SHIFT;
const SYNCED: u64 = 1 << 5;
const WRITING: u64 = 1 << 6;
const SUSPECT: u64 = 1 << 7;
const WAITERS: u64 = 1 << 8;
const PARKED: u64 = 1 << 9;
const HOMELESS: u64 = 1 << 10;
const UNSEEN: u64 = 1 << 11;
const ZERO_MASK: u64 = 0b1111 << 12;
const BATCH_SHIFT: u32 = 16;
const SLOT_SHIFT: u32 = 24;
const PLACE_MASK: u64 = 0xffff << BATCH_SHIFT;
const GENERATION_SHIFT: u32 = 32;

/// A word that no agent of this version wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the page table holds the word {0:#018x}, which means nothing")]
pub struct WordError(pub(crate) u64);

/// One page's state. See the module.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Word(u64);

macro_rules! flag {
    ($(#[$doc:meta])* $get:ident, $set:ident, $mask:ident) => {
        $(#[$doc])*
        pub(crate) const fn $get(self) -> bool {
            self.0 & $mask != 0
        }
        #[doc = concat!("With or without `", stringify!($get), "`.")]
        pub(crate) const fn $set(self, on: bool) -> Self {
            Self(if on { self.0 | $mask } else { self.0 & !$mask })
        }
    };
}

impl Word {
    /// A page that was never written.
    pub(crate) const NEVER_WRITTEN: Self = Self(0);

    /// As stored. The caller got it from [`Self::bits`].
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    /// To store.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }
    /// From a file that anybody may have written.
    pub(crate) fn checked(bits: u64) -> Result<Self, WordError> {
        let fits = bits & STATE_MASK <= PageState::Lost as u64
            && bits & SOURCE_MASK != SOURCE_MASK
            && bits & ZERO_MASK == 0;
        if fits {
            Ok(Self(bits))
        } else {
            Err(WordError(bits))
        }
    }

    pub(crate) const fn state(self) -> PageState {
        match self.0 & STATE_MASK {
            0 => PageState::NeverWritten,
            1 => PageState::Remote,
            2 => PageState::Fetching,
            3 => PageState::Resident,
            4 => PageState::Leaving,
            // 6 and 7 are kept out by `checked`; lost is the answer that can hand out nothing wrong.
            _ => PageState::Lost,
        }
    }
    pub(crate) const fn with_state(self, state: PageState) -> Self {
        Self(self.0 & !STATE_MASK | state as u64)
    }
    pub(crate) const fn source(self) -> Source {
        match (self.0 & SOURCE_MASK) >> SOURCE_SHIFT {
            1 => Source::Remote,
            2 => Source::Reference,
            _ => Source::Zero,
        }
    }
    pub(crate) const fn with_source(self, source: Source) -> Self {
        Self(self.0 & !SOURCE_MASK | (source as u64) << SOURCE_SHIFT)
    }

    flag!(
        /// The memory node holds exactly what the entry's checksum says.
        synced, with_synced, SYNCED
    );
    flag!(
        /// A WRITE of this page is in flight: nobody else may write it out, or change the checksum.
        writing, with_writing, WRITING
    );
    flag!(
        /// The target has said that it discards the page, and may not have done it yet.
        suspect, with_suspect, SUSPECT
    );
    flag!(
        /// A fault came while the page was being fetched.
        waiters, with_waiters, WAITERS
    );
    flag!(
        /// A leaving page's hole is punched: its content is final and in the pipe.
        parked, with_parked, PARKED
    );
    flag!(
        /// It could not be written out, because its memory node is gone, and stays here.
        homeless, with_homeless, HOMELESS
    );
    flag!(
        /// A former owner may have written it, and its checksum is not known: what is read first is right.
        unseen, with_unseen, UNSEEN
    );

    /// Which parking pipe.
    pub(crate) const fn batch(self) -> u8 {
        (self.0 >> BATCH_SHIFT) as u8
    }
    /// Which place in the pipe.
    pub(crate) const fn slot(self) -> u8 {
        (self.0 >> SLOT_SHIFT) as u8
    }
    pub(crate) const fn with_place(self, batch: u8, slot: u8) -> Self {
        Self(self.0 & !PLACE_MASK | (batch as u64) << BATCH_SHIFT | (slot as u64) << SLOT_SHIFT)
    }
    /// Counts evictions and discards, so that an old word is not mistaken for a new one.
    pub(crate) const fn generation(self) -> u32 {
        (self.0 >> GENERATION_SHIFT) as u32
    }
    pub(crate) const fn next_generation(self) -> Self {
        Self(
            self.0 & (u32::MAX as u64)
                | (self.generation().wrapping_add(1) as u64) << GENERATION_SHIFT,
        )
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.state())?;
        if self.state() == PageState::Fetching {
            write!(f, "({:?})", self.source())?;
        }
        let reference = self.state() == PageState::Fetching && self.source() == Source::Reference;
        if self.state() == PageState::Leaving || reference {
            write!(f, "[{}:{}]", self.batch(), self.slot())?;
        }
        for (on, name) in [
            (self.synced(), "synced"),
            (self.writing(), "writing"),
            (self.suspect(), "suspect"),
            (self.waiters(), "waiters"),
            (self.parked(), "parked"),
            (self.homeless(), "homeless"),
            (self.unseen(), "unseen"),
        ] {
            if on {
                write!(f, "+{name}")?;
            }
        }
        write!(f, "#{}", self.generation())
    }
}

#[cfg(test)]
mod tests {
    use super::{PageState, Source, Word};

    #[test]
    fn fields_do_not_touch_each_other() {
        let word = Word::NEVER_WRITTEN
            .with_state(PageState::Leaving)
            .with_source(Source::Reference)
            .with_place(63, 255)
            .with_synced(true)
            .with_writing(true)
            .with_suspect(true)
            .with_waiters(true)
            .with_parked(true)
            .with_homeless(true)
            .with_unseen(true)
            .next_generation();
        assert_eq!(Word::checked(word.bits()), Ok(word));
        assert_eq!(
            (
                word.state(),
                word.source(),
                word.batch(),
                word.slot(),
                word.generation()
            ),
            (PageState::Leaving, Source::Reference, 63, 255, 1)
        );
        let mut last = word;
        for _ in 0..3 {
            last = last.next_generation();
        }
        assert_eq!(last.generation(), 4);
        assert_eq!(
            last.with_place(0, 0).with_synced(false).state(),
            PageState::Leaving
        );
    }

    #[test]
    fn what_nobody_wrote_is_refused() {
        for bits in [6, 7, 0b11 << 3, 1 << 12, 1 << 15] {
            assert!(Word::checked(bits).is_err(), "{bits:#x}");
        }
    }
}

//! What a program may say of its future accesses.

/// What is going to happen to a range. Advice never changes what the memory holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Advice {
    /// No particular pattern: the agent finds patterns by itself. The state of a new mapping.
    Normal = 0,
    /// The whole mapping is read in order: prefetch further ahead.
    Sequential = 1,
    /// The whole mapping is read in no order: do not prefetch.
    Random = 2,
    /// These pages are needed soon: bring them in now, as far as the free part of the budget goes.
    WillNeed = 3,
    /// These pages are not needed soon: they are the first to leave when room is needed. What they hold is
    /// kept (unlike `madvise(MADV_DONTNEED)`, which throws it away).
    DontNeed = 4,
}

impl Advice {
    pub(crate) fn for_agent(self) -> mycoram_agent::Advice {
        match self {
            Self::Normal => mycoram_agent::Advice::Normal,
            Self::Sequential => mycoram_agent::Advice::Sequential,
            Self::Random => mycoram_agent::Advice::Random,
            Self::WillNeed => mycoram_agent::Advice::WillNeed,
            Self::DontNeed => mycoram_agent::Advice::DontNeed,
        }
    }
}

/// A number that is no advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no advice: there are 0 (normal) to 4 (dontneed)")]
pub struct UnknownAdvice(pub i32);

impl TryFrom<i32> for Advice {
    type Error = UnknownAdvice;

    fn try_from(number: i32) -> Result<Self, UnknownAdvice> {
        Ok(match number {
            0 => Self::Normal,
            1 => Self::Sequential,
            2 => Self::Random,
            3 => Self::WillNeed,
            4 => Self::DontNeed,
            _ => return Err(UnknownAdvice(number)),
        })
    }
}

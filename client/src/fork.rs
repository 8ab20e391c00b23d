//! What `fork` does to the library: the child has neither the mappings nor the threads.
//!
//! ```text
//!   parent: first call -> this process owns the library
//!   fork -> child: another process id -> every call is refused, nothing is torn down
//!        -> child execs: a new program, which may open far memory itself
//! ```
//!
//! Mappings are `MADV_DONTFORK`, so an access in the child is a segmentation fault and never a page of
//! zeros. Locks may have been held by threads that the child does not have, so the check comes first.

use std::sync::atomic::{AtomicU32, Ordering};

/// The process that used the library first; 0 before anybody did.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// The library was used before a fork, in the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "far memory belongs to process {owner}, and this is a child it forked ({child}): use it there, or exec first"
)]
pub struct Forked {
    /// The process whose far memory it is.
    pub owner: u32,
    /// This process.
    pub child: u32,
}

/// `Ok` in the process that used the library first, and makes this process the one if none was.
/// Takes no lock and cannot block.
pub(crate) fn check() -> Result<(), Forked> {
    let me = std::process::id();
    match OWNER.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => Ok(()),
        Err(owner) if owner == me => Ok(()),
        Err(owner) => Err(Forked { owner, child: me }),
    }
}

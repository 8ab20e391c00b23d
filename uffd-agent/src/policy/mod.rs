//! Which pages leave, and which are fetched before they are asked for. Pure: faults in, pages out; no
//! clock, no IO, no randomness of its own.
//!
//! ```text
//!   fault workers                                     evictor
//!   Prefetch: on_fault --> runs to fetch              Victims: admit ... pick --> pages to evict
//!       |                                                 ^
//!       +----- admissions: a bounded ring a worker -------+     nobody waits for anybody
//! ```
//!
//! A userfaultfd tells of faults only: an access to a resident page is never seen. So all that a policy
//! can learn from is which page faults, and how soon after it was evicted.
//!
//! The state of a page is the page table's matter; what a policy says is advice that the engine checks
//! (a page that is picked may have left meanwhile; a page that is to be fetched may be there).

mod admissions;
mod huge;
mod index;
mod prefetch;
mod streams;
mod victims;

pub use admissions::{
    Admission, AdmissionKind, AdmissionReceiver, AdmissionSender, admission_ring,
};
pub use huge::HugeMap;
pub use prefetch::{FaultKind, FetchRun, MAX_ADVISED_RANGES, NoPrefetch, Prefetch, prefetch_for};
pub use streams::{StreamPrefetch, Strides};
pub use victims::{Fifo, RandomVictims, S3Fifo, Victims, victims_for};

#[cfg(test)]
mod judge;

//! The agent: the process, or the part of a process, that owns a region's faults on the compute side.
//!
//! ```text
//!   target (a program, a QEMU)                    agent                          memory nodes
//!   mapping of a file, watched by   --fault-->  fault workers  --READ run-->   RemoteRegion
//!   a userfaultfd                   <--COPY---                 <-----------    (fabric::pages)
//!                                               evictors       --WRITE run->
//!                                               page table (a file: outlives the agent)
//! ```
//!
//! * [`Region`] is the way in: attach to a [`Target`], or take one over from an agent that died.
//! * `engine` is pure: page states, credits, batches; events in, actions out.
//! * `page_table` is the shared file of 16 bytes a page.
//! * [`kernel`] is the one place that speaks to userfaultfd, pipes and pidfds.
//! * [`policy`] says which pages leave, and which are fetched before they are asked for.
//! * [`daemon`] serves the regions of other processes; its `client` is their end.
//! * [`seal`] keeps what leaves this machine from being read, or changed, by anybody else.
//! * `runtime` does the IO: workers, evictors, take-over, figures.
//!
//! # Limits
//! * The budget holds for pages that come in by faults. What the target writes into the file by other ways
//!   (`pwrite`, `fallocate`) counts only from its next eviction. While pages without a home come back, up
//!   to one batch (64 pages) an evictor is overdrawn.
//! * A fork of the target must not touch the region: map it with MADV_DONTFORK. mremap of all or a part works,
//!   up to 16 pieces; pieces beyond count as unmapped.
//! * MADV_DONTNEED keeps what is resident in a file, as it does for every shared file, and discards what is not.
//!   In private memory it discards all.
//!   Resident pages that a discard has named are not evicted for a quarter of a second.
//! * A discard, or a mremap, that an agent had read and not yet applied when it was killed is not known to its
//!   successor: the page then has its content from before the discard.
//! * Private memory (`Region::attach_private`) is for a process that serves itself, on Linux 6.8 or newer: pages
//!   leave by a move, and those that are pinned stay. Direct IO of a file system that does not pin (NFS, 9p,
//!   Ceph) may go on writing into a page that has left: give it the memory of a file. A part that is made
//!   read-only stays resident.
//! * Without a living agent the target waits at every missing page, and in munmap and madvise.
//! * A thread of an agent that panics ends its region, and no other: [`RegionEvent::Failed`]. The daemon and `myco vm`
//!   take it over themselves, as they would another agent's, unless that happens again and again ([`Patience`]). A
//!   program that serves itself keeps what is resident; every other access raises SIGBUS.
//!
//! The agent knows remote pages only as `fabric::pages::RemoteRegion`; which nodes hold them, and who
//! decides that, is not its business.

mod config;
pub mod daemon;
mod engine;
pub mod kernel;
mod page_table;
mod patience;
pub mod policy;
mod runtime;
pub mod seal;
mod stats;
mod target;

pub use config::{
    Advice, ConfigError, DEFAULT_STATE_DIR, MAX_NAME_BYTES, MAX_WORKERS, MIN_BUDGET_PAGES,
    PrefetchPolicy, RegionConfig, RegionName, VictimPolicy,
};
pub use page_table::{StateFileError, WordError};
pub use patience::Patience;
pub use runtime::{
    AttachError, EventHandler, Figures, LostPage, Owner, Places, Region, RegionError, RegionEvent,
    SavedRegion, SetUpError, TakeOverError, ThreadPanic,
};
pub use stats::{LATENCY_BUCKETS_US, RegionStats, STATS_VERSION, StatsError};
pub use target::{
    HeldDescriptors, MAX_PARKING_PIPES, ParkingPipe, ParkingPipeError, PrivateTarget,
    SLOTS_PER_PIPE, Target,
};

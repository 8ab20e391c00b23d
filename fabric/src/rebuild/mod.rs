//! The rebuild of a region's replicas: what the authority orders, done by the owner while it goes on writing.
//!
//! ```text
//!   authority --orders--> plan: most endangered first --begin_copy--> extents that are being copied
//!                          ^                                            | runs of pages
//!                          |                                            v
//!      copied, dropped <---+--- finish_copy <--all pages right--- Transfer: READ live -> WRITE new
//! ```
//!
//! `plan` is pure: which order is next, and when a failed one is tried again; `pace` too: how fast. `extent` is one replica that is
//! being copied: its runs, their sources, what became of them. `work` puts both to work over a
//! [`Transfer`](crate::transfer::Transfer), within a share of the bandwidth; `keeper` is the thread that does
//! so for a region. Whose writes come across a copy is `remote`'s to know ([`crate::remote::ExtentCopy`]).
//!
//! Nothing of this is kept: the replica's state is all there is. Whoever is killed, the authority orders
//! again what is missing, and a replica that was being copied is copied from its start.

mod extent;
mod keeper;
mod pace;
mod plan;
mod work;

pub use keeper::Rebuilder;
pub use pace::Pace;
pub use work::{Rebuild, RebuildConfig, RebuildProgress};

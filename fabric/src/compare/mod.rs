//! Comparing the replicas of a region with each other, where nobody is left who knows what its pages should be.
//!
//! ```text
//!   runs of 16 pages, from all live replicas --> the same --------------> next
//!                                            '-> more than half agree --> the others are wrong
//!                                            |                              '-> written again, if ordered
//!                                            '-> no majority -----------> undecided: said, and left as it is
//! ```
//!
//! `verdict` is pure: what the contents of a page say of its replicas. `walk` reads, and writes wrong replicas
//! again. Whoever calls it has the region's newest epoch; when another owner comes, the nodes refuse the next request
//! and it ends, with nothing written after that. The comparison that an owner makes, who knows a checksum of every
//! page, is the agent's (see [`crate::check`]).

mod verdict;
mod walk;

pub use walk::{CompareError, Comparison, compare};

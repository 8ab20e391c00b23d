//! What happens to pages, without any IO: events in, actions out.
//!
//! ```text
//!                    fault, prefetch                installed
//!   never written ------------------>  fetching  ---------------> resident
//!         ^  ^             remote ---->  zero|remote|reference       |  ^
//!         |  |               ^  ^                ^                  evict| stays, homeless
//!         |  +-- zero -------+  +-- written,     | fault             v  |
//!         +----- discard --------- clean ------- leaving: cutting -> parked
//!                                                   fetching(remote) --lost--> lost
//! ```
//!
//! * `transition` is the one function that says what follows from what.
//! * `pages` applies it to the page table by compare-and-swap; `tally` keeps the counts.
//! * `credits` is the budget; `gate` keeps discards apart from what they would undo.
//! * `batch` is an eviction from choosing victims to draining the pipe, one step at a time.
//! * `recovery` says what a successor makes of each page.
//!
//! The model test (`model`) interleaves all of it over a simulated kernel.

mod batch;
mod credits;
mod gate;
#[cfg(test)]
mod model;
mod pages;
mod recovery;
mod tally;
mod transition;

pub(crate) use batch::{Batch, BatchStep, Judgement, Run};
pub(crate) use credits::Credits;
pub(crate) use gate::Gate;
pub(crate) use pages::{Content, FaultStep, Pages};
pub(crate) use recovery::recover;
pub(crate) use transition::{Action, Event, transition};

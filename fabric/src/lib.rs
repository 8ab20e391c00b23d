//! Mycoram's fabric: the words every other house speaks, and the way bytes reach another machine.
//!
//! ```text
//!   units, checksum            types: pages, bytes, epochs, ids
//!   wire                       what goes over a socket: header, control messages, data frames
//!   transport  verbs tcp sim   READ, WRITE, COMPARE_SWAP, FETCH_ADD on registered memory
//!   node                       the memory node: pool, extents, tenants, control channel
//!   session                    the client end of a memory node: a control channel and queue pairs
//!   placement                  the trait through which an agent asks where extents live
//!   pages                      a region's remote pages as an agent uses them: lanes and frames
//! ```
//!
//! `fabric` knows none of the other houses. Pure logic takes events and `now` and returns actions;
//! IO is done by the runtime modules only.

pub mod node;
pub mod pages;
pub mod placement;
pub mod random;
pub mod remote;
pub mod session;
pub mod transport;
pub mod units;
pub mod wire;

//! Mycoram's fabric: the words every other house speaks, and the way bytes reach another machine.
//!
//! ```text
//!   units, checksum            types: pages, bytes, epochs, ids
//!   wire                       what goes over a socket: header, control messages, data frames
//!   transport  verbs tcp sim   READ, WRITE, COMPARE_SWAP, FETCH_ADD on registered memory
//!   node                       the memory node: pool, extents, tenants, control channel
//!   session                    the client end of a memory node: a control channel and queue pairs
//!   placement                  nodes, regions, failure domains
//!   authority                  the trait through which a region's owner knows the control plane
//!   transfer                   many bytes at once: pieces over several rails to several endpoints
//!   group                      the same pages on several nodes: members in and out, pages to all
//!   check, compare             replicas that do not hold what they should: as their owner finds them, or without one
//!   rebuild                    lost replicas are made up for, while the owner goes on writing
//!   pages                      a region's remote pages as an agent uses them: lanes and frames
//! ```
//!
//! `fabric` knows none of the other houses. Pure logic takes events and `now` and returns actions;
//! IO is done by the runtime modules only.

pub mod authority;
pub mod check;
pub mod compare;
pub mod group;
pub mod node;
pub mod pages;
pub mod placement;
pub mod random;
pub mod rebuild;
pub mod remote;
pub mod session;
pub mod transfer;
pub mod transport;
pub mod units;
pub mod wire;

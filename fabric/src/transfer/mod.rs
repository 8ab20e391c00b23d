//! Parallel transfer: many bytes between local memory and memory nodes, over all the ways there are.
//!
//! ```text
//!   pieces -> Transfer ----------------------------------------------> Finished: arrived, or what is left
//!              | schedule  pure: chunks, whose turn, tries, rate
//!              | rails     queue pairs: some to each endpoint           progress: bytes and pieces, by rail
//!              | redial    broken rails out, new ones in
//!              '- frames   where chunks stand between two endpoints
//!
//!   a piece:  local -> remote   WRITE from the caller's registered memory
//!             remote -> local   READ into it
//!             remote -> remote  READ into a frame, then WRITE from it
//! ```
//!
//! The caller hands in pieces of any length; the session cuts them into chunks, keeps every rail full as
//! far as its depth, its frames and its share of the bandwidth allow, and answers each piece once. What was
//! under way on a rail that broke goes out again on another rail of the same endpoint, after the node has
//! said that nothing of the broken one can land any more. What cannot arrive is given back as a piece that
//! can be handed in again, here or in another session, with the same or another endpoint.
//!
//! Memory is bounded: so many pieces, so many frames, so many chunks on a rail. [`Transfer::queue`] takes
//! only what there is room for. It knows neither regions nor replicas, keeps nothing on disk, and checks no
//! bytes: that is for those who use it.

mod budget;
mod endpoint;
mod node;
mod piece;
mod progress;
mod redial;
mod schedule;
mod session;

pub use endpoint::{Endpoint, EndpointError};
pub use node::{NodeAccess, NodeEndpoint};
pub use piece::{EndpointIndex, Finished, MemoryIndex, NotArrived, Piece, PieceError, Place, Why};
pub use progress::{Progress, RailProgress, RailState};
pub use session::{OpenTransferError, Transfer, TransferConfig};

//! The owner's end of a memory node's control channel: for set-up, take-over and supervision, never
//! on the path of a page. Blocking, and every call has a deadline.
//!
//! ```text
//!   Dial::dial(node) -> Channel --Session::open--> Session: ticket, allocate, list, free, release
//!       tcp, or simulated          hello, status            keep_alive
//! ```
//!
//! A channel on which a call failed is broken for good: an answer that comes late must not be taken
//! for the answer to the next question. Its owner dials again.

mod channel;
mod open;

pub use channel::{Channel, Dial, SessionError, TcpChannel, TcpDial, TlsDial};
pub use open::{Identity, Session};

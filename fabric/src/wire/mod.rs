//! What goes over a socket: one header in front of everything, and the messages behind it.
//!
//! ```text
//!   0        4        6        8                16       20       24                32
//!   | magic  |version | kind   | epoch          | length |reserved| checksum       | body ...
//!   | u32    | u16    | u16    | u64            | u32    | zero   | u64            | length bytes
//! ```
//!
//! All numbers are little-endian. The checksum is XXH3-64 of the body, seeded with the XXH3-64 of the
//! first 24 bytes, so that a body cannot be moved behind another header. Every receiver checks
//! magic, version, reserved bytes, length against its own bound, and checksum, in this order, and
//! ends the connection at the first that is wrong.
//!
//! This module reads and writes bytes in memory; sockets are others' business.

mod codec;
pub mod control;
pub mod data;
pub mod grant;
pub mod header;
mod refusal;

pub use codec::Malformed;
pub use refusal::{GrantField, Refusal};

pub(crate) use codec::{Reader, Wire, put_list, put_text};
pub use header::{FrameError, HEADER_BYTES, Header, Magic};

/// The version of the control protocol, and of the header's layout. It is raised when either changes.
pub const VERSION: u16 = 2;

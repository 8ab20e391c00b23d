//! QEMU's own control socket: one command at a time, each with a deadline.
//!
//! ```text
//!   greeting -> qmp_capabilities -> { command + id [+ a descriptor] -> return | error }*
//!                                        events in between go to a bounded queue
//! ```
//!
//! Written against the answers of QEMU 7.2 and newer; fields it does not know are skipped. One
//! client owns one socket: QEMU talks to one at a time. A fault worker must never wait for QMP:
//! `stop` waits for virtual CPUs, which wait for pages.

mod commands;
mod connection;
mod error;
mod message;

pub use commands::{AddedFd, MemoryBackend, RunState, Status, Version};
pub use connection::{DEFAULT_DEADLINE, EVENT_QUEUE, Event, Qmp};
pub use error::QmpError;

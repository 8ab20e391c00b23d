//! Where the guest's RAM is: the mapping inside QEMU, and the file behind it.
//!
//! ```text
//!   QMP: main memory's id, size, share, path      (if there is a QMP socket)
//!                      \
//!   /proc/PID/maps -> shared, writable, of a file -> choose one -> open its file
//! ```
//!
//! Only memory that QEMU shares with a file can be paged from outside: private memory is nobody
//! else's. Nothing is changed here, in QEMU or in the memory.

mod choose;
mod error;
mod find;
mod resident;

pub use choose::{Backend, MemoryChoice, choose, shared_mappings};
pub use error::FindMemoryError;
pub use find::{GuestMemory, find_memory, is_registered};
pub use resident::{ResidentError, resident_runs};

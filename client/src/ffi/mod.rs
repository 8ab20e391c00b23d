//! The C interface: `mycoram.h`. What it declares is made from this module by cbindgen.
//!
//! ```text
//!   C program -> functions.rs: arguments checked, panics caught
//!                  |   table.rs: which handles and mappings there are; a stale one is an error
//!                  |   last_error.rs: the sentence, per thread
//!                  v
//!                FarMemory, FarMap
//! ```
//!
//! Nothing here unwinds into C: a panic becomes `MYCORAM_STATUS_BUG`.

mod functions;
mod last_error;
mod table;

pub use functions::*;
pub use table::Handle;

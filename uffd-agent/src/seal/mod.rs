//! Sealing: pages leave this machine encrypted and authenticated, and nobody else has the key.
//!
//! ```text
//!   evictor, fault worker, orders              frames hold plain pages
//!        |  PageLane
//!   lane      WRITE: copied to a frame of its own, sealed there   READ: opened in place
//!        |  PageLane
//!   remote    memory nodes see sealed pages, of 4 KiB as before
//! ```
//!
//! * `key` reads the key file, and draws a key of its own for each region.
//! * `cipher` seals and opens one page: AES-256-GCM. Pure.
//! * `lane` stands between the workers and the remote region; they know nothing of it.
//! * `start` says which regions are sealed; `page_seal` is for whoever wants to know what it costs.
//! * Version and tag of each page's last sealing are kept in the state file, behind the page table (see
//!   `page_table::seals`), so that a successor opens what a killed agent has sealed.
//!
//! What it guards against, what it costs and what it does not hide: docs/sealing.md.

mod cipher;
mod key;
mod lane;
mod page_seal;
mod start;

pub(crate) use key::SealHeader;
pub use key::{KEY_FILE_BYTES, SealError, check_key_file};
pub use page_seal::PageSeal;
pub(crate) use start::{begin, go_on};

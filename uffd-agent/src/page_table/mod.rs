//! The page table: what is known of each page, in a file that outlives the agent.
//!
//! ```text
//!   word      one page's state in 64 bits: a plain value
//!   entries   some words a page, as atomics over mapped memory
//!   table     the word and the checksum of each page
//!   seals     version and tag of each page, where pages are sealed
//!   file      the state file: header slots, directory, entries; locked by the agent that serves
//! ```
//!
//! 16 bytes a page: the word and the checksum of what the memory node holds. Nothing else is kept for
//! each page, here or elsewhere in the agent, save what the victim policy remembers. A sealed region has 24
//! bytes a page more behind it: `seals`.

mod entries;
mod file;
mod seals;
mod table;
mod word;

pub use file::StateFileError;
pub(crate) use file::{Header, StateFile, process_started};
pub(crate) use seals::SealTable;
pub(crate) use table::PageTable;
pub use word::WordError;
pub(crate) use word::{PageState, Source, Word};

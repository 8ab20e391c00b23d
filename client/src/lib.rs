//! Far memory for programs: map memory that is larger than this machine's and use it as one's own.
//!
//! ```text
//!   FarMemory::open("myco://node:7700?local=128MiB")        mycoram_open
//!        |
//!        +-- map(bytes) -> FarMap: &[u8], &mut [u8]          mycoram_map -> void *
//!                            advise, flush, stats, unmap     mycoram_advise, _flush, _read_stats, _unmap
//! ```
//!
//! No LD_PRELOAD and no allocator in between: a mapping is pages of this process, filled by userfaultfd when
//! they are touched. The agent that does it runs on threads inside this process, or in the daemon.
//! Which of the two is the [`Config`]'s business; the mapping is the same.
//!
//! # What the library does to its process
//! - Its threads are named `myco-...` and have every signal blocked; a program's handlers never run on them.
//! - **mremap, munmap**: a mapping, or a part of it, may be moved (`MREMAP_MAYMOVE`) or unmapped: the pages go
//!   on where they are, and the C interface knows them by their new address. One that grows raises SIGBUS
//!   behind its old end.
//! - **fork**: the child has no mapping (an access is SIGSEGV) and may not call the library ([`Forked`]); the
//!   parent goes on unharmed. A child that execs is a new program.
//! - **direct IO** (`O_DIRECT`): reads into a mapping and writes from it work as into any memory: a page that is
//!   under direct IO is pinned, and stays until that is over. Where the mapping is a memfd ([`Memory::File`],
//!   a kernel before 6.8, the daemon), evicted pages are kept up to a second while a file is open for direct
//!   IO; a read that takes longer, into pages that leave meanwhile, would lose what it brings.
//! - **madvise(MADV_DONTNEED)** throws pages away, as it does for private memory ([`Memory::Private`]); a memfd's
//!   resident pages stay. **mprotect**: a part of private memory that is read-only stays resident.
//! - **exit**: nothing needs to be unmapped first. What is still mapped when the process ends, in whatever
//!   way, is given back by the memory nodes once their `--orphan-ttl` has passed.
//! - **dlopen, dlclose**: once loaded, the library stays until the process ends, because its threads run in it.
//! - At most [`MAX_MAPPINGS`] mappings at a time.

pub mod ffi;

mod advice;
mod backend;
mod config;
mod daemon;
mod error;
mod far;
mod fork;
mod in_process;
mod map;
mod notice;
mod pages;
mod signals;
mod stats;
mod status;

pub use advice::{Advice, UnknownAdvice};
pub use config::{
    Config, ConfigError, FileError, HostPort, HostPortError, MAX_NODES, MAX_WORKERS,
    MIN_LOCAL_BYTES, Memory, ParseError, ResolveError, Source, UriError,
};
pub use error::{
    AdviseError, FlushError, MAX_MAPPING_BYTES, MAX_MAPPINGS, MapError, OpenError, StatsError,
    UnmapError,
};
pub use far::FarMemory;
pub use fork::Forked;
pub use map::FarMap;
pub use stats::Stats;
pub use status::Status;

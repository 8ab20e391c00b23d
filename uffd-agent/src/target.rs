//! What an agent is given: a process, its mapping, and the descriptors that belong to both.
//!
//! The descriptors are plain data. Every one of them is also held open by the target process itself,
//! so that nothing is lost when the agent is killed: the target's threads wait at the userfaultfd,
//! evicted pages wait in the pipes, and a new agent fetches its own duplicates of all of them.

use std::os::fd::{OwnedFd, RawFd};

use mycoram_fabric::units::ByteCount;

use crate::kernel::ParkingRooms;

/// Pages that one parking pipe can hold: a pipe of 256 KiB, which an unprivileged user may have.
pub const SLOTS_PER_PIPE: u16 = 64;
/// Most parking pipes a region can use.
pub const MAX_PARKING_PIPES: usize = 64;

/// A pipe whose buffers hold references to pages that are on their way out.
#[derive(Debug)]
pub struct ParkingPipe {
    /// Where pages are taken out.
    pub read: OwnedFd,
    /// Where pages are put in.
    pub write: OwnedFd,
}

/// Why there is no parking pipe.
#[derive(Debug, thiserror::Error)]
pub enum ParkingPipeError {
    /// No pipe could be made.
    #[error("a parking pipe could not be made: raise the limit of open files (ulimit -n)")]
    Pipe(#[source] nix::Error),
    /// The pipe could not be made large enough.
    #[error(
        "a parking pipe cannot hold {SLOTS_PER_PIPE} pages: raise fs.pipe-max-size or fs.pipe-user-pages-soft"
    )]
    TooSmall(#[source] nix::Error),
}

impl ParkingPipe {
    /// Makes a pipe with room for [`SLOTS_PER_PIPE`] pages. For a target that is this very process;
    /// for another one the pipes must be made in, or passed to, that process.
    pub fn new() -> Result<Self, ParkingPipeError> {
        let (read, write) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)
                .map_err(ParkingPipeError::Pipe)?;
        let bytes = i32::from(SLOTS_PER_PIPE) * 4096;
        nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETPIPE_SZ(bytes))
            .map_err(ParkingPipeError::TooSmall)?;
        Ok(Self { read, write })
    }
}

/// The numbers that the same descriptors have in the target process, for a successor's `pidfd_getfd`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldDescriptors {
    /// The userfaultfd.
    pub uffd: RawFd,
    /// The file behind the mapping.
    pub memory: RawFd,
    /// Read and write end of each pipe, in the order of [`Target::pipes`].
    pub pipes: Vec<(RawFd, RawFd)>,
}

/// A process whose mapping becomes a region.
#[derive(Debug)]
pub struct Target {
    /// The process; may be this one.
    pub pid: i32,
    /// A pidfd of it: readable when it has gone.
    pub pidfd: OwnedFd,
    /// A userfaultfd made in the target, `O_NONBLOCK`, and nothing else done to it: the agent does the
    /// handshake (`UFFDIO_API`) and registers the mapping.
    pub uffd: OwnedFd,
    /// The file (memfd or tmpfs) that is mapped shared.
    pub memory: OwnedFd,
    /// Where in the file the region starts, bytes, whole pages.
    pub file_offset: u64,
    /// Where in the target's address space it starts, whole pages.
    pub base: u64,
    /// How long it is, whole pages.
    pub bytes: ByteCount,
    /// Where evicted pages wait. At least 2; 16 keep a scan going at full speed.
    pub pipes: Vec<ParkingPipe>,
    /// What the descriptors are called inside of the target.
    pub held: HeldDescriptors,
}

/// Private memory of this very process that becomes a region.
#[derive(Debug)]
pub struct PrivateTarget {
    /// A userfaultfd of this process, `O_NONBLOCK`, and nothing else done to it.
    pub uffd: OwnedFd,
    /// Where the memory starts, whole pages: one private anonymous mapping that was never touched, readable
    /// and writable, kept from children (`MADV_DONTFORK`) and without huge pages (`MADV_NOHUGEPAGE`): the agent allows them
    /// where it has a use for them.
    pub base: u64,
    /// How long it is, whole pages.
    pub bytes: ByteCount,
    /// Where evicted pages wait: at least 2 times [`SLOTS_PER_PIPE`] slots, 16 times keep a scan going.
    pub rooms: ParkingRooms,
}

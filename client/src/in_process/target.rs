//! What the engine is given to serve a mapping of its own process.

use std::os::fd::{AsFd, BorrowedFd};

use mycoram_agent::kernel::{PidFd, Userfault};
use mycoram_agent::{HeldDescriptors, ParkingPipe, Target};
use nix::errno::Errno;

use crate::error::MapError;
use crate::pages::{Pages, refused};

/// Parking pipes of a mapping: as many as keep a sequential scan going at full speed.
const PIPES: usize = 16;

/// A new userfaultfd and pipes for `pages`.
pub(super) fn of(pages: &Pages) -> Result<Target, MapError> {
    let userfault = Userfault::new_in_this_process().map_err(MapError::Userfault)?;
    let pid = std::process::id() as i32;
    let own = |fd: BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .map_err(|_| refused("dup")(Errno::last()))
    };
    Ok(Target {
        pid,
        pidfd: own(PidFd::open(pid).map_err(MapError::PidFd)?.as_fd())?,
        uffd: own(userfault.as_fd())?,
        memory: pages.file()?,
        file_offset: 0,
        base: pages.start().as_ptr() as u64,
        bytes: pages.bytes(),
        pipes: (0..PIPES)
            .map(|_| ParkingPipe::new())
            .collect::<Result<_, _>>()
            .map_err(MapError::Pipe)?,
        // Nobody can take over from a process that serves itself.
        held: HeldDescriptors::default(),
    })
}

//! What the engine is given to serve a mapping of its own process.

use std::os::fd::{AsFd, BorrowedFd};

use mycoram_agent::kernel::{ParkingRooms, PidFd, RoomsError, Userfault};
use mycoram_agent::{HeldDescriptors, ParkingPipe, PrivateTarget, SLOTS_PER_PIPE, Target};
use mycoram_fabric::units::PageCount;
use nix::errno::Errno;

use crate::error::MapError;
use crate::pages::{Pages, refused};

/// Places where evicted pages wait, of [`SLOTS_PER_PIPE`] pages each: as many as keep a sequential scan going
/// at full speed.
const PLACES: usize = 16;

/// Huge pages that can be on their way out at once.
const HALLS: u32 = 2;

/// Rooms for private memory, where the kernel can move pages.
pub(super) fn rooms() -> Result<Option<ParkingRooms>, MapError> {
    let slots = PageCount::new(PLACES as u32 * u32::from(SLOTS_PER_PIPE));
    match ParkingRooms::new(HALLS, slots) {
        Ok(rooms) => Ok(Some(rooms)),
        Err(RoomsError::Unsupported) => {
            tracing::info!("{}", mycoram_agent::kernel::Feature::Move.without_it());
            Ok(None)
        }
        Err(RoomsError::Userfault(error)) => Err(MapError::Userfault(error)),
        Err(error) => Err(MapError::Rooms(error)),
    }
}

fn own(fd: BorrowedFd<'_>) -> Result<std::os::fd::OwnedFd, MapError> {
    fd.try_clone_to_owned()
        .map_err(|_| refused("dup")(Errno::last()))
}

/// A new userfaultfd for private `pages`.
pub(super) fn private(pages: &Pages, rooms: ParkingRooms) -> Result<PrivateTarget, MapError> {
    let userfault = Userfault::new_in_this_process().map_err(MapError::Userfault)?;
    Ok(PrivateTarget {
        uffd: own(userfault.as_fd())?,
        base: pages.start().as_ptr() as u64,
        bytes: pages.bytes(),
        rooms,
    })
}

/// A new userfaultfd and pipes for `pages` of a memfd.
pub(super) fn of_file(pages: &Pages) -> Result<Target, MapError> {
    let userfault = Userfault::new_in_this_process().map_err(MapError::Userfault)?;
    let pid = std::process::id() as i32;
    Ok(Target {
        pid,
        pidfd: own(PidFd::open(pid).map_err(MapError::PidFd)?.as_fd())?,
        uffd: own(userfault.as_fd())?,
        memory: pages.file()?,
        file_offset: 0,
        base: pages.start().as_ptr() as u64,
        bytes: pages.bytes(),
        pipes: (0..PLACES)
            .map(|_| ParkingPipe::new())
            .collect::<Result<_, _>>()
            .map_err(MapError::Pipe)?,
        // Nobody can take over from a process that serves itself.
        held: HeldDescriptors::default(),
    })
}

//! The one place that speaks to the kernel about memory: userfaultfd, splice, tee, punch, pidfd, mlock.
//!
//! ```text
//!   probe          what this kernel can do: a plain value, that a test may take features from
//!   opening        the ways to a userfaultfd: system call, /dev/userfaultfd, a descriptor handed over
//!   userfault      register, copy, wake, poison on one address space
//!   events         faults and removals, read many at once into a fixed buffer
//!   memory_file    the file behind a region: punch, holes, resident bytes
//!   parking        a pipe that holds references to physical pages while they leave
//!   rooms          private memory into which a process's own pages are moved while they leave
//!   huge_pages     of this process: allowed, looked for
//!   sigbus         what stands in for poison on kernels before 6.6
//!   pidfd          processes: take a descriptor over, learn of their end
//!   lock           the agent's own memory: locked, without huge pages
//! ```
//!
//! Nothing here keeps policy or state of a region. Outside of this module nobody writes `UFFDIO_`.
//! The `userfaultfd` crate serves where it is right: registering, waking, reading events. What it
//! lacks (poison, the features of newer kernels, a handshake on a descriptor that was received) and
//! what it gets wrong (a refused copy may be reported as a huge partial one) is in `abi`.
//! Calls on the path of a fault (`copy`, `wake`, `read`, `park`, ...) allocate nothing.

mod abi;
mod call;
mod events;
mod huge_pages;
mod lock;
mod memory_file;
mod opening;
mod parking;
mod pidfd;
mod probe;
mod rooms;
mod sigbus;
mod target;
mod userfault;

pub use call::CallFailed;
pub use events::{EventReader, ReadEventsError, TargetEvent};
pub(crate) use huge_pages::{allow_huge_pages, is_one_huge_page, may_have_huge_pages, renew};
pub use lock::{MemoryLock, forbid_huge_pages, lock_process, shmem_huge_pages};
pub use memory_file::{Extents, MemoryFile, MemoryFileError, MemoryFileKind, ResidentExtent};
pub use opening::{OpenUserfaultError, UserfaultDevice};
pub use parking::{Park, ParkingError, ParkingPipe};
pub use pidfd::{PidFd, PidFdError};
pub use probe::{Feature, FeatureSet, KernelFeatures, KernelRelease, ProbeError, Way};
pub use rooms::{ParkingRooms, RoomsError};
pub use sigbus::{SigbusError, SigbusStandIn, Struck};
pub use target::{TargetAddr, TargetRange, TargetRangeError};
pub use userfault::{
    Filled, Gone, HandshakeError, Moved, Poisoned, ReceiveError, RegisterError, Userfault, Wake,
    Watch,
};

#[cfg(test)]
mod tests;

//! Taking hold of a running QEMU's memory: its faults, its file, and a few pipes that outlive us.
//!
//! ```text
//!   find memory -> registered by another? -> parking pipes -> QEMU is stopped for a moment:
//!      a socket in QEMU  <- /dev/userfaultfd and the pipes, handed over
//!      userfaultfd       <- by an ioctl on that device, which needs no privilege of QEMU's
//!                           (kernels before 6.1: by userfaultfd(2), which does)
//!      huge pages off for its RAM
//!   the userfaultfd is duplicated to us with pidfd_getfd  =>  Attached
//!
//!   later, another agent:  recorded numbers + pidfd_getfd  =>  Attached again, without ptrace
//! ```
//!
//! QEMU keeps both ends of everything. If the agent dies, its faults wait in the userfaultfd and the
//! pages that were on their way out lie in the pipes: whoever takes over finds all of it.
//!
//! This room makes and duplicates descriptors. The userfaultfd's handshake, its registration and
//! what is done with the faults are the agent's.

mod attached;
mod error;
mod hand_over;
mod make;
mod take_over;
mod userfaultfd;

pub use attached::{Attached, ParkingPipe, TargetDescriptors, TargetPipe};
pub use error::{AttachError, DeviceState, TakeOverError, UserfaultfdDenial};
pub(crate) use make::guest_memory;
pub use make::{AttachOptions, DEFAULT_PARKING_PIPES, attach};
pub use take_over::{TakeOver, take_over};

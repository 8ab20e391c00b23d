//! Running a VM on far memory: start a QEMU, or adopt one, and stay with it until it ends.
//!
//! ```text
//!   arguments: the user's + ours (memory backend, -S, a QMP socket)        pure
//!   spawn -> QMP answers -> attach -> the agent serves -> record -> cont
//!                                                                 |
//!                      signals -> QEMU    region's events -> notices    a failed region -> taken over, here
//!                                                                 v
//!   QEMU ends -> the region ends (remote memory is freed) -> record removed -> its exit code is ours
//! ```
//!
//! The terminal is QEMU's: stdin, stdout and stderr are inherited and it stays in our process group,
//! so job control and Ctrl-C work as they do without us. This room prints nothing; what is to be
//! told goes through [`Notice`].

mod adopt;
mod arguments;
mod error;
mod going_on;
mod remote;
mod run;
mod served;
mod signals;
mod spawn;
mod terminal;

pub use adopt::VmAttach;
pub use arguments::{ArgumentError, BACKEND_ID, Backing, QemuArguments, has_direct_io, merge};
pub use error::{RunError, SpawnError};
pub use run::VmRun;
pub use served::{Notice, Outcome, Ran};
pub use spawn::{SpawnedQemu, spawn};

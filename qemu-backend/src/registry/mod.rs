//! Which VMs run on this machine, and what somebody else needs to know about each.
//!
//! ```text
//!   /run/mycoram/vms/          (root; else $XDG_RUNTIME_DIR/mycoram/vms), mode 0700
//!     NAME.json                the record: QEMU, its agent, the numbers for a take-over
//!     NAME.qmp                 QEMU's private QMP socket, if we started it
//!     NAME.lock                locked by the process that serves the VM
//! ```
//!
//! The process that serves a VM owns its record and removes it when the VM ends. A record whose
//! QEMU is gone is stale and is removed by whoever meets it; one whose agent is gone but whose QEMU
//! waits is orphaned, and `vm attach` takes it over. Processes are named by pid and start time, so that
//! a pid that was given to another process is never mistaken.

mod directory;
mod error;
mod figures;
mod record;

pub use directory::{Claim, Listing, Registry};
pub use error::RegistryError;
pub use figures::{FIGURES_VERSION, VmFigures};
pub use record::{RECORD_VERSION, VmRecord, VmState};

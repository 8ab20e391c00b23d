//! Unmodified QEMU on far memory: start or adopt a QEMU and give its guest RAM to an agent.
//!
//! ```text
//!   process     what the kernel tells of another process; descriptors of it
//!   inject      a few system calls made by it, without its knowledge
//!   qmp         QEMU's control socket
//!   memory      where the guest's RAM is
//!   attach      all of the above: a userfaultfd of QEMU's, the RAM's file, parking pipes
//!   launch      a QEMU started or adopted, and accompanied until it ends
//!   registry    which VMs run here
//! ```
//!
//! The agent's house owns what happens with the faults; this one gets QEMU there and watches it.

pub mod attach;
pub mod inject;
pub mod launch;
pub mod memory;
pub mod process;
pub mod qmp;
pub mod registry;

#[cfg(test)]
mod test_support;

//! A few system calls, made by another process that does not know of it.
//!
//! A userfaultfd belongs to the address space it was made in, so a stock QEMU has to make its own.
//! This room stops its main thread (and no other), lets that thread make the calls, puts it back
//! exactly where it was, and lets it go.
//!
//! ```text
//!   SEIZE, INTERRUPT          one thread; the others run on
//!        |                    signals that arrive are passed on first, a group-stop is left a group-stop
//!   [stopped]
//!        |  write to the stack below the red zone:
//!        |     arguments | a signal frame that holds the thread's whole state
//!        |  registers: ip = `syscall; ret` in the target's own text, sp = that frame
//!        v
//!   syscall -> entry stop -> exit stop -> result      (again for each further call)
//!        |
//!   INTERRUPT, restore mask and registers, DETACH     the kernel restarts the interrupted call itself
//! ```
//!
//! Why a signal frame: if we are killed in the middle, the kernel detaches and the thread runs on
//! from where we put it: it finishes the call, `ret`urns into the C library's own signal restorer,
//! and `rt_sigreturn` puts it back to where it was. It never notices. For the same reason the
//! thread is not single-stepped: a trap flag that outlives its tracer kills the target.
//! PTRACE_O_EXITKILL is not set, on purpose.
//!
//! Ptrace belongs to a thread, so each injection has a thread of its own; the caller waits for it
//! with a deadline. What is injected, and why, is not known here: see [`crate::attach`].

mod denied;
mod error;
mod text;
mod tracee;
mod tracer;

#[cfg(target_arch = "aarch64")]
#[path = "aarch64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod arch;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[path = "unsupported.rs"]
mod arch;

#[cfg(test)]
mod tests;

pub use denied::{DenialReason, PtraceDenial};
pub use error::InjectError;
pub use tracee::{SCRATCH_BYTES, Stopped};
pub use tracer::{DEFAULT_DEADLINE, Injected, while_stopped};

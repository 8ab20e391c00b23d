//! The one place that knows which crate binds libibverbs and librdmacm, and where the two differ.
//!
//! `rdma-mummy-sys` (feature `verbs`) loads the libraries when the process starts and answers
//! `EOPNOTSUPP` where they are missing; `rdma-sys` (feature `rdma-sys`) is linked to them. Nothing but
//! the calls comes from here: who owns what stands in the modules beside this one.

#[cfg(all(feature = "verbs", feature = "rdma-sys"))]
compile_error!(
    "the features `verbs` and `rdma-sys` bind the same libraries: choose one (--no-default-features --features rdma-sys)"
);

#[cfg(feature = "verbs")]
pub(super) use rdma_mummy_sys::*;
#[cfg(all(feature = "rdma-sys", not(feature = "verbs")))]
pub(super) use rdma_sys::*;

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// `struct ibv_async_event` with its type as a number: the bindings make a Rust enum of it, and a
/// library newer than the bindings may put a value there that the enum does not have.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub(super) struct RawAsyncEvent {
    /// A union: a pointer to the queue pair or completion queue, or an `int`, the number of the port.
    pub(super) element: [u8; 8],
    /// One of `IBV_EVENT_*`.
    pub(super) event_type: u32,
    padding: u32,
}

impl RawAsyncEvent {
    /// The union as the address of an object.
    pub(super) fn pointer(&self) -> usize {
        usize::from_ne_bytes(self.element)
    }

    /// The union as the number of a port.
    pub(super) fn port(&self) -> i32 {
        let [a, b, c, d, ..] = self.element;
        i32::from_ne_bytes([a, b, c, d])
    }
}

const _: () = assert!(size_of::<RawAsyncEvent>() == size_of::<ibv_async_event>());
const _: () = assert!(align_of::<RawAsyncEvent>() == align_of::<ibv_async_event>());

/// Fills `attributes` for port `port` of `context`; 0 or an errno.
///
/// # Safety
/// `context` is an open device.
pub(super) unsafe fn query_port(
    context: *mut ibv_context,
    port: u8,
    attributes: &mut ibv_port_attr,
) -> i32 {
    #[cfg(feature = "verbs")]
    // SAFETY: the caller's promise about `context`; `attributes` is a valid place to write to.
    let result = unsafe { ibv_query_port(context, port, attributes) };
    #[cfg(all(feature = "rdma-sys", not(feature = "verbs")))]
    // SAFETY: as above.
    let result = unsafe { ___ibv_query_port(context, port, attributes) };
    result
}

/// For calls that return a pointer and set errno.
pub(super) fn non_null<T>(pointer: *mut T) -> io::Result<std::ptr::NonNull<T>> {
    std::ptr::NonNull::new(pointer).ok_or_else(io::Error::last_os_error)
}

/// For `ibv_` calls that return 0 or an errno.
pub(super) fn zero_or_errno(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        errno if errno > 0 => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// For `rdma_` calls that return 0, or -1 and set errno.
pub(super) fn zero_or_last(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes reads of a descriptor that a library opened return at once.
///
/// # Safety
/// `fd` is open.
pub(super) unsafe fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: the caller's promise.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

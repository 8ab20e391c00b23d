//! The functions of `mycoram.h`. Their comments become the header's.

use std::ffi::{CStr, c_char, c_int, c_void};

use mycoram_fabric::units::PAGE_BYTES;

use super::last_error::{self, Failure, guarded};
use super::table::{self, Handle, MAX_HANDLES};
use crate::advice::Advice;
use crate::far::FarMemory;
use crate::fork;
use crate::stats::Stats;
use crate::status::Status;

/// Version of this interface. A program made for one number runs with every library that gives the same.
pub const ABI_VERSION: u32 = 1;

fn owner() -> Result<(), Failure> {
    fork::check().map_err(|error| Failure::from_error(Status::Forked, &error))
}

fn null(what: &str) -> Failure {
    Failure::new(Status::InvalidArgument, &format!("{what} is NULL"))
}

fn find(addr: *const c_void) -> Result<(std::sync::Arc<table::Entry>, usize), Failure> {
    owner()?;
    if addr.is_null() {
        return Err(null("the address"));
    }
    table::find_map(addr).ok_or_else(not_mapped)
}

fn not_mapped() -> Failure {
    Failure::new(
        Status::NotMapped,
        "the address is not in a mapping that mycoram_map made and that is still mapped",
    )
}

fn status(outcome: Result<(), Status>) -> Status {
    match outcome {
        Ok(()) => Status::Ok,
        Err(status) => status,
    }
}

/// The version of the interface that the loaded library has. Compare with MYCORAM_ABI_VERSION.
/// Cannot fail.
#[unsafe(no_mangle)]
pub extern "C" fn mycoram_abi_version() -> u32 {
    ABI_VERSION
}

/// The library's own version, such as "0.1.0". Never NULL; valid for ever. Cannot fail.
#[unsafe(no_mangle)]
pub extern "C" fn mycoram_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Opens far memory. `place` is a URI
/// (`myco://HOST:PORT[,HOST:PORT...]?local=128MiB[&transport=tcp|verbs][&extent=16MiB][&workers=N][&seal_key=FILE][&metrics=IP:PORT]` or
/// `myco+agent:///run/mycoram-agent.sock?local=128MiB`) or the path of a configuration file.
/// Asks every memory node, or the daemon, whether it is there: may block for a few seconds.
///
/// Returns a handle for mycoram_map and mycoram_close, or NULL: INVALID_ARGUMENT (NULL, not UTF-8),
/// CONFIG, UNREACHABLE, REFUSED, LIMIT (1024 handles), FORKED, SYSTEM.
///
/// # Safety
/// `place` is NULL or a terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mycoram_open(place: *const c_char) -> *mut Handle {
    guarded(|| {
        owner()?;
        if place.is_null() {
            return Err(null("the place to open"));
        }
        // SAFETY: not NULL, and the caller promises that it is a terminated string.
        let place = unsafe { CStr::from_ptr(place) }.to_str().map_err(|_| {
            Failure::new(
                Status::InvalidArgument,
                "the place to open is not UTF-8 text",
            )
        })?;
        let far =
            FarMemory::open(place).map_err(|error| Failure::from_error(error.status(), &error))?;
        table::insert(far).ok_or_else(|| {
            Failure::new(
                Status::Limit,
                &format!("this process has {MAX_HANDLES} handles open already: close one first"),
            )
        })
    })
    .unwrap_or(std::ptr::null_mut())
}

/// Closes a handle. Mappings made with it stay until mycoram_unmap, as a file's do.
///
/// OK, INVALID_ARGUMENT (NULL), INVALID_HANDLE (closed before, or never one), FORKED.
#[unsafe(no_mangle)]
pub extern "C" fn mycoram_close(handle: *mut Handle) -> Status {
    status(guarded(|| {
        owner()?;
        if handle.is_null() {
            return Err(null("the handle"));
        }
        table::remove(handle).map(drop).ok_or_else(invalid_handle)
    }))
}

fn invalid_handle() -> Failure {
    Failure::new(
        Status::InvalidHandle,
        "this is not an open handle: it was closed, or mycoram_open never gave it",
    )
}

/// Maps `bytes` bytes of far memory, rounded up to whole pages of 4096, all zero. Memory nodes set the
/// room aside at once; local memory is taken as pages are touched, up to the handle's budget for
/// each mapping. Any thread may use the memory, and so may system calls.
///
/// A page that no memory node has any more raises SIGBUS where it is touched (EFAULT from a system call).
/// After fork the child does not have the mapping. mremap may move it as a whole.
///
/// Returns its address, a multiple of 4096, or NULL: INVALID_ARGUMENT (0 bytes, NULL, more than 16 TiB),
/// INVALID_HANDLE, NO_SPACE, UNREACHABLE, PERMISSION (userfaultfd; the sentence says what to change),
/// LIMIT (16 mappings), REFUSED, FORKED, SYSTEM.
#[unsafe(no_mangle)]
pub extern "C" fn mycoram_map(handle: *mut Handle, bytes: usize) -> *mut c_void {
    guarded(|| {
        owner()?;
        if handle.is_null() {
            return Err(null("the handle"));
        }
        let far = table::get(handle).ok_or_else(invalid_handle)?;
        let map = far
            .map(bytes)
            .map_err(|error| Failure::from_error(error.status(), &error))?;
        Ok(table::insert_map(map))
    })
    .unwrap_or(std::ptr::null_mut())
}

/// Unmaps a whole mapping and gives its remote memory back. `addr` is its start and `bytes` its size, as
/// given to mycoram_map (or rounded up to whole pages). Waits for other calls on it to end.
///
/// OK, INVALID_ARGUMENT (NULL, not the whole mapping: nothing is unmapped), NOT_MAPPED, FORKED. With SYSTEM
/// it is unmapped, and something of it could not be given back.
#[unsafe(no_mangle)]
pub extern "C" fn mycoram_unmap(addr: *mut c_void, bytes: usize) -> Status {
    status(guarded(|| {
        let (entry, offset) = find(addr)?;
        let size = entry.read().as_ref().map(|map| map.size());
        if offset != 0 || bytes.checked_next_multiple_of(PAGE_BYTES) != size {
            return Err(Failure::new(
                Status::InvalidArgument,
                "a mapping is unmapped as a whole: give its start and its size",
            ));
        }
        let map = table::remove_map(&entry)
            .then(|| entry.take())
            .flatten()
            .ok_or_else(not_mapped)?;
        map.unmap()
            .map_err(|error| Failure::from_error(error.status(), &error))
    }))
}

/// Says how `bytes` bytes at `addr` are going to be used; `advice` is one of mycoram_advice. Never
/// changes what the memory holds. WILL_NEED takes every page that the range touches, as far as the free part
/// of the budget goes; DONT_NEED those that lie wholly inside; NORMAL, SEQUENTIAL and RANDOM take the whole mapping.
///
/// OK, INVALID_ARGUMENT (NULL, no such advice, range past the mapping's end), NOT_MAPPED, LOST, FORKED,
/// SYSTEM.
#[unsafe(no_mangle)]
pub extern "C" fn mycoram_advise(addr: *mut c_void, bytes: usize, advice: c_int) -> Status {
    status(guarded(|| {
        let (entry, offset) = find(addr)?;
        let advice = Advice::try_from(advice)
            .map_err(|error| Failure::from_error(Status::InvalidArgument, &error))?;
        let map = entry.read();
        let map = map.as_ref().ok_or_else(not_mapped)?;
        let end = offset.saturating_add(bytes);
        map.advise(offset..end, advice)
            .map_err(|error| Failure::from_error(error.status(), &error))
    }))
}

/// Waits until all that was written to the mapping at `addr` before the call has a copy on its memory
/// node. What other threads write meanwhile may or may not be in it.
///
/// OK, INVALID_ARGUMENT (NULL), NOT_MAPPED, LOST (a memory node is gone), FORKED, SYSTEM.
#[unsafe(no_mangle)]
pub extern "C" fn mycoram_flush(addr: *mut c_void) -> Status {
    status(guarded(|| {
        let (entry, _) = find(addr)?;
        let map = entry.read();
        let map = map.as_ref().ok_or_else(not_mapped)?;
        map.flush()
            .map_err(|error| Failure::from_error(error.status(), &error))
    }))
}

/// Writes figures of the mapping at `addr` to `stats`. `stats_bytes` is sizeof(mycoram_stats) as the program
/// knows it: a library that knows more figures writes only these, one that knows fewer writes 0 for the rest.
///
/// OK, INVALID_ARGUMENT (NULL), NOT_MAPPED, FORKED, SYSTEM.
///
/// # Safety
/// `stats` is NULL or points to `stats_bytes` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mycoram_read_stats(
    addr: *const c_void,
    stats: *mut Stats,
    stats_bytes: usize,
) -> Status {
    status(guarded(|| {
        if stats.is_null() {
            return Err(null("the place for the figures"));
        }
        let (entry, _) = find(addr)?;
        let map = entry.read();
        let map = map.as_ref().ok_or_else(not_mapped)?;
        let figures = map
            .stats()
            .map_err(|error| Failure::from_error(error.status(), &error))?;
        let known = stats_bytes.min(size_of::<Stats>());
        // SAFETY: the caller promises `stats_bytes` writable bytes; `figures` has at least `known`, and is
        // a local that cannot overlap them.
        unsafe {
            std::ptr::write_bytes(stats.cast::<u8>(), 0, stats_bytes);
            std::ptr::copy_nonoverlapping((&raw const figures).cast::<u8>(), stats.cast(), known);
        }
        Ok(())
    }))
}

/// Why the calling thread's last call of this library failed, in one English sentence without a line
/// break; empty if it did not fail. Never NULL. Valid until the thread's next call. Cannot fail.
#[unsafe(no_mangle)]
pub extern "C" fn mycoram_last_error() -> *const c_char {
    last_error::sentence()
}

/// The status of the calling thread's last call of this library, for those that return a pointer.
/// Cannot fail.
#[unsafe(no_mangle)]
pub extern "C" fn mycoram_last_status() -> Status {
    last_error::status()
}

//! A completion queue, the channel that wakes its owner, and what a device's status codes mean.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::device::Device;
use super::ffi;
use crate::transport::ErrorKind;

/// One entry, as it is read from the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// What the work request was given as its name.
    pub(super) sequence: u64,
    /// What became of it.
    pub(super) result: Result<(), ErrorKind>,
}

/// Most entries that are fetched at a time.
pub(super) const BATCH: usize = 32;

struct Channel(NonNull<ffi::ibv_comp_channel>);

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once, after the queue that reports to it (field order).
        unsafe { ffi::ibv_destroy_comp_channel(self.0.as_ptr()) };
    }
}

/// The queue itself, destroyed when dropped.
struct RawQueue(NonNull<ffi::ibv_cq>);

impl Drop for RawQueue {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once; queue pairs on it held an `Arc`; its events are
        // acknowledged as they are read.
        unsafe { ffi::ibv_destroy_cq(self.0.as_ptr()) };
    }
}

pub(super) struct CompletionQueue {
    // Dropped in this order.
    queue: RawQueue,
    channel: Channel,
    _device: Arc<Device>,
}

// SAFETY: libibverbs allows every call on a completion queue from every thread.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// A queue of at least `entries` entries.
    pub(super) fn new(device: Arc<Device>, entries: u32) -> io::Result<Arc<Self>> {
        // SAFETY: the device is open.
        let channel = ffi::non_null(unsafe { ffi::ibv_create_comp_channel(device.context()) })?;
        let channel = Channel(channel);
        // SAFETY: the channel's descriptor is open.
        unsafe { ffi::set_nonblocking(channel.0.as_ref().fd)? };
        let entries = i32::try_from(entries).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: device and channel are alive, and outlive the queue.
        let queue = ffi::non_null(unsafe {
            ffi::ibv_create_cq(
                device.context(),
                entries,
                std::ptr::null_mut(),
                channel.0.as_ptr(),
                0,
            )
        })?;
        Ok(Arc::new(Self {
            queue: RawQueue(queue),
            channel,
            _device: device,
        }))
    }

    pub(super) fn as_ptr(&self) -> *mut ffi::ibv_cq {
        self.queue.0.as_ptr()
    }

    /// Asks for an event on [`AsFd`] with the next entry.
    pub(super) fn request_event(&self) -> io::Result<()> {
        // SAFETY: the queue is alive.
        ffi::zero_or_errno(unsafe { ffi::ibv_req_notify_cq(self.as_ptr(), 0) })
    }

    /// Takes one event off the channel; false when there is none.
    pub(super) fn take_event(&self) -> bool {
        let mut queue = std::ptr::null_mut();
        let mut context = std::ptr::null_mut();
        // SAFETY: the channel is alive; both are valid places to write to.
        let result =
            unsafe { ffi::ibv_get_cq_event(self.channel.0.as_ptr(), &mut queue, &mut context) };
        if result != 0 {
            return false;
        }
        // SAFETY: the channel serves this queue only; one event was read and is acknowledged.
        unsafe { ffi::ibv_ack_cq_events(self.as_ptr(), 1) };
        true
    }

    /// Reads up to [`BATCH`] entries; how many. No system call on devices that can do without.
    pub(super) fn poll(&self, into: &mut EntryBatch) -> usize {
        into.next = 0;
        into.count = 0;
        // SAFETY: the queue is alive; the buffer has room for `BATCH` entries.
        let count = unsafe { ffi::ibv_poll_cq(self.as_ptr(), BATCH as i32, into.raw.as_mut_ptr()) };
        into.count = usize::try_from(count).unwrap_or(0).min(BATCH);
        into.count
    }
}

impl AsFd for CompletionQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(self.channel.0.as_ref().fd) }
    }
}

/// Entries that were read and not yet handed on. Reused, so that polling allocates nothing.
pub(super) struct EntryBatch {
    raw: Box<[ffi::ibv_wc; BATCH]>,
    count: usize,
    next: usize,
}

impl EntryBatch {
    pub(super) fn new() -> Self {
        Self {
            // SAFETY: plain integers: zero is a value of each.
            raw: Box::new(unsafe { std::mem::zeroed() }),
            count: 0,
            next: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.next >= self.count
    }

    pub(super) fn take(&mut self) -> Option<Entry> {
        if self.is_empty() {
            return None;
        }
        let raw = &self.raw[self.next];
        self.next += 1;
        Some(Entry {
            sequence: raw.wr_id,
            result: meaning(raw.status),
        })
    }
}

/// What a status code says about the request. An unknown one counts as a failure of the device.
fn meaning(status: ffi::ibv_wc_status::Type) -> Result<(), ErrorKind> {
    use ffi::ibv_wc_status as code;
    Err(match status {
        code::IBV_WC_SUCCESS => return Ok(()),
        code::IBV_WC_LOC_LEN_ERR | code::IBV_WC_LOC_PROT_ERR | code::IBV_WC_LOC_ACCESS_ERR => {
            ErrorKind::LocalProtection
        }
        // Some devices say "invalid request" where others say "access": a length that reaches outside.
        code::IBV_WC_REM_ACCESS_ERR | code::IBV_WC_REM_INV_REQ_ERR => ErrorKind::RemoteAccess,
        code::IBV_WC_REM_OP_ERR | code::IBV_WC_REM_ABORT_ERR => ErrorKind::RemoteOperation,
        code::IBV_WC_RETRY_EXC_ERR
        | code::IBV_WC_RNR_RETRY_EXC_ERR
        | code::IBV_WC_RESP_TIMEOUT_ERR => ErrorKind::PeerUnreachable,
        code::IBV_WC_WR_FLUSH_ERR => ErrorKind::Flushed,
        code::IBV_WC_BAD_RESP_ERR => ErrorKind::Protocol,
        _ => ErrorKind::LocalDevice,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_nobody_knows_is_a_failed_device() {
        assert_eq!(meaning(4711), Err(ErrorKind::LocalDevice));
        assert_eq!(meaning(ffi::ibv_wc_status::IBV_WC_SUCCESS), Ok(()));
    }
}

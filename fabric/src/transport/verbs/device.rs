//! An open RDMA device: its name, its limits, its asynchronous events.
//!
//! One context a process and device; everything made on it holds an `Arc` of it. Events are read by
//! whoever runs the event thread (`watch` on the compute side, `server` on the memory node).

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use super::ffi;

/// Name of a device as the kernel has it (`rxe0`, `mlx5_0`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceName(Box<str>);

impl DeviceName {
    /// # Safety
    /// `device` belongs to a device list that has not been freed, or to an open context.
    pub(super) unsafe fn of(device: *mut ffi::ibv_device) -> Self {
        // SAFETY: the caller's promise; the library returns a string that lives as long as the device.
        let name = unsafe { CStr::from_ptr(ffi::ibv_get_device_name(device)) };
        Self(name.to_string_lossy().into())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The list that the library hands out, freed when dropped.
struct DeviceList {
    start: NonNull<*mut ffi::ibv_device>,
    count: usize,
}

impl DeviceList {
    fn get() -> io::Result<Self> {
        let mut count = 0;
        // SAFETY: `count` is a valid place to write to.
        let start = ffi::non_null(unsafe { ffi::ibv_get_device_list(&mut count) })?;
        Ok(Self {
            start,
            count: usize::try_from(count).unwrap_or(0),
        })
    }

    fn devices(&self) -> &[*mut ffi::ibv_device] {
        // SAFETY: the library's list has `count` entries and lives until `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: `start` came from ibv_get_device_list and is freed once.
        unsafe { ffi::ibv_free_device_list(self.start.as_ptr()) };
    }
}

/// How many RDMA devices there are. A kernel without RDMA counts as none.
pub(super) fn count() -> usize {
    DeviceList::get().map_or(0, |list| list.count)
}

/// What a device can do, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceLimits {
    /// READs and atomics that a queue pair may have in flight as requester.
    pub(super) initiator_depth: u8,
    /// READs and atomics that a queue pair serves at a time as responder.
    pub(super) responder_resources: u8,
    /// Work requests that a send queue may hold.
    pub(super) queue_depth: u32,
    /// Entries that a completion queue may hold.
    pub(super) completions: u32,
    /// Whether COMPARE_SWAP and FETCH_ADD are there at all.
    pub(super) atomics: bool,
}

/// An open device.
pub(super) struct Device {
    context: NonNull<ffi::ibv_context>,
    name: DeviceName,
    limits: DeviceLimits,
}

// SAFETY: libibverbs allows every call on a context from every thread; the context is closed once,
// when the last owner is gone.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// Opens the device of that name; its event descriptor does not block.
    pub(super) fn open(name: &DeviceName) -> io::Result<Arc<Self>> {
        let list = DeviceList::get()?;
        let device = list
            .devices()
            .iter()
            .copied()
            // SAFETY: `list` is alive.
            .find(|&device| unsafe { DeviceName::of(device) } == *name)
            .ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: `device` is of the living list.
        let context = ffi::non_null(unsafe { ffi::ibv_open_device(device) })?;
        // From here on `opened` closes the context whatever happens.
        let mut opened = Self {
            context,
            name: name.clone(),
            limits: DeviceLimits {
                initiator_depth: 0,
                responder_resources: 0,
                queue_depth: 0,
                completions: 0,
                atomics: false,
            },
        };
        opened.limits = opened.query_limits()?;
        // SAFETY: the context is open, and so is its event descriptor.
        unsafe { ffi::set_nonblocking(context.as_ref().async_fd)? };
        Ok(Arc::new(opened))
    }

    fn query_limits(&self) -> io::Result<DeviceLimits> {
        // SAFETY: plain integers: zero is a value of each.
        let mut attributes: ffi::ibv_device_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open; `attributes` is a valid place to write to.
        ffi::zero_or_errno(unsafe { ffi::ibv_query_device(self.context(), &mut attributes) })?;
        let positive = |value: i32| u32::try_from(value).unwrap_or(0);
        let byte = |value: i32| u8::try_from(value.clamp(0, 255)).unwrap_or(0);
        Ok(DeviceLimits {
            initiator_depth: byte(attributes.max_qp_init_rd_atom),
            responder_resources: byte(attributes.max_qp_rd_atom),
            queue_depth: positive(attributes.max_qp_wr),
            completions: positive(attributes.max_cqe),
            atomics: attributes.atomic_cap != ffi::ibv_atomic_cap::IBV_ATOMIC_NONE,
        })
    }

    pub(super) fn context(&self) -> *mut ffi::ibv_context {
        self.context.as_ptr()
    }

    pub(super) fn name(&self) -> &DeviceName {
        &self.name
    }

    pub(super) fn limits(&self) -> DeviceLimits {
        self.limits
    }

    /// Readable when [`Self::next_event`] has something.
    pub(super) fn events_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the context, which `self` keeps open.
        unsafe { BorrowedFd::borrow_raw(self.context.as_ref().async_fd) }
    }

    /// The next asynchronous event, or `None` when there is none now.
    pub(super) fn next_event(&self) -> Option<DeviceEvent> {
        let mut event = ffi::RawAsyncEvent::default();
        // SAFETY: same layout as ibv_async_event (asserted in `ffi`); the context is open.
        let result = unsafe { ffi::ibv_get_async_event(self.context(), (&raw mut event).cast()) };
        if result != 0 {
            return None;
        }
        let decoded = DeviceEvent::decode(&event);
        // SAFETY: an event is acknowledged once, as it was received. Queue pair pointers were read
        // before: a queue pair cannot be destroyed while an event about it is not acknowledged.
        unsafe { ffi::ibv_ack_async_event((&raw mut event).cast()) };
        Some(decoded)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; everything made on it held an `Arc` of `self`.
        unsafe { ffi::ibv_close_device(self.context.as_ptr()) };
    }
}

/// What a device says on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeviceEvent {
    /// A queue pair broke without a work request that could say so.
    QueuePairFailed {
        /// Its number.
        number: u32,
    },
    /// A port went down: nothing that is in flight through it will be answered.
    PortDown {
        /// Its number, from 1.
        port: u8,
    },
    /// The device is gone or beyond use, or a completion queue overran.
    DeviceFailed,
    /// Good news, or news about things that are not used here.
    Other,
}

impl DeviceEvent {
    fn decode(event: &ffi::RawAsyncEvent) -> Self {
        use ffi::ibv_event_type as kind;
        const fn number(kind: kind) -> u32 {
            kind as u32
        }
        const QP_FATAL: u32 = number(kind::IBV_EVENT_QP_FATAL);
        const QP_REQ_ERR: u32 = number(kind::IBV_EVENT_QP_REQ_ERR);
        const QP_ACCESS_ERR: u32 = number(kind::IBV_EVENT_QP_ACCESS_ERR);
        const PORT_ERR: u32 = number(kind::IBV_EVENT_PORT_ERR);
        const DEVICE_FATAL: u32 = number(kind::IBV_EVENT_DEVICE_FATAL);
        const CQ_ERR: u32 = number(kind::IBV_EVENT_CQ_ERR);
        match event.event_type {
            QP_FATAL | QP_REQ_ERR | QP_ACCESS_ERR => {
                let pair = event.pointer() as *const ffi::ibv_qp;
                Self::QueuePairFailed {
                    // SAFETY: for these types the element is a queue pair, and it lives at least
                    // until the event is acknowledged, which is after this.
                    number: unsafe { (*pair).qp_num },
                }
            }
            PORT_ERR => Self::PortDown {
                port: u8::try_from(event.port()).unwrap_or(u8::MAX),
            },
            DEVICE_FATAL | CQ_ERR => Self::DeviceFailed,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DeviceEvent, ffi};

    #[test]
    fn an_event_of_a_newer_library_is_other_news() {
        let mut event = ffi::RawAsyncEvent::default();
        event.event_type = 4711;
        assert_eq!(DeviceEvent::decode(&event), DeviceEvent::Other);
        event.event_type = ffi::ibv_event_type::IBV_EVENT_PORT_ERR as u32;
        event.element[..4].copy_from_slice(&2_i32.to_ne_bytes());
        assert_eq!(
            DeviceEvent::decode(&event),
            DeviceEvent::PortDown { port: 2 }
        );
    }
}

//! rdma_cm: event channels, ids, and the events themselves. Thin; who waits for what stands elsewhere.
//!
//! Channels never block: whoever wants an event polls the descriptor up to a deadline of its own. An
//! event is copied and acknowledged at once, so that destroying an id never waits for anybody.
//! Queue pairs are not rdma_cm's here: it tells which attributes a transition needs ([`CmId::attributes`]),
//! among them the GID that belongs to the address that was bound or resolved, and we make the transition.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage};

use super::device::DeviceName;
use super::ffi;
use crate::transport::memory::poll_readable;

/// Most private data that an event is copied with; rdma_cm carries up to 56 bytes in a request and pads
/// a rejection to 148.
const PRIVATE_DATA_BYTES: usize = 64;

/// Where events arrive.
pub(super) struct EventChannel(NonNull<ffi::rdma_event_channel>);

// SAFETY: librdmacm allows every call on a channel from every thread; it is destroyed once.
unsafe impl Send for EventChannel {}
// SAFETY: as above.
unsafe impl Sync for EventChannel {}

impl EventChannel {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        // SAFETY: no arguments.
        let channel = ffi::non_null(unsafe { ffi::rdma_create_event_channel() })?;
        let channel = Self(channel);
        // SAFETY: the channel's descriptor is open.
        unsafe { ffi::set_nonblocking(channel.0.as_ref().fd)? };
        Ok(Arc::new(channel))
    }

    /// The next event, acknowledged already; `None` when there is none now.
    pub(super) fn next(&self) -> io::Result<Option<CmEvent>> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the channel is alive; `event` is a valid place to write to.
        match ffi::zero_or_last(unsafe { ffi::rdma_get_cm_event(self.0.as_ptr(), &mut event) }) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            Err(error) => return Err(error),
        }
        // SAFETY: the library returned an event, which lives until it is acknowledged below.
        let copied = unsafe { CmEvent::copy(&*event) };
        // SAFETY: received once, acknowledged once.
        unsafe { ffi::rdma_ack_cm_event(event) };
        Ok(Some(copied))
    }

    /// The next event, waited for until `deadline`; `TimedOut` then.
    pub(super) fn next_until(&self, deadline: Instant) -> io::Result<CmEvent> {
        loop {
            if let Some(event) = self.next()? {
                return Ok(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // Rounded up: a wait of no milliseconds would spin.
            poll_readable(self.as_fd(), left.max(Duration::from_millis(1)));
        }
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(self.0.as_ref().fd) }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once; ids on it held an `Arc` of `self`.
        unsafe { ffi::rdma_destroy_event_channel(self.0.as_ptr()) };
    }
}

/// What rdma_cm reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CmEventKind {
    AddressResolved,
    RouteResolved,
    ConnectRequest,
    ConnectResponse,
    Established,
    Rejected,
    Disconnected,
    /// The device is gone: everything on it must be let go of.
    DeviceRemoval,
    /// The connection's address has moved to another device.
    AddressChange,
    /// Address, route or connection could not be had; `status` says why.
    Failed,
    /// Means nothing here (multicast, the end of a time-wait), or newer than this code.
    Other,
}

impl From<ffi::rdma_cm_event_type::Type> for CmEventKind {
    fn from(raw: ffi::rdma_cm_event_type::Type) -> Self {
        use ffi::rdma_cm_event_type as kind;
        match raw {
            kind::RDMA_CM_EVENT_ADDR_RESOLVED => Self::AddressResolved,
            kind::RDMA_CM_EVENT_ROUTE_RESOLVED => Self::RouteResolved,
            kind::RDMA_CM_EVENT_CONNECT_REQUEST => Self::ConnectRequest,
            kind::RDMA_CM_EVENT_CONNECT_RESPONSE => Self::ConnectResponse,
            kind::RDMA_CM_EVENT_ESTABLISHED => Self::Established,
            kind::RDMA_CM_EVENT_REJECTED => Self::Rejected,
            kind::RDMA_CM_EVENT_DISCONNECTED => Self::Disconnected,
            kind::RDMA_CM_EVENT_DEVICE_REMOVAL => Self::DeviceRemoval,
            kind::RDMA_CM_EVENT_ADDR_CHANGE => Self::AddressChange,
            kind::RDMA_CM_EVENT_ADDR_ERROR
            | kind::RDMA_CM_EVENT_ROUTE_ERROR
            | kind::RDMA_CM_EVENT_CONNECT_ERROR
            | kind::RDMA_CM_EVENT_UNREACHABLE => Self::Failed,
            _ => Self::Other,
        }
    }
}

/// A copy of one event.
#[derive(Clone, Copy)]
pub(super) struct CmEvent {
    pub(super) kind: CmEventKind,
    /// 0, a negative errno, or for a rejection the reason's number in the CM protocol.
    pub(super) status: i32,
    /// What [`CmId::set_key`] put on the id that this is about.
    pub(super) key: u64,
    /// READs and atomics that this side may have in flight.
    pub(super) initiator_depth: u8,
    /// READs and atomics that the other side wants to have in flight.
    pub(super) responder_resources: u8,
    /// For a connect request: the id that is new with it, to be taken over by [`CmId::adopt`].
    id: *mut ffi::rdma_cm_id,
    private_data: [u8; PRIVATE_DATA_BYTES],
    private_data_len: usize,
}

impl CmEvent {
    /// # Safety
    /// `event` came from the library and is not acknowledged yet.
    unsafe fn copy(event: &ffi::rdma_cm_event) -> Self {
        let kind = CmEventKind::from(event.event);
        let mut copied = Self {
            kind,
            status: event.status,
            // SAFETY: an id lives at least until its events are acknowledged.
            key: unsafe { (*event.id).context as u64 },
            initiator_depth: 0,
            responder_resources: 0,
            id: event.id,
            private_data: [0; PRIVATE_DATA_BYTES],
            private_data_len: 0,
        };
        if matches!(
            kind,
            CmEventKind::ConnectRequest
                | CmEventKind::ConnectResponse
                | CmEventKind::Established
                | CmEventKind::Rejected
        ) {
            // SAFETY: all ids here are of the connected kind, and for these types of event the
            // library fills the union's `conn`.
            let conn = unsafe { &event.param.conn };
            copied.initiator_depth = conn.initiator_depth;
            copied.responder_resources = conn.responder_resources;
            if !conn.private_data.is_null() {
                let len = usize::from(conn.private_data_len).min(PRIVATE_DATA_BYTES);
                // SAFETY: the library says that so many bytes are there.
                let bytes = unsafe { std::slice::from_raw_parts(conn.private_data.cast(), len) };
                copied.private_data[..len].copy_from_slice(bytes);
                copied.private_data_len = len;
            }
        }
        copied
    }

    pub(super) fn private_data(&self) -> &[u8] {
        &self.private_data[..self.private_data_len]
    }

    /// `status` as an error.
    pub(super) fn error(&self) -> io::Error {
        match self.status {
            status if status < 0 => io::Error::from_raw_os_error(-status),
            _ => io::ErrorKind::ConnectionAborted.into(),
        }
    }
}

/// What both ends of a connection agree on.
pub(super) struct ConnectionParameters<'a> {
    pub(super) queue_pair: u32,
    pub(super) initiator_depth: u8,
    pub(super) responder_resources: u8,
    pub(super) retries: u8,
    pub(super) rnr_retries: u8,
    pub(super) private_data: &'a [u8],
}

impl ConnectionParameters<'_> {
    fn raw(&self) -> ffi::rdma_conn_param {
        // SAFETY: integers and a pointer: zero is a value of each.
        let mut raw: ffi::rdma_conn_param = unsafe { std::mem::zeroed() };
        raw.private_data = self.private_data.as_ptr().cast();
        raw.private_data_len = u8::try_from(self.private_data.len()).unwrap_or(0);
        raw.initiator_depth = self.initiator_depth;
        raw.responder_resources = self.responder_resources;
        raw.retry_count = self.retries;
        raw.rnr_retry_count = self.rnr_retries;
        raw.qp_num = self.queue_pair;
        raw
    }
}

/// One end of a connection, or a listener.
pub(super) struct CmId {
    id: NonNull<ffi::rdma_cm_id>,
    channel: Arc<EventChannel>,
}

// SAFETY: librdmacm allows every call on an id from every thread; it is destroyed once.
unsafe impl Send for CmId {}
// SAFETY: as above.
unsafe impl Sync for CmId {}

impl CmId {
    pub(super) fn new(channel: &Arc<EventChannel>) -> io::Result<Self> {
        let mut id = std::ptr::null_mut();
        // SAFETY: the channel is alive; `id` is a valid place to write to.
        ffi::zero_or_last(unsafe {
            ffi::rdma_create_id(
                channel.0.as_ptr(),
                &mut id,
                std::ptr::null_mut(),
                ffi::rdma_port_space::RDMA_PS_TCP,
            )
        })?;
        Ok(Self {
            id: ffi::non_null(id)?,
            channel: Arc::clone(channel),
        })
    }

    /// Takes over the id that came with a connect request. Called once for each such event.
    pub(super) fn adopt(request: &CmEvent, channel: &Arc<EventChannel>) -> Option<Self> {
        if request.kind != CmEventKind::ConnectRequest {
            return None;
        }
        Some(Self {
            id: NonNull::new(request.id)?,
            channel: Arc::clone(channel),
        })
    }

    pub(super) fn channel(&self) -> &Arc<EventChannel> {
        &self.channel
    }

    /// Marks the id, so that its events can be told apart.
    pub(super) fn set_key(&self, key: u64) {
        // SAFETY: `context` is the owner's field; it is set before the id has events to be read.
        unsafe { (*self.id.as_ptr()).context = key as *mut _ };
    }

    /// The device that the bound or resolved address belongs to, and its port.
    pub(super) fn device(&self) -> Option<(DeviceName, u8)> {
        // SAFETY: the id is alive; its context is null or a device that librdmacm keeps open.
        unsafe {
            let id = self.id.as_ref();
            let context = id.verbs;
            (!context.is_null()).then(|| (DeviceName::of((*context).device), id.port_num))
        }
    }

    /// Whether the port that the address belongs to is up.
    pub(super) fn port_is_active(&self) -> bool {
        // SAFETY: plain integers: zero is a value of each.
        let mut port: ffi::ibv_port_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the id is alive.
        let (context, number) = unsafe { (self.id.as_ref().verbs, self.id.as_ref().port_num) };
        !context.is_null()
            // SAFETY: librdmacm keeps the device open.
            && unsafe { ffi::query_port(context, number, &mut port) } == 0
            && port.state == ffi::ibv_port_state::IBV_PORT_ACTIVE
    }

    pub(super) fn bind(&self, address: SocketAddr) -> io::Result<()> {
        let address = SockaddrStorage::from(address);
        // SAFETY: the library reads an address of the length that its family says.
        ffi::zero_or_last(unsafe {
            ffi::rdma_bind_addr(self.id.as_ptr(), address.as_ptr().cast_mut().cast())
        })
    }

    /// The address that it is bound to.
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        // SAFETY: the id is alive; the library keeps a whole sockaddr_storage there.
        let storage = unsafe {
            let address = &raw const (*self.id.as_ptr()).route.addr.src_addr_union;
            SockaddrStorage::from_raw(address.cast(), None)
        }?;
        match storage.family()? {
            AddressFamily::Inet => {
                let v4 = storage.as_sockaddr_in()?;
                Some(SocketAddr::new(IpAddr::V4(v4.ip()), v4.port()))
            }
            AddressFamily::Inet6 => {
                let v6 = storage.as_sockaddr_in6()?;
                Some(SocketAddr::new(IpAddr::V6(v6.ip()), v6.port()))
            }
            _ => None,
        }
    }

    /// Begins to find the device and the neighbour for `peer`.
    pub(super) fn resolve_address(&self, peer: SocketAddr, timeout: Duration) -> io::Result<()> {
        let peer = SockaddrStorage::from(peer);
        // SAFETY: as in `bind`; no source address: the routing table chooses.
        ffi::zero_or_last(unsafe {
            ffi::rdma_resolve_addr(
                self.id.as_ptr(),
                std::ptr::null_mut(),
                peer.as_ptr().cast_mut().cast(),
                milliseconds(timeout),
            )
        })
    }

    /// Begins to find the path to the resolved address.
    pub(super) fn resolve_route(&self, timeout: Duration) -> io::Result<()> {
        // SAFETY: the id is alive.
        ffi::zero_or_last(unsafe {
            ffi::rdma_resolve_route(self.id.as_ptr(), milliseconds(timeout))
        })
    }

    /// What a queue pair of this connection needs for the transition into `state`.
    pub(super) fn attributes(
        &self,
        state: ffi::ibv_qp_state::Type,
    ) -> io::Result<(ffi::ibv_qp_attr, i32)> {
        // SAFETY: integers and nested integers: zero is a value of each.
        let mut attributes: ffi::ibv_qp_attr = unsafe { std::mem::zeroed() };
        attributes.qp_state = state;
        let mut mask = 0;
        // SAFETY: the id is alive; both are valid places to write to.
        ffi::zero_or_last(unsafe {
            ffi::rdma_init_qp_attr(self.id.as_ptr(), &mut attributes, &mut mask)
        })?;
        Ok((attributes, mask))
    }

    pub(super) fn connect(&self, parameters: &ConnectionParameters<'_>) -> io::Result<()> {
        let mut raw = parameters.raw();
        // SAFETY: the id is alive; the library copies the parameters and the private data.
        ffi::zero_or_last(unsafe { ffi::rdma_connect(self.id.as_ptr(), &mut raw) })
    }

    /// Tells the other side that our queue pair is ready too.
    pub(super) fn establish(&self) -> io::Result<()> {
        // SAFETY: the id is alive.
        ffi::zero_or_last(unsafe { ffi::rdma_establish(self.id.as_ptr()) })
    }

    pub(super) fn listen(&self, backlog: i32) -> io::Result<()> {
        // SAFETY: the id is alive.
        ffi::zero_or_last(unsafe { ffi::rdma_listen(self.id.as_ptr(), backlog) })
    }

    pub(super) fn accept(&self, parameters: &ConnectionParameters<'_>) -> io::Result<()> {
        let mut raw = parameters.raw();
        // SAFETY: as in `connect`.
        ffi::zero_or_last(unsafe { ffi::rdma_accept(self.id.as_ptr(), &mut raw) })
    }

    pub(super) fn reject(&self, private_data: &[u8]) -> io::Result<()> {
        let len = u8::try_from(private_data.len()).unwrap_or(0);
        // SAFETY: the id is alive; the library copies the private data.
        ffi::zero_or_last(unsafe {
            ffi::rdma_reject(self.id.as_ptr(), private_data.as_ptr().cast(), len)
        })
    }

    /// Tells the other side that this end is leaving. Does not wait for it. An error means that the
    /// connection has ended already.
    pub(super) fn disconnect(&self) {
        // SAFETY: the id is alive.
        unsafe { ffi::rdma_disconnect(self.id.as_ptr()) };
    }
}

impl Drop for CmId {
    fn drop(&mut self) {
        // SAFETY: created or adopted once, destroyed once; its events are acknowledged as they are read.
        unsafe { ffi::rdma_destroy_id(self.id.as_ptr()) };
    }
}

fn milliseconds(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis().max(1)).unwrap_or(i32::MAX)
}

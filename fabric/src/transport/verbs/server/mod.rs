//! The memory node's side: passive. Data moves without a thread of ours; one thread lets clients in.
//!
//! ```text
//!   control channel of the node            event thread
//!     admit, dismiss, fence  --.          .-- rdma_cm: request -> ticket -> tenant -> queue pair
//!     export, revoke ----------+-- Desk --+-- rdma_cm: disconnected -> queue pair destroyed
//!                                         `-- device: queue pair or device failed
//! ```
//!
//! Memory is registered extent by extent, each in its tenant's protection domain, once, with all its
//! pages pinned. A client that shows another tenant's key, or one that was revoked, breaks its own
//! queue pair and nothing else. A client that is gone without a word (its machine died) keeps its queue
//! pair until its session is dismissed: that is the control channel's to notice.

mod admission;
mod connection;
mod desk;
mod exports;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use self::admission::Admission;
use self::desk::Desk;
use super::address::local_addresses;
use super::completion_queue::CompletionQueue;
use super::connection_manager::{CmId, EventChannel};
use super::device::{Device, DeviceName};
use super::library::{self, OpenError};
use super::memory_region::{Access, MemoryRegion, MemoryRegionError};
use crate::transport::{
    AdmitError, DataServer, Export, ExportError, Mapping, Ticket, TransportKind,
};
use crate::units::{Epoch, RegionId, RemoteAddr, Rkey, TenantId};

/// Connection requests that wait while one is being answered.
const BACKLOG: i32 = 1024;
const STOP: u64 = 0;
const CONNECTIONS: u64 = 1;
const DEVICE: u64 = 2;
/// A descriptor that will never have anything again.
const GONE: EpollFlags = EpollFlags::EPOLLERR.union(EpollFlags::EPOLLHUP);

/// Bounds of a server.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Most tickets that admit somebody at a time. Default 4096.
    pub sessions: usize,
    /// Most queue pairs of clients. Default 4096; each costs some KiB of the device's and kernel's memory.
    pub connections: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            sessions: 4096,
            connections: 4096,
        }
    }
}

/// Lends a pool through one RDMA device.
pub struct VerbsServer {
    address: SocketAddr,
    pool: Arc<Mapping>,
    desk: Arc<Desk>,
    running: Mutex<Option<Running>>,
}

/// What ends with `shutdown`.
struct Running {
    listener: CmId,
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

struct Stop {
    wake: EventFd,
    stopping: AtomicBool,
}

impl VerbsServer {
    /// Listens on `address` (port 0: any) and lends parts of `pool` through the device that the address
    /// belongs to. The unspecified address (`0.0.0.0`, `::`) stands for the only device there is.
    pub fn listen(
        address: SocketAddr,
        pool: Arc<Mapping>,
        limits: ServerLimits,
    ) -> Result<Self, OpenError> {
        library::ready()?;
        let (address, device) = choose_device(address)?;
        let channel =
            EventChannel::new().map_err(|source| OpenError::NoConnectionManager { source })?;
        let listener =
            CmId::new(&channel).map_err(|source| OpenError::NoConnectionManager { source })?;
        listener
            .bind(address)
            .and_then(|()| listener.listen(BACKLOG))
            .map_err(|source| OpenError::Listen { address, source })?;
        let address = listener.local_address().unwrap_or(address);
        let device = Device::open(&device).map_err(|source| OpenError::Device { source })?;
        let completions = CompletionQueue::new(Arc::clone(&device), 1)
            .map_err(|source| OpenError::Device { source })?;
        let desk = Arc::new(Desk::new(device, channel, completions, limits));
        let (stop, thread) =
            serve(Arc::clone(&desk)).map_err(|source| OpenError::System { source })?;
        Ok(Self {
            address,
            pool,
            desk,
            running: Mutex::new(Some(Running {
                listener,
                stop,
                thread,
            })),
        })
    }

    /// The device that the pool is lent through.
    #[must_use]
    pub fn device(&self) -> &DeviceName {
        self.desk.device.name()
    }
}

fn choose_device(address: SocketAddr) -> Result<(SocketAddr, DeviceName), OpenError> {
    let locals = local_addresses()?;
    if !address.ip().is_unspecified() {
        return locals
            .into_iter()
            .find(|local| local.ip == address.ip())
            .map(|local| (address, local.device))
            .ok_or(OpenError::NotOurAddress { address });
    }
    let usable = |ip: std::net::IpAddr| ip.is_ipv4() == address.is_ipv4() || address.is_ipv6();
    let mut devices: Vec<&DeviceName> = locals.iter().map(|local| &local.device).collect();
    devices.sort_unstable();
    devices.dedup();
    if devices.len() > 1 {
        return Err(OpenError::WhichDevice {
            devices: devices.len(),
        });
    }
    locals
        .into_iter()
        .find(|local| usable(local.ip))
        .map(|local| (SocketAddr::new(local.ip, address.port()), local.device))
        .ok_or(OpenError::NotOurAddress { address })
}

fn serve(desk: Arc<Desk>) -> io::Result<(Arc<Stop>, JoinHandle<()>)> {
    let stop = Arc::new(Stop {
        wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        stopping: AtomicBool::new(false),
    });
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&stop.wake, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
    epoll.add(
        desk.channel.as_ref(),
        EpollEvent::new(EpollFlags::EPOLLIN, CONNECTIONS),
    )?;
    epoll.add(
        desk.device.events_fd(),
        EpollEvent::new(EpollFlags::EPOLLIN, DEVICE),
    )?;
    let thread = std::thread::Builder::new()
        .name("verbs-server".into())
        .spawn({
            let stop = Arc::clone(&stop);
            move || run(&desk, &epoll, &stop)
        })?;
    Ok((stop, thread))
}

fn run(desk: &Desk, epoll: &Epoll, stop: &Stop) {
    let mut events = [EpollEvent::empty(); 4];
    while !stop.stopping.load(Ordering::Acquire) {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => continue,
            Err(error) => {
                tracing::error!(%error, "the verbs server cannot wait for events any more");
                return;
            }
        };
        for event in &events[..count] {
            match event.data() {
                CONNECTIONS if !desk.read_connections() => return,
                DEVICE => {
                    desk.read_device();
                    if event.events().intersects(GONE) {
                        // The descriptor would be "ready" for ever.
                        desk.lose_device();
                        let _ = epoll.delete(desk.device.events_fd());
                    }
                }
                _ => {}
            }
        }
    }
}

impl DataServer for VerbsServer {
    fn kind(&self) -> TransportKind {
        TransportKind::Verbs
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn export(&self, tenant: TenantId, offset: u64, bytes: u64) -> Result<Export, ExportError> {
        let outside = || ExportError::OutsidePool { offset, bytes };
        let refused = |source| ExportError::Device {
            transport: TransportKind::Verbs,
            source,
        };
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let len = usize::try_from(bytes).map_err(|_| outside())?;
        self.pool.check(start, len).map_err(|_| outside())?;
        let domain = self
            .desk
            .book()
            .exports
            .domain(tenant, &self.desk.device)
            .map_err(refused)?;
        let region =
            MemoryRegion::register(domain, Arc::clone(&self.pool), start, len, Access::Remote)
                .map_err(|error| match error {
                    MemoryRegionError::Bounds(_) => outside(),
                    MemoryRegionError::Device(source) => refused(source),
                })?;
        let addr = RemoteAddr::new(region.address());
        let rkey = self.desk.book().exports.insert(tenant, region);
        Ok(Export { addr, rkey, bytes })
    }

    fn revoke(&self, tenant: TenantId, rkey: Rkey) -> bool {
        let Some(region) = self.desk.book().exports.take(tenant, rkey) else {
            return false;
        };
        if let Err((region, error)) = region.deregister() {
            // Never lent on while somebody may still reach it: its tenant's queue pairs go first, and
            // what cannot be taken back even then stays mapped, in a domain nobody enters any more.
            tracing::warn!(%error, %tenant, "memory could not be taken back: its tenant's connections are closed");
            self.desk.close_tenant(tenant);
            drop(region);
        }
        self.desk.book().exports.forget_unused();
        true
    }

    fn admit(
        &self,
        ticket: Ticket,
        tenant: TenantId,
        region: RegionId,
        epoch: Epoch,
    ) -> Result<(), AdmitError> {
        self.desk.admit(
            ticket,
            Admission {
                tenant,
                region,
                epoch,
            },
        )
    }

    fn dismiss(&self, ticket: &Ticket) {
        self.desk.dismiss(ticket);
    }

    fn fence(&self, region: RegionId, current: Epoch) {
        self.desk.fence(region, current);
    }

    fn connections(&self) -> usize {
        self.desk.connections()
    }

    fn shutdown(&self) {
        let running = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(Running {
            listener,
            stop,
            thread,
        }) = running
        else {
            return;
        };
        drop(listener);
        // Clients' work is theirs: what they wait for completes with "disconnected".
        self.desk.close_all();
        stop.stopping.store(true, Ordering::Release);
        let _ = stop.wake.write(1);
        let _ = thread.join();
        self.desk.book().exports.clear();
    }
}

impl Drop for VerbsServer {
    fn drop(&mut self) {
        self.shutdown();
    }
}

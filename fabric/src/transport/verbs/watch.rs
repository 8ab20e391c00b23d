//! The compute side's event thread: it notices that a peer has left or a device has failed, and tells
//! the owners of the queue pairs concerned.
//!
//! ```text
//!   rdma_cm channel of each queue pair --.                     .-> cause (one load in every poll)
//!   asynchronous events of each device --+-> epoll -> Link ----+
//!                                                              `-> wake (an eventfd the owner waits on)
//! ```
//!
//! A queue pair never reads these itself: a polling owner would pay a system call each time, and a
//! device has one stream of events for all. The thread sleeps unless something breaks. It never touches
//! a queue pair; its owner does what must be done.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::connection_manager::{CmEventKind, EventChannel};
use super::device::{Device, DeviceEvent};
use crate::transport::ErrorKind;

/// Events fetched at a time; more wait for the next round.
const EVENTS_AT_A_TIME: usize = 16;
/// Token of the descriptor that ends the thread. Devices are `1..=rails`, queue pairs start here:
const FIRST_QUEUE_PAIR: u64 = 1 << 32;
const STOP: u64 = 0;
/// A descriptor that will never have anything again.
const GONE: EpollFlags = EpollFlags::EPOLLERR.union(EpollFlags::EPOLLHUP);

/// What the event thread and the owner of a queue pair share.
pub(super) struct Link {
    cause: AtomicU8,
    wake: EventFd,
}

impl Link {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Arc::new(Self {
            cause: AtomicU8::new(0),
            wake,
        }))
    }

    /// Why the link is lost, once it is.
    pub(super) fn lost(&self) -> Option<ErrorKind> {
        match self.cause.load(Ordering::Acquire) {
            0 => None,
            1 => Some(ErrorKind::PeerDisconnected),
            _ => Some(ErrorKind::LocalDevice),
        }
    }

    /// The first cause stays.
    fn lose(&self, cause: ErrorKind) {
        let code = match cause {
            ErrorKind::PeerDisconnected => 1,
            _ => 2,
        };
        if self
            .cause
            .compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            // Stays readable for good: a lost link is news at every wait. Cannot fail: written once.
            let _ = self.wake.write(1);
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// A queue pair that is watched.
pub(super) struct Watched {
    pub(super) channel: Arc<EventChannel>,
    pub(super) link: Arc<Link>,
    /// Which device, as an index into those that the watch was made with.
    pub(super) device: usize,
    /// Through which of its ports.
    pub(super) port: u8,
    /// The queue pair's number there.
    pub(super) queue_pair: u32,
}

struct Shared {
    epoll: Epoll,
    stop: EventFd,
    stopping: AtomicBool,
    devices: Vec<Arc<Device>>,
    watched: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    entries: HashMap<u64, Watched>,
}

/// Name of a watched queue pair, to end the watching with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WatchKey(u64);

pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(devices: Vec<Arc<Device>>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        for (index, device) in devices.iter().enumerate() {
            let token = index as u64 + 1;
            epoll.add(
                device.events_fd(),
                EpollEvent::new(EpollFlags::EPOLLIN, token),
            )?;
        }
        let shared = Arc::new(Shared {
            epoll,
            stop,
            stopping: AtomicBool::new(false),
            devices,
            watched: Mutex::default(),
        });
        let thread = std::thread::Builder::new()
            .name("verbs-watch".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run()
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// From now on the events of this queue pair reach its link.
    pub(super) fn add(&self, watched: Watched) -> io::Result<WatchKey> {
        let mut table = self.shared.table();
        table.next += 1;
        let key = FIRST_QUEUE_PAIR + table.next;
        self.shared.epoll.add(
            watched.channel.as_ref(),
            EpollEvent::new(EpollFlags::EPOLLIN, key),
        )?;
        table.entries.insert(key, watched);
        Ok(WatchKey(key))
    }

    /// When this returns the thread does not use the queue pair's channel any more.
    pub(super) fn remove(&self, key: WatchKey) {
        let mut table = self.shared.table();
        if let Some(watched) = table.entries.remove(&key.0) {
            // Fails only for a descriptor that is not there.
            let _ = self.shared.epoll.delete(watched.channel.as_ref());
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        let _ = self.shared.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut events = [EpollEvent::empty(); EVENTS_AT_A_TIME];
        while !self.stopping.load(Ordering::Acquire) {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "events of RDMA devices cannot be read any more");
                    self.lose_all(|_| true, ErrorKind::LocalDevice);
                    return;
                }
            };
            for event in &events[..count] {
                match event.data() {
                    STOP => return,
                    token if token >= FIRST_QUEUE_PAIR => self.read_connection(token),
                    token => {
                        self.read_device(token as usize - 1);
                        if event.events().intersects(GONE) {
                            self.forget_device(token as usize - 1);
                        }
                    }
                }
            }
        }
    }

    fn read_connection(&self, key: u64) {
        let table = self.table();
        let Some(watched) = table.entries.get(&key) else {
            return;
        };
        loop {
            match watched.channel.next() {
                Ok(None) => return,
                Ok(Some(event)) => match event.kind {
                    CmEventKind::Disconnected => watched.link.lose(ErrorKind::PeerDisconnected),
                    CmEventKind::DeviceRemoval | CmEventKind::AddressChange => {
                        watched.link.lose(ErrorKind::LocalDevice);
                    }
                    _ => {}
                },
                Err(error) => {
                    tracing::warn!(%error, "the events of a connection cannot be read any more");
                    watched.link.lose(ErrorKind::LocalDevice);
                    let _ = self.epoll.delete(watched.channel.as_ref());
                    return;
                }
            }
        }
    }

    fn read_device(&self, index: usize) {
        let Some(device) = self.devices.get(index) else {
            return;
        };
        while let Some(event) = device.next_event() {
            match event {
                DeviceEvent::QueuePairFailed { number } => {
                    self.lose_all(
                        |watched| watched.device == index && watched.queue_pair == number,
                        ErrorKind::LocalDevice,
                    );
                }
                DeviceEvent::PortDown { port } => {
                    tracing::warn!(device = %device.name(), port, "an RDMA port went down: its queue pairs are broken");
                    self.lose_all(
                        |watched| watched.device == index && watched.port == port,
                        ErrorKind::LocalDevice,
                    );
                }
                DeviceEvent::DeviceFailed => self.lose_device(index, device),
                DeviceEvent::Other => {}
            }
        }
    }

    /// The kernel has taken the device away: its descriptor would be "ready" for ever.
    fn forget_device(&self, index: usize) {
        if let Some(device) = self.devices.get(index) {
            self.lose_device(index, device);
            let _ = self.epoll.delete(device.events_fd());
        }
    }

    fn lose_device(&self, index: usize, device: &Device) {
        tracing::warn!(device = %device.name(), "an RDMA device failed: its queue pairs are broken");
        self.lose_all(|watched| watched.device == index, ErrorKind::LocalDevice);
    }

    fn lose_all(&self, concerns: impl Fn(&Watched) -> bool, cause: ErrorKind) {
        for watched in self.table().entries.values() {
            if concerns(watched) {
                watched.link.lose(cause);
            }
        }
    }
}

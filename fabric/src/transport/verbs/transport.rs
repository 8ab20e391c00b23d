//! The compute side: devices, their protection domains, registered memory; where queue pairs come from.
//!
//! ```text
//!   VerbsTransport --Arc--> Rails { watch, rail per device { device, domain, regions, lkeys } }
//!   requester      --Arc------^
//! ```
//!
//! All devices with an address here are opened once. Memory is registered with each of them, so that a
//! queue pair may go out through whichever the route to its node leads to. A `LocalMemory`'s key is the
//! number of its registration; each rail knows what the device calls it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::address::local_addresses;
use super::connect;
use super::device::{Device, DeviceName};
use super::library::OpenError;
use super::memory_region::{Access, MemoryRegion, MemoryRegionError};
use super::protection_domain::ProtectionDomain;
use super::watch::Watch;
use crate::transport::{
    ConnectError, LocalMemory, Mapping, QueuePair, QueuePairConfig, RegisterError, Ticket,
    Transport, TransportKind,
};

/// Most registrations of one transport: frames and rings are registered once, up front.
pub const MAX_REGISTRATIONS: usize = 4096;

/// No registration of that number yet.
const UNUSED: u64 = u64::MAX;

/// One device with all that is made on it.
pub(super) struct Rail {
    regions: Mutex<Vec<MemoryRegion>>,
    /// Registration number to the device's key; read for every request, so without a lock.
    lkeys: Box<[AtomicU64]>,
    domain: Arc<ProtectionDomain>,
    device: Arc<Device>,
}

impl Rail {
    fn open(name: &DeviceName) -> std::io::Result<Self> {
        let device = Device::open(name)?;
        Ok(Self {
            regions: Mutex::default(),
            lkeys: (0..MAX_REGISTRATIONS)
                .map(|_| AtomicU64::new(UNUSED))
                .collect(),
            domain: ProtectionDomain::new(Arc::clone(&device))?,
            device,
        })
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(super) fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    /// What the device calls registration `number`; `None` for a number that was never given out.
    pub(super) fn lkey(&self, number: u32) -> Option<u32> {
        let slot = self.lkeys.get(number as usize)?;
        u32::try_from(slot.load(Ordering::Acquire)).ok()
    }
}

/// What transport and queue pairs share; lives as long as any of them.
pub(super) struct Rails {
    // Dropped first: the thread uses the devices.
    watch: Watch,
    rails: Vec<Rail>,
    registered: Mutex<usize>,
}

impl Rails {
    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    pub(super) fn rail(&self, index: usize) -> &Rail {
        &self.rails[index]
    }

    /// The rail on the device of that name.
    pub(super) fn index_of(&self, device: &DeviceName) -> Option<usize> {
        self.rails
            .iter()
            .position(|rail| rail.device.name() == device)
    }
}

/// READ, WRITE and atomics over RC queue pairs, on all RDMA devices that have an address here.
pub struct VerbsTransport {
    rails: Arc<Rails>,
}

impl VerbsTransport {
    /// Opens the devices. Without libraries, devices or addresses the error says so, and what to do.
    pub fn open() -> Result<Self, OpenError> {
        let mut names: Vec<DeviceName> = Vec::new();
        for address in local_addresses()? {
            if !names.contains(&address.device) {
                names.push(address.device);
            }
        }
        let rails: Vec<Rail> = names
            .iter()
            .map(Rail::open)
            .collect::<Result<_, _>>()
            .map_err(|source| OpenError::Device { source })?;
        let devices = rails.iter().map(|rail| Arc::clone(&rail.device)).collect();
        let watch = Watch::start(devices).map_err(|source| OpenError::System { source })?;
        Ok(Self {
            rails: Arc::new(Rails {
                watch,
                rails,
                registered: Mutex::default(),
            }),
        })
    }

    /// Names of the devices in use.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceName> {
        self.rails.rails.iter().map(|rail| rail.device.name())
    }
}

impl Transport for VerbsTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Verbs
    }

    fn register(&self, memory: Arc<Mapping>) -> Result<LocalMemory, RegisterError> {
        let bytes = memory.len();
        let refused = |source| RegisterError::Refused { bytes, source };
        // Held throughout: registrations come rarely, and each takes a number of its own.
        let mut registered = self
            .rails
            .registered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let number = *registered;
        if number >= MAX_REGISTRATIONS {
            return Err(refused(std::io::ErrorKind::QuotaExceeded.into()));
        }
        let mut regions = Vec::with_capacity(self.rails.rails.len());
        for rail in &self.rails.rails {
            let region = MemoryRegion::register(
                Arc::clone(&rail.domain),
                Arc::clone(&memory),
                0,
                bytes,
                Access::Local,
            )
            .map_err(|error| match error {
                MemoryRegionError::Device(source) => refused(source),
                MemoryRegionError::Bounds(_) => refused(std::io::ErrorKind::InvalidInput.into()),
            })?;
            regions.push(region);
        }
        for (rail, region) in self.rails.rails.iter().zip(regions) {
            rail.lkeys[number].store(u64::from(region.lkey()), Ordering::Release);
            rail.regions
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(region);
        }
        *registered += 1;
        // Below MAX_REGISTRATIONS.
        Ok(LocalMemory::new(memory, number as u32))
    }

    fn connect(
        &self,
        peer: SocketAddr,
        ticket: &Ticket,
        config: &QueuePairConfig,
    ) -> Result<Box<dyn QueuePair>, ConnectError> {
        let queue_pair = connect::connect(&self.rails, peer, ticket, config)?;
        Ok(Box::new(queue_pair))
    }
}

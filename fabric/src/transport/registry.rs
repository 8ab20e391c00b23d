//! Local memory that work requests of one transport may use, where no device keeps account of it: what
//! is kept is the promise that the bytes stay mapped as long as a queue pair may use them.
//!
//! Shared by the providers without a device, tcp and sim.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::{LocalMemory, LocalSlice, Mapping};

/// Keys differ between all transports of the process, so that memory of another is noticed.
static NEXT_LKEY: AtomicU32 = AtomicU32::new(1);

/// All registrations of one transport; they live as long as it and its queue pairs.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    registered: RwLock<Vec<(Bounds, LocalMemory)>>,
}

impl Registry {
    /// Registers a mapping under a key of its own.
    pub(crate) fn register(&self, mapping: Arc<Mapping>) -> LocalMemory {
        let bounds = Bounds {
            lkey: NEXT_LKEY.fetch_add(1, Ordering::Relaxed),
            start: mapping.as_ptr() as u64,
            bytes: mapping.len() as u64,
        };
        let memory = LocalMemory::new(mapping, bounds.lkey);
        self.registered
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push((bounds, memory.clone()));
        memory
    }

    fn bounds(&self, slice: LocalSlice) -> Option<Bounds> {
        self.registered
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(bounds, _)| *bounds)
            .find(|bounds| bounds.lkey == slice.lkey())
    }
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    lkey: u32,
    start: u64,
    bytes: u64,
}

impl Bounds {
    fn hold(&self, slice: LocalSlice) -> bool {
        slice.lkey() == self.lkey
            && slice
                .addr()
                .checked_sub(self.start)
                .and_then(|offset| offset.checked_add(slice.len() as u64))
                .is_some_and(|end| end <= self.bytes)
    }
}

/// A queue pair's view: registrations that it has used before are found without a lock.
#[derive(Debug)]
pub(crate) struct RegistryView {
    registry: Arc<Registry>,
    known: Vec<Bounds>,
}

impl RegistryView {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            known: Vec::with_capacity(8),
        }
    }

    /// Whether `slice` lies in memory that was registered with this transport.
    pub(crate) fn holds(&mut self, slice: LocalSlice) -> bool {
        if let Some(bounds) = self.known.iter().find(|b| b.lkey == slice.lkey()) {
            return bounds.hold(slice);
        }
        let Some(bounds) = self.registry.bounds(slice) else {
            return false;
        };
        self.known.push(bounds);
        bounds.hold(slice)
    }
}

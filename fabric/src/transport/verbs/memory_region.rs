//! Memory registered with a device: pinned once, up front, never on demand.
//!
//! A region holds its mapping and its domain. Ending one is a call of its own, because a memory node
//! must know that it has worked before it lends the bytes to anyone else.

use std::io;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;

use super::ffi;
use super::protection_domain::ProtectionDomain;
use crate::transport::{Mapping, OutOfBounds};

/// Who may do what with the bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Access {
    /// Source and destination of this side's own requests.
    Local,
    /// Also target of READ, WRITE and atomics of the peers in the same domain.
    Remote,
}

pub(super) struct MemoryRegion {
    region: NonNull<ffi::ibv_mr>,
    // Dropped after the region is gone: first the domain, then the memory.
    _domain: Arc<ProtectionDomain>,
    _mapping: Arc<Mapping>,
}

// SAFETY: a registration is a name for memory; libibverbs allows its calls from every thread.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

/// Why there is no region.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryRegionError {
    #[error(transparent)]
    Bounds(#[from] OutOfBounds),
    #[error("the device refused to register the memory")]
    Device(#[source] io::Error),
}

impl MemoryRegion {
    pub(super) fn register(
        domain: Arc<ProtectionDomain>,
        mapping: Arc<Mapping>,
        offset: usize,
        bytes: usize,
        access: Access,
    ) -> Result<Self, MemoryRegionError> {
        mapping.check(offset, bytes)?;
        let flags = match access {
            Access::Local => ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
            Access::Remote => {
                ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE
                    | ffi::ibv_access_flags::IBV_ACCESS_REMOTE_READ
                    | ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
                    | ffi::ibv_access_flags::IBV_ACCESS_REMOTE_ATOMIC
            }
        };
        // SAFETY: the range was checked to lie in the mapping, which lives as long as the region; the
        // bits of the flags are small and positive.
        let region = unsafe {
            let start = mapping.as_ptr().add(offset);
            ffi::ibv_reg_mr(domain.as_ptr(), start.cast(), bytes, flags.0 as _)
        };
        let region = ffi::non_null(region).map_err(MemoryRegionError::Device)?;
        Ok(Self {
            region,
            _domain: domain,
            _mapping: mapping,
        })
    }

    pub(super) fn lkey(&self) -> u32 {
        // SAFETY: the region is alive as long as `self`.
        unsafe { self.region.as_ref().lkey }
    }

    pub(super) fn rkey(&self) -> u32 {
        // SAFETY: as above.
        unsafe { self.region.as_ref().rkey }
    }

    pub(super) fn address(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.region.as_ref().addr as u64 }
    }

    /// Ends the registration. After `Ok` no device touches the bytes any more. After `Err` it still
    /// may: the region comes back, to be tried again once its queue pairs are gone.
    pub(super) fn deregister(self) -> Result<(), (Self, io::Error)> {
        // SAFETY: registered once; on success it is not used again, see below.
        match ffi::zero_or_errno(unsafe { ffi::ibv_dereg_mr(self.region.as_ptr()) }) {
            Ok(()) => {
                let gone = ManuallyDrop::new(self);
                // SAFETY: each field is moved out once, and `gone` is never dropped: the region does
                // not exist any more, its parents may go now.
                unsafe {
                    drop(std::ptr::read(&gone._domain));
                    drop(std::ptr::read(&gone._mapping));
                }
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        // SAFETY: registered once, and `deregister` does not come here when it has worked.
        let result = ffi::zero_or_errno(unsafe { ffi::ibv_dereg_mr(self.region.as_ptr()) });
        if let Err(error) = result {
            // The device may still reach the pages: they must never be used for anything else.
            tracing::error!(%error, "a device did not give registered memory back: it stays mapped until this process ends");
            std::mem::forget(Arc::clone(&self._mapping));
        }
    }
}

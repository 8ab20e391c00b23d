//! A protection domain: memory and queue pairs of one domain reach each other, and nothing else does.
//!
//! The compute side has one a device. A memory node has one a tenant: that is what keeps tenants apart.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use super::device::Device;
use super::ffi;

pub(super) struct ProtectionDomain {
    domain: NonNull<ffi::ibv_pd>,
    _device: Arc<Device>,
}

// SAFETY: libibverbs allows every call on a domain from every thread; it is freed once.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    pub(super) fn new(device: Arc<Device>) -> io::Result<Arc<Self>> {
        // SAFETY: the device is open.
        let domain = ffi::non_null(unsafe { ffi::ibv_alloc_pd(device.context()) })?;
        Ok(Arc::new(Self {
            domain,
            _device: device,
        }))
    }

    pub(super) fn as_ptr(&self) -> *mut ffi::ibv_pd {
        self.domain.as_ptr()
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once; regions and queue pairs in it held an `Arc` of `self`.
        unsafe { ffi::ibv_dealloc_pd(self.domain.as_ptr()) };
    }
}

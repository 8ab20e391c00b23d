//! The far side of a VM's memory, until the VM's agent has it.

use std::sync::Arc;

use mycoram_fabric::pages::RemoteRegion;

/// A far side that nothing depends on yet: dropped, it gives its memory back to the nodes.
pub(super) struct Unused(Option<Arc<dyn RemoteRegion>>);

impl Unused {
    pub(super) fn new(remote: &Arc<dyn RemoteRegion>) -> Self {
        Self(Some(Arc::clone(remote)))
    }

    /// From now on the region's agent decides.
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unused {
    fn drop(&mut self) {
        if let Some(remote) = self.0.take() {
            remote.release();
        }
    }
}

//! The far side of a VM's memory, as this house needs it: opened for us by whoever knows the nodes.

use std::error::Error;
use std::sync::Arc;

use mycoram_agent::{Owner, RegionName};
use mycoram_fabric::pages::RemoteRegion;
use mycoram_fabric::units::ByteCount;

/// Why the far side could not be opened; the reason is the opener's.
pub type RemoteOpenError = Box<dyn Error + Send + Sync>;

/// A region's far side, open.
pub struct OpenedRemote {
    /// Its pages.
    pub remote: Arc<dyn RemoteRegion>,
    /// Whose it is, for the state file.
    pub owner: Owner,
}

/// Opens the far side of regions.
pub trait OpenRemote {
    /// A new region of `bytes` bytes.
    fn create(&self, name: &RegionName, bytes: ByteCount) -> Result<OpenedRemote, RemoteOpenError>;

    /// The region of an agent that died, under a higher epoch: when this returns, nothing that the
    /// former owner sent can arrive any more.
    fn reopen(&self, former: &Owner, bytes: ByteCount) -> Result<OpenedRemote, RemoteOpenError>;
}

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

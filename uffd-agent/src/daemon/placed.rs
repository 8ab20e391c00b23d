//! Clients' regions on the memory nodes that a placement names: what `myco agent serve` runs on.

use std::sync::Arc;

use mycoram_fabric::authority::{RegionAuthority, StaticAuthority};
use mycoram_fabric::pages::RemoteRegion;
use mycoram_fabric::placement::{Placement, RegionEntry};
use mycoram_fabric::random;
use mycoram_fabric::remote::{Remote, RemoteOptions, Transports};
use mycoram_fabric::units::{ByteCount, Epoch, RegionId, TenantId};

use super::source::{RemoteSource, SourceError};
use crate::Owner;

/// The epoch of a region's first owner.
const FIRST_EPOCH: Epoch = Epoch::new(1);

/// A [`RemoteSource`] over a placement. Each region is a tenant of its own: no queue pair of one client's
/// region can reach another's memory.
pub struct PlacedRegions {
    authority: Arc<dyn RegionAuthority>,
    transports: Transports,
    replicas: u8,
}

impl PlacedRegions {
    /// On the nodes of `placement`, over `transports` (see [`Transports::for_nodes`]).
    #[must_use]
    pub fn new(placement: Arc<dyn Placement>, transports: Transports) -> Self {
        Self {
            authority: Arc::new(StaticAuthority::new(placement)),
            transports,
            replicas: 1,
        }
    }

    /// New regions have so many replicas of each extent.
    #[must_use]
    pub fn with_replicas(mut self, replicas: u8) -> Self {
        self.replicas = replicas;
        self
    }
}

fn owned(remote: Arc<Remote>) -> (Arc<dyn RemoteRegion>, Owner) {
    let owner = Owner {
        region: remote.entry().id,
        epoch: remote.entry().epoch,
        directory: remote.directory(),
    };
    (remote, owner)
}

impl RemoteSource for PlacedRegions {
    fn create(
        &self,
        bytes: ByteCount,
        extent_bytes: ByteCount,
    ) -> Result<(Arc<dyn RemoteRegion>, Owner), SourceError> {
        let mut random = random::System::open()?;
        let entry = RegionEntry {
            id: RegionId::new(random.number()),
            tenant: TenantId::new(random.number()),
            epoch: FIRST_EPOCH,
            bytes,
            extent_bytes,
            replicas: self.replicas,
        };
        let options = RemoteOptions::system()?;
        let authority = Arc::clone(&self.authority);
        let remote = Remote::create(authority, &self.transports, &entry, &options)?;
        Ok(owned(remote))
    }

    fn reopen(&self, saved: &Owner) -> Result<(Arc<dyn RemoteRegion>, Owner), SourceError> {
        let options = RemoteOptions::system()?;
        let authority = Arc::clone(&self.authority);
        let remote = Remote::reopen(&saved.directory, authority, &self.transports, &options)?;
        Ok(owned(remote))
    }
}

//! What is lent to whom: tenants' protection domains and the regions registered in them.
//!
//! A key is good in one tenant's domain only, because its region is registered there and the tenant's
//! queue pairs live there. A domain exists while somebody uses it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use crate::transport::verbs::device::Device;
use crate::transport::verbs::memory_region::MemoryRegion;
use crate::transport::verbs::protection_domain::ProtectionDomain;
use crate::units::{Rkey, TenantId};

#[derive(Default)]
pub(super) struct Exports {
    domains: HashMap<TenantId, Arc<ProtectionDomain>>,
    regions: HashMap<(TenantId, Rkey), MemoryRegion>,
}

impl Exports {
    /// The tenant's domain, made with its first use.
    pub(super) fn domain(
        &mut self,
        tenant: TenantId,
        device: &Arc<Device>,
    ) -> io::Result<Arc<ProtectionDomain>> {
        if let Some(domain) = self.domains.get(&tenant) {
            return Ok(Arc::clone(domain));
        }
        let domain = ProtectionDomain::new(Arc::clone(device))?;
        self.domains.insert(tenant, Arc::clone(&domain));
        Ok(domain)
    }

    pub(super) fn insert(&mut self, tenant: TenantId, region: MemoryRegion) -> Rkey {
        let rkey = Rkey::new(region.rkey());
        self.regions.insert((tenant, rkey), region);
        rkey
    }

    pub(super) fn take(&mut self, tenant: TenantId, rkey: Rkey) -> Option<MemoryRegion> {
        self.regions.remove(&(tenant, rkey))
    }

    /// The tenant's present domain is not given to any new connection or export.
    pub(super) fn abandon_domain(&mut self, tenant: TenantId) {
        self.domains.remove(&tenant);
    }

    /// Lets go of domains that nobody uses.
    pub(super) fn forget_unused(&mut self) {
        self.domains
            .retain(|_, domain| Arc::strong_count(domain) > 1);
    }

    pub(super) fn clear(&mut self) {
        self.regions.clear();
        self.domains.clear();
    }
}

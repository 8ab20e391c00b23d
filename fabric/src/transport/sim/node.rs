//! A memory node of a simulated network.

use std::net::SocketAddr;

use super::network::SimNetwork;
use crate::transport::{AdmitError, DataServer, Export, ExportError, Ticket, TransportKind};
use crate::units::{Epoch, RegionId, Rkey, TenantId};

/// The control side of a simulated node. Requests are carried out in events, each at one moment: so
/// what is taken away is gone when the call returns. Dropping it stops the node.
pub struct SimServer {
    network: SimNetwork,
    address: SocketAddr,
}

impl SimServer {
    pub(super) fn new(network: SimNetwork, address: SocketAddr) -> Self {
        Self { network, address }
    }
}

impl DataServer for SimServer {
    fn kind(&self) -> TransportKind {
        TransportKind::Sim
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn export(&self, tenant: TenantId, offset: u64, bytes: u64) -> Result<Export, ExportError> {
        self.network
            .world()
            .export(self.address, tenant, offset, bytes)
    }

    fn revoke(&self, tenant: TenantId, rkey: Rkey) -> bool {
        self.network
            .world()
            .access(self.address)
            .is_some_and(|access| access.revoke(tenant, rkey))
    }

    fn admit(
        &self,
        ticket: Ticket,
        tenant: TenantId,
        region: RegionId,
        epoch: Epoch,
    ) -> Result<(), AdmitError> {
        match self.network.world().access(self.address) {
            Some(access) => access.admit(ticket, tenant, region, epoch),
            // A dead node admits nobody, and nobody will ask it.
            None => Ok(()),
        }
    }

    fn dismiss(&self, ticket: &Ticket) {
        let mut world = self.network.world();
        let ended = world
            .access(self.address)
            .map(|access| access.dismiss(ticket));
        world.end_sessions(self.address, &ended.unwrap_or_default(), false);
    }

    fn fence(&self, region: RegionId, current: Epoch) {
        let mut world = self.network.world();
        let ended = world
            .access(self.address)
            .map(|access| access.fence(region, current));
        world.end_sessions(self.address, &ended.unwrap_or_default(), true);
    }

    fn connections(&self) -> usize {
        self.network.world().connections_of(self.address)
    }

    fn shutdown(&self) {
        self.network.world().shut_down(self.address);
    }
}

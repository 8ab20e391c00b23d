//! What a rebuild needs of a region: where replicas are, and the ways there.

use std::sync::Arc;

use super::link::{Cause, NodeLink, Trouble};
use super::region::Remote;
use crate::authority::RegionAuthority;
use crate::placement::NodeEntry;
use crate::transfer::{Endpoint, EndpointError};
use crate::transport::{QueuePair, QueuePairConfig, RemoteSlice, Ticket, Transport};
use crate::units::ExtentIndex;

/// A live replica of an extent, as a copier reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its node's place in the region's node list.
    pub node: u16,
    /// Where it starts there.
    pub at: RemoteSlice,
}

impl Remote {
    /// Who is asked for places and orders.
    #[must_use]
    pub fn authority(&self) -> &dyn RegionAuthority {
        &*self.shared.authority
    }

    /// The replicas of an extent that have all its pages, on nodes that are not lost.
    #[must_use]
    pub fn sources(&self, extent: ExtentIndex) -> Vec<Source> {
        let newest = self.shared.published.newest();
        let live = newest.homes.live(extent);
        live.filter(|replica| !newest.links[usize::from(replica.node)].is_lost())
            .map(|replica| Source {
                node: replica.node,
                at: replica.at(0),
            })
            .collect()
    }

    /// Where an extent's replica on a node starts, live or being copied.
    #[must_use]
    pub fn replica_on(&self, extent: ExtentIndex, node: u16) -> Option<RemoteSlice> {
        let newest = self.shared.published.newest();
        let found = newest.homes.of(extent).find(|replica| replica.node == node);
        found.map(|replica| replica.at(0))
    }

    /// A node of the region.
    #[must_use]
    pub fn node_entry(&self, node: u16) -> Option<NodeEntry> {
        let newest = self.shared.published.newest();
        let link = newest.links.get(usize::from(node))?;
        Some(link.record.entry.clone())
    }

    /// The way to a node of the region for transfers, over the session that its lanes use; `None` if it is
    /// lost.
    #[must_use]
    pub fn endpoint(&self, node: u16) -> Option<Arc<dyn Endpoint>> {
        let newest = self.shared.published.newest();
        let link = newest.links.get(usize::from(node))?;
        (!link.is_lost()).then(|| Arc::new(LinkEndpoint(Arc::clone(link))) as Arc<dyn Endpoint>)
    }
}

struct LinkEndpoint(Arc<NodeLink>);

impl LinkEndpoint {
    fn judge(&self, trouble: Trouble) -> EndpointError {
        match trouble {
            Trouble::Again(Cause::Session(error)) => error.into(),
            Trouble::Again(Cause::Connect(error)) => error.into(),
            Trouble::Again(Cause::Grant(error)) => error.into(),
            Trouble::Dead(death) => {
                self.0.give_up(death);
                EndpointError::Lost
            }
            Trouble::Fenced => {
                self.0.fence();
                EndpointError::Fenced
            }
        }
    }
}

impl Endpoint for LinkEndpoint {
    fn transport(&self) -> &Arc<dyn Transport> {
        &self.0.transport
    }

    fn ticket(&self, replaces: Option<Ticket>) -> Result<Ticket, EndpointError> {
        self.0
            .ticket(replaces)
            .map_err(|trouble| self.judge(trouble))
    }

    fn connect(
        &self,
        ticket: &Ticket,
        config: &QueuePairConfig,
    ) -> Result<Box<dyn QueuePair>, EndpointError> {
        self.0
            .connect_with(ticket, config)
            .map_err(|trouble| self.judge(trouble))
    }

    fn dismiss(&self, ticket: Ticket) {
        self.0.dismiss(ticket);
    }
}

//! Where pieces of a transfer come from and go to: memory here, and an extent of each node.

use mycoram_fabric::transfer::{EndpointIndex, MemoryIndex, Place};
use mycoram_fabric::transport::RemoteSlice;
use mycoram_fabric::units::RemoteAddr;
use mycoram_fabric::wire::control::Grant;

pub(crate) struct Places {
    pub(crate) here: MemoryIndex,
    /// Of each node.
    pub(crate) ends: Vec<(EndpointIndex, Grant)>,
}

impl Places {
    pub(crate) fn local(&self, offset: u64) -> Place {
        Place::Local {
            memory: self.here,
            offset,
        }
    }

    pub(crate) fn remote(&self, node: usize, offset: u64) -> Place {
        let (endpoint, grant) = &self.ends[node];
        let at = RemoteSlice {
            addr: RemoteAddr::new(grant.addr.get() + offset),
            rkey: grant.rkey,
        };
        Place::Remote {
            endpoint: *endpoint,
            at,
        }
    }
}

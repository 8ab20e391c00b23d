//! What monitors read of this process's mappings.

use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use mycoram_agent::Figures;
use mycoram_control::metrics::{MetricsError, MetricsServer, agent_page};

use crate::fork;

type Regions = Arc<Mutex<Vec<Figures>>>;

/// Serves the figures of the mappings that it is told of, until it is dropped.
pub(super) struct ServedFigures {
    regions: Regions,
    server: ManuallyDrop<MetricsServer>,
}

impl ServedFigures {
    pub(super) fn start(address: SocketAddr) -> Result<Self, MetricsError> {
        let regions = Regions::default();
        let told = Arc::clone(&regions);
        let page = move || {
            let mut all = Vec::new();
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that have ended are forgotten.
            told.retain(|region| match region.read() {
                Some(stats) => {
                    all.push(stats);
                    true
                }
                None => false,
            });
            Some(agent_page(&all))
        };
        let server = ManuallyDrop::new(MetricsServer::start(address, page)?);
        Ok(Self { regions, server })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub(super) fn also_of(&self, region: Figures) {
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        // Where nobody ever reads, too, there are no more than mappings.
        regions.retain(|region| region.is_served());
        regions.push(region);
    }
}

impl Drop for ServedFigures {
    fn drop(&mut self) {
        // A child has neither the thread nor the right to end the parent's.
        if fork::check().is_ok() {
            // SAFETY: dropped once, here, and not used again.
            unsafe { ManuallyDrop::drop(&mut self.server) };
        }
    }
}

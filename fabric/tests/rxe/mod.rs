//! Memory nodes on a real RDMA device, for every `rxe_*` test: the fixture, and what happens without one.
//!
//! Clients go out through the first device to a memory node on the second, so that every packet crosses
//! the link. On a machine without a device the tests say so and pass, unless `CI=true` asks for one;
//! CI runs them in the test bed and sets `MYCORAM_RXE_ELSEWHERE=1` for the runs outside of it.

use std::sync::Arc;
use std::time::Duration;

use mycoram_fabric::transport::verbs::{ServerLimits, VerbsServer, VerbsTransport};
use mycoram_fabric::transport::{DataServer, Mapping, Transport};

use crate::conformance::victim::ProcessVictim;
use crate::conformance::{Fabric, Node};
use crate::rxe_place::{node_address, node_address_or_skip};

/// The fabric, where there is a device.
pub(crate) fn fabric() -> Option<VerbsFabric> {
    node_address_or_skip().map(|_| VerbsFabric)
}

pub(crate) fn listen(pool: Arc<Mapping>) -> VerbsServer {
    let address = node_address().expect("an RDMA device");
    VerbsServer::listen(address, pool, ServerLimits::default()).expect("a listening node")
}

pub(crate) struct VerbsNode {
    server: VerbsServer,
    pool: Arc<Mapping>,
}

impl Node for VerbsNode {
    fn server(&self) -> &dyn DataServer {
        &self.server
    }

    fn pool(&self) -> &Mapping {
        &self.pool
    }
}

pub(crate) struct VerbsFabric;

impl Fabric for VerbsFabric {
    type Node = VerbsNode;
    type Victim = ProcessVictim;

    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(VerbsTransport::open().expect("an RDMA device"))
    }

    fn start_node(&self, pool_bytes: usize) -> VerbsNode {
        let pool = Arc::new(Mapping::anonymous(pool_bytes).expect("memory"));
        VerbsNode {
            server: listen(Arc::clone(&pool)),
            pool,
        }
    }

    fn start_victim(&self, pool_bytes: usize) -> ProcessVictim {
        ProcessVictim::start(pool_bytes)
    }

    /// Emulated devices in an emulated machine.
    fn rounds(&self) -> u32 {
        400
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(120)
    }
}

/// The body of the test `victim_process`, which each test executable has.
pub(crate) fn serve_as_victim() {
    crate::conformance::victim::run(|bytes| {
        let pool = Arc::new(Mapping::anonymous(bytes).expect("memory"));
        Box::new(listen(pool))
    });
}

//! Memory nodes on a real RDMA device, for every `rxe_*` test: the fixture, and what happens without one.
//!
//! Clients go out through the first device to a memory node on the second, so that every packet crosses
//! the link. On a machine without a device the tests say so and pass, unless `CI=true` asks for one;
//! CI runs them in the test bed and sets `MYCORAM_RXE_ELSEWHERE=1` for the runs outside of it.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Once};
use std::time::Duration;

use mycoram_fabric::transport::verbs::{
    ServerLimits, VerbsServer, VerbsTransport, local_addresses,
};
use mycoram_fabric::transport::{DataServer, Mapping, Transport};

use crate::conformance::victim::ProcessVictim;
use crate::conformance::{Fabric, Node};

/// Where memory nodes listen: on the last device, so that the first one's traffic crosses the link.
pub(crate) fn node_address() -> Result<SocketAddr, String> {
    if let Ok(address) = std::env::var("MYCORAM_RXE_ADDR_2") {
        let ip: IpAddr = address
            .parse()
            .map_err(|_| format!("MYCORAM_RXE_ADDR_2={address} is not an address"))?;
        return Ok(SocketAddr::new(ip, 0));
    }
    let found = local_addresses().map_err(|error| error.to_string())?;
    let last = found.last().ok_or("no address")?;
    Ok(SocketAddr::new(last.ip, 0))
}

/// The fabric, where there is a device. Where there is none, says so; in CI that is a failure.
pub(crate) fn fabric() -> Option<VerbsFabric> {
    let Err(reason) = node_address() else {
        return Some(VerbsFabric);
    };
    let elsewhere = std::env::var_os("MYCORAM_RXE_ELSEWHERE").is_some_and(|value| value == "1");
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(
        elsewhere || !ci,
        "CI wants this test on a real device: {reason}; run it with `cargo xtask testbed`"
    );
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        // Past the capture of the test harness: a skip is never silent.
        let _ = writeln!(
            std::io::stderr(),
            "the tests on an RDMA device are not run: {reason} (run it with `cargo xtask testbed`)"
        );
    });
    None
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

//! The conformance suite against the tcp transport, on loopback, and hostile peers of its server.

mod conformance;
#[path = "tcp/hostile.rs"]
mod hostile;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use conformance::victim::ProcessVictim;
use conformance::{Fabric, Node};
use mycoram_fabric::transport::tcp::{TcpServer, TcpServerConfig, TcpTransport};
use mycoram_fabric::transport::{DataServer, Mapping, Transport};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

struct Tcp {
    config: fn() -> TcpServerConfig,
}

struct TcpNode {
    server: TcpServer,
    pool: Arc<Mapping>,
}

impl TcpNode {
    fn start(pool_bytes: usize, config: TcpServerConfig) -> Self {
        let pool = Arc::new(Mapping::anonymous(pool_bytes).expect("memory"));
        let server = TcpServer::start(ANY_PORT, Arc::clone(&pool), config).expect("a server");
        Self { server, pool }
    }
}

impl Node for TcpNode {
    fn server(&self) -> &dyn DataServer {
        &self.server
    }

    fn pool(&self) -> &Mapping {
        &self.pool
    }
}

impl Fabric for Tcp {
    type Node = TcpNode;
    type Victim = ProcessVictim;

    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(TcpTransport::new().expect("sockets"))
    }

    fn start_node(&self, pool_bytes: usize) -> TcpNode {
        TcpNode::start(pool_bytes, (self.config)())
    }

    fn start_victim(&self, pool_bytes: usize) -> ProcessVictim {
        ProcessVictim::start(pool_bytes)
    }
}

mod one_thread {
    use super::*;

    crate::conformance_suite!(Tcp {
        config: || TcpServerConfig {
            threads: 1,
            ..TcpServerConfig::default()
        }
    });
}

mod two_spinning_threads {
    use super::*;

    crate::conformance_suite!(Tcp {
        config: || TcpServerConfig {
            threads: 2,
            spin_us: 20,
            ..TcpServerConfig::default()
        }
    });
}

#[test]
#[ignore = "not a test: the process that the checks of death kill"]
fn victim_process() {
    conformance::victim::run(|pool_bytes| {
        Box::new(TcpNode::start(pool_bytes, TcpServerConfig::default()).server)
    });
}

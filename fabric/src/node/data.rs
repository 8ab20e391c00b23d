//! Which data server lends the pool: the providers that this build and this machine have.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::transport::tcp::{ServeError, TcpServer, TcpServerConfig};
#[cfg(any(feature = "verbs", feature = "rdma-sys"))]
use crate::transport::verbs::{OpenError, ServerLimits, VerbsServer};
use crate::transport::{DataServer, Mapping, TransportKind};

/// Why there is no data server.
#[derive(Debug, thiserror::Error)]
pub enum DataServerError {
    /// TCP.
    #[error(transparent)]
    Tcp(#[from] ServeError),
    /// RDMA.
    #[cfg(any(feature = "verbs", feature = "rdma-sys"))]
    #[error(transparent)]
    Verbs(#[from] OpenError),
    /// Left out of this build, or for simulations only.
    #[error("this build cannot lend memory over {transport:?}: use --transport tcp")]
    NotBuilt {
        /// What was asked for.
        transport: TransportKind,
    },
}

/// Lends `pool` at `address` (port 0: any) over `transport`.
pub fn start_data_server(
    transport: TransportKind,
    address: SocketAddr,
    pool: Arc<Mapping>,
) -> Result<Arc<dyn DataServer>, DataServerError> {
    match transport {
        TransportKind::Tcp => {
            let server = TcpServer::start(address, pool, TcpServerConfig::default())?;
            Ok(Arc::new(server))
        }
        #[cfg(any(feature = "verbs", feature = "rdma-sys"))]
        TransportKind::Verbs => {
            let server = VerbsServer::listen(address, pool, ServerLimits::default())?;
            Ok(Arc::new(server))
        }
        transport => Err(DataServerError::NotBuilt { transport }),
    }
}

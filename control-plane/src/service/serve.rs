//! Starting and ending the service.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mycoram_fabric::wire::grant::SigningKey;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tower::util::MapResponseLayer;

use super::checks::Checks;
use super::figures::{self, Calls};
use super::keeper::Keeper;
use super::roles::Guard;
use super::rpc::Service;
use crate::client::REQUEST_ID;
use crate::cluster::Limits;
use crate::identity::Credentials;
use crate::metrics::{MetricsError, MetricsServer};
use crate::proto::control_plane_server::ControlPlaneServer;
use crate::reign::BeginError;
use crate::store::Store;

/// How long a call may take before its caller is told to ask again.
const CALL: Duration = Duration::from_secs(10);
/// How often a silent connection is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long calls may go on when the service ends.
const END: Duration = Duration::from_secs(5);
/// Threads of the runtime: calls only hand things over.
const WORKERS: usize = 2;

/// Whom the service serves.
#[derive(Debug)]
pub enum Trust {
    /// Who has a certificate of the cluster.
    Certificates(Credentials),
    /// Whoever comes.
    Anybody,
}

/// What the service is asked to be.
#[derive(Debug)]
pub struct ServeConfig {
    /// Where it listens. Port 0: any that is free.
    pub listen: SocketAddr,
    /// Whom it serves.
    pub trust: Trust,
    /// What grants are signed with; without it memory nodes must not ask for any.
    pub signing: Option<SigningKey>,
    /// Where figures are read; port 0: any that is free.
    pub metrics: Option<SocketAddr>,
    /// The numbers it decides by.
    pub limits: Limits,
    /// Where others reach it, `HOST:PORT`, which is told to them where several share a store. Default: where it
    /// listens.
    pub advertise: Option<String>,
}

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, or not one of this machine.
    #[error("the control plane cannot listen on {address}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Nothing can be begun on its store.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// The figures.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Threads or descriptors.
    #[error("the control plane's threads could not be started")]
    Threads(#[source] io::Error),
    /// The certificates.
    #[error("the certificates cannot be used")]
    Certificates(#[source] tonic::transport::Error),
}

/// A running control plane. Dropping it ends it.
pub struct ControlServer {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    metrics: Option<MetricsServer>,
    runtime: Option<Runtime>,
    keeper: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Goes on where the store stands, and serves.
    pub fn start(config: ServeConfig, store: Box<dyn Store>) -> Result<Self, ServeError> {
        let listen = |source| ServeError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("myco-control")
            .enable_all()
            .build()
            .map_err(ServeError::Threads)?;
        let mut server = Server::builder()
            .timeout(CALL)
            .trace_fn(span_of)
            .http2_keepalive_interval(Some(KEEPALIVE));
        let guard = match &config.trust {
            Trust::Certificates(credentials) => {
                server = server
                    .tls_config(credentials.server())
                    .map_err(ServeError::Certificates)?;
                Guard::Certificates
            }
            Trust::Anybody => Guard::Nobody,
        };
        let advertise = config.advertise.unwrap_or_else(|| address.to_string());
        let probe = store.probe();
        let (keeper, thread) = Keeper::start(config.limits, store, advertise.clone())?;
        let started = Instant::now();
        let calls = Arc::<Calls>::default();
        let metrics = config.metrics.map(|address| {
            let (keeper, calls) = (keeper.clone(), Arc::clone(&calls));
            let handle = runtime.handle().clone();
            MetricsServer::start(address, move || {
                figures::page(&handle, &keeper, &calls, started)
            })
        });
        let metrics = metrics.transpose()?;
        let service = Service {
            keeper,
            guard,
            signing: config.signing.map(Arc::new),
            probe,
            address: advertise,
            started,
            checks: Checks::new(first_check()),
        };
        let (stop, mut stopped) = watch::channel(false);
        let incoming = {
            let _inside = runtime.enter();
            let listener = tokio::net::TcpListener::from_std(listener).map_err(listen)?;
            TcpIncoming::from(listener).with_nodelay(Some(true))
        };
        runtime.spawn(async move {
            let until = async move {
                // An error means that the server was dropped: that is an end, too.
                let _ = stopped.changed().await;
            };
            // An answer that is an error says so in its headers.
            let counting = MapResponseLayer::new(move |response: http::Response<Body>| {
                let status = tonic::Status::from_header_map(response.headers());
                calls.count(status.map_or(tonic::Code::Ok, |status| status.code()));
                response
            });
            let served = server
                .layer(counting)
                .add_service(ControlPlaneServer::new(service))
                .serve_with_incoming_shutdown(incoming, until)
                .await;
            if let Err(error) = served {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the service has ended"
                );
            }
        });
        Ok(Self {
            address,
            stop,
            metrics,
            runtime: Some(runtime),
            keeper: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where figures are read.
    #[must_use]
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(MetricsServer::address)
    }
}

/// What is said while a call is answered carries the number that its caller gave it.
fn span_of(call: &http::Request<()>) -> tracing::Span {
    let id = call.headers().get(REQUEST_ID);
    let id = id.and_then(|id| id.to_str().ok()).unwrap_or_default();
    let method = call.uri().path().rsplit('/').next().unwrap_or_default();
    // Of the highest level, so that it is there for whatever is said.
    let span = tracing::error_span!("call", request = id, method);
    span.in_scope(|| tracing::debug!("asked"));
    span
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // It has a handle of the keeper, and of the runtime.
        self.metrics = None;
        // Calls that are under way are answered; then the last handle of the keeper is gone.
        let _ = self.stop.send(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(END);
        }
        if let Some(keeper) = self.keeper.take()
            && keeper.join().is_err()
        {
            tracing::error!("the control plane's keeper panicked");
        }
    }
}

impl std::fmt::Debug for ControlServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A number for the first check of this process: those of an earlier life, or of another control plane, mean
/// nothing to it.
fn first_check() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| (now.as_millis() as u64) << 20)
}

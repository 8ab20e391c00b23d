//! Memory nodes of this process, for tests, and pages with known contents on them.

#![allow(dead_code, reason = "each test file uses its part of this")]
#![allow(unused_imports, reason = "each test file uses its part of this")]

mod pages;
mod process;

pub(crate) use pages::Pages;
pub(crate) use process::{NodeProcess, serve_as_node};

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mycoram_fabric::authority::{RegionAuthority, StaticAuthority};
use mycoram_fabric::node::{
    Bounds, GrantCheck, HugePages, MemoryNode, NodeConfig, Pool, start_data_server,
};
use mycoram_fabric::placement::{FailureDomain, NodeEntry, RegionEntry, RoundRobin};
use mycoram_fabric::remote::{Ahead, CreateError, Remote, RemoteOptions, ReopenError, Transports};
use mycoram_fabric::session::{Channel, TcpChannel};
use mycoram_fabric::transport::tcp::TcpTransport;
use mycoram_fabric::transport::{
    AdmitError, DataServer, ErrorKind, Export, ExportError, Mapping, Operation, QueuePairConfig,
    RemoteSlice, Ticket, Transport, TransportKind, WorkId, WorkRequest,
};
use mycoram_fabric::units::{ByteCount, Epoch, PAGE_BYTES, RegionId, RemoteAddr, Rkey, TenantId};
use mycoram_fabric::wire::control::StatusReport;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// How long anything in these tests may take before it counts as a hang.
/// An emulated device in an emulated machine is slow.
const HANG: Duration = Duration::from_secs(120);

/// Waits for something that another thread brings about.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + HANG;
    while !holds() {
        assert!(Instant::now() < until, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Over what the nodes lend.
#[derive(Clone, Copy)]
pub(crate) enum Fabric {
    /// Sockets on loopback.
    Tcp,
    /// The RDMA device of this address.
    Verbs(SocketAddr),
}

impl Fabric {
    pub(crate) fn kind(self) -> TransportKind {
        match self {
            Self::Tcp => TransportKind::Tcp,
            Self::Verbs(_) => TransportKind::Verbs,
        }
    }

    fn listen(self) -> SocketAddr {
        match self {
            Self::Tcp => LOOPBACK,
            Self::Verbs(address) => address,
        }
    }

    /// The entry of the `nth` node, which is spoken to at `control`.
    pub(crate) fn entry(self, nth: usize, control: SocketAddr) -> NodeEntry {
        NodeEntry {
            name: format!("n{nth}"),
            control,
            transport: self.kind(),
            domain: FailureDomain::default(),
        }
    }

    /// A memory node in this process, and its data server.
    fn serve(self, bytes: u64, config: &NodeConfig) -> (MemoryNode, Arc<Breakable>) {
        let pool = Pool::reserve(ByteCount::new(bytes), HugePages::Off).expect("memory");
        let mapping = Arc::clone(pool.mapping());
        let data = start_data_server(self.kind(), self.listen(), mapping);
        let data = Arc::new(Breakable {
            server: data.expect("a data server"),
            tickets: Mutex::default(),
        });
        let served: Arc<dyn DataServer> = Arc::clone(&data) as _;
        let node = MemoryNode::start(config, pool, served).expect("a node");
        (node, data)
    }
}

/// A data server that knows its tickets, so that its queue pairs can be broken from outside.
struct Breakable {
    server: Arc<dyn DataServer>,
    tickets: Mutex<Vec<Ticket>>,
}

impl DataServer for Breakable {
    fn kind(&self) -> TransportKind {
        self.server.kind()
    }
    fn address(&self) -> SocketAddr {
        self.server.address()
    }
    fn export(&self, tenant: TenantId, offset: u64, bytes: u64) -> Result<Export, ExportError> {
        self.server.export(tenant, offset, bytes)
    }
    fn revoke(&self, tenant: TenantId, rkey: Rkey) -> bool {
        self.server.revoke(tenant, rkey)
    }
    fn admit(
        &self,
        ticket: Ticket,
        tenant: TenantId,
        region: RegionId,
        epoch: Epoch,
    ) -> Result<(), AdmitError> {
        self.tickets.lock().expect("no panic").push(ticket);
        self.server.admit(ticket, tenant, region, epoch)
    }
    fn dismiss(&self, ticket: &Ticket) {
        self.server.dismiss(ticket);
    }
    fn fence(&self, region: RegionId, current: Epoch) {
        self.server.fence(region, current);
    }
    fn connections(&self) -> usize {
        self.server.connections()
    }
    fn shutdown(&self) {
        self.server.shutdown();
    }
}

/// One READ of 8 bytes over a queue pair of its own.
pub(crate) fn read_word(
    transport: &dyn Transport,
    data: SocketAddr,
    ticket: &Ticket,
    addr: RemoteAddr,
    rkey: Rkey,
) -> Result<(), ErrorKind> {
    let frame = Arc::new(Mapping::anonymous(PAGE_BYTES).expect("a page"));
    let local = transport.register(frame).expect("registered");
    let config = QueuePairConfig::default();
    let mut queue_pair = transport.connect(data, ticket, &config).expect("let in");
    let read = WorkRequest {
        id: WorkId(1),
        operation: Operation::Read {
            into: local.slice(0, 8).expect("inside"),
            from: RemoteSlice { addr, rkey },
        },
        signaled: true,
    };
    queue_pair.post(&[read]).expect("room");
    let mut completions = Vec::with_capacity(1);
    let until = Instant::now() + HANG;
    while queue_pair.poll(&mut completions) == 0 {
        assert!(Instant::now() < until, "never completed");
        queue_pair.wait(Duration::from_millis(100));
    }
    completions[0].result.map_err(|error| error.kind)
}

/// A transport of its own.
pub(crate) fn transport(fabric: Fabric) -> Arc<dyn Transport> {
    match fabric {
        Fabric::Tcp => Arc::new(TcpTransport::new().expect("io_uring")),
        #[cfg(any(feature = "verbs", feature = "rdma-sys"))]
        Fabric::Verbs(_) => {
            Arc::new(mycoram_fabric::transport::verbs::VerbsTransport::open().expect("a device"))
        }
        #[cfg(not(any(feature = "verbs", feature = "rdma-sys")))]
        Fabric::Verbs(_) => unreachable!("not in this build"),
    }
}

pub(crate) struct TestNode {
    fabric: Fabric,
    bytes: u64,
    bounds: Bounds,
    /// Take effect with the next restart.
    pub(crate) connections: u32,
    pub(crate) idle_ms: u64,
    pub(crate) grants: Option<GrantCheck>,
    control: SocketAddr,
    node: Option<MemoryNode>,
    data: Option<Arc<Breakable>>,
    mute: Option<TcpListener>,
}

impl TestNode {
    fn start(fabric: Fabric, bytes: u64, config: NodeConfig) -> Self {
        let (node, data) = fabric.serve(bytes, &config);
        Self {
            fabric,
            bytes,
            bounds: config.bounds,
            connections: config.connections,
            idle_ms: config.idle_ms,
            grants: config.grants,
            control: node.control(),
            node: Some(node),
            data: Some(data),
            mute: None,
        }
    }

    /// As its users would see a killed process: every connection closed, nothing listening.
    pub(crate) fn kill(&mut self) {
        self.node = None;
        self.data = None;
    }

    /// Another life at the same address.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let config = NodeConfig {
            bounds: self.bounds,
            connections: self.connections,
            idle_ms: self.idle_ms,
            grants: self.grants.clone(),
            ..NodeConfig::new(self.control)
        };
        *self = Self::start(self.fabric, self.bytes, config);
    }

    /// Its control address.
    pub(crate) fn control(&self) -> SocketAddr {
        self.control
    }

    /// The node itself, to be ended by the caller.
    pub(crate) fn take(&mut self) -> MemoryNode {
        self.node.take().expect("alive")
    }

    /// Something that takes connections at the same address and never says a word.
    pub(crate) fn become_mute(&mut self) {
        self.kill();
        self.mute = Some(TcpListener::bind(self.control).expect("the address is free again"));
    }

    /// Breaks all queue pairs, and leaves the control channel alone.
    pub(crate) fn break_data_connections(&self) {
        let data = self.data.as_ref().expect("alive");
        let tickets = std::mem::take(&mut *data.tickets.lock().expect("no panic"));
        for ticket in tickets {
            data.server.dismiss(&ticket);
        }
    }

    pub(crate) fn status(&self) -> StatusReport {
        TcpChannel::connect(self.control, HANG)
            .expect("alive")
            .status()
            .expect("an answer")
    }
}

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<TestNode>,
    entries: Arc<RoundRobin>,
    transports: Transports,
}

impl Cluster {
    pub(crate) fn start(fabric: Fabric, sizes: &[u64]) -> Self {
        Self::with_bounds(fabric, sizes, Bounds::default())
    }

    pub(crate) fn with_bounds(fabric: Fabric, sizes: &[u64], bounds: Bounds) -> Self {
        let nodes: Vec<_> = sizes
            .iter()
            .map(|bytes| {
                let config = NodeConfig {
                    bounds,
                    ..NodeConfig::new(LOOPBACK)
                };
                TestNode::start(fabric, *bytes, config)
            })
            .collect();
        let entries = nodes.iter().enumerate();
        let entries = entries.map(|(nth, node)| fabric.entry(nth, node.control));
        let entries = RoundRobin(entries.collect());
        Self {
            transports: Transports::for_nodes(&entries.0).expect("a transport"),
            entries: Arc::new(entries),
            nodes,
        }
    }

    /// Queue pairs that the nodes have.
    pub(crate) fn queue_pairs(&self) -> u32 {
        let pairs = self.nodes.iter().map(|node| node.status().data_connections);
        pairs.sum()
    }

    pub(crate) fn create(&self, bytes: u64, extent: u64) -> Result<Arc<Remote>, CreateError> {
        self.create_for(1, bytes, extent)
    }

    pub(crate) fn create_for(
        &self,
        tenant: u64,
        bytes: u64,
        extent: u64,
    ) -> Result<Arc<Remote>, CreateError> {
        self.create_replicated(tenant, bytes, extent, 1)
    }

    pub(crate) fn create_replicated(
        &self,
        tenant: u64,
        bytes: u64,
        extent: u64,
        replicas: u8,
    ) -> Result<Arc<Remote>, CreateError> {
        let options = RemoteOptions::system().expect("random numbers");
        self.create_by(self.authority(), tenant, bytes, extent, replicas, options)
    }

    /// A region of which only so much is placed ahead of need, where `authority` says.
    pub(crate) fn create_thin(
        &self,
        authority: Arc<dyn RegionAuthority>,
        bytes: u64,
        extent: u64,
        replicas: u8,
        ahead: Ahead,
    ) -> Result<Arc<Remote>, CreateError> {
        let options = RemoteOptions {
            ahead: Some(ahead),
            ..RemoteOptions::system().expect("random numbers")
        };
        self.create_by(authority, 1, bytes, extent, replicas, options)
    }

    fn create_by(
        &self,
        authority: Arc<dyn RegionAuthority>,
        tenant: u64,
        bytes: u64,
        extent: u64,
        replicas: u8,
        options: RemoteOptions,
    ) -> Result<Arc<Remote>, CreateError> {
        let region = RegionEntry {
            id: RegionId::new(options.owner),
            tenant: TenantId::new(tenant),
            epoch: Epoch::new(1),
            bytes: ByteCount::new(bytes),
            extent_bytes: ByteCount::new(extent),
            replicas,
        };
        Remote::create(authority, &self.transports, &region, &options)
    }

    pub(crate) fn reopen(&self, directory: &[u8]) -> Result<Arc<Remote>, ReopenError> {
        let options = RemoteOptions::system().expect("random numbers");
        Remote::reopen(directory, self.authority(), &self.transports, &options)
    }

    pub(crate) fn authority(&self) -> Arc<StaticAuthority> {
        let entries: Arc<RoundRobin> = Arc::clone(&self.entries);
        Arc::new(StaticAuthority::new(entries))
    }

    /// The entry of a node.
    pub(crate) fn entry(&self, node: usize) -> &NodeEntry {
        &self.entries.0[node]
    }
}

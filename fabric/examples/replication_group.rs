//! Keeps pages on several backup nodes, while nodes fail, leave and join.
//!
//!     cargo run --release -p mycoram-fabric --example replication_group
//!     cargo run --release -p mycoram-fabric --example replication_group -- 10.0.0.1:7700 10.0.0.2:7700 10.0.0.3:7700
//!
//! Without addresses it starts three memory nodes in this process, on loopback, and kills one of them in
//! the middle. With three addresses it uses those nodes (`myco node serve`), and takes one out instead; its
//! region there is given back at the end.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use mycoram_fabric::authority::StaticAuthority;
use mycoram_fabric::group::{Member, MemberState, PageFrom, ReplicationGroup};
use mycoram_fabric::node::{HugePages, MemoryNode, NodeConfig, Pool, start_data_server};
use mycoram_fabric::placement::{FailureDomain, NodeEntry, Placement, PlacementError, RegionEntry};
use mycoram_fabric::random;
use mycoram_fabric::remote::Transports;
use mycoram_fabric::session::{Channel, Identity, TcpChannel, TcpDial};
use mycoram_fabric::transfer::{
    Endpoint, NodeAccess, NodeEndpoint, Piece, Place, Transfer, TransferConfig,
};
use mycoram_fabric::transport::{Mapping, RemoteSlice, TransportKind};
use mycoram_fabric::units::{
    ByteCount, Epoch, ExtentIndex, PAGE_BYTES, PageIndex, RegionId, TenantId,
};
use mycoram_fabric::wire::control::Token;

const EXTENT: u64 = 1 << 20;
const EXTENTS: u32 = 8;
const PAGES: u32 = (EXTENT * EXTENTS as u64 / PAGE_BYTES as u64) as u32;
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Who answers for durable changes: a program with a control plane uses its client. The nodes are fixed
/// here, and nothing outlives the program.
struct Nodes(Vec<NodeEntry>);

impl Placement for Nodes {
    fn nodes(&self) -> &[NodeEntry] {
        &self.0
    }
    fn candidates(
        &self,
        _region: &RegionEntry,
        _extent: ExtentIndex,
        into: &mut Vec<usize>,
    ) -> Result<(), PlacementError> {
        into.extend(0..self.0.len());
        Ok(())
    }
}

/// A memory node in this process.
fn start_node() -> Result<MemoryNode, Box<dyn Error>> {
    let bytes = EXTENT * u64::from(EXTENTS);
    let pool = Pool::reserve(ByteCount::new(bytes), HugePages::Off)?;
    let mapping = Arc::clone(pool.mapping());
    let data = start_data_server(TransportKind::Tcp, LOOPBACK, mapping)?;
    Ok(MemoryNode::start(&NodeConfig::new(LOOPBACK), pool, data)?)
}

fn contents(page: u32, version: u64) -> Vec<u8> {
    let word = (u64::from(page) << 20 | version).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word.to_le_bytes().repeat(PAGE_BYTES / 8)
}

/// Gives some pages a new version here, and replicates them.
fn write(
    group: &mut ReplicationGroup,
    memory: &Mapping,
    here: mycoram_fabric::transfer::MemoryIndex,
    versions: &mut [u64],
    pages: impl Iterator<Item = u32>,
) -> Result<(), Box<dyn Error>> {
    let mut list = Vec::new();
    for page in pages {
        let version = &mut versions[page as usize];
        *version += 1;
        let offset = u64::from(page) * PAGE_BYTES as u64;
        memory.copy_in(offset as usize, &contents(page, *version))?;
        let page = PageIndex::new(page);
        list.push(PageFrom { page, offset });
    }
    let replicated = group.replicate(here, &list)?;
    print!("{} pages are on {} nodes", list.len(), replicated.members);
    match replicated.failed.as_slice() {
        [] => println!(),
        failed => println!("; failed: {}", failed.join(", ")),
    }
    Ok(())
}

/// How many pages a node has as they are here.
fn right_on(
    endpoint: Arc<dyn Endpoint>,
    extents: &[RemoteSlice],
    versions: &[u64],
) -> Result<u32, Box<dyn Error>> {
    let mut transfer = Transfer::open(TransferConfig::default())?;
    let endpoint = transfer.add_endpoint(endpoint)?;
    let memory = Arc::new(Mapping::anonymous((EXTENT * u64::from(EXTENTS)) as usize)?);
    let here = transfer.register(Arc::clone(&memory))?;
    let pieces: Vec<_> = (0..)
        .zip(extents)
        .map(|(nth, at)| Piece {
            tag: nth,
            from: Place::Remote { endpoint, at: *at },
            into: Place::Local {
                memory: here,
                offset: nth * EXTENT,
            },
            bytes: EXTENT,
        })
        .collect();
    if let Some(not) = transfer.run(&pieces, |_| {})?.first() {
        return Err(Box::new(*not));
    }
    let mut right = 0;
    let mut found = vec![0; PAGE_BYTES];
    for (page, version) in (0..).zip(versions) {
        memory.copy_out(page as usize * PAGE_BYTES, &mut found)?;
        right += u32::from(found == contents(page, *version));
    }
    Ok(right)
}

fn run() -> Result<bool, Box<dyn Error>> {
    let mut addresses = std::env::args()
        .skip(1)
        .map(|text| text.parse())
        .collect::<Result<Vec<SocketAddr>, _>>()?;
    let mut own = Vec::new();
    if addresses.is_empty() {
        for _ in 0..3 {
            let node = start_node()?;
            addresses.push(node.control());
            own.push(node);
        }
    }
    if addresses.len() != 3 {
        return Err("three memory nodes are needed, or none".into());
    }

    // Who we are to the nodes, and the region whose pages these are. A control plane would say so.
    let mut random = random::System::open()?;
    let region = RegionEntry {
        id: RegionId::new(random.number()),
        tenant: TenantId::new(random.number()),
        epoch: Epoch::new(1),
        bytes: ByteCount::new(EXTENT * u64::from(EXTENTS)),
        extent_bytes: ByteCount::new(EXTENT),
        replicas: 2,
    };
    let identity = Identity {
        tenant: region.tenant,
        region: region.id,
        epoch: region.epoch,
        token: Token(random.bytes()),
        owner: random.number(),
    };
    let dial = TcpDial::default();
    let mut entries = Vec::new();
    for (nth, address) in addresses.iter().enumerate() {
        entries.push(NodeEntry {
            name: format!("backup {nth}"),
            control: *address,
            transport: TcpChannel::connect(*address, dial.deadline)?
                .hello()?
                .transport,
            domain: FailureDomain::default(),
        });
    }
    let transports = Transports::for_nodes(&entries)?;
    let indexes: Vec<_> = (0..EXTENTS).map(ExtentIndex::new).collect();
    let mut members = Vec::new();
    for entry in &entries {
        let transport = transports.get(entry)?;
        let end = NodeEndpoint::open(entry, transport, &NodeAccess::tcp(identity), true)?;
        let grants = end.allocate(region.extent_bytes, &indexes)?;
        let slice = |grant: &mycoram_fabric::wire::control::Grant| RemoteSlice {
            addr: grant.addr,
            rkey: grant.rkey,
        };
        let extents: Vec<_> = grants.iter().map(slice).collect();
        members.push((Arc::new(end), extents));
    }
    let member = |nth: usize| Member {
        name: entries[nth].name.clone(),
        endpoint: Arc::clone(&members[nth].0) as Arc<dyn Endpoint>,
        extents: members[nth].1.clone(),
    };

    let authority = StaticAuthority::new(Arc::new(Nodes(entries.clone())));
    let config = TransferConfig {
        endpoint_deadline_ms: 1000,
        ..TransferConfig::default()
    };
    let mut group = ReplicationGroup::open(&region, Arc::new(authority), config)?;
    let memory = Arc::new(Mapping::anonymous(region.bytes.as_usize())?);
    let here = group.register(Arc::clone(&memory))?;
    let mut versions = vec![0; PAGES as usize];

    group.add(member(0), |_| {})?;
    group.add(member(1), |_| {})?;
    write(&mut group, &memory, here, &mut versions, 0..PAGES)?;

    if own.is_empty() {
        group.remove("backup 0")?;
        println!("backup 0 was taken out");
    } else {
        drop(own.remove(0));
        println!("backup 0 was killed");
    }
    write(
        &mut group,
        &memory,
        here,
        &mut versions,
        (0..PAGES).step_by(3),
    )?;

    group.add(member(2), |_| {})?;
    println!("backup 2 was added, and filled from backup 1");
    write(
        &mut group,
        &memory,
        here,
        &mut versions,
        (0..PAGES).step_by(5),
    )?;

    let mut all_right = true;
    for status in group.members() {
        let nth = entries.iter().position(|entry| entry.name == status.name);
        let (endpoint, extents) = &members[nth.ok_or("an unknown member")?];
        let endpoint = Arc::clone(endpoint) as Arc<dyn Endpoint>;
        let right = right_on(endpoint, extents, &versions)?;
        println!(
            "{}: {right} of {PAGES} pages are as they are here",
            status.name
        );
        all_right &= right == PAGES && status.state == MemberState::Live;
    }
    drop(group);
    for (endpoint, _) in &members {
        // The one that was killed cannot be told.
        let _ = endpoint.release();
    }
    Ok(all_right)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

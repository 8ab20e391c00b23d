//! Moves memory to one node, from there to another, and back, and compares.
//!
//!     cargo run --release -p mycoram-fabric --example parallel_transfer
//!     cargo run --release -p mycoram-fabric --example parallel_transfer -- 10.0.0.1:7700 10.0.0.2:7700
//!
//! Without addresses it starts two memory nodes in this process, on loopback. With two addresses it uses
//! those nodes (`myco node serve`); its region there is given back at the end. Options, before the
//! addresses: `--mib N` (how much; default 64), `--rails N` (queue pairs to each node; default 2),
//! `--rate MIB` (MiB a second; default: no limit).

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use mycoram_fabric::node::{HugePages, MemoryNode, NodeConfig, Pool, start_data_server};
use mycoram_fabric::placement::{FailureDomain, NodeEntry};
use mycoram_fabric::random;
use mycoram_fabric::remote::Transports;
use mycoram_fabric::session::{Channel, Identity, TcpChannel, TcpDial};
use mycoram_fabric::transfer::{
    Endpoint, EndpointIndex, NodeAccess, NodeEndpoint, Piece, Place, Progress, Transfer,
    TransferConfig,
};
use mycoram_fabric::transport::{Mapping, RemoteSlice, TransportKind};
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, PAGE_BYTES, RegionId, TenantId};
use mycoram_fabric::wire::control::{Grant, Token};

/// Bytes of a piece: an extent.
const EXTENT: u64 = 4 << 20;
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

struct Options {
    mib: u64,
    rails: u32,
    rate: Option<u64>,
    nodes: Vec<SocketAddr>,
}

fn options() -> Result<Options, Box<dyn Error>> {
    let mut options = Options {
        mib: 64,
        rails: 2,
        rate: None,
        nodes: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u64, Box<dyn Error>> {
            Ok(arguments.next().ok_or("a number is missing")?.parse()?)
        };
        match argument.as_str() {
            "--mib" => options.mib = number()?.max(1),
            "--rails" => options.rails = u32::try_from(number()?)?,
            "--rate" => options.rate = Some(number()?),
            address => options.nodes.push(address.parse()?),
        }
    }
    if !matches!(options.nodes.len(), 0 | 2) {
        return Err("two memory nodes are needed, or none".into());
    }
    Ok(options)
}

/// A memory node in this process.
fn start_node(bytes: u64) -> Result<MemoryNode, Box<dyn Error>> {
    let pool = Pool::reserve(ByteCount::new(bytes), HugePages::Off)?;
    let mapping = Arc::clone(pool.mapping());
    let data = start_data_server(TransportKind::Tcp, LOOPBACK, mapping)?;
    Ok(MemoryNode::start(&NodeConfig::new(LOOPBACK), pool, data)?)
}

/// A page's contents.
fn contents(page: u64) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    for (nth, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = (page << 12 | nth as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn at(endpoint: EndpointIndex, grant: &Grant) -> Place {
    let at = RemoteSlice {
        addr: grant.addr,
        rkey: grant.rkey,
    };
    Place::Remote { endpoint, at }
}

/// One call moves all pieces; what it says meanwhile is printed.
fn moved(
    what: &str,
    transfer: &mut Transfer,
    pieces: impl Iterator<Item = (Place, Place)>,
) -> Result<(), Box<dyn Error>> {
    let pieces: Vec<Piece> = pieces
        .enumerate()
        .map(|(tag, (from, into))| Piece {
            tag: tag as u64,
            from,
            into,
            bytes: EXTENT,
        })
        .collect();
    let before = transfer.progress();
    let start = Instant::now();
    let show = |progress: &Progress| {
        let done = progress.bytes_done - before.bytes_done;
        let rails: Vec<u64> = progress.rails.iter().map(|rail| rail.bytes >> 20).collect();
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{what}: {} of {} MiB, {:.0} MiB/s; MiB over each rail so far {rails:?}",
            done >> 20,
            (pieces.len() as u64 * EXTENT) >> 20,
            done as f64 / (1 << 20) as f64 / seconds
        );
    };
    let not_arrived = transfer.run(&pieces, show)?;
    for not in &not_arrived {
        eprintln!("{not}");
    }
    if not_arrived.is_empty() {
        Ok(())
    } else {
        Err("not everything arrived; it could be handed in again".into())
    }
}

fn run() -> Result<bool, Box<dyn Error>> {
    let options = options()?;
    let extents = options.mib.div_ceil(EXTENT >> 20);
    let bytes = extents * EXTENT;

    // The nodes: those that were named, or two of our own.
    let mut own = Vec::new();
    let mut addresses = options.nodes;
    if addresses.is_empty() {
        for _ in 0..2 {
            let node = start_node(bytes)?;
            addresses.push(node.control());
            own.push(node);
        }
    }

    // Who we are to them. A control plane would say so; here we draw it.
    let mut random = random::System::open()?;
    let identity = Identity {
        tenant: TenantId::new(random.number()),
        region: RegionId::new(random.number()),
        epoch: Epoch::new(1),
        token: Token(random.bytes()),
        owner: random.number(),
    };

    let dial = TcpDial::default();
    let mut entries = Vec::new();
    for (nth, address) in addresses.iter().enumerate() {
        let welcome = TcpChannel::connect(*address, dial.deadline)?.hello()?;
        entries.push(NodeEntry {
            name: format!("node {nth}"),
            control: *address,
            transport: welcome.transport,
            domain: FailureDomain::default(),
        });
    }
    let transports = Transports::for_nodes(&entries)?;

    let mut transfer = Transfer::open(TransferConfig {
        rails: options.rails,
        rate: options.rate.map(ByteCount::mib),
        ..TransferConfig::default()
    })?;
    let indexes: Vec<_> = (0..extents as u32).map(ExtentIndex::new).collect();
    let mut ends = Vec::new();
    for entry in &entries {
        let transport = transports.get(entry)?;
        let endpoint = NodeEndpoint::open(entry, transport, &NodeAccess::tcp(identity), true)?;
        let endpoint = Arc::new(endpoint);
        let mut grants = Vec::new();
        for batch in indexes.chunks(64) {
            grants.extend(endpoint.allocate(ByteCount::new(EXTENT), batch)?);
        }
        let index = transfer.add_endpoint(Arc::clone(&endpoint) as Arc<dyn Endpoint>)?;
        ends.push((endpoint, index, grants));
    }

    // Memory of ours, full in its first half, empty in its second.
    let memory = Arc::new(Mapping::anonymous(2 * ByteCount::new(bytes).as_usize())?);
    let pages = bytes / PAGE_BYTES as u64;
    for page in 0..pages {
        memory.copy_in(page as usize * PAGE_BYTES, &contents(page))?;
    }
    let registered = transfer.register(Arc::clone(&memory))?;
    let local = |offset: u64| Place::Local {
        memory: registered,
        offset,
    };

    let (_, first, there) = &ends[0];
    let (_, second, beyond) = &ends[1];
    let out = there.iter().zip(0..);
    let out = out.map(|(grant, nth)| (local(nth * EXTENT), at(*first, grant)));
    moved("to the first node", &mut transfer, out)?;
    let over = there.iter().zip(beyond);
    let over = over.map(|(from, into)| (at(*first, from), at(*second, into)));
    moved("on to the second", &mut transfer, over)?;
    let back = beyond.iter().zip(0..);
    let back = back.map(|(grant, nth)| (at(*second, grant), local(bytes + nth * EXTENT)));
    moved("and back", &mut transfer, back)?;

    let mut found = [0; PAGE_BYTES];
    let mut right = 0;
    for page in 0..pages {
        memory.copy_out(bytes as usize + page as usize * PAGE_BYTES, &mut found)?;
        right += u64::from(found == contents(page));
    }
    println!("{right} of {pages} pages came back as they went out");

    drop(transfer);
    for (endpoint, _, _) in ends {
        endpoint.release()?;
    }
    Ok(right == pages)
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

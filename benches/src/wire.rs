//! The transport's own bandwidth: 64 KiB READs of a memory node's extents over one queue pair, several in
//! flight, nothing else on the way.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mycoram_fabric::random;
use mycoram_fabric::session::{Dial, Identity, Session, TcpDial};
use mycoram_fabric::transport::tcp::TcpTransport;
use mycoram_fabric::transport::verbs::VerbsTransport;
use mycoram_fabric::transport::{
    Completion, Mapping, Operation, QueuePair, QueuePairConfig, RemoteSlice, Transport,
    TransportKind, WorkId, WorkRequest,
};
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, RegionId, TenantId};
use mycoram_fabric::wire::control::{Grant, Token};
use serde::{Deserialize, Serialize};

const READ_BYTES: usize = 64 << 10;
const EXTENT_BYTES: u64 = 16 << 20;
/// Extents that are read from in turn.
const EXTENTS: u32 = 4;
/// A node that says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(5);

/// Which node, and how it is reached.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct WirePlace {
    pub(crate) node: SocketAddr,
    pub(crate) transport: TransportKind,
}

/// The compute side of the transport.
pub(crate) fn transport(kind: TransportKind) -> Result<Arc<dyn Transport>, Box<dyn Error>> {
    Ok(match kind {
        TransportKind::Verbs => Arc::new(VerbsTransport::open()?),
        TransportKind::Tcp | TransportKind::Sim => Arc::new(TcpTransport::new()?),
    })
}

/// Reads `bytes` with `depth` READs in flight; seconds and bytes.
pub(crate) fn bandwidth(
    place: &WirePlace,
    bytes: u64,
    depth: u32,
) -> Result<(f64, u64), Box<dyn Error>> {
    let transport = transport(place.transport)?;
    let mut random = random::System::open()?;
    let identity = Identity {
        tenant: TenantId::new(random.number()),
        region: RegionId::new(random.number()),
        epoch: Epoch::new(1),
        token: Token(random.bytes()),
        owner: random.number(),
    };
    let channel = TcpDial::default().dial(place.node)?;
    let mut session = Session::open(channel, identity, true)?;
    let indexes: Vec<ExtentIndex> = (0..EXTENTS).map(ExtentIndex::new).collect();
    let grants = session.allocate(ByteCount::new(EXTENT_BYTES), &indexes)?;
    let ticket = session.ticket(None)?;
    let config = QueuePairConfig {
        depth,
        ..QueuePairConfig::default()
    };
    let memory = transport.register(Arc::new(Mapping::anonymous(depth as usize * READ_BYTES)?))?;
    let mut queue = transport.connect(session.welcome().data, &ticket, &config)?;
    let outcome = stream(
        queue.as_mut(),
        &memory,
        &grants,
        bytes / READ_BYTES as u64,
        depth,
    );
    drop(queue);
    session.release()?;
    let elapsed = outcome?;
    Ok((
        elapsed.as_secs_f64(),
        bytes / READ_BYTES as u64 * READ_BYTES as u64,
    ))
}

fn stream(
    queue: &mut dyn QueuePair,
    memory: &mycoram_fabric::transport::LocalMemory,
    grants: &[Grant],
    reads: u64,
    depth: u32,
) -> Result<Duration, Box<dyn Error>> {
    let request = |number: u64, slot: u64| -> Result<WorkRequest, Box<dyn Error>> {
        let grant = &grants[(number % grants.len() as u64) as usize];
        let pieces = EXTENT_BYTES / READ_BYTES as u64;
        let offset = number / grants.len() as u64 % pieces * READ_BYTES as u64;
        Ok(WorkRequest {
            id: WorkId(slot),
            operation: Operation::Read {
                into: memory.slice(slot as usize * READ_BYTES, READ_BYTES)?,
                from: RemoteSlice {
                    addr: grant
                        .addr
                        .checked_add(offset)
                        .ok_or("an address past the end")?,
                    rkey: grant.rkey,
                },
            },
            signaled: true,
        })
    };
    let mut done: Vec<Completion> = Vec::with_capacity(depth as usize);
    let mut chain = Vec::with_capacity(depth as usize);
    let start = Instant::now();
    let (mut posted, mut completed) = (0, 0);
    for slot in 0..u64::from(depth).min(reads) {
        chain.push(request(posted, slot)?);
        posted += 1;
    }
    while completed < reads {
        if !chain.is_empty() {
            queue.post(&chain)?;
            chain.clear();
        }
        done.clear();
        if queue.poll(&mut done) == 0 && !queue.wait(SILENCE) {
            return Err("the memory node fell silent".into());
        }
        for completion in &done {
            completion.result?;
            completed += 1;
            if posted < reads {
                chain.push(request(posted, completion.id.0)?);
                posted += 1;
            }
        }
    }
    Ok(start.elapsed())
}

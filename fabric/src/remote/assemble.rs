//! Putting a region together: the parts that making one and taking one over share.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::clock::{Clock, SystemClock};
use super::directory::{Directory, NodeRecord};
use super::frames::FramePool;
use super::homes::{Homes, Location};
use super::link::{LinkParts, NodeLink};
use super::region::{Counters, Remote, Shared};
use super::watch::Watch;
use crate::placement::{NodeEntry, RegionEntry};
use crate::random;
use crate::session::{Dial, Identity, Session, TcpDial};
use crate::transport::Transport;
use crate::units::{ExtentIndex, Incarnation};
use crate::wire::control::{Grant, Token};

/// How a region is opened.
#[derive(Clone)]
pub struct RemoteOptions {
    /// How nodes are reached on their control channels.
    pub dial: Arc<dyn Dial>,
    /// By what time deadlines go.
    pub clock: Arc<dyn Clock>,
    /// Whether threads watch the nodes. Without them a lane connects again by itself when it is polled:
    /// for simulated time.
    pub watched: bool,
    /// This process, as nodes know it; random.
    pub owner: u64,
    /// The secret of a new region; random.
    pub token: Token,
}

impl RemoteOptions {
    /// Over TCP, in real time, with threads. Control calls may take 2 s each, those that allocate or free
    /// 20 s. A node whose machine says nothing at all is given up that much later than a lane's deadline.
    pub fn system() -> std::io::Result<Self> {
        let mut random = random::System::open()?;
        Ok(Self {
            dial: Arc::new(TcpDial {
                deadline: Duration::from_secs(2),
            }),
            clock: Arc::new(SystemClock::default()),
            watched: true,
            owner: random.number(),
            token: Token(random.bytes()),
        })
    }
}

/// What a node holds of a region.
pub(super) type Grants = BTreeMap<ExtentIndex, Grant>;

/// A node of a region, with what it said.
pub(super) struct OpenedNode {
    pub(super) entry: NodeEntry,
    /// The life of it that holds the region's extents.
    pub(super) incarnation: Incarnation,
    pub(super) transport: Arc<dyn Transport>,
    /// `None`: it is lost, or took no part.
    pub(super) session: Option<Session>,
    pub(super) grants: Grants,
}

/// Puts a region together from what its nodes said.
pub(super) fn assemble(
    region: &RegionEntry,
    options: &RemoteOptions,
    identity: Identity,
    copies: u8,
    homes: &[u16],
    opened: Vec<OpenedNode>,
    frames: Arc<FramePool>,
) -> std::io::Result<Arc<Remote>> {
    let locations = homes.iter().enumerate().map(|(place, &node)| {
        let extent = ExtentIndex::new((place / usize::from(copies)) as u32);
        // Of a lost node there is no grant, and nothing is sent to it either.
        let grant = opened[usize::from(node)].grants.get(&extent);
        Location {
            node,
            addr: grant.map(|grant| grant.addr).unwrap_or_default(),
            rkey: grant.map(|grant| grant.rkey).unwrap_or_default(),
        }
    });
    let locations = Homes::new(
        region.extent_bytes,
        usize::from(copies),
        locations.collect(),
    );
    let fenced = Arc::new(AtomicBool::new(false));
    let mut nodes = Vec::with_capacity(opened.len());
    let mut links = Vec::with_capacity(opened.len());
    let mut watches = Vec::new();
    for (index, node) in opened.into_iter().enumerate() {
        // There are at most MAX_NODES nodes.
        let index = index as u16;
        let record = NodeRecord {
            entry: node.entry,
            incarnation: node.incarnation,
        };
        nodes.push(record.clone());
        let link = Arc::new(NodeLink::new(LinkParts {
            index,
            record,
            transport: node.transport,
            dial: Arc::clone(&options.dial),
            identity,
            session: node.session,
            fenced: Arc::clone(&fenced),
            extents: locations.on(index),
        }));
        if options.watched {
            watches.push(Watch::start(Arc::clone(&link), Arc::clone(&options.clock))?);
        }
        links.push(link);
    }
    Ok(Arc::new(Remote {
        shared: Arc::new(Shared {
            directory: Directory {
                region: region.clone(),
                token: identity.token,
                nodes,
                copies,
                homes: homes.to_vec(),
            },
            homes: Arc::new(locations),
            links: links.into(),
            clock: Arc::clone(&options.clock),
            counters: Counters::default(),
            fenced,
            frames,
            watches: Mutex::new(watches),
        }),
    }))
}

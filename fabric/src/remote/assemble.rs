//! Putting a region together: the parts that making one and taking one over share.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::bell::Bell;
use super::changes::{Losses, SPARE_REPLICAS};
use super::clock::{Clock, SystemClock};
use super::directory::{Directory, Home, NodeRecord, Worth};
use super::homes::{Homes, Location, Standing};
use super::keeper::{Keeper, Tend};
use super::link::{Death, LinkParts, NodeLink};
use super::published::{Published, Snapshot};
use super::region::{Counters, Remote, Shared};
use super::thin::{Ahead, Thin};
use super::transports::Transports;
use super::waits::LanePosts;
use super::watch::Watch;
use crate::authority::RegionAuthority;
use crate::placement::{FailureDomain, NodeEntry, RegionEntry};
use crate::random;
use crate::rebuild::{RebuildConfig, Rebuilder};
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
    /// Where the owner is: of two replicas, the one in its zone is read. Unknown: the one that answers
    /// sooner.
    pub domain: FailureDomain,
    /// How lost replicas are made up for, by a thread of the region, where the authority gives orders. `None`:
    /// that is the caller's part, with [`crate::rebuild::Rebuild`]. Costs 2 MiB. Default: half of the bandwidth.
    pub rebuild: Option<RebuildConfig>,
    /// How far ahead of their first write-back extents are placed. `None`: a new region is placed whole when it
    /// is made, so that it never meets full nodes later. One that is taken over and is not placed whole goes
    /// on as [`Ahead::default`]. Default `None`.
    pub ahead: Option<Ahead>,
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
            domain: FailureDomain::default(),
            rebuild: Some(RebuildConfig::default()),
            ahead: None,
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
    /// Or why it is lost.
    pub(super) session: Result<Session, Death>,
    pub(super) grants: Grants,
}

/// What a region is put together from.
pub(super) struct Parts<'a> {
    pub(super) region: &'a RegionEntry,
    pub(super) authority: Arc<dyn RegionAuthority>,
    pub(super) transports: &'a Transports,
    pub(super) options: &'a RemoteOptions,
    pub(super) identity: Identity,
    /// Indexes into `opened`.
    pub(super) homes: Vec<Vec<Home>>,
    /// As in [`Directory::lost`].
    pub(super) lost: Vec<ExtentIndex>,
    /// Nothing is left of the former owner.
    pub(super) adopted: bool,
    pub(super) opened: Vec<OpenedNode>,
}

/// Puts a region together from what its nodes said.
pub(super) fn assemble(parts: Parts<'_>) -> std::io::Result<Arc<Remote>> {
    let Parts {
        region,
        options,
        opened,
        homes,
        lost,
        ..
    } = parts;
    let is_placed = |extent: &ExtentIndex| {
        !homes[extent.get() as usize].is_empty() || lost.binary_search(extent).is_ok()
    };
    let thin = match (0..homes.len() as u32).all(|extent| is_placed(&ExtentIndex::new(extent))) {
        true => None,
        false => {
            let bell = options.watched.then(Bell::new).transpose()?.map(Arc::new);
            let thin = Thin::new(
                homes.len() as u32,
                region.extent_bytes,
                &options.ahead.unwrap_or_default(),
                bell.clone(),
                |extent| is_placed(&extent),
            );
            Some((thin, bell))
        }
    };
    let located = homes.iter().enumerate().map(|(extent, homes)| {
        let extent = ExtentIndex::new(extent as u32);
        let live = homes.iter().filter(|home| home.worth == Worth::Live);
        let replicas = live.map(|home| {
            // Of a lost node there is no grant, and nothing is sent to it either.
            let grant = opened[usize::from(home.node)].grants.get(&extent);
            Location {
                addr: grant.map(|grant| grant.addr).unwrap_or_default(),
                rkey: grant.map(|grant| grant.rkey).unwrap_or_default(),
                node: home.node,
                standing: Standing::Live,
            }
        });
        is_placed(&extent).then(|| replicas.collect())
    });
    let width = usize::from(region.replicas) + SPARE_REPLICAS;
    let located = Arc::new(Homes::new(region.extent_bytes, width, located));
    let fenced = Arc::new(AtomicBool::new(false));
    let bell = options.watched.then(Bell::new).transpose()?.map(Arc::new);
    let losses = Arc::new(Losses::new(bell.clone()));
    let mut nodes = Vec::with_capacity(opened.len());
    let mut links = Vec::with_capacity(opened.len());
    let mut watches = Vec::new();
    for (index, node) in opened.into_iter().enumerate() {
        let record = NodeRecord {
            entry: node.entry,
            incarnation: node.incarnation,
        };
        nodes.push(record.clone());
        let link = Arc::new(NodeLink::new(LinkParts {
            // There are at most MAX_NODES nodes.
            index: index as u16,
            record,
            transport: node.transport,
            dial: Arc::clone(&options.dial),
            identity: parts.identity,
            authority: Arc::clone(&parts.authority),
            session: node.session,
            fenced: Arc::clone(&fenced),
            losses: Arc::clone(&losses),
        }));
        if options.watched {
            watches.push(Watch::start(Arc::clone(&link), Arc::clone(&options.clock))?);
        }
        links.push(link);
    }
    let handles = options
        .watched
        .then(|| watches.iter().map(Watch::handle).collect());
    let (thin, thin_bell) = thin.unzip();
    let shared = Arc::new(Shared {
        region: region.clone(),
        identity: parts.identity,
        options: options.clone(),
        transports: parts.transports.clone(),
        authority: parts.authority,
        published: Published::new(Snapshot {
            homes: Arc::clone(&located),
            links: links.into(),
            watches: handles,
        }),
        lanes: LanePosts::default(),
        counters: Counters::default(),
        fenced,
        losses,
        released: AtomicBool::new(false),
        frames: parts.transports.frames(),
        changes: Mutex::default(),
        directory: Mutex::new(Directory {
            region: region.clone(),
            token: parts.identity.token,
            nodes,
            homes,
            lost,
        }),
        watches: Mutex::new(watches),
        keepers: Mutex::default(),
        inherited: parts.adopted.then(|| Arc::clone(&located)),
        thin,
    });
    let work: [(_, _, Tend); 2] = [
        ("myco-replicas", bell, Shared::tend),
        ("myco-places", thin_bell.flatten(), Shared::place_more),
    ];
    for (name, bell, tend) in work {
        if let Some(bell) = bell {
            let keeper = Keeper::start(name, &shared, bell, tend)?;
            let mut keepers = shared
                .keepers
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            keepers.push(keeper);
        }
    }
    let remote = Arc::new(Remote {
        shared,
        rebuilder: OnceLock::new(),
    });
    if let Some(config) = &options.rebuild
        && options.watched
        && remote.shared.authority.gives_orders()
    {
        let rebuilder = Rebuilder::start(&remote, config.clone()).map_err(std::io::Error::other)?;
        // Nobody else has the region yet.
        let _ = remote.rebuilder.set(rebuilder);
    }
    Ok(remote)
}

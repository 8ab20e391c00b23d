//! Opening a region: placing and allocating all its extents, or taking over those that there are.
//!
//! Everything is allocated when the region is opened. A region that is open has all its memory, and
//! eviction never meets a node that is full.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::clock::{Clock, SystemClock};
use super::directory::{Directory, DirectoryError, MAX_NODES, NodeRecord, SizeError};
use super::homes::{Homes, Location};
use super::link::NodeLink;
use super::region::{Counters, Remote, Shared};
use super::watch::Watch;
use crate::placement::{NodeEntry, Placement, PlacementError, RegionEntry};
use crate::random;
use crate::session::{Dial, Identity, Session, SessionError, TcpDial};
use crate::transport::{Transport, TransportKind};
use crate::units::{ByteCount, Epoch, ExtentIndex};
use crate::wire::Refusal;
use crate::wire::control::{Grant, Token};

/// Extents that are asked for at a time. A node registers them before it answers, and answers nobody
/// else meanwhile: at the default size this is 1 GiB.
const ALLOCATE_BATCH: usize = 64;
/// How often a successor tries a higher epoch when the one it knew of is too low.
const EPOCH_TRIES: u32 = 8;

/// The transports that a region may use.
#[derive(Clone, Default)]
pub struct Transports {
    known: Vec<Arc<dyn Transport>>,
}

impl Transports {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// And this one.
    #[must_use]
    pub fn with(mut self, transport: Arc<dyn Transport>) -> Self {
        self.known.push(transport);
        self
    }

    fn get(&self, node: &NodeEntry) -> Result<Arc<dyn Transport>, TransportMissing> {
        self.known
            .iter()
            .find(|transport| transport.kind() == node.transport)
            .cloned()
            .ok_or_else(|| TransportMissing {
                node: node.name.clone(),
                transport: node.transport,
            })
    }
}

impl fmt::Debug for Transports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.known.iter().map(|t| t.kind()))
            .finish()
    }
}

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
    /// Over TCP, in real time, with threads. Control calls may take 2 s each.
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

/// No transport for a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("memory node {node} is reached over {transport:?}, which is not available here")]
pub struct TransportMissing {
    /// Its name.
    pub node: String,
    /// What it needs.
    pub transport: TransportKind,
}

/// What one node had to offer when there was no room for a region.
#[derive(Debug)]
pub enum Room {
    /// It had been given extents, and has no room for more.
    Full {
        /// Bytes of the region that it took.
        given: ByteCount,
        /// What it had left.
        free: ByteCount,
    },
    /// It took no part.
    Absent(SessionError),
}

/// Why a region was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Its sizes.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The placement.
    #[error("there is no place for the region")]
    Placement(#[from] PlacementError),
    /// More nodes than a region may have.
    #[error("{nodes} memory nodes are named, a region may use {MAX_NODES}")]
    TooManyNodes {
        /// How many.
        nodes: usize,
    },
    /// A transport.
    #[error(transparent)]
    Transport(#[from] TransportMissing),
    /// The nodes together have not enough memory. What they had given was given back.
    #[error("the memory nodes have no room for {asked}:{}", Rooms(nodes))]
    NoRoom {
        /// The region's size in whole extents.
        asked: ByteCount,
        /// Each node, by name.
        nodes: Vec<(String, Room)>,
    },
    /// A node refused for a reason that has nothing to do with room.
    #[error("memory node {name} does not take the region")]
    Node {
        /// Its name.
        name: String,
        /// Its reason.
        #[source]
        source: SessionError,
    },
    /// Threads.
    #[error("the threads that watch the memory nodes could not be started")]
    Watch(#[source] std::io::Error),
}

struct Rooms<'a>(&'a [(String, Room)]);

impl fmt::Display for Rooms<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (name, room)) in self.0.iter().enumerate() {
            f.write_str(if nth == 0 { " " } else { "; " })?;
            match room {
                Room::Full { given, free } => {
                    let all = given.get().saturating_add(free.get());
                    write!(f, "{name} has {} for it", ByteCount::new(all))?;
                }
                Room::Absent(error) => {
                    write!(f, "{name}: {error}")?;
                    let mut source = std::error::Error::source(error);
                    while let Some(cause) = source {
                        write!(f, ": {cause}")?;
                        source = cause.source();
                    }
                }
            }
        }
        Ok(())
    }
}

/// Why a region was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum ReopenError {
    /// The directory.
    #[error("the region's directory cannot be used")]
    Directory(#[from] DirectoryError),
    /// A transport.
    #[error(transparent)]
    Transport(#[from] TransportMissing),
    /// A node that may be alive could not be asked: try again. (One that is known to be dead does not
    /// stop a take-over; its pages are lost.)
    #[error("memory node {name} cannot be asked for the region")]
    Node {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: SessionError,
    },
    /// A node holds less of the region than it should.
    #[error("memory node {name} does not hold {missing} of the region's extents any more")]
    Incomplete {
        /// Its name.
        name: String,
        /// How many.
        missing: usize,
    },
    /// Others kept taking it over meanwhile.
    #[error("the region is being taken over by others, at {current} by now")]
    Contended {
        /// Their epoch.
        current: Epoch,
    },
    /// Threads.
    #[error("the threads that watch the memory nodes could not be started")]
    Watch(#[source] std::io::Error),
}

/// A node while a region is being placed.
struct Candidate {
    entry: NodeEntry,
    session: Option<Session>,
    room: Option<Room>,
    grants: BTreeMap<ExtentIndex, Grant>,
}

impl Remote {
    /// Places and allocates all extents of a new region. On failure everything is given back.
    pub fn create(
        placement: &dyn Placement,
        transports: &Transports,
        region: &RegionEntry,
        options: &RemoteOptions,
    ) -> Result<Arc<Self>, CreateError> {
        let extents = Directory::check_sizes(region)?;
        let nodes = placement.nodes();
        if nodes.len() > MAX_NODES {
            return Err(CreateError::TooManyNodes { nodes: nodes.len() });
        }
        let mut used = Vec::with_capacity(nodes.len());
        for node in nodes {
            used.push(transports.get(node)?);
        }
        let identity = Identity {
            tenant: region.tenant,
            region: region.id,
            epoch: region.epoch,
            token: options.token,
            owner: options.owner,
        };
        let mut candidates: Vec<Candidate> = nodes
            .iter()
            .map(|entry| Candidate {
                entry: entry.clone(),
                session: None,
                room: None,
                grants: BTreeMap::new(),
            })
            .collect();
        match place_all(
            placement,
            region,
            extents,
            &mut candidates,
            options,
            identity,
        ) {
            Ok(homes) => {
                let opened = candidates
                    .into_iter()
                    .zip(used)
                    .map(|(candidate, transport)| {
                        (
                            candidate.entry,
                            transport,
                            candidate.session,
                            candidate.grants,
                        )
                    });
                assemble(region, options, identity, 1, &homes, opened.collect())
                    .map_err(CreateError::Watch)
            }
            Err(error) => {
                give_back(candidates);
                Err(error)
            }
        }
    }

    /// Takes over the region that `directory` (see [`Remote::directory`]) speaks of, with a higher epoch
    /// than its former owner's: nothing that that one sent can land any more when this returns.
    pub fn reopen(
        directory: &[u8],
        transports: &Transports,
        options: &RemoteOptions,
    ) -> Result<Arc<Self>, ReopenError> {
        let directory = Directory::decode(directory)?;
        let mut used = Vec::with_capacity(directory.nodes.len());
        for node in &directory.nodes {
            used.push(transports.get(&node.entry)?);
        }
        let mut region = directory.region.clone();
        let mut current = region.epoch;
        for _ in 0..EPOCH_TRIES {
            let Some(epoch) = current.next() else { break };
            region.epoch = epoch;
            let identity = Identity {
                tenant: region.tenant,
                region: region.id,
                epoch,
                token: directory.token,
                owner: options.owner,
            };
            let mut sessions = Vec::with_capacity(used.len());
            let mut too_low = None;
            for node in &directory.nodes {
                match reopen_on(node, options, identity)? {
                    Reopened::Open(session) => sessions.push(Some(session)),
                    Reopened::Dead => sessions.push(None),
                    Reopened::TooLow(holds) => {
                        too_low = Some(holds);
                        break;
                    }
                }
            }
            if let Some(holds) = too_low {
                current = holds.max(epoch);
                continue;
            }
            let mut opened = Vec::with_capacity(used.len());
            for ((node, transport), session) in directory.nodes.iter().zip(used).zip(sessions) {
                let (session, grants) = list(node, session)?;
                opened.push((node.entry.clone(), transport, session, grants));
            }
            check_complete(&directory, &opened)?;
            let copies = directory.copies;
            let incarnations = directory.nodes.iter().map(|node| node.incarnation);
            let remote = assemble_with(
                &region,
                options,
                identity,
                copies,
                &directory.homes,
                opened,
                incarnations.collect(),
            );
            return remote.map_err(ReopenError::Watch);
        }
        Err(ReopenError::Contended { current })
    }
}

/// Gives all extents a home; returns the indexes of their nodes.
fn place_all(
    placement: &dyn Placement,
    region: &RegionEntry,
    extents: u32,
    candidates: &mut [Candidate],
    options: &RemoteOptions,
    identity: Identity,
) -> Result<Vec<u16>, CreateError> {
    for candidate in candidates.iter_mut() {
        match options
            .dial
            .dial(candidate.entry.control)
            .and_then(|channel| Session::open(channel, identity, true))
        {
            Ok(session) if session.welcome().transport == candidate.entry.transport => {
                candidate.session = Some(session);
            }
            Ok(session) => {
                return Err(CreateError::Transport(TransportMissing {
                    node: candidate.entry.name.clone(),
                    transport: session.welcome().transport,
                }));
            }
            Err(error) => match error.refusal() {
                None
                | Some(
                    Refusal::Draining {}
                    | Refusal::TooManyRegions { .. }
                    | Refusal::TooManyConnections { .. },
                ) => {
                    tracing::warn!(
                        node = %candidate.entry.name,
                        error = &error as &dyn std::error::Error,
                        "a memory node takes no part in the region"
                    );
                    candidate.room = Some(Room::Absent(error));
                }
                Some(_) => {
                    return Err(CreateError::Node {
                        name: candidate.entry.name.clone(),
                        source: error,
                    });
                }
            },
        }
    }

    let mut homes = vec![0; extents as usize];
    let mut homeless: Vec<ExtentIndex> = (0..extents).map(ExtentIndex::new).collect();
    let mut order = Vec::with_capacity(candidates.len());
    // Every round either places all that is left or finds a node full, so it ends.
    while !homeless.is_empty() {
        let mut wanted: Vec<Vec<ExtentIndex>> = vec![Vec::new(); candidates.len()];
        for &extent in &homeless {
            order.clear();
            placement.candidates(region, extent, &mut order)?;
            let best = order
                .iter()
                .find(|node| candidates.get(**node).is_some_and(|c| c.room.is_none()));
            match best {
                Some(&node) => wanted[node].push(extent),
                None => {
                    return Err(CreateError::NoRoom {
                        asked: ByteCount::new(u64::from(extents) * region.extent_bytes.get()),
                        nodes: rooms(candidates, region.extent_bytes),
                    });
                }
            }
        }
        homeless.clear();
        for (node, (candidate, wanted)) in candidates.iter_mut().zip(wanted).enumerate() {
            let placed = candidate.allocate(region.extent_bytes, &wanted)?;
            for extent in &wanted[..placed] {
                // There are at most MAX_NODES nodes.
                homes[extent.get() as usize] = node as u16;
            }
            homeless.extend_from_slice(&wanted[placed..]);
        }
    }
    Ok(homes)
}

impl Candidate {
    /// Allocates as many of `wanted` as there is room for, from the first on.
    fn allocate(
        &mut self,
        extent_bytes: ByteCount,
        wanted: &[ExtentIndex],
    ) -> Result<usize, CreateError> {
        let Some(session) = &mut self.session else {
            return Ok(0);
        };
        let mut placed = 0;
        while placed < wanted.len() && self.room.is_none() {
            let mut batch = &wanted[placed..wanted.len().min(placed + ALLOCATE_BATCH)];
            // A node that is nearly full is asked a second time, for what it has left.
            for last_try in [false, true] {
                match session.allocate(extent_bytes, batch) {
                    Ok(grants) => {
                        placed += grants.len();
                        self.grants
                            .extend(grants.into_iter().map(|grant| (grant.index, grant)));
                        break;
                    }
                    Err(error) => {
                        let free = match error.refusal() {
                            Some(Refusal::Full { free, .. }) => free,
                            Some(Refusal::Quota { held, quota, .. }) => {
                                ByteCount::new(quota.get().saturating_sub(held.get()))
                            }
                            _ => {
                                return Err(CreateError::Node {
                                    name: self.entry.name.clone(),
                                    source: error,
                                });
                            }
                        };
                        let fit = usize::try_from(free.get() / extent_bytes.get())
                            .unwrap_or(usize::MAX)
                            .min(batch.len());
                        batch = &batch[..fit];
                        if batch.is_empty() || last_try {
                            let given = self.grants.len() as u64 * extent_bytes.get();
                            self.room = Some(Room::Full {
                                given: ByteCount::new(given),
                                free,
                            });
                            break;
                        }
                    }
                }
            }
        }
        Ok(placed)
    }
}

fn rooms(candidates: &mut [Candidate], extent_bytes: ByteCount) -> Vec<(String, Room)> {
    candidates
        .iter_mut()
        .map(|candidate| {
            let given = candidate.grants.len() as u64 * extent_bytes.get();
            let room = candidate.room.take().unwrap_or(Room::Full {
                given: ByteCount::new(given),
                free: ByteCount::new(0),
            });
            (candidate.entry.name.clone(), room)
        })
        .collect()
}

fn give_back(candidates: Vec<Candidate>) {
    for candidate in candidates {
        if let Some(session) = candidate.session
            && let Err(error) = session.release()
        {
            tracing::warn!(
                node = %candidate.entry.name,
                error = &error as &dyn std::error::Error,
                "memory could not be given back; the node frees it when the region has had no owner for its time"
            );
        }
    }
}

enum Reopened {
    Open(Session),
    Dead,
    TooLow(Epoch),
}

fn reopen_on(
    node: &NodeRecord,
    options: &RemoteOptions,
    identity: Identity,
) -> Result<Reopened, ReopenError> {
    let opened = options
        .dial
        .dial(node.entry.control)
        .and_then(|channel| Session::open(channel, identity, false));
    match opened {
        Ok(session) if session.welcome().incarnation == node.incarnation => {
            Ok(Reopened::Open(session))
        }
        Ok(_) => Ok(Reopened::Dead),
        Err(error) => match error.refusal() {
            Some(Refusal::UnknownRegion {}) => Ok(Reopened::Dead),
            Some(Refusal::EpochTooLow { current, .. } | Refusal::Owned { epoch: current }) => {
                Ok(Reopened::TooLow(current))
            }
            _ if error.says_dead() => Ok(Reopened::Dead),
            _ => Err(ReopenError::Node {
                name: node.entry.name.clone(),
                source: error,
            }),
        },
    }
}

type Grants = BTreeMap<ExtentIndex, Grant>;

fn list(
    node: &NodeRecord,
    session: Option<Session>,
) -> Result<(Option<Session>, Grants), ReopenError> {
    let Some(mut session) = session else {
        tracing::error!(node = %node.entry.name, "a memory node is lost, and with it the pages that it held");
        return Ok((None, Grants::new()));
    };
    let grants = session.list().map_err(|source| ReopenError::Node {
        name: node.entry.name.clone(),
        source,
    })?;
    let grants = grants
        .into_iter()
        .map(|grant| (grant.index, grant))
        .collect();
    Ok((Some(session), grants))
}

type OpenedNode = (NodeEntry, Arc<dyn Transport>, Option<Session>, Grants);

fn check_complete(directory: &Directory, opened: &[OpenedNode]) -> Result<(), ReopenError> {
    let mut missing = vec![0; opened.len()];
    for (place, home) in directory.homes.iter().enumerate() {
        let (_, _, session, grants) = &opened[usize::from(*home)];
        let extent = ExtentIndex::new((place / usize::from(directory.copies)) as u32);
        if session.is_some() && !grants.contains_key(&extent) {
            missing[usize::from(*home)] += 1;
        }
    }
    for ((entry, ..), missing) in opened.iter().zip(missing) {
        if missing > 0 {
            return Err(ReopenError::Incomplete {
                name: entry.name.clone(),
                missing,
            });
        }
    }
    Ok(())
}

fn assemble(
    region: &RegionEntry,
    options: &RemoteOptions,
    identity: Identity,
    copies: u8,
    homes: &[u16],
    opened: Vec<OpenedNode>,
) -> std::io::Result<Arc<Remote>> {
    let incarnation = |(_, _, session, _): &OpenedNode| {
        session
            .as_ref()
            .map(|session| session.welcome().incarnation)
    };
    let incarnations = opened
        .iter()
        .map(|node| incarnation(node).unwrap_or_default());
    let incarnations = incarnations.collect();
    assemble_with(
        region,
        options,
        identity,
        copies,
        homes,
        opened,
        incarnations,
    )
}

/// Puts a region together from what its nodes said.
fn assemble_with(
    region: &RegionEntry,
    options: &RemoteOptions,
    identity: Identity,
    copies: u8,
    homes: &[u16],
    opened: Vec<OpenedNode>,
    incarnations: Vec<crate::units::Incarnation>,
) -> std::io::Result<Arc<Remote>> {
    let locations = homes.iter().enumerate().map(|(place, &node)| {
        let extent = ExtentIndex::new((place / usize::from(copies)) as u32);
        // Of a lost node there is no grant, and nothing is sent to it either.
        let grant = opened[usize::from(node)].3.get(&extent);
        Location {
            node,
            addr: grant.map(|grant| grant.addr).unwrap_or_default(),
            rkey: grant.map(|grant| grant.rkey).unwrap_or_default(),
        }
    });
    let homes_map = Arc::new(Homes::new(
        region.extent_bytes,
        usize::from(copies),
        locations.collect(),
    ));
    let fenced = Arc::new(AtomicBool::new(false));
    let mut records = Vec::with_capacity(opened.len());
    let mut links = Vec::with_capacity(opened.len());
    for (index, ((entry, transport, session, _), incarnation)) in
        opened.into_iter().zip(incarnations).enumerate()
    {
        // There are at most MAX_NODES nodes.
        let index = index as u16;
        let record = NodeRecord { entry, incarnation };
        records.push(record.clone());
        links.push(Arc::new(NodeLink::new(
            index,
            record,
            transport,
            Arc::clone(&options.dial),
            identity,
            session,
            Arc::clone(&fenced),
            homes_map.on(index),
        )));
    }
    let mut watches = Vec::new();
    if options.watched {
        for link in &links {
            watches.push(Watch::start(Arc::clone(link), Arc::clone(&options.clock))?);
        }
    }
    Ok(Arc::new(Remote {
        shared: Arc::new(Shared {
            directory: Directory {
                region: region.clone(),
                token: identity.token,
                nodes: records,
                copies,
                homes: homes.to_vec(),
            },
            homes: homes_map,
            links: links.into(),
            clock: Arc::clone(&options.clock),
            counters: Counters::default(),
            fenced,
            watches: Mutex::new(watches),
        }),
    }))
}

//! Making a region: placing and allocating all its extents.
//!
//! Everything is allocated when the region is made. A region that is open has all its memory, and
//! eviction never meets a node that is full.

use std::fmt;
use std::sync::Arc;

use super::assemble::{Grants, OpenedNode, RemoteOptions, assemble};
use super::directory::{Directory, MAX_NODES, SizeError};
use super::region::Remote;
use super::transports::{TransportMissing, Transports};
use crate::placement::{NodeEntry, Placement, PlacementError, RegionEntry};
use crate::session::{Identity, Session, SessionError};
use crate::transport::{Transport, TransportKind};
use crate::units::{ByteCount, ExtentIndex};
use crate::wire::Refusal;
use crate::wire::control::MAX_BATCH_EXTENTS;

/// Bytes of the extents that are asked for at a time. A node registers them before it answers, and
/// answers nobody else meanwhile: on a slow device some tenths of a second for this.
const ALLOCATE_BATCH_BYTES: u64 = 64 << 20;

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
    /// The placement says something else than the node.
    #[error(
        "memory node {name} lends over {lends:?}, and is entered with {expected:?}: correct its entry"
    )]
    OtherTransport {
        /// Its name.
        name: String,
        /// What the placement says.
        expected: TransportKind,
        /// What the node says.
        lends: TransportKind,
    },
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

/// A node while a region is being placed.
struct Candidate {
    entry: NodeEntry,
    session: Option<Session>,
    room: Option<Room>,
    grants: Grants,
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
                grants: Grants::new(),
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
                let (opened, homes) = only_homes(candidates, used, &homes);
                let frames = transports.frames();
                assemble(region, options, identity, 1, &homes, opened, frames)
                    .map_err(CreateError::Watch)
            }
            Err(error) => {
                candidates.iter_mut().for_each(give_back);
                Err(error)
            }
        }
    }
}

/// The nodes that got extents, and the homes as indexes of these. Who got nothing need not keep an
/// account of the region, and is not missed when it dies.
fn only_homes(
    candidates: Vec<Candidate>,
    transports: Vec<Arc<dyn Transport>>,
    homes: &[u16],
) -> (Vec<OpenedNode>, Vec<u16>) {
    let mut opened = Vec::with_capacity(candidates.len());
    let mut renumbered = vec![0; candidates.len()];
    for ((node, mut candidate), transport) in candidates.into_iter().enumerate().zip(transports) {
        if candidate.grants.is_empty() {
            give_back(&mut candidate);
            continue;
        }
        // There are at most MAX_NODES nodes.
        renumbered[node] = opened.len() as u16;
        opened.push(OpenedNode {
            incarnation: candidate
                .session
                .as_ref()
                .map(|session| session.welcome().incarnation)
                .unwrap_or_default(),
            entry: candidate.entry,
            transport,
            session: candidate.session,
            grants: candidate.grants,
        });
    }
    let homes = homes.iter().map(|node| renumbered[usize::from(*node)]);
    (opened, homes.collect())
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
                return Err(CreateError::OtherTransport {
                    name: candidate.entry.name.clone(),
                    expected: candidate.entry.transport,
                    lends: session.welcome().transport,
                });
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
        let batch = usize::try_from(ALLOCATE_BATCH_BYTES / extent_bytes.get()).unwrap_or(1);
        let most = batch.clamp(1, MAX_BATCH_EXTENTS);
        let mut placed = 0;
        while placed < wanted.len() && self.room.is_none() {
            let mut batch = &wanted[placed..wanted.len().min(placed + most)];
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

fn give_back(candidate: &mut Candidate) {
    if let Some(session) = candidate.session.take()
        && let Err(error) = session.release()
    {
        tracing::warn!(
            node = %candidate.entry.name,
            error = &error as &dyn std::error::Error,
            "memory could not be given back; the node frees it when the region has had no owner for its time"
        );
    }
}

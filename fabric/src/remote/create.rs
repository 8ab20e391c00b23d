//! Making a region: placing and allocating its extents.
//!
//! Without [`RemoteOptions::ahead`] all of them: a region that is open has all its memory, and eviction never
//! meets a node that is full. With it only the first ones; the others follow in the background, see `thin`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::assemble::{Grants, OpenedNode, Parts, RemoteOptions, assemble};
use super::directory::{Directory, Home, MAX_NODES, SizeError, Worth};
use super::region::Remote;
use super::transports::{TransportMissing, Transports};
use crate::authority::{AuthorityError, OpenError, RegionAuthority, open_session};
use crate::placement::{MAX_REPLICAS, NodeEntry, RegionEntry};
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
    /// More replicas than there are, or none.
    #[error("{asked} replicas cannot be: a region has 1 to {MAX_REPLICAS}")]
    Replicas {
        /// How many.
        asked: u8,
    },
    /// The control plane.
    #[error("there is no place for the region")]
    Authority(#[from] AuthorityError),
    /// The control plane named places that cannot be.
    #[error("the control plane named too few places, or one twice")]
    Places,
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
    transport: Arc<dyn Transport>,
    session: Option<Session>,
    /// It has no more room, or takes no part.
    room: Option<Room>,
    grants: Grants,
}

impl Remote {
    /// Places and allocates the extents of a new region: all, or with [`RemoteOptions::ahead`] so many, or as
    /// many of these as there is room for, at least one. On failure everything is given back.
    pub fn create(
        authority: Arc<dyn RegionAuthority>,
        transports: &Transports,
        region: &RegionEntry,
        options: &RemoteOptions,
    ) -> Result<Arc<Self>, CreateError> {
        let extents = Directory::check_sizes(region)?;
        if !(1..=MAX_REPLICAS).contains(&region.replicas) {
            return Err(CreateError::Replicas {
                asked: region.replicas,
            });
        }
        let identity = Identity {
            tenant: region.tenant,
            region: region.id,
            epoch: region.epoch,
            token: options.token,
            owner: options.owner,
        };
        let mut first = match &options.ahead {
            None => extents,
            Some(ahead) => {
                let high = ahead.high_extents(region.extent_bytes);
                extents.min(u32::try_from(high).unwrap_or(extents))
            }
        };
        loop {
            let mut placing = Placing {
                region,
                transports,
                options,
                identity,
                candidates: Vec::new(),
            };
            let error = match placing.place(&*authority, first) {
                Ok(mut homes) => {
                    homes.resize(extents as usize, Vec::new());
                    let (opened, homes) = only_homes(placing.candidates, &homes);
                    return assemble(Parts {
                        region,
                        authority,
                        transports,
                        options,
                        identity,
                        homes,
                        lost: Vec::new(),
                        adopted: false,
                        opened,
                    })
                    .map_err(CreateError::Watch);
                }
                Err(error) => error,
            };
            placing.candidates.iter_mut().for_each(give_back);
            if first == 1 || options.ahead.is_none() || !error.is_want_of_room() {
                return Err(error);
            }
            first /= 2;
        }
    }
}

impl CreateError {
    fn is_want_of_room(&self) -> bool {
        matches!(
            self,
            Self::NoRoom { .. } | Self::Authority(AuthorityError::Full(_))
        )
    }
}

/// How many extents of this size are asked for at a time.
pub(super) fn extents_at_a_time(extent_bytes: ByteCount) -> usize {
    let extents = usize::try_from(ALLOCATE_BATCH_BYTES / extent_bytes.get().max(1));
    extents.unwrap_or(1).clamp(1, MAX_BATCH_EXTENTS)
}

/// The nodes that got extents, and the homes as indexes of these. Who got nothing need not keep an
/// account of the region, and is not missed when it dies.
fn only_homes(
    candidates: Vec<Candidate>,
    homes: &[Vec<usize>],
) -> (Vec<OpenedNode>, Vec<Vec<Home>>) {
    let mut kept: Vec<BTreeSet<ExtentIndex>> = vec![BTreeSet::new(); candidates.len()];
    for (extent, nodes) in homes.iter().enumerate() {
        for node in nodes {
            kept[*node].insert(ExtentIndex::new(extent as u32));
        }
    }
    let mut opened = Vec::with_capacity(candidates.len());
    let mut renumbered = vec![0; candidates.len()];
    for (node, (mut candidate, kept)) in candidates.into_iter().zip(kept).enumerate() {
        let Some(mut session) = candidate.session.take_if(|_| !kept.is_empty()) else {
            give_back(&mut candidate);
            continue;
        };
        let grants = candidate.grants.into_iter();
        let (grants, unused): (Grants, Grants) =
            grants.partition(|(extent, _)| kept.contains(extent));
        if !unused.is_empty() {
            // Of extents that found no room elsewhere. What cannot be given back goes with the region.
            let _ = session.free(&unused.into_keys().collect::<Vec<_>>());
        }
        // There are at most MAX_NODES nodes.
        renumbered[node] = opened.len() as u16;
        opened.push(OpenedNode {
            incarnation: session.welcome().incarnation,
            entry: candidate.entry,
            transport: candidate.transport,
            session: Ok(session),
            grants,
        });
    }
    let home = |node: &usize| Home {
        node: renumbered[*node],
        worth: Worth::Live,
    };
    let homes = homes.iter().map(|nodes| nodes.iter().map(home).collect());
    (opened, homes.collect())
}

/// A region that is being placed.
struct Placing<'a> {
    region: &'a RegionEntry,
    transports: &'a Transports,
    options: &'a RemoteOptions,
    identity: Identity,
    candidates: Vec<Candidate>,
}

impl Placing<'_> {
    /// Gives the first extents their homes; indexes of candidates, for each extent.
    fn place(
        &mut self,
        authority: &dyn RegionAuthority,
        extents: u32,
    ) -> Result<Vec<Vec<usize>>, CreateError> {
        let replicas = usize::from(self.region.replicas);
        let mut homes = vec![Vec::new(); extents as usize];
        let mut homeless: Vec<ExtentIndex> = (0..extents).map(ExtentIndex::new).collect();
        // Every round either places all that is left or finds a node that takes no more, so it ends.
        while !homeless.is_empty() {
            let without: Vec<String> = self
                .candidates
                .iter()
                .filter(|candidate| candidate.room.is_some())
                .map(|candidate| candidate.entry.name.clone())
                .collect();
            let places = match authority.place(self.region, &homeless, &without) {
                Ok(places) => places,
                Err(AuthorityError::NoRoom { wanted, left }) if without.is_empty() => {
                    return Err(AuthorityError::NoRoom { wanted, left }.into());
                }
                Err(AuthorityError::NoRoom { .. }) => {
                    let bytes = u64::from(extents) * self.region.extent_bytes.get();
                    return Err(CreateError::NoRoom {
                        asked: ByteCount::new(bytes * replicas as u64),
                        nodes: rooms(&mut self.candidates, self.region.extent_bytes),
                    });
                }
                Err(error) => return Err(error.into()),
            };
            let named = self.candidates_for(&places.nodes)?;
            let enough = |homes: &Vec<u16>| (1..=replicas).contains(&homes.len());
            if places.homes.len() != homeless.len() || !places.homes.iter().all(enough) {
                return Err(CreateError::Places);
            }
            let mut wanted: Vec<Vec<ExtentIndex>> = vec![Vec::new(); self.candidates.len()];
            for (extent, nodes) in homeless.iter().zip(&places.homes) {
                for (nth, node) in nodes.iter().enumerate() {
                    let candidate = *named
                        .get(usize::from(*node))
                        .filter(|_| !nodes[..nth].contains(node))
                        .ok_or(CreateError::Places)?;
                    wanted[candidate].push(*extent);
                }
            }
            let mut absent = false;
            for (node, wanted) in wanted.iter().enumerate() {
                if !wanted.is_empty() && self.candidates[node].session.is_none() {
                    self.open(authority, node)?;
                    absent |= self.candidates[node].room.is_some();
                }
            }
            if absent {
                // Asked for anew, without those.
                continue;
            }
            for (candidate, wanted) in self.candidates.iter_mut().zip(&wanted) {
                let missing: Vec<_> = wanted
                    .iter()
                    .copied()
                    .filter(|extent| !candidate.grants.contains_key(extent))
                    .collect();
                candidate.allocate(self.region.extent_bytes, &missing)?;
            }
            let mut homes_of = places.homes.iter();
            homeless.retain(|extent| {
                let wants = homes_of.next().map_or(0, Vec::len);
                let given = (0..self.candidates.len()).filter(|node| {
                    wanted[*node].binary_search(extent).is_ok()
                        && self.candidates[*node].grants.contains_key(extent)
                });
                let given: Vec<usize> = given.collect();
                let placed = given.len() == wants;
                if placed {
                    homes[extent.get() as usize] = given;
                }
                !placed
            });
        }
        Ok(homes)
    }

    /// The candidates of these entries; new ones are added.
    fn candidates_for(&mut self, nodes: &[NodeEntry]) -> Result<Vec<usize>, CreateError> {
        let mut named = Vec::with_capacity(nodes.len());
        for entry in nodes {
            let known = self
                .candidates
                .iter()
                .position(|candidate| candidate.entry.name == entry.name);
            named.push(known.unwrap_or(self.candidates.len()));
            if known.is_none() {
                if self.candidates.len() >= MAX_NODES {
                    return Err(CreateError::TooManyNodes { nodes: nodes.len() });
                }
                self.candidates.push(Candidate {
                    entry: entry.clone(),
                    transport: self.transports.get(entry)?,
                    session: None,
                    room: None,
                    grants: Grants::new(),
                });
            }
        }
        Ok(named)
    }

    /// Opens a session with a candidate, or learns that it takes no part.
    fn open(&mut self, authority: &dyn RegionAuthority, node: usize) -> Result<(), CreateError> {
        let candidate = &mut self.candidates[node];
        let dial = &*self.options.dial;
        let opened = open_session(Some(authority), dial, &candidate.entry, self.identity, true);
        let opened = match opened {
            Ok(session) => Ok(session),
            Err(OpenError::Grant(error)) => return Err(error.into()),
            Err(OpenError::Session(error)) => Err(error),
        };
        match opened {
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
        Ok(())
    }
}

impl Candidate {
    /// Allocates as many of `wanted` as there is room for, from the first on.
    fn allocate(
        &mut self,
        extent_bytes: ByteCount,
        wanted: &[ExtentIndex],
    ) -> Result<(), CreateError> {
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        let most = extents_at_a_time(extent_bytes);
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
        Ok(())
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

//! Regions: made, given places extent by extent, deleted.
//!
//! ```text
//!   create --> open --delete--> deleting --every node that held something has freed it--> gone
//!                |
//!                '-- place (in batches, ahead of need): an extent gets its homes once, and keeps them
//! ```
//!
//! A region is thin: it costs nothing until its extents are placed. Where fewer failure domains are up
//! than it asks for replicas, an extent is placed on those there are, and healing adds the rest.

use mycoram_fabric::placement::{FailureDomain, MAX_REPLICAS};
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, RegionId, TenantId};

use super::identity::{Level, Locality, NodeId, PriorityClass, ReservationId};
use super::leases::{LeaseRefusal, check_epoch};
use super::limits::{MAX_BATCH, MAX_EXTENTS, MAX_NAME_BYTES, MAX_REGIONS};
use super::nodes::NodeState;
use super::placement::{Ask, Board, NoPlace};
use super::records::{
    Homes, Key, Lease, RegionPolicy, RegionRecord, RegionStage, Replica, ReplicaState,
};
use super::reservations::Pressure;
use super::state::{Command, Turn};

/// Why a region is not made, not deleted, or gets no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionRefusal {
    /// A name that is none.
    #[error("a region's name has 1 to {MAX_NAME_BYTES} bytes")]
    Name,
    /// A region has it.
    #[error("there is a region \"{name}\" already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Its number was drawn before.
    #[error("{0} is there already, and is another one")]
    Taken(RegionId),
    /// Sizes that no region has.
    #[error(
        "a region of {bytes} in extents of {extent_bytes} cannot be: both are whole pages, not 0, at most {MAX_EXTENTS} extents"
    )]
    Size {
        /// The region's.
        bytes: ByteCount,
        /// Its extents'.
        extent_bytes: ByteCount,
    },
    /// A number of replicas that no region has.
    #[error(
        "{replicas} replicas cannot be, with at least {min_live} live: 1 to {MAX_REPLICAS}, of them 1 or more live"
    )]
    Replicas {
        /// Asked for.
        replicas: u8,
        /// Of these live.
        min_live: u8,
    },
    /// A share that is none.
    #[error("copies take 1 to 100 percent of the bandwidth, not {percent}")]
    CopyPercent {
        /// Asked for.
        percent: u8,
    },
    /// Not so many failure domains.
    #[error(
        "{asked} replicas need as many failure domains, there are {there} within the region's locality"
    )]
    Domains {
        /// Asked for.
        asked: u8,
        /// There are.
        there: usize,
    },
    /// A bound is reached.
    #[error("the cluster has {limit} regions already")]
    TooMany {
        /// The bound.
        limit: usize,
    },
    /// No such reservation of this tenant's.
    #[error("there is no {0} of this tenant's")]
    NoReservation(ReservationId),
    /// It has an owner.
    #[error("{region} is in use at {epoch}: stop its owner first, or force it")]
    InUse {
        /// Which region.
        region: RegionId,
        /// Its owner's epoch.
        epoch: Epoch,
    },
    /// Who asks is not its owner.
    #[error(transparent)]
    Lease(#[from] LeaseRefusal),
    /// An extent the region does not have.
    #[error("{extent} is asked for, the region has {extents} extents")]
    NoExtent {
        /// Asked for.
        extent: ExtentIndex,
        /// There are.
        extents: u32,
    },
    /// Too much at once.
    #[error("{asked} extents are asked for at once, at most {limit}")]
    TooMuch {
        /// Asked for.
        asked: usize,
        /// The bound.
        limit: usize,
    },
    /// The owner has asked again since.
    #[error("request {round} was overtaken by a later one of the same owner")]
    Overtaken {
        /// Which one.
        round: u64,
    },
    /// Memory is scarce.
    #[error(transparent)]
    Pressure(#[from] Pressure),
    /// Each node that could have it is full. Nothing was placed.
    #[error("no node has room for {extent} ({bytes}) under the ceiling of {ceiling_percent}%")]
    Full {
        /// Which extent.
        extent: ExtentIndex,
        /// Its size.
        bytes: ByteCount,
        /// The ceiling of the region's class.
        ceiling_percent: u8,
    },
    /// No node is up where the region may be. Nothing was placed.
    #[error("{up} nodes are up within the region's locality, at least {min_live} are needed")]
    NobodyUp {
        /// How many.
        up: usize,
        /// The region's policy.
        min_live: u8,
    },
}

/// A region is to be.
#[derive(Clone)]
pub struct CreateRegion {
    /// Random; the same one again asks the same again.
    pub id: RegionId,
    /// Its name, unique.
    pub name: String,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its size.
    pub bytes: ByteCount,
    /// Its unit of placement.
    pub extent_bytes: ByteCount,
    /// Copies of each extent.
    pub replicas: u8,
    /// How its owner treats them.
    pub policy: RegionPolicy,
    /// Who is refused first.
    pub class: PriorityClass,
    /// Where it may be.
    pub locality: Locality,
    /// What its extents are counted on.
    pub reservation: Option<ReservationId>,
    /// Random: what its owners show to memory nodes.
    pub secret: [u8; 16],
}

impl std::fmt::Debug for CreateRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateRegion")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("bytes", &self.bytes)
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}

impl Command for CreateRegion {
    type Answer = ();
    type Refusal = RegionRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<(), RegionRefusal> {
        self.check_words()?;
        let cluster = &*turn.cluster;
        if let Some(known) = cluster.regions.get(&self.id) {
            let same = known.name == self.name && known.secret == self.secret;
            return if same && known.stage == RegionStage::Open {
                Ok(())
            } else {
                Err(RegionRefusal::Taken(self.id))
            };
        }
        if cluster.region_named(&self.name).is_some() {
            return Err(RegionRefusal::NameTaken {
                name: self.name.clone(),
            });
        }
        if cluster.regions.len() >= MAX_REGIONS {
            return Err(RegionRefusal::TooMany { limit: MAX_REGIONS });
        }
        if let Some(id) = self.reservation {
            let reservation = cluster.reservations.get(&id);
            if reservation.is_none_or(|reservation| reservation.tenant != self.tenant) {
                return Err(RegionRefusal::NoReservation(id));
            }
        }
        let there = self.domains(cluster);
        if there < usize::from(self.replicas) {
            return Err(RegionRefusal::Domains {
                asked: self.replicas,
                there,
            });
        }
        turn.put_region(RegionRecord {
            id: self.id,
            name: self.name.clone(),
            tenant: self.tenant,
            bytes: self.bytes,
            extent_bytes: self.extent_bytes,
            replicas: self.replicas,
            policy: self.policy,
            class: self.class,
            locality: self.locality.clone(),
            reservation: self.reservation,
            secret: self.secret,
            lease: Lease::Free {
                epoch: Epoch::new(0),
                unfenced: Vec::new(),
            },
            stage: RegionStage::Open,
            next_order: 1,
        });
        Ok(())
    }
}

impl CreateRegion {
    fn check_words(&self) -> Result<(), RegionRefusal> {
        if self.name.is_empty() || self.name.len() > MAX_NAME_BYTES {
            return Err(RegionRefusal::Name);
        }
        let (bytes, extent_bytes) = (self.bytes, self.extent_bytes);
        let whole = |size: ByteCount| size.get() > 0 && size.is_page_aligned();
        let fits = || bytes.get().div_ceil(extent_bytes.get()) <= u64::from(MAX_EXTENTS);
        if !whole(bytes) || !whole(extent_bytes) || !fits() {
            return Err(RegionRefusal::Size {
                bytes,
                extent_bytes,
            });
        }
        let (replicas, min_live) = (self.replicas, self.policy.min_live);
        if replicas == 0 || replicas > MAX_REPLICAS || min_live == 0 || min_live > replicas {
            return Err(RegionRefusal::Replicas { replicas, min_live });
        }
        let percent = self.policy.copy_percent;
        if percent == 0 || percent > 100 {
            return Err(RegionRefusal::CopyPercent { percent });
        }
        Ok(())
    }

    /// Failure domains of nodes that have not left, within the locality.
    fn domains(&self, cluster: &super::state::Cluster) -> usize {
        let mut apart: Vec<&FailureDomain> = Vec::new();
        for node in cluster.nodes.values() {
            let domain = &node.domain;
            let differs = |other: &&FailureDomain| {
                Level::between(domain, other).is_some_and(|level| level >= self.locality.apart)
            };
            if node.state != NodeState::Left
                && self.locality.allows(domain)
                && apart.iter().all(differs)
            {
                apart.push(domain);
            }
        }
        apart.len()
    }
}

/// A region is to be no more. Its extents are freed and zeroed by the nodes that hold them.
#[derive(Clone, Debug)]
pub struct DeleteRegion {
    /// Which.
    pub region: RegionId,
    /// Also under an owner.
    pub force: bool,
    /// The owner itself asks, at this epoch: one that has a successor deletes nothing of it.
    pub by: Option<Epoch>,
}

impl Command for DeleteRegion {
    /// Nodes that have yet to free something of it; 0: it is gone. Asked again, it says how far it is.
    type Answer = usize;
    type Refusal = RegionRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<usize, RegionRefusal> {
        let region = turn.cluster.regions.get(&self.region);
        let mut region = region
            .ok_or(LeaseRefusal::UnknownRegion(self.region))?
            .clone();
        if let RegionStage::Deleting { unreleased } = &region.stage {
            return Ok(unreleased.len());
        }
        if let Some(epoch) = self.by {
            check_epoch(epoch, region.lease.epoch())?;
        }
        if region.lease.owner().is_some() && !self.force {
            return Err(RegionRefusal::InUse {
                region: self.region,
                epoch: region.lease.epoch(),
            });
        }
        let mut unreleased = turn.cluster.holders(self.region);
        unreleased.extend_from_slice(region.lease.unfenced());
        unreleased.sort_unstable();
        unreleased.dedup();
        let chunks = turn
            .cluster
            .chunks
            .range((self.region, 0)..=(self.region, u32::MAX));
        let chunks: Vec<_> = chunks.map(|((_, chunk), _)| *chunk).collect();
        for chunk in chunks {
            turn.remove(Key::Extents(self.region, chunk));
        }
        let left = unreleased.len();
        if left == 0 {
            turn.remove(Key::Region(self.region));
        } else {
            region.stage = RegionStage::Deleting { unreleased };
            turn.put_region(region);
        }
        Ok(left)
    }
}

/// An owner wants places for extents. Those that have one keep it, as far as it is not on a node that is
/// to be done `without`.
#[derive(Clone, Debug)]
pub struct Place {
    /// Which region.
    pub region: RegionId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Grows from one request of the owner to the next: one that was overtaken takes no place away.
    pub round: u64,
    /// At most [`MAX_BATCH`].
    pub extents: Vec<ExtentIndex>,
    /// Nodes that the owner has just found full or absent. A place there was never used, and is void.
    pub without: Vec<NodeId>,
}

impl Command for Place {
    /// Where each is, in the order they were asked for.
    type Answer = Vec<(ExtentIndex, Homes)>;
    type Refusal = RegionRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<Vec<(ExtentIndex, Homes)>, RegionRefusal> {
        let region = turn.cluster.owned(self.region, self.epoch)?.clone();
        if self.extents.len() > MAX_BATCH {
            return Err(RegionRefusal::TooMuch {
                asked: self.extents.len(),
                limit: MAX_BATCH,
            });
        }
        let extents = region.extents();
        if let Some(extent) = self.extents.iter().find(|extent| extent.get() >= extents) {
            return Err(RegionRefusal::NoExtent {
                extent: *extent,
                extents,
            });
        }
        let last = turn.cluster.rounds.entry(self.region).or_default();
        let overtaken = *last >= (self.epoch, self.round);
        *last = (*last).max((self.epoch, self.round));
        if overtaken && !self.without.is_empty() {
            return Err(RegionRefusal::Overtaken { round: self.round });
        }
        let mut missing = self.void(turn);
        missing.sort_unstable();
        missing.dedup();
        let copies = u64::from(region.replicas);
        let asked = region
            .extent_bytes
            .get()
            .saturating_mul(copies * missing.len() as u64);
        turn.cluster
            .check_room(region.class, region.reservation, asked)?;
        turn.place_missing(&region, &missing, &self.without)?;
        let home = |extent: &ExtentIndex| {
            let homes = turn.cluster.homes(self.region, *extent).cloned();
            (*extent, homes.unwrap_or_default())
        };
        Ok(self.extents.iter().map(home).collect())
    }
}

impl Place {
    /// Takes away what is void; gives the extents that are to be placed.
    fn void(&self, turn: &mut Turn<'_>) -> Vec<ExtentIndex> {
        let mut missing = Vec::new();
        for extent in &self.extents {
            let Some(homes) = turn.cluster.homes(self.region, *extent) else {
                missing.push(*extent);
                continue;
            };
            let void = |replica: &Replica| {
                replica.state == ReplicaState::Live && self.without.contains(&replica.node)
            };
            if homes.live().next().is_none() {
                missing.push(*extent);
            } else if homes.replicas.iter().any(void) {
                let mut homes = homes.clone();
                homes.replicas.retain(|replica| !void(replica));
                turn.set_homes(self.region, *extent, homes);
                missing.push(*extent);
            }
        }
        missing
    }
}

impl Turn<'_> {
    fn place_missing(
        &mut self,
        region: &RegionRecord,
        missing: &[ExtentIndex],
        without: &[NodeId],
    ) -> Result<(), RegionRefusal> {
        let mut board = Board::new(self.cluster, &region.locality);
        for node in without {
            board = board.without(*node);
        }
        let ceiling_percent = self.cluster.limits.ceilings.percent(region.class);
        let ask = Ask {
            region: region.id,
            bytes: region.extent_bytes.get(),
            locality: &region.locality,
            ceiling_percent,
        };
        let mut chosen: Vec<NodeId> = Vec::new();
        for extent in missing {
            let nobody = RegionRefusal::NobodyUp {
                up: board.sites.len(),
                min_live: region.policy.min_live,
            };
            let homes = self.cluster.homes(region.id, *extent).cloned();
            let mut homes = homes.unwrap_or_default();
            chosen.clear();
            chosen.extend(homes.live());
            let kept = chosen.len();
            // What is left of a lost extent lies where it lay, until its owner drops it.
            let not: Vec<_> = homes.replicas.iter().map(|replica| replica.node).collect();
            let copies = usize::from(region.replicas);
            match board.place(&ask, *extent, copies, &not, &mut chosen) {
                Ok(()) if chosen.len() >= usize::from(region.policy.min_live) => {}
                Err(NoPlace::Full) => {
                    return Err(RegionRefusal::Full {
                        extent: *extent,
                        bytes: region.extent_bytes,
                        ceiling_percent,
                    });
                }
                Ok(()) | Err(NoPlace::NoDomain) => return Err(nobody),
            }
            homes
                .replicas
                .extend(chosen[kept..].iter().map(|node| Replica {
                    node: *node,
                    state: ReplicaState::Live,
                }));
            self.set_homes(region.id, *extent, homes);
        }
        Ok(())
    }
}

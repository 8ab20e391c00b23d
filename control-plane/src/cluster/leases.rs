//! The right to write a region: one owner at a time, with an epoch that only grows.
//!
//! ```text
//!            acquire: epoch + 1                 all memory nodes of the region have confirmed
//!   free ----------------------> fencing ------------------------------------------------> granted
//!     ^                            | ^ acquire by another owner: epoch + 1                 |  |
//!     |                            | '-----------------------------------------------------'  |
//!     '------------- release ------'------------------------ release -------------------------'
//! ```
//!
//! From the moment of the new epoch on, nothing that the former owner says counts: it cannot mark a
//! replica stale, so it can finish no write that any fenced node refuses. The new owner is told to go
//! on when every node that holds something of the region has confirmed the new epoch, or is down. A
//! node that was down is not trusted: its replicas are marked stale where a fenced node has a live
//! one, and it confirms the epoch before it counts again.

use mycoram_fabric::units::{Epoch, ExtentIndex, RegionId};

use super::identity::{NodeId, OwnerId};
use super::limits::Limits;
use super::records::{Homes, Key, Lease, RegionRecord, RegionStage, ReplicaState};
use super::state::{Cluster, Command, Turn, index_of};

/// Why an owner is not heard.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefusal {
    /// There is no such region, or it is being deleted.
    #[error("there is no {0} in this cluster")]
    UnknownRegion(RegionId),
    /// Another owner has it.
    #[error(
        "{region} has {owner} at {epoch}, with a lease for {left_ms} ms: wait, or take it over"
    )]
    Owned {
        /// Which region.
        region: RegionId,
        /// Who has it.
        owner: OwnerId,
        /// At which epoch.
        epoch: Epoch,
        /// Its lease, ms.
        left_ms: u64,
    },
    /// It has a new owner.
    #[error("{requested} is too low, the region is at {current}: it has a new owner")]
    EpochTooLow {
        /// What was asked with.
        requested: Epoch,
        /// What holds.
        current: Epoch,
    },
    /// An epoch that was never given.
    #[error("{requested} was never given, the region is at {current}")]
    EpochUnknown {
        /// What was asked with.
        requested: Epoch,
        /// What holds.
        current: Epoch,
    },
    /// The former owner is not fenced yet.
    #[error("the former owner is not fenced yet on {waiting} nodes: ask again")]
    NotYet {
        /// How many nodes have not confirmed.
        waiting: usize,
    },
    /// The lease was given back.
    #[error("the lease of {epoch} was given back: acquire the region again")]
    GivenBack {
        /// The last epoch.
        epoch: Epoch,
    },
    /// There is no higher epoch.
    #[error("the region's epochs are used up")]
    NoMoreEpochs,
}

/// An owner wants a region. The same owner asks again until it is told to go on.
#[derive(Clone, Copy, Debug)]
pub struct Acquire {
    /// Which region.
    pub region: RegionId,
    /// Who: drawn at the start of its process.
    pub owner: OwnerId,
    /// Also from an owner whose lease runs.
    pub take_over: bool,
    /// The epoch that it was told to wait for. If there is a higher one, somebody else has taken the region
    /// over meanwhile: without this, two that wait would take it from each other for ever.
    pub waiting_for: Option<Epoch>,
}

/// How far an owner is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// The former owner is being fenced. Ask again.
    Wait {
        /// The epoch to come.
        epoch: Epoch,
        /// Who has not confirmed.
        nodes: Vec<NodeId>,
    },
    /// It may read and write.
    GoOn {
        /// Its epoch.
        epoch: Epoch,
        /// What the region is.
        region: Box<RegionRecord>,
        /// To be renewed within this time, ms.
        lease_ms: u64,
        /// It is to be renewed so often, ms.
        renew_ms: u64,
    },
}

impl Command for Acquire {
    type Answer = Acquired;
    type Refusal = LeaseRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<Acquired, LeaseRefusal> {
        let region = turn.cluster.open_region(self.region)?.clone();
        let left_ms = turn
            .cluster
            .owners
            .get(&self.region)
            .map_or(0, |until| turn.now.until(*until));
        if let Some(epoch) = self.waiting_for {
            check_epoch(epoch, region.lease.epoch())?;
        }
        match region.lease.owner() {
            Some(owner) if owner == self.owner => {}
            Some(owner) if left_ms > 0 && !self.take_over => {
                return Err(LeaseRefusal::Owned {
                    region: self.region,
                    owner,
                    epoch: region.lease.epoch(),
                    left_ms,
                });
            }
            _ => turn.raise_epoch(region, self.owner)?,
        }
        turn.renew(self.region);
        turn.try_go_on(self.region);
        let lease_ms = turn.cluster.limits.owner_lease_ms;
        let region = turn.cluster.open_region(self.region)?;
        Ok(match &region.lease {
            Lease::Fencing {
                epoch, unfenced, ..
            } => Acquired::Wait {
                epoch: *epoch,
                nodes: unfenced.clone(),
            },
            Lease::Granted { epoch, .. } | Lease::Free { epoch, .. } => Acquired::GoOn {
                epoch: *epoch,
                region: Box::new(region.clone()),
                lease_ms,
                renew_ms: Limits::heartbeat_ms(lease_ms),
            },
        })
    }
}

/// An owner is there.
#[derive(Clone, Copy, Debug)]
pub struct Renew {
    /// Which region.
    pub region: RegionId,
    /// Its epoch.
    pub epoch: Epoch,
}

impl Command for Renew {
    /// The lease from now on, ms.
    type Answer = u64;
    type Refusal = LeaseRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<u64, LeaseRefusal> {
        turn.cluster.owned(self.region, self.epoch)?;
        turn.renew(self.region);
        Ok(turn.cluster.limits.owner_lease_ms)
    }
}

/// An owner gives its region back. What is placed stays.
#[derive(Clone, Copy, Debug)]
pub struct GiveBack {
    /// Which region.
    pub region: RegionId,
    /// Its epoch.
    pub epoch: Epoch,
}

impl Command for GiveBack {
    type Answer = ();
    type Refusal = LeaseRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<(), LeaseRefusal> {
        let region = turn.cluster.open_region(self.region)?;
        check_epoch(self.epoch, region.lease.epoch())?;
        if region.lease.owner().is_some() {
            let mut region = region.clone();
            region.lease = Lease::Free {
                epoch: self.epoch,
                unfenced: region.lease.unfenced().to_vec(),
            };
            turn.put_region(region);
        }
        Ok(())
    }
}

pub(super) fn check_epoch(requested: Epoch, current: Epoch) -> Result<(), LeaseRefusal> {
    if requested < current {
        Err(LeaseRefusal::EpochTooLow { requested, current })
    } else if requested > current {
        Err(LeaseRefusal::EpochUnknown { requested, current })
    } else {
        Ok(())
    }
}

impl Cluster {
    /// A region that is there and not being deleted.
    pub(super) fn open_region(&self, region: RegionId) -> Result<&RegionRecord, LeaseRefusal> {
        self.regions
            .get(&region)
            .filter(|region| region.stage == RegionStage::Open)
            .ok_or(LeaseRefusal::UnknownRegion(region))
    }

    /// The region, if `epoch` is that of its owner, and it was told to go on.
    pub fn owned(&self, region: RegionId, epoch: Epoch) -> Result<&RegionRecord, LeaseRefusal> {
        let region = self.open_region(region)?;
        check_epoch(epoch, region.lease.epoch())?;
        match &region.lease {
            Lease::Granted { .. } => Ok(region),
            Lease::Fencing { unfenced, .. } => Err(LeaseRefusal::NotYet {
                waiting: unfenced.len(),
            }),
            Lease::Free { epoch, .. } => Err(LeaseRefusal::GivenBack { epoch: *epoch }),
        }
    }

    /// Nodes that hold anything of a region, in order.
    pub(super) fn holders(&self, region: RegionId) -> Vec<NodeId> {
        let mut holders: Vec<NodeId> = self
            .chunks
            .range((region, 0)..=(region, u32::MAX))
            .flat_map(|(_, chunk)| &chunk.extents)
            .flat_map(|homes| homes.replicas.iter().map(|replica| replica.node))
            .collect();
        holders.sort_unstable();
        holders.dedup();
        holders
    }
}

impl Turn<'_> {
    fn renew(&mut self, region: RegionId) {
        let until = self.now.after(self.cluster.limits.owner_lease_ms);
        self.cluster.owners.insert(region, until);
    }

    /// Gives a new owner the next epoch; nodes that hold anything are to be fenced.
    fn raise_epoch(
        &mut self,
        mut region: RegionRecord,
        owner: OwnerId,
    ) -> Result<(), LeaseRefusal> {
        let epoch = region.lease.epoch().next();
        let epoch = epoch.ok_or(LeaseRefusal::NoMoreEpochs)?;
        let mut unfenced = self.cluster.holders(region.id);
        unfenced.extend_from_slice(region.lease.unfenced());
        unfenced.sort_unstable();
        unfenced.dedup();
        region.lease = Lease::Fencing {
            epoch,
            owner,
            unfenced,
        };
        self.put_region(region);
        Ok(())
    }

    /// A node has confirmed an epoch.
    pub(super) fn fenced(&mut self, region: RegionId, node: NodeId, epoch: Epoch) {
        let Some(record) = self.cluster.regions.get(&region) else {
            return;
        };
        // Of an older epoch: there is a newer order.
        if record.lease.epoch() != epoch || !record.lease.unfenced().contains(&node) {
            return;
        }
        let mut record = record.clone();
        record.lease.unfenced_mut().retain(|other| *other != node);
        self.put_region(record);
        self.try_go_on(region);
    }

    /// A node has freed a region that is being deleted.
    pub(super) fn released(&mut self, region: RegionId, node: NodeId) {
        let Some(record) = self.cluster.regions.get(&region) else {
            return;
        };
        let mut record = record.clone();
        let RegionStage::Deleting { unreleased } = &mut record.stage else {
            return;
        };
        unreleased.retain(|other| *other != node);
        if unreleased.is_empty() {
            self.remove(Key::Region(region));
        } else {
            self.put_region(record);
        }
    }

    /// A node is down: nobody waits for its confirmation.
    pub(super) fn go_on_without(&mut self, node: NodeId) {
        let waits = |region: &&RegionRecord| region.lease.unfenced().contains(&node);
        let waiting: Vec<_> = self
            .cluster
            .regions
            .values()
            .filter(waits)
            .map(|r| r.id)
            .collect();
        for region in waiting {
            self.try_go_on(region);
        }
    }

    /// A node's memory is gone: there is nothing to be fenced or freed on it.
    pub(super) fn cease_waiting_for(&mut self, node: NodeId) {
        let ids: Vec<_> = self.cluster.regions.keys().copied().collect();
        for id in ids {
            let region = &self.cluster.regions[&id];
            if region.lease.unfenced().contains(&node) {
                let mut region = region.clone();
                region.lease.unfenced_mut().retain(|other| *other != node);
                self.put_region(region);
                self.try_go_on(id);
            }
            self.released(id, node);
        }
    }

    /// Tells a waiting owner to go on, when nobody is left who would take its predecessor's writes.
    fn try_go_on(&mut self, id: RegionId) {
        let Some(region) = self.cluster.regions.get(&id) else {
            return;
        };
        let Lease::Fencing {
            epoch,
            owner,
            unfenced,
        } = &region.lease
        else {
            return;
        };
        let is_there = |node: &NodeId| {
            let node = self.cluster.nodes.get(node);
            node.is_some_and(|node| node.state.is_there())
        };
        if unfenced.iter().any(is_there) {
            return;
        }
        let mut region = region.clone();
        let unfenced = unfenced.clone();
        region.lease = Lease::Granted {
            epoch: *epoch,
            owner: *owner,
            unfenced: unfenced.clone(),
        };
        self.put_region(region);
        self.distrust(id, &unfenced);
        // There is an owner again: what waited for one is looked at.
        let chunks = self.cluster.chunks.range((id, 0)..=(id, u32::MAX));
        let chunks: Vec<_> = chunks.map(|(key, _)| *key).collect();
        self.cluster.derived.unsettled.extend(chunks);
    }

    /// Marks replicas on unfenced nodes stale where a fenced one is live.
    fn distrust(&mut self, id: RegionId, unfenced: &[NodeId]) {
        if unfenced.is_empty() {
            return;
        }
        let mut doubtful: Vec<(ExtentIndex, Homes)> = Vec::new();
        for ((_, chunk), extents) in self.cluster.chunks.range((id, 0)..=(id, u32::MAX)) {
            for (at, homes) in extents.extents.iter().enumerate() {
                let trusted = homes.live().any(|node| !unfenced.contains(&node));
                if trusted && homes.live().any(|node| unfenced.contains(&node)) {
                    doubtful.push((index_of(*chunk, at), homes.clone()));
                }
            }
        }
        for (extent, mut homes) in doubtful {
            for replica in &mut homes.replicas {
                if replica.state == ReplicaState::Live && unfenced.contains(&replica.node) {
                    replica.state = ReplicaState::Stale;
                }
            }
            self.set_homes(id, extent, homes);
        }
    }
}

//! The copies of an extent, as their owner moves them from state to state.
//!
//! ```text
//!              placed                    a write missed it
//!   (nowhere) --------> live ----------------------------------> stale ----.
//!       |                ^  \                                    |   ^     | there are enough others
//!       |                |   '- there are more than wanted --.   |   |     v
//!       |                | copied                            '---|---|-> dropping --dropped--> (gone)
//!       |   ordered      |                        ordered anew   |   |
//!       '------------> copying <---------------------------------'   |
//!                         '---------- a write missed it -------------'
//! ```
//!
//! Marking stale is answered only when it is durable, and before that the write that missed the
//! replica is not done. A copy that was ordered anew has another number: what is said late of the
//! attempt before does not make it live.

use mycoram_fabric::placement::NodeEntry;
use mycoram_fabric::units::{Epoch, ExtentIndex, RegionId};

use super::identity::{NodeId, OrderId};
use super::leases::LeaseRefusal;
use super::limits::MAX_BATCH;
use super::records::{Homes, Replica, ReplicaState};
use super::state::{Cluster, Command, Turn};

/// Why a replica does not change its state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaRefusal {
    /// Who asks is not the owner.
    #[error(transparent)]
    Lease(#[from] LeaseRefusal),
    /// Too few would be left.
    #[error(
        "{extent} would be left with {left} live replicas, at least {min_live} must be: this write cannot be done"
    )]
    LastLive {
        /// Which extent.
        extent: ExtentIndex,
        /// How many would be left.
        left: usize,
        /// The region's policy.
        min_live: u8,
    },
    /// There is no such replica.
    #[error("{extent} has no replica on {node}")]
    NoReplica {
        /// Which extent.
        extent: ExtentIndex,
        /// Which node.
        node: NodeId,
    },
    /// It is not being made, or by another attempt.
    #[error("the replica of {extent} on {node} is {state:?}, {order} is over")]
    OrderOver {
        /// Which extent.
        extent: ExtentIndex,
        /// Which node.
        node: NodeId,
        /// The attempt that is told of.
        order: OrderId,
        /// The replica's state.
        state: ReplicaState,
    },
    /// It was not to be dropped.
    #[error("the replica of {extent} on {node} is {state:?}: it was not to be dropped")]
    NotDropping {
        /// Which extent.
        extent: ExtentIndex,
        /// Which node.
        node: NodeId,
        /// The replica's state.
        state: ReplicaState,
    },
    /// Too much at once.
    #[error("{asked} replicas are named at once, at most {limit}")]
    TooMuch {
        /// Asked for.
        asked: usize,
        /// The bound.
        limit: usize,
    },
}

/// Replicas missed a write. All are marked, or none.
#[derive(Clone, Debug)]
pub struct MarkStale {
    /// Which region.
    pub region: RegionId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Which replicas, at most [`MAX_BATCH`]. One that is not live any more is stale enough.
    pub replicas: Vec<(ExtentIndex, NodeId)>,
}

impl Command for MarkStale {
    type Answer = ();
    type Refusal = ReplicaRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<(), ReplicaRefusal> {
        let min_live = turn.cluster.owned(self.region, self.epoch)?.policy.min_live;
        if self.replicas.len() > MAX_BATCH {
            return Err(ReplicaRefusal::TooMuch {
                asked: self.replicas.len(),
                limit: MAX_BATCH,
            });
        }
        for (extent, node) in &self.replicas {
            let mut homes = turn
                .cluster
                .homes(self.region, *extent)
                .cloned()
                .unwrap_or_default();
            let mut changes = false;
            for replica in &mut homes.replicas {
                let usable = matches!(
                    replica.state,
                    ReplicaState::Live | ReplicaState::Copying { .. }
                );
                if replica.node == *node && usable {
                    replica.state = ReplicaState::Stale;
                    changes = true;
                }
            }
            // Also where this one was not live: the owner may take a write for done only if others are.
            let left = homes.live().count();
            if left < usize::from(min_live) {
                return Err(ReplicaRefusal::LastLive {
                    extent: *extent,
                    left,
                    min_live,
                });
            }
            if changes {
                turn.set_homes(self.region, *extent, homes);
            }
        }
        Ok(())
    }
}

/// A replica was made: it has every page, and every write goes to it.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// Which region.
    pub region: RegionId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Which extent.
    pub extent: ExtentIndex,
    /// Where.
    pub node: NodeId,
    /// By which order.
    pub order: OrderId,
}

impl Command for Copied {
    type Answer = ();
    type Refusal = ReplicaRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<(), ReplicaRefusal> {
        turn.cluster.owned(self.region, self.epoch)?;
        let (mut homes, at) = turn.cluster.replica(self.region, self.extent, self.node)?;
        let state = homes.replicas[at].state;
        match state {
            ReplicaState::Copying { order } if order == self.order => {
                homes.replicas[at].state = ReplicaState::Live;
                turn.set_homes(self.region, self.extent, homes);
                Ok(())
            }
            // Told again, because the answer was lost.
            ReplicaState::Live => Ok(()),
            _ => Err(ReplicaRefusal::OrderOver {
                extent: self.extent,
                node: self.node,
                order: self.order,
                state,
            }),
        }
    }
}

/// A replica was dropped, its memory is freed.
#[derive(Clone, Copy, Debug)]
pub struct Dropped {
    /// Which region.
    pub region: RegionId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Which extent.
    pub extent: ExtentIndex,
    /// Where.
    pub node: NodeId,
}

impl Command for Dropped {
    type Answer = ();
    type Refusal = ReplicaRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<(), ReplicaRefusal> {
        turn.cluster.owned(self.region, self.epoch)?;
        let (mut homes, at) = match turn.cluster.replica(self.region, self.extent, self.node) {
            // Told again, because the answer was lost.
            Err(ReplicaRefusal::NoReplica { .. }) => return Ok(()),
            found => found?,
        };
        let Replica { node, state } = homes.replicas[at];
        if state != ReplicaState::Dropping {
            return Err(ReplicaRefusal::NotDropping {
                extent: self.extent,
                node,
                state,
            });
        }
        homes.replicas.remove(at);
        turn.set_homes(self.region, self.extent, homes);
        Ok(())
    }
}

/// What an owner is to do for its replicas. It is told again until it says that it is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Make a replica: writes go to it from now on, pages are copied behind; then say [`Copied`].
    /// Where that fails, say [`MarkStale`].
    Copy {
        /// Which extent.
        extent: ExtentIndex,
        /// Where to.
        to: NodeId,
        /// As the owner knows it.
        entry: NodeEntry,
        /// Which attempt.
        order: OrderId,
    },
    /// Use a replica no longer and free it; then say [`Dropped`].
    Drop {
        /// Which extent.
        extent: ExtentIndex,
        /// Where.
        node: NodeId,
        /// As the owner knows it.
        entry: NodeEntry,
    },
}

/// Most orders told at once.
pub const MAX_ORDERS: usize = 1024;

impl Cluster {
    /// What a region's owner is to do, at most [`MAX_ORDERS`]. Derived from the records: nothing is
    /// forgotten when the control plane or the owner starts again.
    pub fn orders(&self, region: RegionId, epoch: Epoch) -> Result<Vec<Order>, LeaseRefusal> {
        self.owned(region, epoch)?;
        let first = (region, ExtentIndex::new(0));
        let last = (region, ExtentIndex::new(u32::MAX));
        let mut orders = Vec::new();
        for (_, extent) in self.derived.orders.range(first..=last) {
            for replica in self
                .homes(region, *extent)
                .iter()
                .flat_map(|homes| &homes.replicas)
            {
                let node = self
                    .nodes
                    .get(&replica.node)
                    .filter(|node| node.state.is_there());
                let Some(node) = node else {
                    continue;
                };
                match replica.state {
                    ReplicaState::Copying { order } => orders.push(Order::Copy {
                        extent: *extent,
                        to: node.id,
                        entry: node.entry(),
                        order,
                    }),
                    ReplicaState::Dropping => orders.push(Order::Drop {
                        extent: *extent,
                        node: node.id,
                        entry: node.entry(),
                    }),
                    ReplicaState::Live | ReplicaState::Stale => {}
                }
            }
            if orders.len() >= MAX_ORDERS {
                orders.truncate(MAX_ORDERS);
                break;
            }
        }
        Ok(orders)
    }

    /// Where a region's extents from `first` on are, at most [`MAX_BATCH`] of those that are anywhere.
    /// The owner that took a region over asks until nothing more comes.
    pub fn directory(
        &self,
        region: RegionId,
        epoch: Epoch,
        first: ExtentIndex,
    ) -> Result<Vec<(ExtentIndex, Homes)>, LeaseRefusal> {
        self.owned(region, epoch)?;
        Ok(self.placed_from(region, first).take(MAX_BATCH).collect())
    }

    /// The region's extents from `first` on that are somewhere, or were.
    pub fn placed_from(
        &self,
        region: RegionId,
        first: ExtentIndex,
    ) -> impl Iterator<Item = (ExtentIndex, Homes)> + '_ {
        let (chunk, _) = super::records::chunk_of(first);
        self.chunks
            .range((region, chunk)..=(region, u32::MAX))
            .flat_map(|((_, chunk), extents)| {
                let index = move |at| super::state::index_of(*chunk, at);
                extents
                    .extents
                    .iter()
                    .enumerate()
                    .map(move |(at, homes)| (index(at), homes))
            })
            .filter(move |(extent, homes)| {
                *extent >= first && (homes.lost || !homes.replicas.is_empty())
            })
            .map(|(extent, homes)| (extent, homes.clone()))
    }

    fn replica(
        &self,
        region: RegionId,
        extent: ExtentIndex,
        node: NodeId,
    ) -> Result<(Homes, usize), ReplicaRefusal> {
        let homes = self.homes(region, extent).cloned().unwrap_or_default();
        let at = homes
            .replicas
            .iter()
            .position(|replica| replica.node == node);
        at.map(|at| (homes, at))
            .ok_or(ReplicaRefusal::NoReplica { extent, node })
    }
}

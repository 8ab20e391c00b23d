//! Copies that are missing, copies that are too many, and balance. Its owners do the work.
//!
//! ```text
//!   each tick, for extents whose region has an owner that is heard:
//!     live on nodes that are up or suspect, and being made there  <  wanted  --> order copies,
//!                                                              the most endangered first, few at once
//!     live on nodes that are up                                >= wanted  --> drop what is over:
//!                                                              stale, on nodes that drain or are down
//!     nothing is missing, a node has far less than its share             --> order a few moves
//! ```
//!
//! All of it derives from the records: whoever is killed, the next tick goes on where they stand.
//! What is to be looked at is remembered, so that a cluster at rest costs nothing.

use std::collections::BTreeMap;

use mycoram_fabric::units::{ExtentIndex, RegionId};

use super::identity::{NodeId, OrderId};
use super::limits::MAX_RECORDED_REPLICAS;
use super::nodes::{IllegalTransition, NodeState};
use super::placement::{Ask, Board, Eagerness};
use super::records::{
    CHUNK_EXTENTS, Homes, Lease, RegionRecord, RegionStage, Replica, ReplicaState,
};
use super::state::{Cluster, Command, Turn, index_of};

/// What replaces a lost replica may use all there is.
const HEALING_CEILING_PERCENT: u8 = 100;
/// A node with less than this part of its share is given more, and until it has nearly all of it.
const STARVED: f64 = 0.90;
const NEARLY_FED: f64 = 0.99;

/// Time passes: leases run out, copies are ordered. To be called several times within a lease.
#[derive(Clone, Copy, Debug)]
pub struct Tick;

/// What a tick found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticked {
    /// Replicas being made.
    pub copying: u32,
    /// Extents with fewer copies than wanted that wait for their turn, or for room.
    pub waiting: u32,
}

impl Command for Tick {
    type Answer = Ticked;
    type Refusal = IllegalTransition;

    fn run(&self, turn: &mut Turn<'_>) -> Result<Ticked, IllegalTransition> {
        turn.settle_nodes()?;
        let waiting = turn.heal();
        let active = turn.active_regions();
        Ok(Ticked {
            copying: turn.cluster.copying(&active),
            waiting,
        })
    }
}

/// What has no other place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Homeless {
    pub(super) extents: u32,
    pub(super) bytes: u64,
}

/// An extent with too few copies. The order is that of danger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Endangered {
    live: usize,
    class: std::cmp::Reverse<super::identity::PriorityClass>,
    region: RegionId,
    extent: ExtentIndex,
    missing: usize,
}

/// How an extent is.
struct Looked {
    /// Copies that count and are there.
    live: usize,
    /// Copies that are to be made.
    missing: usize,
    /// Its homes, without what is over; `None`: nothing is.
    tidied: Option<Homes>,
}

/// A board for each region, of the same nodes.
#[derive(Default)]
struct Boards {
    boards: BTreeMap<RegionId, Board>,
}

impl Boards {
    fn of(
        &mut self,
        cluster: &Cluster,
        region: &RegionRecord,
        without: Option<NodeId>,
    ) -> &mut Board {
        self.boards.entry(region.id).or_insert_with(|| {
            let board = Board::new(cluster, &region.locality);
            match without {
                Some(node) => board.without(node),
                None => board,
            }
        })
    }

    /// Counts bytes on a node, on all boards.
    fn take(&mut self, node: NodeId, bytes: u64) {
        for board in self.boards.values_mut() {
            if let Some(at) = board.site_of(node) {
                board.take(at, bytes);
            }
        }
    }
}

impl Cluster {
    pub(super) fn state_of(&self, node: NodeId) -> NodeState {
        self.nodes
            .get(&node)
            .map_or(NodeState::Left, |node| node.state)
    }

    fn copying(&self, regions: &[RegionId]) -> u32 {
        let copying = regions
            .iter()
            .filter_map(|id| self.derived.copying_of.get(id));
        copying.fold(0u32, |sum, copies| sum.saturating_add(*copies))
    }

    /// Extents that could not be elsewhere if the node went.
    pub(super) fn homeless_without(&self, node: NodeId) -> Homeless {
        let mut homeless = Homeless::default();
        let mut boards = Boards::default();
        for ((id, chunk), extents) in &self.chunks {
            let region = &self.regions[id];
            for (at, homes) in extents.extents.iter().enumerate() {
                if homes
                    .on(node)
                    .is_none_or(|replica| replica.state != ReplicaState::Live)
                {
                    continue;
                }
                let others = self.counting(homes, Some(node));
                if others.len() >= usize::from(region.replicas) {
                    continue;
                }
                let board = boards.of(self, region, Some(node));
                let not: Vec<_> = homes.replicas.iter().map(|replica| replica.node).collect();
                let ask = healing_ask(region);
                match board.choose(&ask, index_of(*chunk, at), &others, &not) {
                    Ok(at) => {
                        let taken = board.sites[at].id;
                        boards.take(taken, ask.bytes);
                    }
                    Err(_) => {
                        homeless.extents += 1;
                        homeless.bytes += ask.bytes;
                    }
                }
            }
        }
        homeless
    }

    /// Nodes of copies that are there and will be, or are being made there.
    pub(super) fn counting(&self, homes: &Homes, without: Option<NodeId>) -> Vec<NodeId> {
        let counts = |replica: &&Replica| {
            let made = matches!(
                replica.state,
                ReplicaState::Live | ReplicaState::Copying { .. }
            );
            made && Some(replica.node) != without && self.state_of(replica.node).counts()
        };
        homes
            .replicas
            .iter()
            .filter(counts)
            .map(|replica| replica.node)
            .collect()
    }

    fn look(&self, region: &RegionRecord, homes: &Homes, board: &Board) -> Looked {
        let wanted = usize::from(region.replicas);
        let live_where = |test: fn(NodeState) -> bool| {
            homes
                .live()
                .filter(|node| test(self.state_of(*node)))
                .count()
        };
        let (there, counting) = (
            live_where(NodeState::is_there),
            live_where(NodeState::counts),
        );
        let up = live_where(|state| state == NodeState::Up);
        let mut tidied = homes.clone();
        let lost = homes.live().next().is_none();
        let mut copying = 0;
        for replica in &mut tidied.replicas {
            if matches!(replica.state, ReplicaState::Copying { .. }) {
                // One that is made for balance may go on; none where there are too many already, and
                // none that has nothing to be made from: others can use its turn.
                let over = up > wanted || (up == wanted && copying > 0);
                if there == 0 || over || !self.state_of(replica.node).counts() {
                    replica.state = ReplicaState::Dropping;
                } else {
                    copying += 1;
                }
            }
        }
        for replica in &mut tidied.replicas {
            let over = match replica.state {
                ReplicaState::Live => up >= wanted && self.state_of(replica.node) != NodeState::Up,
                ReplicaState::Stale => lost || counting + copying >= wanted,
                ReplicaState::Copying { .. } | ReplicaState::Dropping => false,
            };
            if over {
                replica.state = ReplicaState::Dropping;
            }
        }
        while up >= wanted && tidied.live().count() > wanted {
            let victim = board.least_wanted(&tidied.live().collect::<Vec<_>>());
            let replica = tidied
                .replicas
                .iter_mut()
                .find(|replica| Some(replica.node) == victim);
            match replica {
                Some(replica) => replica.state = ReplicaState::Dropping,
                None => break,
            }
        }
        // Of what is on nodes that are down only, nothing can be made until one is back.
        let missing = if there == 0 {
            0
        } else {
            wanted.saturating_sub(counting + copying)
        };
        Looked {
            live: there,
            missing,
            tidied: (tidied != *homes).then_some(tidied),
        }
    }
}

impl Turn<'_> {
    /// Regions whose owner is heard, and may copy.
    fn active_regions(&self) -> Vec<RegionId> {
        let active = |region: &&RegionRecord| {
            let granted = matches!(region.lease, Lease::Granted { .. });
            let until = self.cluster.owners.get(&region.id);
            granted
                && region.stage == RegionStage::Open
                && until.is_some_and(|until| *until > self.now)
        };
        self.cluster
            .regions
            .values()
            .filter(active)
            .map(|region| region.id)
            .collect()
    }

    /// Gives how many extents wait.
    fn heal(&mut self) -> u32 {
        let active = self.active_regions();
        let mut boards = Boards::default();
        let mut endangered = Vec::new();
        for id in &active {
            let region = self.cluster.regions[id].clone();
            let unsettled = self
                .cluster
                .derived
                .unsettled
                .range((*id, 0)..=(*id, u32::MAX));
            let unsettled: Vec<u32> = unsettled.map(|(_, chunk)| *chunk).collect();
            for chunk in unsettled {
                self.cluster.derived.unsettled.remove(&(*id, chunk));
                self.look_at_chunk(&region, chunk, &mut boards, &mut endangered);
            }
        }
        endangered.sort_unstable();
        let mut waiting = 0;
        for extent in endangered {
            if !self.order_copies(&extent, &active, &mut boards) {
                waiting += 1;
                let chunk = extent.extent.get() / CHUNK_EXTENTS;
                self.cluster
                    .derived
                    .unsettled
                    .insert((extent.region, chunk));
            }
        }
        if waiting == 0 && self.cluster.derived.stirred {
            self.balance(&active, &mut boards);
        }
        waiting
    }

    fn look_at_chunk(
        &mut self,
        region: &RegionRecord,
        chunk: u32,
        boards: &mut Boards,
        endangered: &mut Vec<Endangered>,
    ) {
        let board = boards.of(self.cluster, region, None);
        let mut tidied = Vec::new();
        let extents = self.cluster.chunks.get(&(region.id, chunk));
        for (at, homes) in extents
            .iter()
            .flat_map(|chunk| chunk.extents.iter().enumerate())
        {
            if homes.replicas.is_empty() {
                continue;
            }
            let looked = self.cluster.look(region, homes, board);
            let extent = index_of(chunk, at);
            if let Some(homes) = looked.tidied {
                tidied.push((extent, homes));
            }
            if looked.missing > 0 {
                endangered.push(Endangered {
                    live: looked.live,
                    class: std::cmp::Reverse(region.class),
                    region: region.id,
                    extent,
                    missing: looked.missing,
                });
            }
        }
        for (extent, homes) in tidied {
            self.set_homes(region.id, extent, homes);
        }
    }

    /// Orders the copies that an extent misses. `false`: not all of them, because of limits or room.
    fn order_copies(
        &mut self,
        lacks: &Endangered,
        active: &[RegionId],
        boards: &mut Boards,
    ) -> bool {
        for _ in 0..lacks.missing {
            let region = self.cluster.regions[&lacks.region].clone();
            let limits = self.cluster.limits;
            let copying = self.cluster.derived.copying_of.get(&region.id).copied();
            if copying.unwrap_or(0) >= limits.copies_per_region
                || self.cluster.copying(active) >= limits.copies_at_once
            {
                return false;
            }
            let homes = self
                .cluster
                .homes(region.id, lacks.extent)
                .cloned()
                .unwrap_or_default();
            let others = self.cluster.counting(&homes, None);
            let board = boards.of(self.cluster, &region, None);
            let again = homes.replicas.iter().find(|replica| {
                replica.state == ReplicaState::Stale
                    && board.site_of(replica.node).is_some()
                    && self.cluster.has_hands(replica.node)
                    && board.is_apart(replica.node, &others, region.locality.apart)
            });
            let target = match again {
                Some(replica) => replica.node,
                None if homes.replicas.len() >= MAX_RECORDED_REPLICAS => return false,
                None => {
                    let ask = healing_ask(&region);
                    let mut not: Vec<_> =
                        homes.replicas.iter().map(|replica| replica.node).collect();
                    not.extend(
                        self.cluster
                            .derived
                            .copying_to
                            .keys()
                            .filter(|node| !self.cluster.has_hands(**node)),
                    );
                    let Ok(at) = board.choose(&ask, lacks.extent, &others, &not) else {
                        return false;
                    };
                    let target = board.sites[at].id;
                    boards.take(target, ask.bytes);
                    target
                }
            };
            self.order_copy(region, lacks.extent, homes, target);
        }
        true
    }

    fn order_copy(
        &mut self,
        mut region: RegionRecord,
        extent: ExtentIndex,
        mut homes: Homes,
        to: NodeId,
    ) {
        let order = OrderId::new(region.next_order);
        let state = ReplicaState::Copying { order };
        region.next_order = region.next_order.saturating_add(1);
        match homes.replicas.iter_mut().find(|replica| replica.node == to) {
            Some(replica) => replica.state = state,
            None => homes.replicas.push(Replica { node: to, state }),
        }
        let id = region.id;
        self.put_region(region);
        self.set_homes(id, extent, homes);
    }

    /// Moves a few extents to nodes that have far less than their share.
    fn balance(&mut self, active: &[RegionId], boards: &mut Boards) {
        let limit = self.cluster.limits.moves_at_once;
        for id in active {
            let region = self.cluster.regions[id].clone();
            for eagerness in Eagerness::ORDER {
                let board = boards.of(self.cluster, &region, None);
                let hungry = self.cluster.hungry(board, &region);
                if hungry.is_empty() {
                    break;
                }
                let chunks = self.cluster.chunks.range((*id, 0)..=(*id, u32::MAX));
                let chunks: Vec<u32> = chunks.map(|((_, chunk), _)| *chunk).collect();
                for chunk in chunks {
                    let extents = self.cluster.chunks[&(*id, chunk)].extents.len();
                    for at in 0..extents {
                        if self.cluster.copying(active) >= limit {
                            return;
                        }
                        let extent = index_of(chunk, at);
                        self.move_one(extent, &hungry, eagerness, *id, boards);
                    }
                }
            }
        }
        if self.cluster.copying(active) == 0 {
            // Until something changes there is nothing to be moved.
            self.cluster.derived.stirred = false;
        }
    }

    fn move_one(
        &mut self,
        extent: ExtentIndex,
        hungry: &[NodeId],
        eagerness: Eagerness,
        id: RegionId,
        boards: &mut Boards,
    ) {
        let Some(homes) = self.cluster.homes(id, extent) else {
            return;
        };
        let region = &self.cluster.regions[&id];
        let board = boards.of(self.cluster, region, None);
        let at_rest = homes.replicas.len() == usize::from(region.replicas)
            && homes.live().all(|node| board.site_of(node).is_some())
            && homes.live().count() == homes.replicas.len();
        if !at_rest {
            return;
        }
        let live: Vec<NodeId> = homes.live().collect();
        let fullness = |node: &NodeId| {
            board
                .site_of(*node)
                .map_or(0.0, |at| board.sites[at].fullness())
        };
        let Some(from) = live
            .iter()
            .copied()
            .max_by(|a, b| fullness(a).total_cmp(&fullness(b)))
        else {
            return;
        };
        let others: Vec<NodeId> = live.iter().copied().filter(|node| *node != from).collect();
        let ask = healing_ask(region);
        let Some(to) = hungry.iter().copied().find(|to| {
            !live.contains(to)
                && self.cluster.has_hands(*to)
                && board.improves(&ask, extent, from, *to, &others, eagerness)
        }) else {
            return;
        };
        let (region, homes) = (region.clone(), homes.clone());
        let bytes = region.extent_bytes.get();
        self.order_copy(region, extent, homes, to);
        boards.take(to, bytes);
        // The donor is counted without it, so that it is not asked for more than it has too much.
        for board in boards.boards.values_mut() {
            if let Some(at) = board.site_of(from) {
                board.give_back(at, bytes);
            }
        }
    }
}

impl Cluster {
    /// Whether another copy may be made on a node now.
    fn has_hands(&self, node: NodeId) -> bool {
        let copying = self.derived.copying_to.get(&node).copied();
        copying.unwrap_or(0) < self.limits.copies_per_node
    }

    /// Nodes with far less than their share.
    fn hungry(&self, board: &Board, region: &RegionRecord) -> Vec<NodeId> {
        let bytes = region.extent_bytes.get() as f64;
        let hungry = |site: &&super::placement::Site| {
            let (used, share) = (site.used as f64, board.share(site));
            let fed = self.derived.copying_to.get(&site.id).copied().unwrap_or(0) > 0;
            let until = if fed { NEARLY_FED } else { STARVED };
            used < share * until && used + bytes <= share
        };
        board
            .sites
            .iter()
            .filter(hungry)
            .map(|site| site.id)
            .collect()
    }
}

pub(super) fn healing_ask(region: &RegionRecord) -> Ask<'_> {
    Ask {
        region: region.id,
        bytes: region.extent_bytes.get(),
        locality: &region.locality,
        ceiling_percent: HEALING_CEILING_PERCENT,
    }
}

//! Memory nodes: who is there, who is believed to be, and what each is to be told.
//!
//! ```text
//!            registered            fenced, watched long enough
//!   (new) ------------> joining ------------------------------> up <------ heard, report is old
//!                          ^  \                                 | \                 |
//!             heard again  |   \ lease missed                   |  `--reported--> suspect
//!                          |    v                               |                   |
//!                         down <------------- lease missed -----+-------------------+
//!                          |                                    |
//!                          | nothing left on it                 v drain asked
//!                          '--(if it was to be drained)--> left <------ draining
//!                                                            nothing left on it
//! ```
//!
//! A node that comes back is told the epochs it missed before it counts again. One that comes back
//! again and again is watched for longer each time, so that copies are not begun and thrown away
//! with every flap. A node that comes back as another process has lost its memory: its replicas go.

use mycoram_fabric::placement::FailureDomain;
use mycoram_fabric::units::{ByteCount, Epoch, Incarnation, RegionId, TenantId};
use serde::{Deserialize, Serialize};

use super::identity::NodeId;
use super::limits::{Limits, MAX_NAME_BYTES, MAX_NODES};
use super::records::{Homes, Key, NodeAddress, NodeRecord, RegionStage, ReplicaState};
use super::state::{Cluster, Command, Heard, Turn};

/// State of a memory node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It is there; it has yet to confirm epochs, or is watched because it flapped.
    Joining,
    /// It is there.
    Up,
    /// It is there, and an agent has trouble with it.
    Suspect,
    /// It is not heard.
    Down,
    /// It is there, and its extents are moved off it.
    Draining,
    /// Nothing is on it. It may go.
    Left,
}

/// What changes a node's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// Its process said who it is.
    Registered,
    /// It confirmed all epochs, and was watched long enough.
    Admitted,
    /// An agent has trouble with it.
    Reported,
    /// The report is old, and it is heard.
    Cleared,
    /// It is heard, after it was not.
    HeardAgain,
    /// It was not heard for a lease.
    LeaseMissed,
    /// It is to be emptied.
    DrainAsked,
    /// It is not to be emptied any more.
    DrainEnded,
    /// Nothing is on it, and it was to be emptied.
    Emptied,
}

/// What cannot happen in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a node that is {state:?} cannot be {event:?}")]
pub struct IllegalTransition {
    /// The state.
    pub state: NodeState,
    /// What was to happen.
    pub event: NodeEvent,
}

impl NodeState {
    /// The state after `event`; `drain`: the node is to be emptied.
    pub fn after(self, event: NodeEvent, drain: bool) -> Result<Self, IllegalTransition> {
        use NodeEvent as E;
        use NodeState as S;
        match (self, event) {
            (_, E::Registered) => Ok(S::Joining),
            (S::Joining, E::Admitted) if drain => Ok(S::Draining),
            (S::Joining, E::Admitted) => Ok(S::Up),
            (S::Up | S::Suspect, E::Reported) => Ok(S::Suspect),
            (state @ (S::Joining | S::Draining | S::Down), E::Reported) => Ok(state),
            (S::Suspect, E::Cleared) => Ok(S::Up),
            (S::Down, E::HeardAgain) => Ok(S::Joining),
            (S::Joining | S::Up | S::Suspect | S::Draining, E::LeaseMissed) => Ok(S::Down),
            (S::Up | S::Suspect | S::Draining, E::DrainAsked) => Ok(S::Draining),
            (state @ (S::Joining | S::Down), E::DrainAsked | E::DrainEnded) => Ok(state),
            (S::Draining, E::DrainEnded) => Ok(S::Up),
            (S::Draining | S::Down, E::Emptied) if drain => Ok(S::Left),
            (state, event) => Err(IllegalTransition { state, event }),
        }
    }

    /// Whether its replicas count as copies that are there and will be.
    #[must_use]
    pub fn counts(self) -> bool {
        matches!(self, Self::Up | Self::Suspect)
    }

    /// Whether it is believed to answer.
    #[must_use]
    pub fn is_there(self) -> bool {
        !matches!(self, Self::Down | Self::Left)
    }
}

/// Why a node is not taken, or not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeRefusal {
    /// A name that is none, in the node's own or its failure domain's.
    #[error("a name has at most {MAX_NAME_BYTES} bytes, a node's at least 1: this one has {bytes}")]
    Name {
        /// Its length.
        bytes: usize,
    },
    /// A node without address or memory.
    #[error("a node has an address and memory to lend, at most {MAX_ADDRESSES} addresses")]
    Nothing,
    /// The cluster is full.
    #[error("the cluster has {limit} nodes already: remove those that have left")]
    TooMany {
        /// The bound.
        limit: usize,
    },
    /// Less memory than is placed on it.
    #[error("{asked} are lent now, and {placed} of regions are on it: drain it first")]
    Shrunk {
        /// What it lends now.
        asked: ByteCount,
        /// What is on it.
        placed: ByteCount,
    },
    /// No such node.
    #[error("there is no {node} in this cluster: register it")]
    Unknown {
        /// Its number.
        node: NodeId,
    },
    /// No node of that name.
    #[error("there is no node \"{name}\" in this cluster")]
    UnknownName {
        /// The name.
        name: String,
    },
    /// Another process is registered under its name.
    #[error("{node} is {current} now, {asked} was replaced: register again")]
    Replaced {
        /// The node.
        node: NodeId,
        /// Who asks.
        asked: Incarnation,
        /// Who holds.
        current: Incarnation,
    },
    /// See the source.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// What is on it has no other place.
    #[error("{extents} extents ({needed}) of \"{name}\" have no other place: add nodes first")]
    NoRoom {
        /// The node.
        name: String,
        /// How many have none.
        extents: u32,
        /// Their bytes.
        needed: ByteCount,
    },
    /// It is still there.
    #[error("\"{name}\" is {state:?}: only a node that is down or has left is removed")]
    StillThere {
        /// The node.
        name: String,
        /// Its state.
        state: NodeState,
    },
    /// The only copy of something may be on it.
    #[error("\"{name}\" has the only copies of {extents} extents: with it they are lost")]
    LastCopies {
        /// The node.
        name: String,
        /// Of how many.
        extents: u32,
    },
}

/// Most addresses of a node.
const MAX_ADDRESSES: usize = 8;
/// A watch is doubled at most this often.
const MAX_DOUBLINGS: u32 = 20;

/// A node's process says who it is. Asked again after every refusal that says so.
#[derive(Clone, Debug)]
pub struct Register {
    /// Its name.
    pub name: String,
    /// Where it is reached, the best transport first.
    pub addresses: Vec<NodeAddress>,
    /// What fails with it.
    pub domain: FailureDomain,
    /// What it lends.
    pub capacity: ByteCount,
    /// Drawn at the start of its process.
    pub incarnation: Incarnation,
}

/// A node is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Its number.
    pub node: NodeId,
    /// It is down when it is not heard for so long, ms.
    pub lease_ms: u64,
    /// It is to be heard so often, ms.
    pub heartbeat_ms: u64,
}

impl Command for Register {
    type Answer = Registered;
    type Refusal = NodeRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<Registered, NodeRefusal> {
        self.check()?;
        let limits = turn.cluster.limits;
        let known = turn.cluster.node_named(&self.name).cloned();
        let mut node = match known {
            Some(node) => node,
            None => NodeRecord {
                id: turn.cluster.unused_node()?,
                name: self.name.clone(),
                addresses: Vec::new(),
                domain: FailureDomain::default(),
                capacity: ByteCount::default(),
                incarnation: self.incarnation,
                state: NodeState::Left,
                drain: false,
                returns: 0,
            },
        };
        let same = node.incarnation == self.incarnation && node.state != NodeState::Left;
        if !same {
            turn.forget_replicas(node.id);
        }
        let placed = turn.cluster.placed_on(node.id);
        if self.capacity.get() < placed {
            return Err(NodeRefusal::Shrunk {
                asked: self.capacity,
                placed: ByteCount::new(placed),
            });
        }
        let mut heard = Heard::from_now(turn.now, &limits);
        if node.state == NodeState::Left {
            node.drain = false;
            node.returns = 0;
        } else if !same || node.state == NodeState::Down {
            node.returns = node.returns.saturating_add(1);
            heard.watched = turn.now.after(watch_ms(&limits, node.returns));
        } else if let Some(before) = turn.cluster.heard.get(&node.id) {
            heard.watched = before.watched;
            heard.suspect = before.suspect;
            heard.up_since = before.up_since;
        }
        if !same || node.state == NodeState::Down {
            node.state = node.state.after(NodeEvent::Registered, node.drain)?;
        }
        node.addresses.clone_from(&self.addresses);
        node.domain = self.domain.clone();
        node.capacity = self.capacity;
        node.incarnation = self.incarnation;
        let id = node.id;
        turn.cluster.heard.insert(id, heard);
        if turn.cluster.nodes.get(&id) != Some(&node) {
            turn.put_node(node);
        }
        turn.admit(id)?;
        Ok(Registered {
            node: id,
            lease_ms: limits.node_lease_ms,
            heartbeat_ms: Limits::heartbeat_ms(limits.node_lease_ms),
        })
    }
}

impl Register {
    fn check(&self) -> Result<(), NodeRefusal> {
        let domain = &self.domain;
        let parts = [&domain.region, &domain.zone, &domain.rack, &domain.host];
        let longest = parts.iter().map(|part| part.len()).max().unwrap_or(0);
        let bytes = self.name.len().max(longest);
        if self.name.is_empty() || bytes > MAX_NAME_BYTES {
            let bytes = if self.name.is_empty() { 0 } else { bytes };
            return Err(NodeRefusal::Name { bytes });
        }
        let addresses = self.addresses.len();
        if addresses == 0 || addresses > MAX_ADDRESSES || self.capacity.get() == 0 {
            return Err(NodeRefusal::Nothing);
        }
        Ok(())
    }
}

/// A node is there.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeat {
    /// Which.
    pub node: NodeId,
    /// Its process.
    pub incarnation: Incarnation,
    /// How busy it is, percent.
    pub load_percent: u8,
}

/// What a node is to do. It is told again until it is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeOrder {
    /// Refuse lower epochs of the region, and end their sessions; also when the region is not here yet.
    Fence {
        /// Which region.
        region: RegionId,
        /// Whose.
        tenant: TenantId,
        /// The lowest epoch that is served from now on.
        epoch: Epoch,
    },
    /// Free all extents of the region, and refuse all its owners.
    Release {
        /// Which region.
        region: RegionId,
        /// Whose.
        tenant: TenantId,
    },
}

/// Most orders told at once.
pub const MAX_NODE_ORDERS: usize = 1024;

/// A node was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    /// What it is taken for.
    pub state: NodeState,
    /// What it is to do, at most [`MAX_NODE_ORDERS`]; each is confirmed with [`Confirm`].
    pub orders: Vec<NodeOrder>,
}

impl Command for Heartbeat {
    type Answer = HeartbeatAnswer;
    type Refusal = NodeRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<HeartbeatAnswer, NodeRefusal> {
        turn.hear(self.node, self.incarnation)?;
        if let Some(heard) = turn.cluster.heard.get_mut(&self.node) {
            heard.load_percent = self.load_percent.min(100);
        }
        Ok(HeartbeatAnswer {
            state: turn
                .cluster
                .node(self.node)
                .map_or(NodeState::Left, |node| node.state),
            orders: turn.cluster.node_orders(self.node),
        })
    }
}

/// A node has done what it was told.
#[derive(Clone, Copy, Debug)]
pub struct Confirm {
    /// Which node.
    pub node: NodeId,
    /// Its process.
    pub incarnation: Incarnation,
    /// What it has done.
    pub order: NodeOrder,
}

impl Command for Confirm {
    type Answer = ();
    type Refusal = NodeRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<(), NodeRefusal> {
        turn.hear(self.node, self.incarnation)?;
        match self.order {
            NodeOrder::Fence { region, epoch, .. } => turn.fenced(region, self.node, epoch),
            NodeOrder::Release { region, .. } => turn.released(region, self.node),
        }
        turn.admit(self.node)?;
        Ok(())
    }
}

/// What an agent has seen of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// No connection, or no answer in time.
    Unreachable,
    /// Its process is another one, or its connection was reset.
    Restarted,
    /// It gave wrong pages.
    Corrupt,
}

/// An agent has trouble with a node.
#[derive(Clone, Debug)]
pub struct Report {
    /// The node's name.
    pub node: String,
    /// What was seen.
    pub seen: Seen,
}

impl Command for Report {
    /// What the node is taken for now.
    type Answer = NodeState;
    type Refusal = NodeRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<NodeState, NodeRefusal> {
        let mut node = turn.cluster.known(&self.node)?.clone();
        let (id, state) = (node.id, node.state.after(NodeEvent::Reported, node.drain)?);
        let until = turn.now.after(turn.cluster.limits.suspect_hold_ms);
        if let Some(heard) = turn.cluster.heard.get_mut(&id) {
            heard.suspect = until;
        }
        if state != node.state {
            node.state = state;
            turn.put_node(node);
        }
        Ok(state)
    }
}

/// A node is to be emptied. Asked again, it says how far it is.
#[derive(Clone, Debug)]
pub struct Drain {
    /// The node's name.
    pub node: String,
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draining {
    /// The node's state; [`NodeState::Left`]: nothing is on it any more.
    pub state: NodeState,
    /// Bytes that are still on it.
    pub left: ByteCount,
}

impl Command for Drain {
    type Answer = Draining;
    type Refusal = NodeRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<Draining, NodeRefusal> {
        let mut node = turn.cluster.known(&self.node)?.clone();
        let id = node.id;
        if !node.drain && node.state != NodeState::Left {
            let homeless = turn.cluster.homeless_without(id);
            if homeless.extents > 0 {
                return Err(NodeRefusal::NoRoom {
                    name: node.name,
                    extents: homeless.extents,
                    needed: ByteCount::new(homeless.bytes),
                });
            }
            node.state = node.state.after(NodeEvent::DrainAsked, true)?;
            node.drain = true;
            turn.put_node(node);
            turn.leave_if_empty(id)?;
        }
        Ok(Draining {
            state: turn.cluster.nodes[&id].state,
            left: ByteCount::new(turn.cluster.placed_on(id)),
        })
    }
}

/// A node is not to be emptied any more.
#[derive(Clone, Debug)]
pub struct EndDrain {
    /// The node's name.
    pub node: String,
}

impl Command for EndDrain {
    /// The node's state now.
    type Answer = NodeState;
    type Refusal = NodeRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<NodeState, NodeRefusal> {
        let mut node = turn.cluster.known(&self.node)?.clone();
        node.state = node.state.after(NodeEvent::DrainEnded, node.drain)?;
        node.drain = false;
        let state = node.state;
        turn.put_node(node);
        Ok(state)
    }
}

/// A node does not come back. What is on it is made anew from other copies.
#[derive(Clone, Debug)]
pub struct RemoveNode {
    /// The node's name.
    pub node: String,
    /// Also when it has the only copy of something.
    pub lose: bool,
}

impl Command for RemoveNode {
    type Answer = ();
    type Refusal = NodeRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<(), NodeRefusal> {
        let node = turn.cluster.known(&self.node)?.clone();
        if node.state.is_there() {
            return Err(NodeRefusal::StillThere {
                name: node.name,
                state: node.state,
            });
        }
        let only = |homes: &&Homes| homes.live().eq([node.id]);
        let chunks = turn.cluster.chunks.values();
        let extents = chunks.flat_map(|chunk| &chunk.extents).filter(only).count();
        if extents > 0 && !self.lose {
            return Err(NodeRefusal::LastCopies {
                name: node.name,
                extents: u32::try_from(extents).unwrap_or(u32::MAX),
            });
        }
        turn.forget_replicas(node.id);
        turn.cluster.heard.remove(&node.id);
        turn.remove(Key::Node(node.id));
        Ok(())
    }
}

impl Cluster {
    /// What a node is to do, at most [`MAX_NODE_ORDERS`]. Derived from the records.
    #[must_use]
    pub fn node_orders(&self, node: NodeId) -> Vec<NodeOrder> {
        let order = |region: &super::records::RegionRecord| match &region.stage {
            RegionStage::Deleting { unreleased } => {
                unreleased.contains(&node).then_some(NodeOrder::Release {
                    region: region.id,
                    tenant: region.tenant,
                })
            }
            RegionStage::Open => {
                let behind = region.lease.unfenced().contains(&node);
                behind.then_some(NodeOrder::Fence {
                    region: region.id,
                    tenant: region.tenant,
                    epoch: region.lease.epoch(),
                })
            }
        };
        self.regions
            .values()
            .filter_map(order)
            .take(MAX_NODE_ORDERS)
            .collect()
    }

    /// Bytes of replicas on a node, in all states.
    #[must_use]
    pub fn placed_on(&self, node: NodeId) -> u64 {
        self.derived.placed.get(&node).copied().unwrap_or(0)
    }

    fn known(&self, name: &str) -> Result<&NodeRecord, NodeRefusal> {
        self.node_named(name)
            .ok_or_else(|| NodeRefusal::UnknownName {
                name: name.to_owned(),
            })
    }

    fn unused_node(&self) -> Result<NodeId, NodeRefusal> {
        let limit = u16::try_from(MAX_NODES).unwrap_or(u16::MAX);
        (0..limit)
            .map(NodeId::new)
            .find(|id| !self.nodes.contains_key(id))
            .ok_or(NodeRefusal::TooMany { limit: MAX_NODES })
    }
}

impl Turn<'_> {
    /// A node's process is heard; it may be heard again.
    fn hear(&mut self, id: NodeId, incarnation: Incarnation) -> Result<(), NodeRefusal> {
        let limits = self.cluster.limits;
        let node = self.cluster.nodes.get(&id);
        let mut node = node.ok_or(NodeRefusal::Unknown { node: id })?.clone();
        if node.incarnation != incarnation {
            return Err(NodeRefusal::Replaced {
                node: id,
                asked: incarnation,
                current: node.incarnation,
            });
        }
        let fresh = Heard::from_now(self.now, &limits);
        let heard = self.cluster.heard.entry(id).or_insert(fresh);
        heard.lease = fresh.lease;
        if node.state == NodeState::Down {
            node.returns = node.returns.saturating_add(1);
            heard.watched = self.now.after(watch_ms(&limits, node.returns));
            node.state = node.state.after(NodeEvent::HeardAgain, node.drain)?;
            self.put_node(node);
        }
        self.admit(id)
    }

    /// A node that is joining counts when it has confirmed all epochs and was watched long enough.
    fn admit(&mut self, id: NodeId) -> Result<(), NodeRefusal> {
        let Some(node) = self.cluster.nodes.get(&id) else {
            return Ok(());
        };
        let heard = self.cluster.heard.get(&id);
        let watched = heard.is_some_and(|heard| heard.watched <= self.now);
        if node.state != NodeState::Joining || !watched || !self.cluster.node_orders(id).is_empty()
        {
            return Ok(());
        }
        let mut node = node.clone();
        node.state = node.state.after(NodeEvent::Admitted, node.drain)?;
        self.put_node(node);
        if let Some(heard) = self.cluster.heard.get_mut(&id) {
            heard.up_since = self.now;
        }
        Ok(())
    }

    /// Leases that were missed, reports that are old, nodes that are empty. Called by the tick.
    pub(super) fn settle_nodes(&mut self) -> Result<(), IllegalTransition> {
        let ids: Vec<_> = self.cluster.nodes.keys().copied().collect();
        for id in ids {
            let limits = self.cluster.limits;
            let fresh = Heard::from_now(self.now, &limits);
            let heard = *self.cluster.heard.entry(id).or_insert(fresh);
            let mut node = self.cluster.nodes[&id].clone();
            if node.state.is_there() && heard.lease < self.now {
                node.state = node.state.after(NodeEvent::LeaseMissed, node.drain)?;
                self.put_node(node);
                self.go_on_without(id);
            } else if node.state == NodeState::Suspect && heard.suspect <= self.now {
                node.state = node.state.after(NodeEvent::Cleared, node.drain)?;
                self.put_node(node);
            } else if node.state == NodeState::Up
                && node.returns > 0
                && heard.up_since.after(limits.forgive_ms) <= self.now
            {
                node.returns = 0;
                self.put_node(node);
            }
            self.leave_if_empty(id)?;
        }
        Ok(())
    }

    fn leave_if_empty(&mut self, id: NodeId) -> Result<(), IllegalTransition> {
        let node = &self.cluster.nodes[&id];
        let leaves = node.drain && matches!(node.state, NodeState::Draining | NodeState::Down);
        if leaves && self.cluster.placed_on(id) == 0 && self.cluster.node_orders(id).is_empty() {
            let mut node = node.clone();
            node.state = node.state.after(NodeEvent::Emptied, node.drain)?;
            self.put_node(node);
        }
        Ok(())
    }

    /// The memory of a node is gone: so are its replicas, and whoever could write there.
    fn forget_replicas(&mut self, id: NodeId) {
        let holds = |homes: &Homes| homes.on(id).is_some();
        let mut affected = Vec::new();
        for ((region, chunk), extents) in &self.cluster.chunks {
            for (at, homes) in extents.extents.iter().enumerate() {
                if holds(homes) {
                    affected.push((*region, super::state::index_of(*chunk, at), homes.clone()));
                }
            }
        }
        for (region, extent, mut homes) in affected {
            let live = homes.live().count();
            homes.replicas.retain(|replica| replica.node != id);
            if live > 0 && homes.live().next().is_none() {
                homes.lost = true;
                // What is left was stale or incomplete: nothing can be made of it.
                for replica in &mut homes.replicas {
                    replica.state = ReplicaState::Dropping;
                }
            }
            self.set_homes(region, extent, homes);
        }
        self.go_on_without(id);
        self.cease_waiting_for(id);
    }
}

/// How long a node that came back is watched: not the first time, then twice as long each time.
fn watch_ms(limits: &Limits, returns: u32) -> u64 {
    match returns {
        0 | 1 => 0,
        more => {
            let doublings = (more - 2).min(MAX_DOUBLINGS);
            let ms = limits.probation_ms.saturating_mul(1 << doublings);
            ms.min(limits.longest_probation_ms)
        }
    }
}

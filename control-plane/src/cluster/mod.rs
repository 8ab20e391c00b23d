//! The control plane's decisions: one deterministic state machine. No IO, no clock, no threads; what is
//! random comes in with the commands.
//!
//! ```text
//!   Register Heartbeat Confirm     <- memory nodes           nodes        joining, up, suspect, down ...
//!   Acquire Renew GiveBack         <- owners                 leases       epochs, fencing
//!   Place MarkStale Copied Dropped <- owners                 regions, replicas, placement
//!   Report                         <- owners                 nodes
//!   CreateRegion Drain Reserve ... <- people                 regions, nodes, reservations
//!   Tick                           <- time                   nodes, healing
//!
//!   Cluster::apply(now_ms, &command) -> Step { answer, changes } | refusal
//!   Cluster::orders, node_orders, directory, status: what follows from the records
//! ```
//!
//! The caller makes `changes` durable before it gives the answer (see `state` and `store`).

mod healing;
mod identity;
mod leases;
mod limits;
mod nodes;
mod placement;
mod records;
mod regions;
mod replicas;
mod reservations;
mod state;
mod status;
mod stuck;
mod time;

#[cfg(test)]
mod tests;

pub use healing::{Tick, Ticked};
pub use identity::{Level, Locality, NodeId, OrderId, OwnerId, PriorityClass, ReservationId};
pub use leases::{Acquire, Acquired, GiveBack, LeaseRefusal, Renew};
pub use limits::{
    Ceilings, Limits, MAX_BATCH, MAX_EXTENTS, MAX_NAME_BYTES, MAX_NODES, MAX_RECORDED_REPLICAS,
    MAX_REGIONS, MAX_RESERVATIONS,
};
pub use nodes::{
    Confirm, Drain, Draining, EndDrain, Heartbeat, HeartbeatAnswer, IllegalTransition,
    MAX_NODE_ORDERS, NodeEvent, NodeOrder, NodeRefusal, NodeState, Register, Registered,
    RemoveNode, Report, Seen,
};
pub use records::{
    Batch, CHUNK_EXTENTS, Chunk, ClusterRecord, Homes, Key, Lease, NodeAddress, NodeRecord, Record,
    RegionPolicy, RegionRecord, RegionStage, Replica, ReplicaState, ReservationRecord,
};
pub use regions::{CreateRegion, DeleteRegion, Place, RegionRefusal};
pub use replicas::{Copied, Dropped, MAX_ORDERS, MarkStale, Order, ReplicaRefusal};
pub use reservations::{Pressure, ReservationRefusal, Reserve, Unreserve};
pub use state::{BeginTerm, Changes, Cluster, Command, LoadError, Step, Turn};
pub use status::{NodeStatus, RegionStatus};
pub use stuck::StuckExtents;
pub use time::LARGEST_STEP_MS;

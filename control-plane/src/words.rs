//! The state machine's words as messages, and back. What a message leaves out or gets wrong is named.

use std::net::SocketAddr;

use mycoram_fabric::check::CheckReport;
use mycoram_fabric::placement::{self, FailureDomain};
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::units::{Epoch, ExtentIndex, Incarnation, RegionId, TenantId};

use crate::cluster::{
    Homes, Lease, Level, Locality, NodeAddress, NodeId, NodeOrder, NodeRecord, NodeState,
    NodeStatus, PriorityClass, RegionRecord, RegionStage, RegionStatus, Replica, ReplicaState,
    ReservationRecord, Seen,
};
use crate::proto;
use crate::store::{MemberHealth, ProcessSeen, StoreHealth};

/// A field of a message that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message has no usable \"{field}\"")]
pub struct BadField {
    /// Which.
    pub field: &'static str,
}

pub(crate) const fn bad(field: &'static str) -> BadField {
    BadField { field }
}

/// Two enums with the same variants, and one that is never sent.
macro_rules! same_enum {
    ($ours:ty, $theirs:ty, $field:literal, $($variant:ident),*) => {
        impl From<$ours> for $theirs {
            fn from(ours: $ours) -> Self {
                match ours {
                    $(<$ours>::$variant => Self::$variant,)*
                }
            }
        }
        impl TryFrom<$theirs> for $ours {
            type Error = BadField;
            fn try_from(theirs: $theirs) -> Result<Self, BadField> {
                match theirs {
                    $(<$theirs>::$variant => Ok(Self::$variant),)*
                    _ => Err(bad($field)),
                }
            }
        }
    };
}
same_enum!(
    NodeState,
    proto::NodeState,
    "state",
    Joining,
    Up,
    Suspect,
    Down,
    Draining,
    Left
);
same_enum!(Level, proto::Level, "level", Host, Rack, Zone, Region);
same_enum!(Seen, proto::Seen, "seen", Unreachable, Restarted, Corrupt);
same_enum!(
    PriorityClass,
    proto::PriorityClass,
    "class",
    Low,
    Normal,
    High
);

/// A transport that there is between machines.
pub(crate) fn transport(kind: TransportKind) -> Result<proto::Transport, BadField> {
    match kind {
        TransportKind::Verbs => Ok(proto::Transport::Verbs),
        TransportKind::Tcp => Ok(proto::Transport::Tcp),
        TransportKind::Sim => Err(bad("transport")),
    }
}

impl TryFrom<&NodeAddress> for proto::NodeAddress {
    type Error = BadField;
    fn try_from(address: &NodeAddress) -> Result<Self, BadField> {
        Ok(Self {
            transport: transport(address.transport)?.into(),
            control: address.control.to_string(),
        })
    }
}

impl TryFrom<&proto::NodeAddress> for NodeAddress {
    type Error = BadField;
    fn try_from(address: &proto::NodeAddress) -> Result<Self, BadField> {
        let transport = match address.transport() {
            proto::Transport::Verbs => TransportKind::Verbs,
            proto::Transport::Tcp => TransportKind::Tcp,
            proto::Transport::Unspecified => return Err(bad("transport")),
        };
        let control: SocketAddr = address.control.parse().map_err(|_| bad("control"))?;
        Ok(Self { transport, control })
    }
}

impl From<&FailureDomain> for proto::FailureDomain {
    fn from(domain: &FailureDomain) -> Self {
        Self {
            region: domain.region.clone(),
            zone: domain.zone.clone(),
            rack: domain.rack.clone(),
            host: domain.host.clone(),
        }
    }
}

impl From<proto::FailureDomain> for FailureDomain {
    fn from(domain: proto::FailureDomain) -> Self {
        Self {
            region: domain.region,
            zone: domain.zone,
            rack: domain.rack,
            host: domain.host,
        }
    }
}

impl From<proto::Locality> for Locality {
    fn from(locality: proto::Locality) -> Self {
        let anywhere = Self::anywhere();
        let level = |level: proto::Level, default| Level::try_from(level).unwrap_or(default);
        let (apart, spread) = (locality.apart(), locality.spread());
        Self {
            apart: level(apart, anywhere.apart),
            spread: level(spread, anywhere.spread),
            region: Some(locality.region).filter(|name| !name.is_empty()),
            zone: Some(locality.zone).filter(|name| !name.is_empty()),
        }
    }
}

impl From<&Locality> for proto::Locality {
    fn from(locality: &Locality) -> Self {
        Self {
            region: locality.region.clone().unwrap_or_default(),
            zone: locality.zone.clone().unwrap_or_default(),
            apart: proto::Level::from(locality.apart).into(),
            spread: proto::Level::from(locality.spread).into(),
        }
    }
}

impl From<&Replica> for proto::Replica {
    fn from(replica: &Replica) -> Self {
        let (state, order) = match replica.state {
            ReplicaState::Live => (proto::ReplicaState::Live, 0),
            ReplicaState::Copying { order } => (proto::ReplicaState::Copying, order.get()),
            ReplicaState::Stale => (proto::ReplicaState::Stale, 0),
            ReplicaState::Dropping => (proto::ReplicaState::Dropping, 0),
        };
        Self {
            node: replica.node.get().into(),
            state: state.into(),
            order,
        }
    }
}

/// Where an extent is.
pub(crate) fn homes(extent: ExtentIndex, homes: &Homes) -> proto::ExtentHomes {
    proto::ExtentHomes {
        extent: extent.get(),
        replicas: homes.replicas.iter().map(Into::into).collect(),
        lost: homes.lost,
    }
}

/// A node as owners know it.
pub(crate) fn entry(
    node: NodeId,
    entry: &placement::NodeEntry,
    incarnation: Incarnation,
) -> Result<proto::NodeEntry, BadField> {
    Ok(proto::NodeEntry {
        node: node.get().into(),
        name: entry.name.clone(),
        address: Some(proto::NodeAddress {
            transport: transport(entry.transport)?.into(),
            control: entry.control.to_string(),
        }),
        domain: Some((&entry.domain).into()),
        incarnation: incarnation.get(),
    })
}

impl TryFrom<proto::NodeEntry> for placement::NodeEntry {
    type Error = BadField;
    fn try_from(entry: proto::NodeEntry) -> Result<Self, BadField> {
        let address = entry.address.as_ref().ok_or(bad("address"))?;
        let address = NodeAddress::try_from(address)?;
        Ok(Self {
            name: entry.name,
            control: address.control,
            transport: address.transport,
            domain: entry.domain.unwrap_or_default().into(),
        })
    }
}

/// As owners need to know it: by its best transport.
impl TryFrom<proto::NodeStatus> for placement::NodeEntry {
    type Error = BadField;
    fn try_from(node: proto::NodeStatus) -> Result<Self, BadField> {
        Self::try_from(proto::NodeEntry {
            node: node.node,
            name: node.name,
            address: node.addresses.into_iter().next(),
            domain: node.domain,
            incarnation: node.incarnation,
        })
    }
}

/// A node's number.
pub(crate) fn node_id(number: u32) -> Result<NodeId, BadField> {
    let number = u16::try_from(number).map_err(|_| bad("node"))?;
    Ok(NodeId::new(number))
}

impl From<&NodeOrder> for proto::NodeOrder {
    fn from(order: &NodeOrder) -> Self {
        use proto::node_order::{Fence, Kind, Release};
        let kind = match order {
            NodeOrder::Fence {
                region,
                tenant,
                epoch,
            } => Kind::Fence(Fence {
                region: region.get(),
                tenant: tenant.get(),
                epoch: epoch.get(),
            }),
            NodeOrder::Release { region, tenant } => Kind::Release(Release {
                region: region.get(),
                tenant: tenant.get(),
            }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<&proto::NodeOrder> for NodeOrder {
    type Error = BadField;
    fn try_from(order: &proto::NodeOrder) -> Result<Self, BadField> {
        use proto::node_order::Kind;
        match order.kind.as_ref().ok_or(bad("order"))? {
            Kind::Fence(fence) => Ok(Self::Fence {
                region: RegionId::new(fence.region),
                tenant: TenantId::new(fence.tenant),
                epoch: Epoch::new(fence.epoch),
            }),
            Kind::Release(release) => Ok(Self::Release {
                region: RegionId::new(release.region),
                tenant: TenantId::new(release.tenant),
            }),
        }
    }
}

impl From<&RegionRecord> for proto::Region {
    fn from(region: &RegionRecord) -> Self {
        Self {
            id: region.id.get(),
            name: region.name.clone(),
            tenant: region.tenant.get(),
            bytes: region.bytes.get(),
            extent_bytes: region.extent_bytes.get(),
            replicas: region.replicas.into(),
            min_live: region.policy.min_live.into(),
            copy_percent: region.policy.copy_percent.into(),
            class: proto::PriorityClass::from(region.class).into(),
            locality: Some((&region.locality).into()),
        }
    }
}

impl From<&RegionStatus> for proto::RegionStatus {
    fn from(status: &RegionStatus) -> Self {
        let region = &status.region;
        let lease = match region.lease {
            Lease::Free { .. } => proto::LeaseState::Free,
            Lease::Fencing { .. } => proto::LeaseState::Fencing,
            Lease::Granted { .. } => proto::LeaseState::Granted,
        };
        Self {
            region: Some(region.into()),
            lease: lease.into(),
            epoch: region.lease.epoch().get(),
            deleting: region.stage != RegionStage::Open,
            placed_extents: status.placed_extents,
            placed_bytes: status.placed.get(),
            live: status.live,
            copying: status.copying,
            stale: status.stale,
            endangered: status.endangered_extents,
            no_source: status.stuck.no_source,
            no_domain: status.stuck.no_domain,
            no_room: status.stuck.no_room,
            lost: status.lost_extents,
        }
    }
}

impl From<&ReservationRecord> for proto::Reservation {
    fn from(reservation: &ReservationRecord) -> Self {
        Self {
            id: reservation.id.get(),
            tenant: reservation.tenant.get(),
            bytes: reservation.bytes.get(),
            class: proto::PriorityClass::from(reservation.class).into(),
        }
    }
}

impl TryFrom<&NodeStatus> for proto::NodeStatus {
    type Error = BadField;
    fn try_from(status: &NodeStatus) -> Result<Self, BadField> {
        let node: &NodeRecord = &status.node;
        Ok(Self {
            node: node.id.get().into(),
            name: node.name.clone(),
            state: proto::NodeState::from(node.state).into(),
            addresses: node
                .addresses
                .iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            domain: Some((&node.domain).into()),
            pool: Some(proto::Pool {
                capacity_bytes: node.capacity.get(),
                placed_bytes: status.placed.get(),
                available_bytes: status.available.get(),
            }),
            load_percent: status.load_percent.into(),
            drain: node.drain,
            incarnation: node.incarnation.get(),
        })
    }
}
impl From<&CheckReport> for proto::CheckReport {
    fn from(report: &CheckReport) -> Self {
        let named = report.named.iter().map(|wrong| proto::WrongReplica {
            page: wrong.page.get(),
            node: wrong.node.clone(),
            repaired: wrong.repaired,
        });
        Self {
            check: report.number,
            pages: report.pages,
            looked_at: report.looked_at,
            compared: report.compared,
            unsettled: report.unsettled,
            unreadable: report.unreadable,
            wrong: report.wrong,
            repaired: report.repaired,
            named: named.collect(),
            over: report.over,
        }
    }
}

/// The processes of a control plane: those that share the store, or the one that has it alone.
pub(crate) fn processes(
    health: &StoreHealth,
    address: &str,
    leads: bool,
) -> Vec<proto::ControlProcess> {
    if health.kind != "etcd" {
        return vec![proto::ControlProcess {
            address: address.to_owned(),
            leads,
        }];
    }
    let word = |seen: &ProcessSeen| proto::ControlProcess {
        address: seen.address.clone(),
        leads: seen.leads,
    };
    health.processes.iter().map(word).collect()
}

impl From<StoreHealth> for proto::StoreHealth {
    fn from(health: StoreHealth) -> Self {
        Self {
            kind: health.kind.to_owned(),
            writable: health.writable,
            members: health.members.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<MemberHealth> for proto::StoreMember {
    fn from(member: MemberHealth) -> Self {
        Self {
            address: member.address,
            up: member.up,
            follows: member.follows,
            leads: member.leads,
            bytes: member.bytes,
            version: member.version,
            alarms: member.alarms,
            silent_because: member.silent_because.unwrap_or_default(),
        }
    }
}

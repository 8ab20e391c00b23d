//! Nodes and regions as placement knows them, and the choice of different failure domains. Pure.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::transport::TransportKind;
use crate::units::{ByteCount, Epoch, ExtentIndex, RegionId, TenantId};

/// Most replicas that a region may ask for.
pub const MAX_REPLICAS: u8 = 4;

/// What fails together with a machine. An empty name is not known, and shared with nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FailureDomain {
    /// The geographic region.
    pub region: String,
    /// The availability zone within it.
    pub zone: String,
    /// The rack within that.
    pub rack: String,
    /// The host within that.
    pub host: String,
}

/// The narrowest failure domain that two machines share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shared {
    /// None that is known.
    Nothing,
    /// The geographic region.
    Region,
    /// The zone.
    Zone,
    /// The rack.
    Rack,
    /// The host.
    Host,
}

impl FailureDomain {
    /// What fails together with both. A name counts within the domain above it only.
    #[must_use]
    pub fn shared_with(&self, other: &Self) -> Shared {
        let levels = [
            (&self.region, &other.region, Shared::Region),
            (&self.zone, &other.zone, Shared::Zone),
            (&self.rack, &other.rack, Shared::Rack),
            (&self.host, &other.host, Shared::Host),
        ];
        let mut shared = Shared::Nothing;
        for (ours, theirs, level) in levels {
            if ours != theirs {
                break;
            }
            if !ours.is_empty() {
                shared = level;
            }
        }
        shared
    }
}

/// A text is no failure domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a failure domain is REGION/ZONE/RACK/HOST, such as eu/a/r1/h7 or ///h7")]
pub struct ParseDomainError;

impl std::str::FromStr for FailureDomain {
    type Err = ParseDomainError;

    /// Reads `region/zone/rack/host`; parts at the end may be missing.
    fn from_str(text: &str) -> Result<Self, ParseDomainError> {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        let domain = Self {
            region: next(),
            zone: next(),
            rack: next(),
            host: next(),
        };
        match parts.next() {
            None => Ok(domain),
            Some(_) => Err(ParseDomainError),
        }
    }
}

impl std::fmt::Display for FailureDomain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            region,
            zone,
            rack,
            host,
        } = self;
        write!(f, "{region}/{zone}/{rack}/{host}")
    }
}

/// A memory node as its users need to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// The name people call it by; unique in a cluster.
    pub name: String,
    /// Where its control channel listens. The data address is learnt there.
    pub control: SocketAddr,
    /// Over which transport its memory is to be reached.
    pub transport: TransportKind,
    /// What it fails together with.
    #[serde(default)]
    pub domain: FailureDomain,
}

/// What a region is, as far as placement is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionEntry {
    /// Its identity.
    pub id: RegionId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The owner's lease.
    pub epoch: Epoch,
    /// Its size.
    pub bytes: ByteCount,
    /// Its unit of placement.
    pub extent_bytes: ByteCount,
    /// How many replicas each extent is to have, 1 to [`MAX_REPLICAS`].
    pub replicas: u8,
}

/// Why no place was named.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// There is no node to choose from.
    #[error("the placement names no memory node")]
    NoNodes,
}

/// A fixed order of preference of nodes for each extent. What [`crate::authority::StaticAuthority`] places by.
pub trait Placement: Send + Sync {
    /// The nodes, in the order of the indexes that [`Self::candidates`] gives.
    fn nodes(&self) -> &[NodeEntry];

    /// Appends the nodes that may hold `extent`, the best first, as indexes into [`Self::nodes`]. The
    /// first that is not full gets it.
    fn candidates(
        &self,
        region: &RegionEntry,
        extent: ExtentIndex,
        into: &mut Vec<usize>,
    ) -> Result<(), PlacementError>;
}

/// Goes round the nodes: an extent's first node is the one of its number, the others follow in their order.
/// Looks at nothing else, so that small clusters of examples and tests are filled evenly.
#[derive(Clone, Debug)]
pub struct RoundRobin(pub Vec<NodeEntry>);

impl Placement for RoundRobin {
    fn nodes(&self) -> &[NodeEntry] {
        &self.0
    }

    fn candidates(
        &self,
        _region: &RegionEntry,
        extent: ExtentIndex,
        into: &mut Vec<usize>,
    ) -> Result<(), PlacementError> {
        let nodes = self.0.len();
        into.extend((0..nodes).map(|nth| (extent.get() as usize + nth) % nodes));
        Ok(())
    }
}

/// Appends `more` of the nodes in `order` (indexes into `nodes`, the best first) to `chosen`: each time the
/// one that shares least with those chosen before, of equals the better. False if there are too few;
/// then nothing is appended.
#[must_use]
pub fn choose_apart(
    nodes: &[NodeEntry],
    order: &[usize],
    more: usize,
    chosen: &mut Vec<usize>,
) -> bool {
    let before = chosen.len();
    for _ in 0..more {
        let apart = order
            .iter()
            .filter(|node| !chosen.contains(node))
            .min_by_key(|node| {
                let domain = &nodes[**node].domain;
                let shared = chosen
                    .iter()
                    .map(|other| domain.shared_with(&nodes[*other].domain));
                // The first of equals is taken.
                shared.max().unwrap_or(Shared::Nothing)
            });
        let Some(&apart) = apart else {
            chosen.truncate(before);
            return false;
        };
        chosen.push(apart);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, zone: &str, host: &str) -> NodeEntry {
        NodeEntry {
            name: name.to_owned(),
            control: SocketAddr::from(([10, 0, 0, 1], 7000)),
            transport: TransportKind::Tcp,
            domain: FailureDomain {
                zone: zone.to_owned(),
                host: host.to_owned(),
                ..FailureDomain::default()
            },
        }
    }

    #[test]
    fn homes_are_as_far_apart_as_they_can_be() {
        let nodes = [
            node("a", "z1", "h1"),
            node("b", "z1", "h1"),
            node("c", "z1", "h2"),
            node("d", "z2", "h1"),
        ];
        let choose = |order: &[usize], copies| {
            let mut chosen = Vec::new();
            choose_apart(&nodes, order, copies, &mut chosen).then_some(chosen)
        };
        assert_eq!(choose(&[0, 1, 2, 3], 1), Some(vec![0]));
        assert_eq!(choose(&[0, 1, 2, 3], 2), Some(vec![0, 3]));
        assert_eq!(choose(&[0, 1, 2, 3], 3), Some(vec![0, 3, 2]));
        assert_eq!(choose(&[0, 1], 2), Some(vec![0, 1]));
        assert_eq!(choose(&[0, 1], 3), None);
    }

    #[test]
    fn a_name_counts_within_the_domain_above_it() {
        let of = |zone, host| node("", zone, host).domain;
        let shared = |a: FailureDomain, b: FailureDomain| a.shared_with(&b);
        assert_eq!(shared(of("z", "h"), of("z", "h")), Shared::Host);
        assert_eq!(shared(of("z", "h"), of("y", "h")), Shared::Nothing);
        assert_eq!(shared(of("z", "h"), of("z", "i")), Shared::Zone);
        assert_eq!(shared(of("", ""), of("", "")), Shared::Nothing);
        assert_eq!(shared(of("", "h"), of("", "h")), Shared::Host);
    }
}

//! The control plane as the owner of one region asks it.
//!
//! Grants are kept: a session that broke is opened again while the control plane is away.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use mycoram_fabric::authority::{
    AuthorityError, KnownExtent, KnownHomes, Order, Places, RegionAuthority, Sighting, StaleMark,
};
use mycoram_fabric::check::{CheckOrder, CheckReport};
use mycoram_fabric::placement::{NodeEntry, RegionEntry};
use mycoram_fabric::units::{Epoch, ExtentIndex, Incarnation, RegionId};

use super::call::ControlClient;
use super::error::ClientError;
use crate::cluster::MAX_BATCH;
use crate::proto;
use crate::proto::order::Kind as OrderKind;
use crate::proto::refusal::Kind;

/// A kept grant is renewed when it has less left, ms.
const RENEW_GRANT_MS: u64 = 3_600_000;
/// Most grants that are kept: more nodes than a region has.
const MAX_GRANTS: usize = 4096;

/// See the module.
pub struct ControlAuthority {
    client: Arc<ControlClient>,
    region: RegionId,
    epoch: Epoch,
    round: AtomicU64,
    /// The number of each copy that was ordered.
    copies: Mutex<HashMap<(ExtentIndex, String), u64>>,
    /// By node: the grant and its end, ms since 1970.
    grants: Mutex<HashMap<String, (Vec<u8>, u64)>>,
    /// As the last answer to `GetOrders` had it.
    check: Mutex<Option<CheckOrder>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<ClientError> for AuthorityError {
    fn from(error: ClientError) -> Self {
        let kind = error.refused().and_then(|refused| refused.kind.clone());
        match kind {
            Some(Kind::EpochTooLow(too_low)) => Self::EpochTooLow {
                requested: Epoch::new(too_low.requested),
                current: Epoch::new(too_low.current),
            },
            Some(Kind::NoRoom(room)) if room.wanted > 0 => Self::NoRoom {
                wanted: room.wanted as usize,
                left: room.left as usize,
            },
            Some(Kind::NoRoom(_)) => Self::Full(Box::new(error)),
            Some(Kind::Unknown(_)) => Self::Unknown,
            // The lease is not there yet, or another process of the control plane is about to lead.
            Some(Kind::NotYet(_)) => Self::Away(Box::new(error)),
            _ if error.is_away() => Self::Away(Box::new(error)),
            _ => Self::Refused(Box::new(error)),
        }
    }
}

impl ControlAuthority {
    /// For the owner of `region` at `epoch`.
    #[must_use]
    pub fn new(client: Arc<ControlClient>, region: RegionId, epoch: Epoch) -> Self {
        Self {
            client,
            region,
            epoch,
            round: AtomicU64::new(1),
            copies: Mutex::default(),
            grants: Mutex::default(),
            check: Mutex::default(),
        }
    }

    fn owner(&self) -> Option<proto::OwnerRequest> {
        Some(self.asks())
    }

    fn asks(&self) -> proto::OwnerRequest {
        proto::OwnerRequest {
            region: self.region.get(),
            epoch: self.epoch.get(),
        }
    }

    fn unexpected(&self) -> AuthorityError {
        self.client.unexpected().into()
    }

    fn place_some(
        &self,
        replicas: usize,
        extents: &[ExtentIndex],
        without: &[String],
        places: &mut Places,
        known: &mut BTreeMap<String, u16>,
    ) -> Result<(), AuthorityError> {
        let reply = self.client.place_extents(proto::PlaceExtentsRequest {
            owner: self.owner(),
            extents: extents.iter().map(|extent| extent.get()).collect(),
            without: without.to_vec(),
            round: self.round.fetch_add(1, Ordering::Relaxed),
        })?;
        let numbers: HashMap<u32, proto::NodeEntry> = reply
            .nodes
            .into_iter()
            .map(|node| (node.node, node))
            .collect();
        let asked = extents.iter().map(|extent| extent.get());
        if !reply.homes.iter().map(|homes| homes.extent).eq(asked) {
            return Err(self.unexpected());
        }
        for homes in reply.homes {
            let is_live = |replica: &&proto::Replica| replica.state() == proto::ReplicaState::Live;
            let live: Vec<_> = homes.replicas.iter().filter(is_live).collect();
            if live.is_empty() {
                return Err(AuthorityError::NoRoom {
                    wanted: replicas,
                    left: 0,
                });
            }
            let mut nodes = Vec::with_capacity(replicas);
            for replica in live.into_iter().take(replicas) {
                let node = numbers
                    .get(&replica.node)
                    .ok_or_else(|| self.unexpected())?;
                let index = match known.get(&node.name) {
                    Some(index) => *index,
                    None => {
                        let index = u16::try_from(places.nodes.len());
                        let index = index.map_err(|_| self.unexpected())?;
                        let entry = NodeEntry::try_from(node.clone());
                        places.lives.push(Incarnation::new(node.incarnation));
                        places.nodes.push(entry.map_err(|_| self.unexpected())?);
                        known.insert(node.name.clone(), index);
                        index
                    }
                };
                nodes.push(index);
            }
            places.homes.push(nodes);
        }
        Ok(())
    }
}

impl RegionAuthority for ControlAuthority {
    fn place(
        &self,
        region: &RegionEntry,
        extents: &[ExtentIndex],
        without: &[String],
    ) -> Result<Places, AuthorityError> {
        let mut places = Places::default();
        let mut known = BTreeMap::new();
        let replicas = usize::from(region.replicas);
        for batch in extents.chunks(MAX_BATCH) {
            self.place_some(replicas, batch, without, &mut places, &mut known)?;
        }
        Ok(places)
    }

    fn mark_stale(&self, marks: &[StaleMark<'_>]) -> Result<(), AuthorityError> {
        for batch in marks.chunks(MAX_BATCH) {
            let name = |mark: &StaleMark<'_>| proto::ReplicaName {
                extent: mark.extent.get(),
                node: mark.node.to_owned(),
            };
            self.client.mark_stale(proto::MarkStaleRequest {
                owner: self.owner(),
                replicas: batch.iter().map(name).collect(),
            })?;
        }
        Ok(())
    }

    fn report(&self, node: &str, seen: Sighting) {
        let seen = match seen {
            Sighting::NobodyListens | Sighting::NoAnswer => proto::Seen::Unreachable,
            Sighting::StartedAgain | Sighting::RegionGone => proto::Seen::Restarted,
            Sighting::WrongPage => proto::Seen::Corrupt,
        };
        let reported = self.client.report_node(proto::ReportNodeRequest {
            node: node.to_owned(),
            seen: seen.into(),
        });
        if let Err(error) = reported {
            tracing::warn!(
                node,
                error = &error as &dyn std::error::Error,
                "a node could not be reported"
            );
        }
    }

    fn orders(&self) -> Result<Vec<Order>, AuthorityError> {
        let reply = self.client.get_orders(self.asks())?;
        *lock(&self.check) = reply.check.map(|order| CheckOrder {
            number: order.check,
            repair: order.repair,
        });
        let mut copies = lock(&self.copies);
        copies.clear();
        let mut orders = Vec::with_capacity(reply.orders.len());
        for order in reply.orders {
            let extent = ExtentIndex::new(order.extent);
            let to = order.node.and_then(|node| NodeEntry::try_from(node).ok());
            let to = to.ok_or_else(|| self.unexpected())?;
            orders.push(match order.kind.ok_or_else(|| self.unexpected())? {
                OrderKind::Copy(number) => {
                    copies.insert((extent, to.name.clone()), number);
                    Order::Copy { extent, to }
                }
                OrderKind::Drop(proto::Nothing {}) => Order::Drop {
                    extent,
                    node: to.name,
                },
            });
        }
        Ok(orders)
    }

    fn copied(&self, extent: ExtentIndex, node: &str) -> Result<(), AuthorityError> {
        let order = lock(&self.copies).get(&(extent, node.to_owned())).copied();
        self.client.replica_copied(proto::ReplicaCopiedRequest {
            owner: self.owner(),
            replica: Some(proto::ReplicaName {
                extent: extent.get(),
                node: node.to_owned(),
            }),
            order: order.ok_or(AuthorityError::Unknown)?,
        })?;
        Ok(())
    }

    fn dropped(&self, extent: ExtentIndex, node: &str) -> Result<(), AuthorityError> {
        self.client.replica_dropped(proto::ReplicaDroppedRequest {
            owner: self.owner(),
            replica: Some(proto::ReplicaName {
                extent: extent.get(),
                node: node.to_owned(),
            }),
        })?;
        Ok(())
    }

    fn check_wanted(&self) -> Option<CheckOrder> {
        *lock(&self.check)
    }

    fn check_told(&self, report: &CheckReport) -> Result<(), AuthorityError> {
        self.client.report_check(proto::ReportCheckRequest {
            owner: self.owner(),
            report: Some(report.into()),
        })?;
        Ok(())
    }

    fn epoch(&self) -> Option<Epoch> {
        Some(self.epoch)
    }

    fn grant(&self, node: &str) -> Result<Option<Vec<u8>>, AuthorityError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ms = u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        let kept = lock(&self.grants).get(node).cloned();
        if let Some((grant, until_ms)) = &kept
            && now_ms.saturating_add(RENEW_GRANT_MS) < *until_ms
        {
            return Ok(Some(grant.clone()));
        }
        let asked = self.client.get_grant(proto::GetGrantRequest {
            owner: self.owner(),
            node: node.to_owned(),
        });
        match (asked, kept) {
            (Ok(reply), _) if reply.grant.is_empty() => Ok(None),
            (Ok(reply), _) => {
                let mut grants = lock(&self.grants);
                if grants.len() >= MAX_GRANTS {
                    grants.clear();
                }
                grants.insert(node.to_owned(), (reply.grant.clone(), reply.not_after_ms));
                Ok(Some(reply.grant))
            }
            // Better one that is soon over than none.
            (Err(error), Some((grant, until_ms))) if error.is_away() && now_ms < until_ms => {
                Ok(Some(grant))
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    fn forget_grant(&self, node: &str) {
        lock(&self.grants).remove(node);
    }

    fn homes(&self) -> Result<Option<KnownHomes>, AuthorityError> {
        let mut known = KnownHomes::default();
        let mut numbers: HashMap<u32, u16> = HashMap::new();
        let mut first = 0;
        loop {
            let reply = self.client.get_directory(proto::GetDirectoryRequest {
                owner: self.owner(),
                first,
            })?;
            for node in reply.nodes {
                if numbers.contains_key(&node.node) {
                    continue;
                }
                let index = u16::try_from(known.nodes.len()).map_err(|_| self.unexpected())?;
                numbers.insert(node.node, index);
                let life = Incarnation::new(node.incarnation);
                let entry = NodeEntry::try_from(node).map_err(|_| self.unexpected())?;
                known.nodes.push((entry, life));
            }
            let Some(last) = reply.homes.last().map(|homes| homes.extent) else {
                return Ok(Some(known));
            };
            for homes in reply.homes {
                // In order, or this would not end.
                if homes.extent < first {
                    return Err(self.unexpected());
                }
                let mut replicas = Vec::with_capacity(homes.replicas.len());
                for replica in &homes.replicas {
                    let node = numbers.get(&replica.node);
                    let node = *node.ok_or_else(|| self.unexpected())?;
                    replicas.push((node, replica.state() == proto::ReplicaState::Live));
                }
                known.extents.push(KnownExtent {
                    extent: ExtentIndex::new(homes.extent),
                    replicas,
                    lost: homes.lost,
                });
            }
            let Some(next) = last.checked_add(1) else {
                return Ok(Some(known));
            };
            first = next;
        }
    }
}

impl std::fmt::Debug for ControlAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlAuthority")
            .field("region", &self.region)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

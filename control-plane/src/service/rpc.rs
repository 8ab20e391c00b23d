//! The calls: messages in, commands to the keeper, messages out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mycoram_fabric::random;
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, Incarnation, RegionId, TenantId};
use mycoram_fabric::wire::grant::SigningKey;
use tonic::{Request, Response, Status};

use super::checks::Checks;
use super::grants;
use super::keeper::{Keeper, NotDone};
use super::refusals;
use super::roles::Guard;
use crate::cluster::{
    Acquire, Acquired, Cluster, Confirm, Copied, CreateRegion, DeleteRegion, Drain, Dropped,
    EndDrain, GiveBack, Heartbeat, Homes, LeaseRefusal, MAX_BATCH, MarkStale, NodeId, NodeRefusal,
    NodeState, OrderId, OwnerId, Place, PriorityClass, RegionPolicy, Register, RemoveNode, Renew,
    Report, ReservationId, Reserve, Unreserve,
};
use crate::identity::Role;
use crate::proto;
use crate::proto::control_plane_server::ControlPlane;
use crate::store::Probe;
use crate::words::{self, BadField, bad};

/// The unit of placement where none is asked for.
const DEFAULT_EXTENT: ByteCount = ByteCount::mib(16);
/// Longest list of addresses, and of names of nodes, in a request.
const MAX_LIST: usize = 4096;
/// How long a store that does not answer may hold up who asks how it is: callers wait for 3 s.
const LOOK: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Service {
    pub(super) keeper: Keeper,
    pub(super) guard: Guard,
    pub(super) signing: Option<Arc<SigningKey>>,
    pub(super) probe: Arc<dyn Probe>,
    /// Where this process is reached.
    pub(super) address: String,
    pub(super) started: Instant,
    pub(super) checks: Checks,
}

impl From<BadField> for Status {
    fn from(bad: BadField) -> Self {
        Self::invalid_argument(bad.to_string())
    }
}

const NODES: &[Role] = &[Role::Node];
const OWNERS: &[Role] = &[Role::Agent];
const LOOKERS: &[Role] = &[Role::Agent, Role::Node, Role::Control];
const ADMINS: &[Role] = &[];

type Answer<T> = Result<Response<T>, Status>;

fn said<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

/// Region and epoch of an owner.
fn owner(asks: Option<proto::OwnerRequest>) -> Result<(RegionId, Epoch), Status> {
    let asks = asks.ok_or(bad("owner"))?;
    Ok((RegionId::new(asks.region), Epoch::new(asks.epoch)))
}

/// Checks the bound of a list before anything is made of it.
fn bounded<T>(list: &[T]) -> Result<(), Status> {
    if list.len() <= MAX_LIST.min(MAX_BATCH) {
        Ok(())
    } else {
        Err(Status::invalid_argument(format!(
            "a list of {} is sent, at most {MAX_BATCH} are taken",
            list.len()
        )))
    }
}

/// The nodes that are named in `homes`.
fn entries(cluster: &Cluster, homes: &[(ExtentIndex, Homes)]) -> Vec<(NodeId, proto::NodeEntry)> {
    let replicas = homes.iter().flat_map(|(_, homes)| &homes.replicas);
    let named: BTreeSet<NodeId> = replicas.map(|replica| replica.node).collect();
    named
        .into_iter()
        .filter_map(|id| {
            let node = cluster.node(id)?;
            Some((id, words::entry(id, &node.entry(), node.incarnation).ok()?))
        })
        .collect()
}

fn homes_reply(
    homes: &[(ExtentIndex, Homes)],
    nodes: Vec<(NodeId, proto::NodeEntry)>,
) -> (Vec<proto::ExtentHomes>, Vec<proto::NodeEntry>) {
    let homes = homes
        .iter()
        .map(|(extent, homes)| words::homes(*extent, homes));
    (
        homes.collect(),
        nodes.into_iter().map(|(_, node)| node).collect(),
    )
}

impl Service {
    async fn node_named(&self, name: String) -> Result<NodeId, Status> {
        let found = self.keeper.look({
            let name = name.clone();
            move |cluster| cluster.node_named(&name).map(|node| node.id)
        });
        Ok(found.await?.ok_or(NodeRefusal::UnknownName { name })?)
    }

    async fn region_named(&self, name: String) -> Result<RegionId, Status> {
        let found = self.keeper.look({
            let name = name.clone();
            move |cluster| cluster.region_named(&name).map(|region| region.id)
        });
        found.await?.ok_or_else(|| refusals::no_region(&name))
    }

    /// The replicas that are named, by numbers. A node that is not known any more has no replica.
    async fn replicas(
        &self,
        named: Vec<proto::ReplicaName>,
    ) -> Result<Vec<(ExtentIndex, NodeId)>, Status> {
        bounded(&named)?;
        let look = self.keeper.look(move |cluster| {
            let known = |replica: &proto::ReplicaName| {
                let node = cluster.node_named(&replica.node)?;
                Some((ExtentIndex::new(replica.extent), node.id))
            };
            named.iter().filter_map(known).collect()
        });
        Ok(look.await?)
    }

    async fn status(&self, region: RegionId) -> Result<proto::RegionStatus, Status> {
        let status = self
            .keeper
            .look(move |cluster| cluster.region_status(region).as_ref().map(Into::into));
        Ok(status.await?.ok_or(LeaseRefusal::UnknownRegion(region))?)
    }
}

fn pool(nodes: &[crate::cluster::NodeStatus]) -> proto::Pool {
    let mut pool = proto::Pool::default();
    for node in nodes.iter().filter(|node| node.node.state.is_there()) {
        pool.capacity_bytes = pool.capacity_bytes.saturating_add(node.node.capacity.get());
        pool.placed_bytes = pool.placed_bytes.saturating_add(node.placed.get());
        pool.available_bytes = pool.available_bytes.saturating_add(node.available.get());
    }
    pool
}

#[tonic::async_trait]
impl ControlPlane for Service {
    async fn register_node(
        &self,
        request: Request<proto::RegisterNodeRequest>,
    ) -> Answer<proto::RegisterNodeReply> {
        self.guard.check(&request, NODES)?;
        let asks = request.into_inner();
        bounded(&asks.addresses)?;
        let addresses = asks.addresses.iter().map(TryInto::try_into);
        let register = Register {
            addresses: addresses.collect::<Result<_, _>>()?,
            name: asks.name,
            domain: asks.domain.unwrap_or_default().into(),
            capacity: ByteCount::new(asks.capacity_bytes),
            incarnation: Incarnation::new(asks.incarnation),
        };
        let name = register.name.clone();
        let registered = self.keeper.apply(register).await??;
        tracing::info!(node = %name, number = registered.node.get(), "a memory node registered");
        said(proto::RegisterNodeReply {
            node: registered.node.get().into(),
            lease_ms: registered.lease_ms,
            heartbeat_ms: registered.heartbeat_ms,
        })
    }

    async fn heartbeat(
        &self,
        request: Request<proto::HeartbeatRequest>,
    ) -> Answer<proto::HeartbeatReply> {
        self.guard.check(&request, NODES)?;
        let asks = request.into_inner();
        let heartbeat = Heartbeat {
            node: words::node_id(asks.node)?,
            incarnation: Incarnation::new(asks.incarnation),
            load_percent: u8::try_from(asks.load_percent).unwrap_or(100),
        };
        let answer = self.keeper.apply(heartbeat).await??;
        said(proto::HeartbeatReply {
            state: proto::NodeState::from(answer.state).into(),
            orders: answer.orders.iter().map(Into::into).collect(),
        })
    }

    async fn confirm_node_order(
        &self,
        request: Request<proto::ConfirmNodeOrderRequest>,
    ) -> Answer<proto::Nothing> {
        self.guard.check(&request, NODES)?;
        let asks = request.into_inner();
        let order = asks.order.as_ref().ok_or(bad("order"))?;
        let confirm = Confirm {
            node: words::node_id(asks.node)?,
            incarnation: Incarnation::new(asks.incarnation),
            order: order.try_into()?,
        };
        self.keeper.apply(confirm).await??;
        said(proto::Nothing {})
    }

    async fn acquire_region(
        &self,
        request: Request<proto::AcquireRegionRequest>,
    ) -> Answer<proto::AcquireRegionReply> {
        self.guard.check(&request, OWNERS)?;
        let asks = request.into_inner();
        tracing::debug!(
            owner = %format_args!("{:016x}", asks.owner),
            region = %asks.region,
            "an owner wants a region"
        );
        if asks.owner == 0 {
            return Err(bad("owner").into());
        }
        let acquire = Acquire {
            region: match asks.id {
                0 => self.region_named(asks.region).await?,
                id => RegionId::new(id),
            },
            owner: OwnerId::new(asks.owner),
            take_over: asks.take_over,
            waiting_for: (asks.waiting_for != 0).then(|| Epoch::new(asks.waiting_for)),
        };
        said(match self.keeper.apply(acquire).await?? {
            Acquired::Wait { epoch, nodes } => proto::AcquireRegionReply {
                epoch: epoch.get(),
                waiting: nodes.iter().map(|node| node.get().into()).collect(),
                ..proto::AcquireRegionReply::default()
            },
            Acquired::GoOn {
                epoch,
                region,
                lease_ms,
                renew_ms,
            } => proto::AcquireRegionReply {
                go_on: true,
                epoch: epoch.get(),
                waiting: Vec::new(),
                region: Some((&*region).into()),
                secret: region.secret.to_vec(),
                lease_ms,
                renew_ms,
            },
        })
    }

    async fn renew_lease(
        &self,
        request: Request<proto::OwnerRequest>,
    ) -> Answer<proto::RenewLeaseReply> {
        self.guard.check(&request, OWNERS)?;
        let (region, epoch) = owner(Some(request.into_inner()))?;
        let lease_ms = self.keeper.apply(Renew { region, epoch }).await??;
        said(proto::RenewLeaseReply { lease_ms })
    }

    async fn give_back_region(
        &self,
        request: Request<proto::OwnerRequest>,
    ) -> Answer<proto::Nothing> {
        self.guard.check(&request, OWNERS)?;
        let (region, epoch) = owner(Some(request.into_inner()))?;
        self.keeper.apply(GiveBack { region, epoch }).await??;
        said(proto::Nothing {})
    }

    async fn place_extents(
        &self,
        request: Request<proto::PlaceExtentsRequest>,
    ) -> Answer<proto::PlaceExtentsReply> {
        self.guard.check(&request, OWNERS)?;
        let asks = request.into_inner();
        bounded(&asks.extents)?;
        bounded(&asks.without)?;
        let (region, epoch) = owner(asks.owner)?;
        let named = asks.without;
        let without = self.keeper.look(move |cluster| {
            let nodes = named.iter().filter_map(|name| cluster.node_named(name));
            nodes.map(|node| node.id).collect()
        });
        let place = Place {
            region,
            epoch,
            round: asks.round,
            extents: asks.extents.into_iter().map(ExtentIndex::new).collect(),
            without: without.await?,
        };
        let placed = self.keeper.apply(place).await??;
        let (nodes, placed) = self
            .keeper
            .look(move |cluster| (entries(cluster, &placed), placed))
            .await?;
        let (homes, nodes) = homes_reply(&placed, nodes);
        said(proto::PlaceExtentsReply { homes, nodes })
    }

    async fn mark_stale(
        &self,
        request: Request<proto::MarkStaleRequest>,
    ) -> Answer<proto::Nothing> {
        self.guard.check(&request, OWNERS)?;
        let asks = request.into_inner();
        let (region, epoch) = owner(asks.owner)?;
        let mark = MarkStale {
            region,
            epoch,
            replicas: self.replicas(asks.replicas).await?,
        };
        self.keeper.apply(mark).await??;
        said(proto::Nothing {})
    }

    async fn get_orders(
        &self,
        request: Request<proto::OwnerRequest>,
    ) -> Answer<proto::GetOrdersReply> {
        use crate::cluster::Order;
        self.guard.check(&request, OWNERS)?;
        let (region, epoch) = owner(Some(request.into_inner()))?;
        let orders = self
            .keeper
            .look(move |cluster| cluster.orders(region, epoch))
            .await??;
        let word = |order: &Order| -> Result<proto::Order, BadField> {
            use proto::order::Kind;
            let (extent, node, entry, kind) = match order {
                Order::Copy {
                    extent,
                    to,
                    entry,
                    order,
                } => (extent, to, entry, Kind::Copy(order.get())),
                Order::Drop {
                    extent,
                    node,
                    entry,
                } => (extent, node, entry, Kind::Drop(proto::Nothing {})),
            };
            Ok(proto::Order {
                extent: extent.get(),
                node: Some(words::entry(*node, entry, Incarnation::default())?),
                kind: Some(kind),
            })
        };
        let orders = orders.iter().map(word).collect::<Result<_, _>>()?;
        let check = self.checks.wanted(region);
        said(proto::GetOrdersReply { orders, check })
    }

    async fn report_check(
        &self,
        request: Request<proto::ReportCheckRequest>,
    ) -> Answer<proto::Nothing> {
        self.guard.check(&request, OWNERS)?;
        let asks = request.into_inner();
        let (region, epoch) = owner(asks.owner)?;
        let report = asks.report.ok_or(bad("report"))?;
        // Only the owner is believed.
        self.keeper
            .look(move |cluster| cluster.orders(region, epoch).map(|_| ()))
            .await??;
        self.checks.told(region, report, Instant::now());
        said(proto::Nothing {})
    }

    async fn replica_copied(
        &self,
        request: Request<proto::ReplicaCopiedRequest>,
    ) -> Answer<proto::Nothing> {
        self.guard.check(&request, OWNERS)?;
        let asks = request.into_inner();
        let (region, epoch) = owner(asks.owner)?;
        let replica = asks.replica.ok_or(bad("replica"))?;
        let copied = Copied {
            region,
            epoch,
            extent: ExtentIndex::new(replica.extent),
            node: self.node_named(replica.node).await?,
            order: OrderId::new(asks.order),
        };
        self.keeper.apply(copied).await??;
        self.keeper.counted().add_copied();
        said(proto::Nothing {})
    }

    async fn replica_dropped(
        &self,
        request: Request<proto::ReplicaDroppedRequest>,
    ) -> Answer<proto::Nothing> {
        self.guard.check(&request, OWNERS)?;
        let asks = request.into_inner();
        let (region, epoch) = owner(asks.owner)?;
        let replica = asks.replica.ok_or(bad("replica"))?;
        let dropped = Dropped {
            region,
            epoch,
            extent: ExtentIndex::new(replica.extent),
            node: self.node_named(replica.node).await?,
        };
        self.keeper.apply(dropped).await??;
        said(proto::Nothing {})
    }

    async fn get_directory(
        &self,
        request: Request<proto::GetDirectoryRequest>,
    ) -> Answer<proto::GetDirectoryReply> {
        self.guard.check(&request, OWNERS)?;
        let asks = request.into_inner();
        let (region, epoch) = owner(asks.owner)?;
        let first = ExtentIndex::new(asks.first);
        let look = self.keeper.look(move |cluster| {
            let homes = cluster.directory(region, epoch, first)?;
            let nodes = entries(cluster, &homes);
            Ok::<_, LeaseRefusal>((homes, nodes))
        });
        let (homes, nodes) = look.await??;
        let (homes, nodes) = homes_reply(&homes, nodes);
        said(proto::GetDirectoryReply { homes, nodes })
    }

    async fn get_grant(
        &self,
        request: Request<proto::GetGrantRequest>,
    ) -> Answer<proto::GetGrantReply> {
        self.guard.check(&request, OWNERS)?;
        let asks = request.into_inner();
        let (region, epoch) = owner(asks.owner)?;
        let node = self.node_named(asks.node.clone()).await?;
        let look = self.keeper.look(move |cluster| {
            let life = cluster.node(node).map(|node| node.incarnation);
            cluster
                .owned(region, epoch)
                .cloned()
                .map(|region| (region, life))
        });
        let (record, life) = look.await??;
        let Some(key) = &self.signing else {
            return said(proto::GetGrantReply::default());
        };
        let (grant, not_after_ms) = grants::sign(key, &record, &asks.node, life)
            .map_err(|error| Status::internal(error.to_string()))?;
        said(proto::GetGrantReply {
            grant,
            not_after_ms,
        })
    }

    async fn report_node(
        &self,
        request: Request<proto::ReportNodeRequest>,
    ) -> Answer<proto::Nothing> {
        self.guard.check(&request, OWNERS)?;
        let asks = request.into_inner();
        let report = Report {
            seen: asks.seen().try_into()?,
            node: asks.node,
        };
        tracing::warn!(node = %report.node, seen = ?report.seen, "an owner has trouble with a memory node");
        self.keeper.apply(report).await??;
        said(proto::Nothing {})
    }

    async fn get_cluster(
        &self,
        request: Request<proto::Nothing>,
    ) -> Answer<proto::GetClusterReply> {
        self.guard.check(&request, LOOKERS)?;
        let look = self.keeper.look_for_all(|cluster| {
            let nodes: Vec<_> = cluster.nodes().collect();
            let regions: Vec<_> = cluster.regions().collect();
            (nodes, regions)
        });
        let look = tokio::time::timeout(LOOK, look);
        let (seen, health) = tokio::join!(look, self.probe.health());
        let (known, (nodes, regions)) = match seen {
            Ok(Ok(seen)) => (true, seen),
            // How the store is is what is to be seen then.
            Ok(Err(NotDone::Store)) | Err(_) => (false, Default::default()),
            Ok(Err(not_done)) => return Err(not_done.into()),
        };
        let leads = self.keeper.counted().leads();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let in_state = |state| count(nodes.iter().filter(|node| node.node.state == state).count());
        let uptime = self.started.elapsed().as_millis();
        let mut reply = proto::GetClusterReply {
            cluster: self
                .signing
                .as_ref()
                .map(|key| key.cluster().to_string())
                .unwrap_or_default(),
            uptime_ms: u64::try_from(uptime).unwrap_or(u64::MAX),
            pool: Some(pool(&nodes)),
            nodes: count(nodes.len()),
            nodes_up: in_state(NodeState::Up),
            nodes_down: in_state(NodeState::Down),
            regions: count(regions.len()),
            known,
            leads,
            processes: words::processes(&health, &self.address, leads),
            store: Some(health.into()),
            ..proto::GetClusterReply::default()
        };
        for region in &regions {
            for (sum, part) in [
                (&mut reply.live, region.live),
                (&mut reply.copying, region.copying),
                (&mut reply.stale, region.stale),
                (&mut reply.endangered, region.endangered_extents),
                (&mut reply.lost, region.lost_extents),
            ] {
                *sum = sum.saturating_add(part);
            }
        }
        said(reply)
    }

    async fn list_nodes(&self, request: Request<proto::Nothing>) -> Answer<proto::ListNodesReply> {
        self.guard.check(&request, LOOKERS)?;
        let nodes: Vec<_> = self
            .keeper
            .look_for_all(|cluster| cluster.nodes().collect())
            .await?;
        let nodes = nodes.iter().map(TryInto::try_into);
        let nodes = nodes.collect::<Result<_, BadField>>()?;
        said(proto::ListNodesReply { nodes })
    }

    async fn list_regions(
        &self,
        request: Request<proto::Nothing>,
    ) -> Answer<proto::ListRegionsReply> {
        self.guard.check(&request, LOOKERS)?;
        let regions = self.keeper.look_for_all(|cluster| {
            let words = |status| proto::RegionStatus::from(&status);
            cluster.regions().map(words).collect()
        });
        let regions = regions.await?;
        said(proto::ListRegionsReply { regions })
    }

    async fn get_region(
        &self,
        request: Request<proto::GetRegionRequest>,
    ) -> Answer<proto::RegionStatus> {
        self.guard.check(&request, LOOKERS)?;
        let region = self.region_named(request.into_inner().region).await?;
        said(self.status(region).await?)
    }

    async fn create_region(
        &self,
        request: Request<proto::CreateRegionRequest>,
    ) -> Answer<proto::RegionStatus> {
        self.guard.check(&request, OWNERS)?;
        let asks = request.into_inner();
        if asks.id == 0 {
            return Err(bad("id").into());
        }
        let small = |value: u32, default: u8, field| match value {
            0 => Ok(default),
            value => u8::try_from(value).map_err(|_| bad(field)),
        };
        let policy = RegionPolicy::default();
        let id = RegionId::new(asks.id);
        // Asked again, it is the region that it made before; its secret is known there already.
        let known = self.keeper.look({
            let name = asks.name.clone();
            move |cluster| {
                let region = cluster.region(id).filter(|region| region.name == name);
                region.map(|region| region.secret)
            }
        });
        let secret = match known.await? {
            Some(secret) => secret,
            None => random::System::open()
                .map_err(|error| Status::internal(format!("no random numbers: {error}")))?
                .bytes(),
        };
        let class = asks.class();
        let create = CreateRegion {
            id,
            tenant: TenantId::new(asks.tenant),
            bytes: ByteCount::new(asks.bytes),
            extent_bytes: match asks.extent_bytes {
                0 => DEFAULT_EXTENT,
                bytes => ByteCount::new(bytes),
            },
            replicas: small(asks.replicas, 1, "replicas")?,
            policy: RegionPolicy {
                min_live: small(asks.min_live, policy.min_live, "min_live")?,
                copy_percent: small(asks.copy_percent, policy.copy_percent, "copy_percent")?,
            },
            class: PriorityClass::try_from(class).unwrap_or_default(),
            locality: asks.locality.unwrap_or_default().into(),
            reservation: Some(asks.reservation)
                .filter(|id| *id > 0)
                .map(ReservationId::new),
            name: asks.name,
            secret,
        };
        self.keeper.apply(create).await??;
        said(self.status(id).await?)
    }

    async fn reserve(&self, request: Request<proto::Reservation>) -> Answer<proto::Nothing> {
        self.guard.check(&request, OWNERS)?;
        let asks = request.into_inner();
        if asks.id == 0 {
            return Err(bad("id").into());
        }
        let reserve = Reserve {
            id: ReservationId::new(asks.id),
            tenant: TenantId::new(asks.tenant),
            bytes: ByteCount::new(asks.bytes),
            class: PriorityClass::try_from(asks.class()).unwrap_or_default(),
        };
        self.keeper.apply(reserve).await??;
        said(proto::Nothing {})
    }

    async fn unreserve(&self, request: Request<proto::UnreserveRequest>) -> Answer<proto::Nothing> {
        self.guard.check(&request, OWNERS)?;
        let asks = request.into_inner();
        let unreserve = Unreserve {
            id: ReservationId::new(asks.id),
            tenant: TenantId::new(asks.tenant),
        };
        self.keeper.apply(unreserve).await??;
        said(proto::Nothing {})
    }

    async fn list_reservations(
        &self,
        request: Request<proto::Nothing>,
    ) -> Answer<proto::ListReservationsReply> {
        self.guard.check(&request, LOOKERS)?;
        let reservations = self
            .keeper
            .look_for_all(|cluster| cluster.reservations().map(Into::into).collect());
        let reservations = reservations.await?;
        said(proto::ListReservationsReply { reservations })
    }

    async fn delete_region(
        &self,
        request: Request<proto::DeleteRegionRequest>,
    ) -> Answer<proto::DeleteRegionReply> {
        self.guard.check(&request, OWNERS)?;
        let asks = request.into_inner();
        let delete = DeleteRegion {
            region: self.region_named(asks.region).await?,
            force: asks.force,
            by: (asks.epoch != 0).then(|| Epoch::new(asks.epoch)),
        };
        let left = self.keeper.apply(delete).await??;
        let unreleased = u32::try_from(left).unwrap_or(u32::MAX);
        said(proto::DeleteRegionReply { unreleased })
    }

    async fn verify_region(
        &self,
        request: Request<proto::VerifyRegionRequest>,
    ) -> Answer<proto::VerifyRegionReply> {
        self.guard.check(&request, ADMINS)?;
        let asks = request.into_inner();
        let region = self.region_named(asks.region.clone()).await?;
        let status = self.status(region).await?;
        if status.lease() == proto::LeaseState::Free {
            return Err(refusals::no_owner(&asks.region));
        }
        let now = Instant::now();
        let check = match asks.check {
            0 => self.checks.begin(region, asks.repair, now),
            known => known,
        };
        said(
            self.checks
                .look(region, check, now)
                .ok_or_else(|| refusals::no_check(&asks.region, check))?,
        )
    }

    async fn drain_node(
        &self,
        request: Request<proto::NodeNameRequest>,
    ) -> Answer<proto::DrainNodeReply> {
        self.guard.check(&request, NODES)?;
        let node = request.into_inner().node;
        let draining = self.keeper.apply(Drain { node }).await??;
        said(proto::DrainNodeReply {
            state: proto::NodeState::from(draining.state).into(),
            left_bytes: draining.left.get(),
        })
    }

    async fn end_drain(
        &self,
        request: Request<proto::NodeNameRequest>,
    ) -> Answer<proto::EndDrainReply> {
        self.guard.check(&request, ADMINS)?;
        let node = request.into_inner().node;
        let state = self.keeper.apply(EndDrain { node }).await??;
        said(proto::EndDrainReply {
            state: proto::NodeState::from(state).into(),
        })
    }

    async fn remove_node(
        &self,
        request: Request<proto::RemoveNodeRequest>,
    ) -> Answer<proto::Nothing> {
        self.guard.check(&request, ADMINS)?;
        let asks = request.into_inner();
        let remove = RemoveNode {
            node: asks.node,
            lose: asks.lose,
        };
        self.keeper.apply(remove).await??;
        said(proto::Nothing {})
    }
}

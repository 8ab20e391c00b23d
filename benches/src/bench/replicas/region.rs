//! Regions to be measured: nodes, and an authority that places as it is told and orders what it is told.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mycoram_fabric::authority::{
    AuthorityError, Order, Places, RegionAuthority, Sighting, StaleMark,
};
use mycoram_fabric::placement::{FailureDomain, NodeEntry, RegionEntry};
use mycoram_fabric::remote::{Remote, RemoteOptions, Transports};
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, RegionId, TenantId};

use super::Unmeasured;
use crate::bench::Setting;
use crate::node::Node;

/// Places each extent on `replicas` nodes, in turn over the first `used`.
pub(super) struct Told {
    nodes: Vec<NodeEntry>,
    used: usize,
    orders: Mutex<Vec<Order>>,
}

impl Told {
    fn orders_now(&self) -> MutexGuard<'_, Vec<Order>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Orders a copy of each of `extents` to node `to`.
    pub(super) fn order_copies(&self, extents: u32, to: usize) {
        let to = &self.nodes[to];
        let copies = (0..extents).map(|extent| Order::Copy {
            extent: ExtentIndex::new(extent),
            to: to.clone(),
        });
        self.orders_now().extend(copies);
    }

    /// Orders that node `node` drops each of `extents`.
    pub(super) fn order_drops(&self, extents: u32, node: usize) {
        let drops = (0..extents).map(|extent| Order::Drop {
            extent: ExtentIndex::new(extent),
            node: self.nodes[node].name.clone(),
        });
        self.orders_now().extend(drops);
    }

    fn forget(&self, extent: ExtentIndex, name: &str, copies: bool) {
        self.orders_now().retain(|order| match order {
            Order::Copy { extent: of, to } => !copies || *of != extent || to.name != name,
            Order::Drop { extent: of, node } => copies || *of != extent || node != name,
        });
    }
}

impl RegionAuthority for Told {
    fn place(
        &self,
        region: &RegionEntry,
        extents: &[ExtentIndex],
        _without: &[String],
    ) -> Result<Places, AuthorityError> {
        let replicas = usize::from(region.replicas);
        let used = self.used;
        let homes = |extent: &ExtentIndex| {
            let first = extent.get() as usize;
            let homes = (0..replicas).map(|nth| ((first + nth) % used) as u16);
            homes.collect()
        };
        Ok(Places {
            nodes: self.nodes.clone(),
            lives: Vec::new(),
            homes: extents.iter().map(homes).collect(),
        })
    }
    fn mark_stale(&self, _marks: &[StaleMark<'_>]) -> Result<(), AuthorityError> {
        Ok(())
    }
    fn report(&self, _node: &str, _seen: Sighting) {}
    fn orders(&self) -> Result<Vec<Order>, AuthorityError> {
        Ok(self.orders_now().clone())
    }
    fn copied(&self, extent: ExtentIndex, node: &str) -> Result<(), AuthorityError> {
        self.forget(extent, node, true);
        Ok(())
    }
    fn dropped(&self, extent: ExtentIndex, node: &str) -> Result<(), AuthorityError> {
        self.forget(extent, node, false);
        Ok(())
    }
    fn grant(&self, _node: &str) -> Result<Option<Vec<u8>>, AuthorityError> {
        Ok(None)
    }
}

/// A region whose memory is given back when it is dropped.
pub(super) struct Measured {
    pub(super) remote: Arc<Remote>,
    pub(super) told: Arc<Told>,
    pub(super) extents: u32,
}

impl Drop for Measured {
    fn drop(&mut self) {
        use mycoram_fabric::pages::RemoteRegion;
        self.remote.release();
    }
}

/// Nodes that lend `capacity` bytes each.
pub(super) fn nodes(
    setting: &Setting,
    count: usize,
    capacity: u64,
) -> Result<Vec<Node>, Unmeasured> {
    let mut nodes = Vec::new();
    for _ in 0..count {
        nodes.push(Node::start(
            setting.transport,
            capacity,
            setting.placement.node_cpu,
        )?);
    }
    Ok(nodes)
}

/// A region of `bytes` on the first `used` of `nodes`, `replicas` of each extent.
pub(super) fn region(
    setting: &Setting,
    nodes: &[SocketAddr],
    used: usize,
    replicas: u8,
    (bytes, extent_bytes): (u64, u64),
) -> Result<Measured, Unmeasured> {
    let entries: Vec<_> = nodes
        .iter()
        .enumerate()
        .map(|(nth, control)| NodeEntry {
            name: format!("n{nth}"),
            control: *control,
            transport: setting.transport,
            domain: FailureDomain::default(),
        })
        .collect();
    let transports = Transports::for_nodes(&entries)?;
    let told = Arc::new(Told {
        nodes: entries,
        used,
        orders: Mutex::default(),
    });
    let options = RemoteOptions {
        rebuild: None,
        ..RemoteOptions::system()?
    };
    let entry = RegionEntry {
        id: RegionId::new(options.owner),
        tenant: TenantId::new(1),
        epoch: Epoch::new(1),
        bytes: ByteCount::new(bytes),
        extent_bytes: ByteCount::new(extent_bytes),
        replicas,
    };
    let authority = Arc::clone(&told) as Arc<dyn RegionAuthority>;
    Ok(Measured {
        remote: Remote::create(authority, &transports, &entry, &options)?,
        told,
        // A region has at most 2^32 extents.
        extents: bytes.div_ceil(extent_bytes) as u32,
    })
}

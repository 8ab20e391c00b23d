//! What benches ask of placement and of the store, on a cluster that exists in memory only.
//!
//! ```text
//!   Trial::new(64)          64 nodes, 4 a rack
//!     .place(65_536, 2)     a region, all its extents placed      the caller takes the time of this
//!     .imbalance()          the fullest node over the mean
//!     .add_node()           one more, until nothing is moved any more -> extents moved over the ideal share
//!     .store_bytes(path)    bytes of the file of a new redb store with all that, per replica
//! ```

use std::net::SocketAddr;
use std::path::Path;

use mycoram_fabric::placement::FailureDomain;
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, Incarnation, RegionId, TenantId};

use crate::cluster::{
    Acquire, Acquired, Batch, Chunk, Cluster, Command, Copied, CreateRegion, Dropped, Heartbeat,
    Limits, Locality, MAX_BATCH, NodeAddress, NodeId, Order, OwnerId, Place, PriorityClass, Record,
    RegionPolicy, Register, Renew, Tick,
};
use crate::store::{RedbStore, Store, StoreError};

const REGION: RegionId = RegionId::new(1);
const EXTENT: ByteCount = ByteCount::mib(16);
const INCARNATION: Incarnation = Incarnation::new(1);
/// Each node lends 4 TiB.
const NODE_BYTES: ByteCount = ByteCount::mib(4 << 20);
/// Extents that an owner asks for ahead of need.
const PLACED_AT_ONCE: usize = 64;
/// Time between two ticks, ms.
const STEP_MS: u64 = 500;
/// Ticks until a cluster must have come to rest.
const MAX_TICKS: u32 = 100_000;

/// See the module.
#[derive(Debug)]
pub struct Trial {
    cluster: Cluster,
    nodes: Vec<NodeId>,
    now_ms: u64,
    epoch: Epoch,
    replicas: u64,
}

impl Trial {
    /// A cluster of `nodes` nodes of 4 TiB, four a rack.
    #[must_use]
    pub fn new(nodes: u16) -> Self {
        let cluster = Cluster::load(Limits::default(), []).expect("a new cluster holds nothing");
        let mut trial = Self {
            cluster,
            nodes: Vec::new(),
            now_ms: 0,
            epoch: Epoch::new(0),
            replicas: 0,
        };
        for n in 0..nodes {
            trial.join(n);
        }
        trial
    }

    /// Creates the region and places all its extents, in batches as its owner would.
    pub fn place(&mut self, extents: u32, replicas: u8) {
        self.run(&CreateRegion {
            id: REGION,
            name: "trial".to_owned(),
            tenant: TenantId::new(1),
            bytes: ByteCount::new(EXTENT.get() * u64::from(extents)),
            extent_bytes: EXTENT,
            replicas,
            policy: RegionPolicy::default(),
            class: PriorityClass::Normal,
            locality: Locality::anywhere(),
            reservation: None,
            secret: [0; 16],
        });
        let acquired = self.run(&Acquire {
            region: REGION,
            owner: OwnerId::new(1),
            take_over: false,
            waiting_for: None,
        });
        let (Acquired::GoOn { epoch, .. } | Acquired::Wait { epoch, .. }) = acquired;
        self.epoch = epoch;
        self.replicas = u64::from(extents) * u64::from(replicas);
        let all: Vec<ExtentIndex> = (0..extents).map(ExtentIndex::new).collect();
        for (round, batch) in (1..).zip(all.chunks(MAX_BATCH)) {
            self.run(&Place {
                region: REGION,
                epoch,
                round,
                extents: batch.to_vec(),
                without: Vec::new(),
            });
        }
    }

    /// Bytes on the fullest node over the mean of all: 1 is perfect.
    #[must_use]
    pub fn imbalance(&self) -> f64 {
        let placed = self
            .nodes
            .iter()
            .map(|node| self.cluster.placed_on(*node) as f64);
        let (most, sum) = placed.fold((0.0, 0.0), |(most, sum), bytes| {
            (f64::max(most, bytes), sum + bytes)
        });
        most * self.nodes.len() as f64 / sum
    }

    /// Adds a node and lets extents move until nothing is ordered any more. Gives how many were moved, over
    /// the new node's ideal share.
    pub fn add_node(&mut self) -> f64 {
        let joining = u16::try_from(self.nodes.len()).expect("few nodes");
        self.join(joining);
        let mut moved = 0u64;
        for _ in 0..MAX_TICKS {
            self.now_ms += STEP_MS;
            for node in self.nodes.clone() {
                self.run(&Heartbeat {
                    node,
                    incarnation: INCARNATION,
                    load_percent: 0,
                });
            }
            self.run(&Renew {
                region: REGION,
                epoch: self.epoch,
            });
            self.run(&Tick);
            let orders = self.cluster.orders(REGION, self.epoch).expect("its owner");
            if orders.is_empty() {
                break;
            }
            moved += orders
                .into_iter()
                .map(|order| self.obey(order))
                .sum::<u64>();
        }
        moved as f64 * self.nodes.len() as f64 / self.replicas as f64
    }

    /// Bytes of the file of a new store at `path` that holds all records, over the number of replicas. It is
    /// written as a control plane writes it: extents come a few at a time, so each of their records is written
    /// several times. All that is in the file counts, and the most that it ever was.
    pub fn store_bytes(&self, path: &Path) -> Result<f64, StoreError> {
        let length = || std::fs::metadata(path).map(|file| file.len());
        let mut store = RedbStore::open(path)?;
        let mut at = store.load()?.revision;
        let mut most = 0;
        for (key, record) in self.cluster.records() {
            for part in growth(record) {
                let changes = vec![(key, Some(part))];
                at = store.commit(at, &Batch { changes })?;
            }
            most = most.max(length().map_err(|error| StoreError::Failed(Box::new(error)))?);
        }
        Ok(most as f64 / self.replicas as f64)
    }

    fn join(&mut self, n: u16) {
        let node = self.run(&Register {
            name: format!("node-{n}"),
            addresses: vec![NodeAddress {
                transport: TransportKind::Tcp,
                control: SocketAddr::from(([10, 0, 0, 1], n)),
            }],
            domain: FailureDomain {
                rack: format!("rack-{}", n / 4),
                host: format!("host-{n}"),
                ..FailureDomain::default()
            },
            capacity: NODE_BYTES,
            incarnation: INCARNATION,
        });
        self.nodes.push(node.node);
    }

    /// Gives how many copies were made: one or none.
    fn obey(&mut self, order: Order) -> u64 {
        match order {
            Order::Copy {
                extent, to, order, ..
            } => {
                self.run(&Copied {
                    region: REGION,
                    epoch: self.epoch,
                    extent,
                    node: to,
                    order,
                });
                1
            }
            Order::Drop { extent, node, .. } => {
                self.run(&Dropped {
                    region: REGION,
                    epoch: self.epoch,
                    extent,
                    node,
                });
                0
            }
        }
    }

    fn run<C: Command>(&mut self, command: &C) -> C::Answer {
        match self.cluster.apply(self.now_ms, command) {
            Ok(step) => step.answer,
            Err(refusal) => panic!("a cluster with room for all refuses: {refusal}"),
        }
    }
}

/// The states of a record while extents are placed, a few at a time.
fn growth(record: Record) -> Vec<Record> {
    let Record::Extents(chunk) = record else {
        return vec![record];
    };
    let ends = (PLACED_AT_ONCE..chunk.extents.len()).step_by(PLACED_AT_ONCE);
    let part = |end| {
        Record::Extents(Chunk {
            extents: chunk.extents[..end].to_vec(),
        })
    };
    ends.map(part)
        .chain([Record::Extents(chunk.clone())])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tebibyte_is_balanced_and_takes_few_bytes() {
        let mut trial = Trial::new(64);
        trial.place(65_536, 2);
        let imbalance = trial.imbalance();
        assert!((1.0..=1.05).contains(&imbalance), "{imbalance}");
        let dir = tempfile::tempdir().expect("a directory");
        let bytes = trial.store_bytes(&dir.path().join("trial.redb"));
        let bytes = bytes.expect("written");
        assert!((1.0..=64.0).contains(&bytes), "{bytes} bytes a replica");
    }

    #[test]
    fn an_added_node_gets_its_share_and_little_more_moves() {
        let mut trial = Trial::new(64);
        trial.place(8_192, 2);
        let moved = trial.add_node();
        assert!(
            (0.8..=1.2).contains(&moved),
            "{moved} of the ideal share moved"
        );
        let imbalance = trial.imbalance();
        assert!(
            (1.0..=1.05).contains(&imbalance),
            "{imbalance} after a node was added"
        );
    }
}

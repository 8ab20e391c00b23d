//! A cluster to be tested: nodes that are heard, owners that do what they are told.

use std::net::SocketAddr;

use mycoram_fabric::placement::FailureDomain;
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, Incarnation, RegionId, TenantId};

use crate::cluster::*;

pub(super) const EXTENT: ByteCount = ByteCount::mib(16);
pub(super) const TENANT: TenantId = TenantId::new(7);

pub(super) struct Rig {
    pub(super) cluster: Cluster,
    pub(super) now: u64,
    /// Nodes that are heard at each step of time.
    pub(super) alive: Vec<(NodeId, Incarnation)>,
}

impl Rig {
    pub(super) fn new(limits: Limits) -> Self {
        let cluster = Cluster::load(limits, []).expect("nothing is wrong with nothing");
        Self {
            cluster,
            now: 1_000_000,
            alive: Vec::new(),
        }
    }

    /// `nodes` nodes of `extents` extents each, four hosts a rack.
    pub(super) fn with_nodes(nodes: u16, extents: u64) -> Self {
        let mut rig = Self::new(Limits::default());
        for n in 0..nodes {
            rig.join(n, extents);
        }
        rig
    }

    pub(super) fn register(n: u16, extents: u64, incarnation: u64) -> Register {
        Register {
            name: format!("n{n}"),
            addresses: vec![NodeAddress {
                transport: TransportKind::Tcp,
                control: SocketAddr::from(([10, 0, 0, 1], 7000 + n)),
            }],
            domain: FailureDomain {
                region: "r".to_owned(),
                zone: "z".to_owned(),
                rack: format!("rack{}", n / 4),
                host: format!("h{n}"),
            },
            capacity: ByteCount::new(EXTENT.get() * extents),
            incarnation: Incarnation::new(incarnation),
        }
    }

    pub(super) fn join(&mut self, n: u16, extents: u64) -> NodeId {
        let register = Self::register(n, extents, 1);
        let node = self.must(&register).node;
        self.alive.push((node, register.incarnation));
        node
    }

    pub(super) fn run<C: Command>(&mut self, command: &C) -> Result<C::Answer, C::Refusal> {
        self.cluster
            .apply(self.now, command)
            .map(|step| step.answer)
    }

    pub(super) fn must<C: Command>(&mut self, command: &C) -> C::Answer {
        match self.run(command) {
            Ok(answer) => answer,
            Err(refusal) => panic!("refused: {refusal}"),
        }
    }

    /// Time passes in steps; who is alive is heard, does what it is told, and owners renew.
    pub(super) fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(500) {
            self.now += 500;
            for (node, incarnation) in self.alive.clone() {
                let heartbeat = Heartbeat {
                    node,
                    incarnation,
                    load_percent: 0,
                };
                for order in self.must(&heartbeat).orders {
                    self.must(&Confirm {
                        node,
                        incarnation,
                        order,
                    });
                }
            }
            let owned: Vec<_> = self.cluster.regions().map(|status| status.region).collect();
            for region in owned {
                let renew = Renew {
                    region: region.id,
                    epoch: region.lease.epoch(),
                };
                let _ = self.run(&renew);
            }
            self.must(&Tick);
        }
    }

    pub(super) fn silence(&mut self, node: NodeId) {
        self.alive.retain(|(other, _)| *other != node);
    }

    pub(super) fn state(&self, node: NodeId) -> NodeState {
        self.cluster.node(node).expect("a node").state
    }

    pub(super) fn create(id: u64, extents: u64, replicas: u8) -> CreateRegion {
        CreateRegion {
            id: RegionId::new(id),
            name: format!("region{id}"),
            tenant: TENANT,
            bytes: ByteCount::new(EXTENT.get() * extents),
            extent_bytes: EXTENT,
            replicas,
            policy: RegionPolicy::default(),
            class: PriorityClass::Normal,
            locality: Locality::anywhere(),
            reservation: None,
            secret: [id as u8; 16],
        }
    }

    /// A region with an owner.
    pub(super) fn owned(&mut self, id: u64, extents: u64, replicas: u8) -> Owned {
        self.must(&Self::create(id, extents, replicas));
        self.acquire(RegionId::new(id), 1, false)
    }

    pub(super) fn acquire(&mut self, region: RegionId, owner: u64, take_over: bool) -> Owned {
        let acquire = Acquire {
            region,
            owner: OwnerId::new(owner),
            take_over,
            waiting_for: None,
        };
        for _ in 0..100 {
            if let Acquired::GoOn { epoch, .. } = self.must(&acquire) {
                return Owned { region, epoch };
            }
            self.pass(500);
        }
        panic!("the owner was never told to go on");
    }

    pub(super) fn place(&mut self, owned: Owned, extents: std::ops::Range<u32>) {
        let extents: Vec<_> = extents.map(ExtentIndex::new).collect();
        for batch in extents.chunks(MAX_BATCH) {
            self.must(&Place {
                region: owned.region,
                epoch: owned.epoch,
                round: 0,
                without: Vec::new(),
                extents: batch.to_vec(),
            });
        }
    }

    /// The owner does all it is told; gives how many copies it made.
    pub(super) fn obey(&mut self, owned: Owned) -> usize {
        let orders = self
            .cluster
            .orders(owned.region, owned.epoch)
            .expect("its owner");
        let mut copies = 0;
        for order in orders {
            match order {
                Order::Copy {
                    extent, to, order, ..
                } => {
                    copies += 1;
                    self.must(&Copied {
                        region: owned.region,
                        epoch: owned.epoch,
                        extent,
                        node: to,
                        order,
                    });
                }
                Order::Drop { extent, node, .. } => self.must(&Dropped {
                    region: owned.region,
                    epoch: owned.epoch,
                    extent,
                    node,
                }),
            }
        }
        copies
    }

    /// Until nothing is ordered any more; gives how many copies were made.
    pub(super) fn settle(&mut self, owned: Owned) -> usize {
        let mut copies = 0;
        for _ in 0..10_000 {
            self.pass(500);
            let idle = self
                .cluster
                .orders(owned.region, owned.epoch)
                .expect("its owner")
                .is_empty();
            if idle {
                return copies;
            }
            copies += self.obey(owned);
        }
        panic!("it never comes to rest");
    }

    pub(super) fn homes(&self, owned: Owned, extent: u32) -> Homes {
        let homes = self.cluster.homes(owned.region, ExtentIndex::new(extent));
        homes.cloned().unwrap_or_default()
    }

    /// A control plane that starts from what is durable knows the same.
    pub(super) fn restart(&mut self) {
        let records = self.cluster.records();
        let again = Cluster::load(*self.cluster.limits(), records.clone()).expect("own records");
        assert_eq!(again.records(), records);
        self.cluster = again;
    }
}

#[derive(Clone, Copy)]
pub(super) struct Owned {
    pub(super) region: RegionId,
    pub(super) epoch: Epoch,
}

//! The conformance suite against the simulated transport, and what only a simulation can show.

mod conformance;

use std::sync::Arc;
use std::time::Duration;

use conformance::client::{Client, admit, read, write};
use conformance::data::pattern;
use conformance::{Fabric, Node, Victim, VictimFacts, at};
use mycoram_fabric::transport::sim::{SimConfig, SimNetwork, SimServer};
use mycoram_fabric::transport::{
    ConnectError, DataServer, ErrorKind, Export, Mapping, QueuePairConfig, TICKET_BYTES, Ticket,
    Transport,
};
use mycoram_fabric::units::{Epoch, RegionId, TenantId};

struct SimNode {
    server: SimServer,
    pool: Arc<Mapping>,
}

impl Node for SimNode {
    fn server(&self) -> &dyn DataServer {
        &self.server
    }

    fn pool(&self) -> &Mapping {
        &self.pool
    }
}

struct SimVictim {
    network: SimNetwork,
    facts: VictimFacts,
    /// Kills the machine, not only the process.
    silently: bool,
    _server: SimServer,
}

impl Victim for SimVictim {
    fn facts(&self) -> VictimFacts {
        self.facts
    }

    fn kill(&mut self) {
        if self.silently {
            self.network.kill_machine(self.facts.address);
        } else {
            self.network.kill_process(self.facts.address);
        }
    }
}

struct Sim {
    network: SimNetwork,
    silently: bool,
}

impl Sim {
    fn new(config: SimConfig) -> Self {
        Self {
            network: SimNetwork::new(config),
            silently: false,
        }
    }
}

impl Fabric for Sim {
    type Node = SimNode;
    type Victim = SimVictim;

    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(self.network.transport())
    }

    fn start_node(&self, pool_bytes: usize) -> SimNode {
        let pool = Arc::new(Mapping::anonymous(pool_bytes).expect("memory"));
        let server = self.network.start_node(Arc::clone(&pool));
        SimNode { server, pool }
    }

    fn start_victim(&self, pool_bytes: usize) -> SimVictim {
        let SimNode { server, .. } = self.start_node(pool_bytes);
        let (tenant, secret) = (TenantId::new(7), [7; TICKET_BYTES]);
        let ticket = Ticket { secret };
        server
            .admit(ticket, tenant, RegionId::new(7), Epoch::new(7))
            .expect("a first session");
        let export = server
            .export(tenant, 0, pool_bytes as u64)
            .expect("the whole pool");
        SimVictim {
            network: self.network.clone(),
            facts: VictimFacts {
                address: server.address(),
                ticket,
                export,
            },
            silently: self.silently,
            _server: server,
        }
    }
}

mod calm {
    use super::*;

    crate::conformance_suite!(Sim::new(SimConfig::seeded(1)));
}

mod lossy {
    use super::*;

    crate::conformance_suite!(Sim::new(SimConfig {
        loss_per_million: 20_000,
        max_delay_us: 500,
        ..SimConfig::seeded(2)
    }));
}

#[test]
fn a_machine_that_dies_is_unreachable() {
    let fabric = Sim {
        silently: true,
        ..Sim::new(SimConfig::seeded(3))
    };
    conformance::death::a_killed_peer_completes_everything_once(&fabric);
    conformance::death::a_killed_peer_cannot_be_connected(&fabric);
}

/// A fixed piece of work under loss and reordering; what happened, and what was read.
fn run(seed: u64) -> (u64, Duration, Vec<u8>) {
    let fabric = Sim::new(SimConfig {
        loss_per_million: 50_000,
        ..SimConfig::seeded(seed)
    });
    let node = fabric.start_node(1 << 20);
    let (tenant, ticket) = admit(&node, 1, 1, 1);
    let export = node.server().export(tenant, 0, 1 << 20).expect("inside");
    let transport = fabric.transport();
    let address = node.server().address();
    let mut clients: Vec<_> = (0..4)
        .map(|_| {
            Client::connect(&fabric, &transport, address, &ticket, 64, 1 << 16).expect("admitted")
        })
        .collect();
    for round in 0..20_u64 {
        for (n, client) in clients.iter_mut().enumerate() {
            client.fill(0, &pattern(seed ^ round, 4096));
            let place = at(&export, round * 4096);
            let chain = [
                write(round, client.slice(0, 1024 * (n + 1)), place),
                read(round, client.slice(8192, 4096), place),
            ];
            client.pair.post(&chain).expect("room");
        }
        for client in &mut clients {
            assert!(client.complete(2).iter().all(|c| c.result.is_ok()));
        }
    }
    let bytes = clients[0].bytes(8192, 4096);
    (fabric.network.digest(), fabric.network.now(), bytes)
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..8 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1).0, run(2).0, "another seed, another run");
}

#[test]
fn a_short_partition_is_survived_and_a_long_one_breaks() {
    let fabric = Sim::new(SimConfig::seeded(5));
    let node = fabric.start_node(8192);
    let (tenant, ticket) = admit(&node, 1, 1, 1);
    let export = node.server().export(tenant, 0, 8192).expect("inside");
    let address = node.server().address();
    let transport = fabric.transport();
    let mut client =
        Client::connect(&fabric, &transport, address, &ticket, 4, 4096).expect("admitted");

    fabric.network.cut(address);
    let into = client.slice(0, 64);
    client
        .pair
        .post(&[read(1, into, at(&export, 0))])
        .expect("room");
    fabric.network.advance(Duration::from_secs(5));
    fabric.network.heal(address);
    assert_eq!(client.complete(1)[0].result, Ok(()));

    fabric.network.cut(address);
    assert_eq!(
        client.read(0, 64, at(&export, 0)),
        Err(ErrorKind::PeerUnreachable)
    );
    let again = Client::connect(&fabric, &transport, address, &ticket, 4, 4096);
    assert!(matches!(again, Err(ConnectError::Unreachable { .. })));
    fabric.network.heal(address);
    assert!(Client::connect(&fabric, &transport, address, &ticket, 4, 4096).is_ok());
}

#[test]
fn a_restarted_node_knows_nobody() {
    let fabric = Sim::new(SimConfig::seeded(6));
    let mut victim = fabric.start_victim(8192);
    let facts = victim.facts();
    let transport = fabric.transport();
    let connect = || Client::connect(&fabric, &transport, facts.address, &facts.ticket, 4, 4096);
    let mut before = connect().expect("admitted");
    victim.kill();
    let pool = Arc::new(Mapping::anonymous(8192).expect("memory"));
    let server = fabric.network.restart_node(facts.address, pool);
    assert!(matches!(connect(), Err(ConnectError::Refused { .. })));
    before.complete_until_broken();
    let (tenant, ticket) = (TenantId::new(7), facts.ticket);
    server
        .admit(ticket, tenant, RegionId::new(7), Epoch::new(7))
        .expect("a first session");
    let mut after = connect().expect("admitted again");
    let stale: Export = facts.export;
    assert_eq!(
        after.read(0, 8, at(&stale, 0)),
        Err(ErrorKind::RemoteAccess),
        "a key of the former life opens nothing"
    );
}

#[test]
fn corruption_flips_one_bit() {
    let fabric = Sim::new(SimConfig::seeded(7));
    let (node, export, mut client) = Client::with_node(&fabric, 8192, 4, 4096);
    let address = node.server().address();
    let flipped = |bytes: &[u8]| bytes.iter().map(|b| b.count_ones()).sum::<u32>();

    fabric.network.corrupt_reads(address, 1);
    assert_eq!(client.read(0, 4096, at(&export, 0)), Ok(()));
    assert_eq!(flipped(&client.bytes(0, 4096)), 1, "on the way");
    assert_eq!(client.read(0, 4096, at(&export, 0)), Ok(()));
    assert_eq!(flipped(&client.bytes(0, 4096)), 0, "the store is sound");

    assert!(fabric.network.corrupt_memory(address, 100));
    assert!(!fabric.network.corrupt_memory(address, 8192));
    assert_eq!(client.read(0, 4096, at(&export, 0)), Ok(()));
    let bytes = client.bytes(0, 4096);
    assert_eq!(flipped(&bytes), 1, "in the store");
    assert_eq!(flipped(&bytes[100..101]), 1);
}

#[test]
fn messages_of_different_connections_overtake_each_other() {
    let fabric = Sim::new(SimConfig::seeded(8));
    let node = fabric.start_node(8192);
    let (tenant, ticket) = admit(&node, 1, 1, 1);
    let export = node.server().export(tenant, 0, 8192).expect("inside");
    let transport = fabric.transport();
    let address = node.server().address();
    let connect =
        || Client::connect(&fabric, &transport, address, &ticket, 4, 4096).expect("admitted");
    let (mut first, mut second) = (connect(), connect());
    let mut overtaken = 0;
    for round in 0..50 {
        let into = first.slice(0, 8);
        first
            .pair
            .post(&[read(round, into, at(&export, 0))])
            .expect("room");
        let into = second.slice(0, 8);
        second
            .pair
            .post(&[read(round, into, at(&export, 0))])
            .expect("room");
        second.complete(1);
        overtaken += usize::from(first.pair.poll(&mut Vec::with_capacity(1)) == 0);
        first.complete(usize::from(first.pair.free_slots() < 4));
    }
    assert!((10..40).contains(&overtaken), "{overtaken} of 50");
}

#[test]
fn waiting_costs_no_time() {
    let fabric = Sim {
        silently: true,
        ..Sim::new(SimConfig::seeded(9))
    };
    let mut victim = fabric.start_victim(8192);
    let facts = victim.facts();
    let config = QueuePairConfig {
        response_timeout_ms: 3_600_000,
        ..fabric.config(4)
    };
    let transport = fabric.network.transport();
    let mut pair = transport
        .connect(facts.address, &facts.ticket, &config)
        .expect("admitted");
    let memory = transport
        .register(Arc::new(Mapping::anonymous(4096).expect("memory")))
        .expect("registered");
    victim.kill();
    let into = memory.slice(0, 8).expect("inside");
    pair.post(&[read(1, into, at(&facts.export, 0))])
        .expect("room");
    let before = fabric.network.now();
    assert!(pair.wait(Duration::from_secs(7200)), "an hour, virtually");
    assert_eq!(fabric.network.now() - before, Duration::from_secs(3600));
}

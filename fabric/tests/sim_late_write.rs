//! A write that a broken queue pair left under way, in simulated time.

mod sim_cluster;

use std::sync::Arc;
use std::time::Duration;

use mycoram_fabric::session::{Dial, Identity, Session};
use mycoram_fabric::transport::sim::{SimConfig, SimNetwork};
use mycoram_fabric::transport::{
    Mapping, Operation, QueuePairConfig, RemoteSlice, Transport, WorkId, WorkRequest,
};
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, PAGE_BYTES, RegionId, TenantId};
use mycoram_fabric::wire::control::Token;
use sim_cluster::{SimDial, control, machines};

fn contents(version: u64) -> Vec<u8> {
    version.to_le_bytes().repeat(PAGE_BYTES / 8)
}

/// A queue pair is replaced while its write is still under way: it never lands, so nothing that is
/// written over its successor can be overwritten by it.
#[test]
fn a_write_that_is_late_does_not_land_behind_those_of_the_next_queue_pair() {
    let network = SimNetwork::new(SimConfig {
        min_delay_us: 100_000,
        max_delay_us: 100_000,
        ..SimConfig::seeded(1)
    });
    let machines = machines(&network);
    let dial = SimDial {
        network: network.clone(),
        machines,
    };
    let identity = Identity {
        tenant: TenantId::new(1),
        region: RegionId::new(1),
        epoch: Epoch::new(1),
        token: Token([1; 16]),
        owner: 1,
    };
    let channel = dial.dial(control(0)).expect("a channel");
    let mut session = Session::open(channel, identity, true).expect("a session");
    let bytes = ByteCount::new(PAGE_BYTES as u64);
    let grants = session
        .allocate(bytes, &[ExtentIndex::new(0)])
        .expect("room");
    let at = RemoteSlice {
        addr: grants[0].addr,
        rkey: grants[0].rkey,
    };
    let transport = network.transport();
    let frames = Arc::new(Mapping::anonymous(3 * PAGE_BYTES).expect("memory"));
    let local = transport.register(Arc::clone(&frames)).expect("registered");
    let config = QueuePairConfig {
        response_timeout_ms: 1000,
        ..QueuePairConfig::default()
    };
    let data = session.welcome().data;
    let slice = |page: usize| local.slice(page * PAGE_BYTES, PAGE_BYTES).expect("inside");
    let work = |operation| WorkRequest {
        id: WorkId(1),
        operation,
        signaled: true,
    };
    let write = |page| {
        work(Operation::Write {
            from: slice(page),
            into: at,
        })
    };
    frames.copy_in(0, &contents(1)).expect("inside");
    frames.copy_in(PAGE_BYTES, &contents(2)).expect("inside");

    let first = session.ticket(None).expect("a ticket");
    let mut broken = transport.connect(data, &first, &config).expect("connected");
    broken.post(&[write(0)]).expect("room");
    let second = session.ticket(Some(first)).expect("another ticket");
    let mut next = transport
        .connect(data, &second, &config)
        .expect("connected");
    let mut done = Vec::with_capacity(4);
    next.post(&[write(1)]).expect("room");
    while next.poll(&mut done) == 0 {
        next.wait(Duration::from_millis(10));
    }
    assert_eq!(done[0].result, Ok(()));
    // Whatever was under way has come, or never does.
    network.advance(Duration::from_secs(10));
    done.clear();
    broken.poll(&mut done);
    assert!(done[0].result.is_err(), "it was refused");
    done.clear();
    next.post(&[work(Operation::Read {
        into: slice(2),
        from: at,
    })])
    .expect("room");
    while next.poll(&mut done) == 0 {
        next.wait(Duration::from_millis(10));
    }
    let mut found = vec![0; PAGE_BYTES];
    frames.copy_out(2 * PAGE_BYTES, &mut found).expect("inside");
    assert!(found == contents(2), "the page is as it was last written");
}

//! Chains, full queues, and thousands of operations in flight.

use std::time::Instant;

use mycoram_fabric::transport::{Armed, PostError, WorkId};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::client::{Client, read, write};
use super::data::pattern;
use super::{Fabric, Node, at};

pub(crate) fn a_chain_signals_only_what_is_asked<F: Fabric>(fabric: &F) {
    let (node, export, mut client) = Client::with_node(fabric, 1 << 20, 64, 64 * 4096);
    let bytes = pattern(5, 64 * 4096);
    node.pool().copy_in(0, &bytes).expect("inside");
    let chain: Vec<_> = (0..64)
        .map(|n| {
            let mut one = read(
                n,
                client.slice(n as usize * 4096, 4096),
                at(&export, n * 4096),
            );
            one.signaled = n % 16 == 15;
            one
        })
        .collect();
    client.pair.post(&chain).expect("room");
    let ids: Vec<_> = client
        .complete(4)
        .iter()
        .map(|c| (c.id, c.result))
        .collect();
    assert_eq!(
        ids,
        [15, 31, 47, 63].map(|n| (WorkId(n), Ok(()))),
        "one in sixteen is reported"
    );
    assert!(client.bytes(0, 64 * 4096) == bytes, "all of them are done");
    assert_eq!(client.pair.free_slots(), 64);
    assert_eq!(client.pair.poll(&mut Vec::with_capacity(8)), 0);
}

pub(crate) fn a_full_queue_takes_nothing_of_a_chain<F: Fabric>(fabric: &F) {
    let (_node, export, mut client) = Client::with_node(fabric, 1 << 20, 8, 4096);
    assert_eq!(client.pair.free_slots(), 8);
    let chain: Vec<_> = (0..9)
        .map(|n| read(n, client.slice(0, 8), at(&export, 0)))
        .collect();
    match client.pair.post(&chain) {
        Err(PostError::Full { asked: 9, free: 8 }) => {}
        other => panic!("nine in a queue of eight were answered with {other:?}"),
    }
    client.pair.post(&chain[..6]).expect("room for six");
    assert_eq!(client.pair.free_slots(), 2);
    match client.pair.post(&chain[..3]) {
        Err(PostError::Full { asked: 3, free: 2 }) => {}
        other => panic!("three where two are free were answered with {other:?}"),
    }
    assert_eq!(client.complete(6).len(), 6);
    assert_eq!(client.pair.free_slots(), 8);
    client.pair.post(&[]).expect("an empty chain is nothing");
}

pub(crate) fn poll_never_grows_the_vector<F: Fabric>(fabric: &F) {
    let (_node, export, mut client) = Client::with_node(fabric, 1 << 20, 64, 4096);
    let chain: Vec<_> = (0..32)
        .map(|n| read(n, client.slice(0, 64), at(&export, 0)))
        .collect();
    client.pair.post(&chain).expect("room");
    let mut none = Vec::new();
    assert_eq!(client.pair.poll(&mut none), 0, "no capacity, no completion");
    assert_eq!(none.capacity(), 0);
    let mut three = Vec::with_capacity(3);
    let room = three.capacity();
    let mut next = 0;
    while next < 32 {
        let got = client.pair.poll(&mut three);
        assert_eq!(got, three.len());
        assert_eq!(three.capacity(), room);
        for completion in three.drain(..) {
            assert_eq!(completion.id, WorkId(next));
            next += 1;
        }
        if got == 0 {
            client.pair.wait(std::time::Duration::from_millis(100));
        }
    }
}

pub(crate) fn thousands_of_reads_in_flight<F: Fabric>(fabric: &F) {
    let deep = fabric.deep();
    let bytes = pattern(6, deep as usize * 64);
    let (node, export, mut client) = Client::with_node(fabric, bytes.len(), deep, bytes.len());
    node.pool().copy_in(0, &bytes).expect("inside");
    let chain: Vec<_> = (0..u64::from(deep))
        .map(|n| read(n, client.slice(n as usize * 64, 64), at(&export, n * 64)))
        .collect();
    client.pair.post(&chain).expect("room for all");
    assert_eq!(client.pair.free_slots(), 0);
    for (n, completion) in client.complete(deep as usize).into_iter().enumerate() {
        assert_eq!(completion.id, WorkId(n as u64));
        assert_eq!(completion.result, Ok(()));
    }
    assert!(client.bytes(0, bytes.len()) == bytes);
}

pub(crate) fn thousands_of_writes_in_flight<F: Fabric>(fabric: &F) {
    let deep = fabric.deep();
    let bytes = pattern(7, deep as usize * 512);
    let (node, export, mut client) = Client::with_node(fabric, bytes.len(), deep, bytes.len());
    client.fill(0, &bytes);
    for part in (0..u64::from(deep)).collect::<Vec<_>>().chunks(128) {
        let chain: Vec<_> = part
            .iter()
            .map(|n| {
                write(
                    *n,
                    client.slice(*n as usize * 512, 512),
                    at(&export, n * 512),
                )
            })
            .collect();
        client.pair.post(&chain).expect("room for all");
    }
    assert!(
        client
            .complete(deep as usize)
            .iter()
            .all(|c| c.result.is_ok())
    );
    let mut stored = vec![0; bytes.len()];
    node.pool().copy_out(0, &mut stored).expect("inside");
    assert!(stored == bytes);
}

pub(crate) fn the_queue_can_be_filled_again_and_again<F: Fabric>(fabric: &F) {
    let (_node, export, mut client) = Client::with_node(fabric, 1 << 20, 7, 4096);
    // A depth that divides nothing, a chain that never ends where the queue does.
    let mut posted = 0_u64;
    let mut seen = 0_u64;
    let total = u64::from(fabric.rounds());
    let mut completions = Vec::with_capacity(7);
    while seen < total {
        while posted < total && client.pair.free_slots() >= 3 {
            let chain: Vec<_> = (0..3)
                .map(|n| {
                    let mut one = read(posted + n, client.slice(0, 8), at(&export, 8 * n));
                    one.signaled = n == 2;
                    one
                })
                .collect();
            client.pair.post(&chain).expect("three are free");
            posted += 3;
        }
        completions.extend(client.complete(1));
        for completion in completions.drain(..) {
            assert_eq!(completion.id, WorkId(seen + 2));
            assert_eq!(completion.result, Ok(()));
            seen += 3;
        }
    }
}

pub(crate) fn a_readiness_waiter_hears_of_every_completion<F: Fabric>(fabric: &F) {
    let (_node, export, mut client) = Client::with_node(fabric, 1 << 20, 16, 1 << 20);
    if client.pair.readiness().is_none() {
        // Simulated time has nothing to wait on; `wait` is checked everywhere.
        return;
    }
    let begun = Instant::now();
    let mut completions = Vec::with_capacity(16);
    for round in 0..u64::from(fabric.rounds() / 10) {
        let len = if round % 8 == 0 { 65_536 } else { 64 };
        let chain: Vec<_> = (0..1 + round % 16)
            .map(|n| {
                read(
                    n,
                    client.slice(n as usize * 65_536, len),
                    at(&export, n * 65_536),
                )
            })
            .collect();
        client.pair.post(&chain).expect("room");
        while completions.len() < chain.len() {
            if client.pair.poll(&mut completions) == 0 && client.pair.arm() == Armed::Waiting {
                let fd = client.pair.readiness().expect("there was one before");
                let mut wait = [PollFd::new(fd, PollFlags::POLLIN)];
                let patience = PollTimeout::try_from(fabric.patience()).expect("some seconds");
                poll(&mut wait, patience).expect("a descriptor can be polled");
            }
            assert!(begun.elapsed() < fabric.patience(), "nobody woke us");
        }
        assert!(completions.drain(..).all(|c| c.result.is_ok()));
    }
}

pub(crate) fn dropping_with_work_in_flight_ends<F: Fabric>(fabric: &F) {
    let (node, export, mut client) = Client::with_node(fabric, 1 << 20, 256, 1 << 20);
    let chain: Vec<_> = (0..256)
        .map(|n| {
            read(
                n,
                client.slice(n as usize * 4096, 4096),
                at(&export, n * 4096),
            )
        })
        .collect();
    client.pair.post(&chain).expect("room");
    drop(client);
    drop(node);
}

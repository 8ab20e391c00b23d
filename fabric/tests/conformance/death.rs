//! A peer that dies: every outstanding request completes once, with an error.

use std::collections::HashSet;

use mycoram_fabric::transport::{ConnectError, ErrorKind, PostError};

use super::client::{Client, read, write};
use super::{Fabric, Victim, at};

fn assert_death(kind: ErrorKind) {
    assert!(
        matches!(
            kind,
            ErrorKind::PeerDisconnected | ErrorKind::PeerUnreachable
        ),
        "a dead peer broke the queue pair with {kind:?}"
    );
}

pub(crate) fn a_killed_peer_completes_everything_once<F: Fabric>(fabric: &F) {
    const DEPTH: u32 = 512;
    const PIECE: usize = 64 << 10;
    let mut victim = fabric.start_victim(4 << 20);
    let facts = victim.facts();
    let mut client = Client::connect(
        fabric,
        &fabric.transport(),
        facts.address,
        &facts.ticket,
        DEPTH,
        4 << 20,
    )
    .expect("admitted");
    // Warm: it works before.
    assert_eq!(client.read(0, PIECE, at(&facts.export, 0)), Ok(()));

    let mut outstanding = HashSet::new();
    for n in 0..u64::from(DEPTH) {
        let offset = (n as usize * PIECE) % (4 << 20);
        let slice = client.slice(offset, PIECE);
        let place = at(&facts.export, offset as u64);
        let one = if n % 2 == 0 {
            read(n, slice, place)
        } else {
            write(n, slice, place)
        };
        match client.pair.post(&[one]) {
            Ok(()) => assert!(outstanding.insert(n)),
            Err(PostError::Broken { .. }) => break,
            Err(other) => panic!("there is room: {other:?}"),
        }
        if n == u64::from(DEPTH) / 2 {
            victim.kill();
        }
        if client.pair.broken().is_some() {
            break;
        }
    }
    let completions = client.complete_until_broken();
    let mut failed = 0;
    for completion in &completions {
        assert!(
            outstanding.remove(&completion.id.0),
            "{:?} completed twice, or was never posted",
            completion.id
        );
        match completion.result {
            Ok(()) => assert_eq!(failed, 0, "no success behind a failure"),
            Err(error) if failed == 0 => {
                assert_death(error.kind);
                failed += 1;
            }
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Flushed);
                failed += 1;
            }
        }
    }
    // None failed where a device went on serving until the last request that was posted before the end.
    assert!(outstanding.is_empty(), "{outstanding:?} never completed");
    let more = client
        .pair
        .post(&[read(1, client.slice(0, 8), at(&facts.export, 0))]);
    assert!(matches!(more, Err(PostError::Broken { .. })), "{more:?}");
}

pub(crate) fn a_killed_peer_cannot_be_connected<F: Fabric>(fabric: &F) {
    let mut victim = fabric.start_victim(8192);
    let facts = victim.facts();
    victim.kill();
    let answer = Client::connect(
        fabric,
        &fabric.transport(),
        facts.address,
        &facts.ticket,
        4,
        4096,
    );
    match answer {
        Err(ConnectError::Unreachable { peer, .. }) => assert_eq!(peer, facts.address),
        Err(other) => panic!("a dead node was answered for with {other:?}"),
        Ok(_) => panic!("a dead node was connected"),
    }
}

pub(crate) fn an_idle_queue_pair_notices_the_death<F: Fabric>(fabric: &F) {
    let mut victim = fabric.start_victim(8192);
    let facts = victim.facts();
    let mut client = Client::connect(
        fabric,
        &fabric.transport(),
        facts.address,
        &facts.ticket,
        4,
        4096,
    )
    .expect("admitted");
    assert_eq!(client.read(0, 64, at(&facts.export, 0)), Ok(()));
    victim.kill();
    assert!(client.complete_until_broken().is_empty(), "nothing was out");
    assert_death(client.pair.broken().expect("broken").kind);
}

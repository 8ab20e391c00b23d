//! What the serving side must refuse, and what a refusal does to the queue pair.

use mycoram_fabric::transport::{
    ErrorKind, Export, ExportError, MAX_TRANSFER_BYTES, Operation, PostError, Retry, WorkId,
};
use mycoram_fabric::units::{RemoteAddr, Rkey};

use super::client::{Client, admit, read, write};
use super::{Fabric, Node, at};

/// The operation is refused for its key or bounds, and the queue pair is broken by it.
fn assert_refused(client: &mut Client, operation: Operation) {
    let kind = client.perform(operation).expect_err("must be refused");
    assert_eq!(kind, ErrorKind::RemoteAccess);
    assert_eq!(kind.retry(), Retry::Never);
    let broken = client.pair.broken().expect("a refusal breaks it");
    assert_eq!(broken.kind, ErrorKind::RemoteAccess);
    let again = client
        .pair
        .post(&[read(1, client.slice(0, 0), at_nothing())]);
    assert!(
        matches!(again, Err(PostError::Broken { .. })),
        "a broken queue pair takes nothing: {again:?}"
    );
}

fn at_nothing() -> mycoram_fabric::transport::RemoteSlice {
    mycoram_fabric::transport::RemoteSlice {
        addr: RemoteAddr::new(0),
        rkey: Rkey::new(0),
    }
}

pub(crate) fn an_unknown_rkey_is_refused<F: Fabric>(fabric: &F) {
    let (_node, export, mut client) = Client::with_node(fabric, 8192, 4, 4096);
    let unknown = Export {
        rkey: Rkey::new(!export.rkey.get()),
        ..export
    };
    let into = client.slice(0, 64);
    let from = at(&unknown, 0);
    assert_refused(&mut client, Operation::Read { into, from });
}

pub(crate) fn a_revoked_rkey_is_refused<F: Fabric>(fabric: &F) {
    let node = fabric.start_node(8192);
    let (tenant, ticket) = admit(&node, 1, 1, 1);
    let export = node.server().export(tenant, 0, 4096).expect("inside");
    let transport = fabric.transport();
    let address = node.server().address();
    let mut client =
        Client::connect(fabric, &transport, address, &ticket, 4, 4096).expect("admitted");
    assert_eq!(client.read(0, 64, at(&export, 0)), Ok(()));
    assert!(node.server().revoke(tenant, export.rkey));
    assert!(!node.server().revoke(tenant, export.rkey), "only once");
    let into = client.slice(0, 64);
    let from = at(&export, 0);
    assert_refused(&mut client, Operation::Read { into, from });
}

pub(crate) fn another_tenants_rkey_is_refused<F: Fabric>(fabric: &F) {
    let node = fabric.start_node(8192);
    let (owner, _) = admit(&node, 1, 1, 1);
    let (_, intruder_ticket) = admit(&node, 2, 2, 1);
    let export = node.server().export(owner, 0, 8192).expect("inside");
    node.pool().copy_in(0, &[0x77; 64]).expect("inside");
    let transport = fabric.transport();
    let address = node.server().address();
    let connect = || {
        Client::connect(fabric, &transport, address, &intruder_ticket, 4, 4096).expect("admitted")
    };
    let place = at(&export, 0);

    let mut intruder = connect();
    let into = intruder.slice(0, 64);
    assert_refused(&mut intruder, Operation::Read { into, from: place });
    assert_eq!(intruder.bytes(0, 64), [0; 64], "not a byte came over");

    let mut intruder = connect();
    let from = intruder.slice(0, 64);
    assert_refused(&mut intruder, Operation::Write { from, into: place });

    let mut intruder = connect();
    let old = intruder.slice(0, 8);
    assert_refused(
        &mut intruder,
        Operation::FetchAdd {
            old,
            at: place,
            add: 1,
        },
    );
    let mut bytes = [0; 64];
    node.pool().copy_out(0, &mut bytes).expect("inside");
    assert_eq!(bytes, [0x77; 64], "not a byte was changed");
}

pub(crate) fn reading_past_the_end_is_refused<F: Fabric>(fabric: &F) {
    // Half of the pool is exported, so what is behind the end is there, but not theirs.
    let node = fabric.start_node(16_384);
    let (tenant, ticket) = admit(&node, 1, 1, 1);
    let export = node.server().export(tenant, 0, 8192).expect("inside");
    let transport = fabric.transport();
    let address = node.server().address();
    for (offset, len) in [(8192 - 63, 64), (8192, 1), (12_288, 64), (1 << 40, 4096)] {
        let mut client =
            Client::connect(fabric, &transport, address, &ticket, 4, 4096).expect("admitted");
        let into = client.slice(0, len);
        let from = at(&export, offset);
        assert_refused(&mut client, Operation::Read { into, from });
    }
}

pub(crate) fn an_overflowing_address_is_refused<F: Fabric>(fabric: &F) {
    for addr in [u64::MAX, u64::MAX - 62, u64::MAX - 4095] {
        let (_node, export, mut client) = Client::with_node(fabric, 8192, 4, 4096);
        let mut from = at(&export, 0);
        from.addr = RemoteAddr::new(addr);
        let into = client.slice(0, 64);
        assert_refused(&mut client, Operation::Read { into, from });
    }
    // Just in front of the export: a negative offset.
    let (_node, export, mut client) = Client::with_node(fabric, 8192, 4, 4096);
    let into = client.slice(0, 64);
    let from = at(&export, 8_u64.wrapping_neg());
    assert_refused(&mut client, Operation::Read { into, from });
}

pub(crate) fn writing_past_the_end_changes_nothing<F: Fabric>(fabric: &F) {
    let node = fabric.start_node(16_384);
    let (tenant, ticket) = admit(&node, 1, 1, 1);
    let export = node.server().export(tenant, 0, 8192).expect("inside");
    let transport = fabric.transport();
    let address = node.server().address();
    let mut client =
        Client::connect(fabric, &transport, address, &ticket, 4, 4096).expect("admitted");
    client.fill(0, &[0xee; 4096]);
    let from = client.slice(0, 4096);
    let into = at(&export, 8192 - 2048);
    assert_refused(&mut client, Operation::Write { from, into });
    let mut bytes = vec![0xff; 8192];
    node.pool().copy_out(8192, &mut bytes).expect("inside");
    assert!(
        bytes.iter().all(|b| *b == 0),
        "nothing behind the export is written"
    );
}

pub(crate) fn the_longest_write_is_refused_as_any_other<F: Fabric>(fabric: &F) {
    let most = MAX_TRANSFER_BYTES;
    let (_node, export, mut client) = Client::with_node(fabric, 8192, 4, most);
    let from = client.slice(0, most);
    let into = at(&export, 0);
    assert_refused(&mut client, Operation::Write { from, into });
}

pub(crate) fn an_atomic_past_the_end_is_refused<F: Fabric>(fabric: &F) {
    let (_node, export, mut client) = Client::with_node(fabric, 8192, 4, 4096);
    let old = client.slice(0, 8);
    let place = at(&export, 8192);
    assert_refused(
        &mut client,
        Operation::CompareSwap {
            old,
            at: place,
            expected: 0,
            desired: 1,
        },
    );
}

pub(crate) fn everything_behind_a_refusal_is_flushed<F: Fabric>(fabric: &F) {
    let (node, export, mut client) = Client::with_node(fabric, 1 << 20, 64, 1 << 20);
    client.fill(0, &[0x11; 4096]);
    let bad = Export {
        rkey: Rkey::new(export.rkey.get() ^ 0x5555),
        ..export
    };
    let mut chain: Vec<_> = (0..8)
        .map(|n| write(n, client.slice(0, 4096), at(&export, n * 4096)))
        .collect();
    chain.push(write(8, client.slice(0, 4096), at(&bad, 0)));
    for n in 9..32 {
        let mut later = write(n, client.slice(0, 4096), at(&export, n * 4096));
        later.signaled = n % 2 == 0;
        chain.push(later);
    }
    client.pair.post(&chain).expect("room");
    let completions = client.complete(32);
    for (n, completion) in completions.iter().enumerate() {
        assert_eq!(completion.id, WorkId(n as u64), "each once, in order");
        let kind = completion.result.map_err(|e| e.kind);
        match n {
            0..8 => assert_eq!(kind, Ok(())),
            8 => assert_eq!(kind, Err(ErrorKind::RemoteAccess)),
            _ => assert_eq!(kind, Err(ErrorKind::Flushed)),
        }
    }
    assert_eq!(client.pair.poll(&mut Vec::with_capacity(8)), 0, "no more");
    let mut behind = vec![0; 23 * 4096];
    node.pool().copy_out(9 * 4096, &mut behind).expect("inside");
    assert!(behind.iter().all(|b| *b == 0), "nothing behind was done");
}

pub(crate) fn exporting_outside_of_the_pool_is_refused<F: Fabric>(fabric: &F) {
    let node = fabric.start_node(8192);
    let (tenant, _) = admit(&node, 1, 1, 1);
    for (offset, bytes) in [(0, 8193), (8192, 4096), (u64::MAX, 2), (4096, u64::MAX)] {
        match node.server().export(tenant, offset, bytes) {
            Err(ExportError::OutsidePool { .. }) => {}
            other => panic!("{bytes} bytes at {offset} were answered with {other:?}"),
        }
    }
}

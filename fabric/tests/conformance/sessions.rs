//! Who is let in, and what dismissing, fencing, revoking and shutting down end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use mycoram_fabric::transport::{ConnectError, ErrorKind};
use mycoram_fabric::units::{Epoch, RegionId};

use super::client::{Client, admit, ticket, write};
use super::{Fabric, Node, at};

/// What a queue pair may break with when the node ends its session: the transport may know that it
/// was fenced, or only that the connection went away.
fn assert_ended(kind: ErrorKind) {
    assert!(
        matches!(
            kind,
            ErrorKind::Fenced
                | ErrorKind::PeerDisconnected
                | ErrorKind::PeerUnreachable
                | ErrorKind::RemoteAccess
        ),
        "a session that the node ended broke with {kind:?}"
    );
}

fn refused<T>(answer: Result<T, ConnectError>) {
    match answer {
        Err(ConnectError::Refused { .. }) => {}
        Err(other) => panic!("a ticket that is not admitted was answered with {other:?}"),
        Ok(_) => panic!("a ticket that is not admitted was let in"),
    }
}

pub(crate) fn an_unknown_ticket_is_refused<F: Fabric>(fabric: &F) {
    let node = fabric.start_node(8192);
    let (_, good) = admit(&node, 1, 1, 1);
    let transport = fabric.transport();
    let connect = |ticket| {
        Client::connect(
            fabric,
            &transport,
            node.server().address(),
            &ticket,
            4,
            4096,
        )
    };
    refused(connect(ticket(99)));
    let mut near = good;
    near.secret[15] ^= 1;
    refused(connect(near));
    assert!(connect(good).is_ok());
}

pub(crate) fn a_dismissed_ticket_admits_nobody<F: Fabric>(fabric: &F) {
    let node = fabric.start_node(8192);
    let (_, good) = admit(&node, 1, 1, 1);
    node.server().dismiss(&good);
    let transport = fabric.transport();
    let address = node.server().address();
    refused(Client::connect(fabric, &transport, address, &good, 4, 4096));
    node.server().dismiss(&good);
}

pub(crate) fn dismissing_breaks_the_sessions_queue_pairs<F: Fabric>(fabric: &F) {
    let node = fabric.start_node(8192);
    let (tenant, first) = admit(&node, 1, 1, 1);
    let (_, second) = admit(&node, 1, 2, 1);
    let export = node.server().export(tenant, 0, 8192).expect("inside");
    let transport = fabric.transport();
    let connect = |ticket| {
        Client::connect(fabric, &transport, node.server().address(), ticket, 4, 4096)
            .expect("admitted")
    };
    let (mut ended, mut stays) = (connect(&first), connect(&second));
    assert_eq!(ended.read(0, 64, at(&export, 0)), Ok(()));
    assert_eq!(stays.read(0, 64, at(&export, 0)), Ok(()));
    node.server().dismiss(&first);
    ended.complete_until_broken();
    assert_ended(ended.pair.broken().expect("broken").kind);
    assert_eq!(stays.read(0, 64, at(&export, 0)), Ok(()));
}

pub(crate) fn fencing_breaks_lower_epochs_only<F: Fabric>(fabric: &F) {
    let node = fabric.start_node(8192);
    let (tenant, old) = admit(&node, 1, 1, 4);
    let (_, new) = admit(&node, 1, 1, 5);
    let export = node.server().export(tenant, 0, 8192).expect("inside");
    let transport = fabric.transport();
    let connect =
        |ticket| Client::connect(fabric, &transport, node.server().address(), ticket, 4, 4096);
    let mut before = connect(&old).expect("admitted");
    let mut current = connect(&new).expect("admitted");
    assert_eq!(before.write(0, 64, at(&export, 0)), Ok(()));
    node.server().fence(RegionId::new(1), Epoch::new(5));

    // The fence stands when the call returns, whether or not the old owner has heard of it.
    before.fill(0, &[0xbd; 64]);
    let from = before.slice(0, 64);
    let _ = before.pair.post(&[write(1, from, at(&export, 0))]);
    before.complete_until_broken();
    assert_ended(before.pair.broken().expect("broken").kind);
    let mut bytes = [1; 64];
    node.pool().copy_out(0, &mut bytes).expect("inside");
    assert_eq!(bytes, [0; 64], "a fenced WRITE changes nothing");

    assert_eq!(current.read(0, 64, at(&export, 0)), Ok(()));
    refused(connect(&old));
    assert!(connect(&new).is_ok());
}

pub(crate) fn fencing_leaves_other_regions_alone<F: Fabric>(fabric: &F) {
    let node = fabric.start_node(8192);
    let (tenant, ticket) = admit(&node, 1, 2, 1);
    let export = node.server().export(tenant, 0, 8192).expect("inside");
    let transport = fabric.transport();
    let address = node.server().address();
    let mut client =
        Client::connect(fabric, &transport, address, &ticket, 4, 4096).expect("admitted");
    node.server().fence(RegionId::new(1), Epoch::new(100));
    assert_eq!(client.read(0, 64, at(&export, 0)), Ok(()));
}

pub(crate) fn many_queue_pairs_share_a_ticket<F: Fabric>(fabric: &F) {
    let node = fabric.start_node(8192);
    let (tenant, ticket) = admit(&node, 1, 1, 1);
    let export = node.server().export(tenant, 0, 8192).expect("inside");
    let transport = fabric.transport();
    let address = node.server().address();
    let mut clients: Vec<_> = (0..16)
        .map(|_| Client::connect(fabric, &transport, address, &ticket, 4, 4096).expect("admitted"))
        .collect();
    for client in &mut clients {
        assert_eq!(client.fetch_add(at(&export, 0), 1).map(|_| ()), Ok(()));
    }
    assert_eq!(node.server().connections(), 16);
    drop(clients);
    // Every node notices that its peers have gone, within the patience of the fabric.
    let begun = Instant::now();
    while node.server().connections() != 0 {
        assert!(begun.elapsed() < fabric.patience(), "connections stay up");
        std::thread::yield_now();
    }
}

pub(crate) fn revoking_leaves_other_exports_alone<F: Fabric>(fabric: &F) {
    let node = fabric.start_node(8192);
    let (tenant, ticket) = admit(&node, 1, 1, 1);
    let gone = node.server().export(tenant, 0, 4096).expect("inside");
    let kept = node.server().export(tenant, 4096, 4096).expect("inside");
    assert_ne!(gone.rkey, kept.rkey, "each export has a key of its own");
    let transport = fabric.transport();
    let address = node.server().address();
    let mut client =
        Client::connect(fabric, &transport, address, &ticket, 4, 4096).expect("admitted");
    assert_eq!(client.read(0, 64, at(&gone, 0)), Ok(()));
    assert!(node.server().revoke(tenant, gone.rkey));
    assert_eq!(client.read(0, 64, at(&kept, 0)), Ok(()), "still connected");
}

pub(crate) fn nothing_is_written_after_revoke_returns<F: Fabric>(fabric: &F) {
    const BYTES: usize = 1 << 20;
    let node = fabric.start_node(BYTES);
    let (tenant, ticket) = admit(&node, 1, 1, 1);
    let export = node
        .server()
        .export(tenant, 0, BYTES as u64)
        .expect("inside");
    let transport = fabric.transport();
    let address = node.server().address();
    let begun = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client =
                Client::connect(fabric, &transport, address, &ticket, 8, BYTES).expect("admitted");
            client.fill(0, &vec![0xab; BYTES]);
            let slice = client.slice(0, BYTES);
            let mut n = 0;
            // Writes without pause until the key is gone.
            while client.pair.broken().is_none() {
                if client.pair.free_slots() > 0 {
                    let _ = client.pair.post(&[write(n, slice, at(&export, 0))]);
                    n += 1;
                    continue;
                }
                client.complete(1);
                begun.store(true, Ordering::Release);
            }
        });
        while !begun.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        assert!(node.server().revoke(tenant, export.rkey));
        node.pool().copy_in(0, &vec![0; BYTES]).expect("inside");
    });
    let mut stored = vec![1; BYTES];
    node.pool().copy_out(0, &mut stored).expect("inside");
    assert!(
        stored.iter().all(|b| *b == 0),
        "memory that was taken back stays as its next owner left it"
    );
}

pub(crate) fn shutting_down_breaks_what_is_connected<F: Fabric>(fabric: &F) {
    let (node, export, mut client) = Client::with_node(fabric, 8192, 4, 4096);
    assert_eq!(client.read(0, 64, at(&export, 0)), Ok(()));
    node.server().shutdown();
    client.complete_until_broken();
    assert_ended(client.pair.broken().expect("broken").kind);
    assert_eq!(node.server().connections(), 0);
}

//! What the four operations do to bytes.

use mycoram_fabric::transport::{MAX_TRANSFER_BYTES, Operation, PostError, WorkId};

use super::client::{Client, admit, read, request, write};
use super::{Fabric, Node, at};

/// Bytes that differ everywhere and from one `salt` to the next.
pub(crate) fn pattern(salt: u64, len: usize) -> Vec<u8> {
    let mut x = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

fn stored(node: &impl Node, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    node.pool()
        .copy_out(offset, &mut bytes)
        .expect("inside the pool");
    bytes
}

fn word_in(node: &impl Node, offset: usize) -> u64 {
    u64::from_ne_bytes(stored(node, offset, 8).try_into().expect("8 bytes"))
}

pub(crate) fn read_returns_what_is_stored<F: Fabric>(fabric: &F) {
    let (node, export, mut client) = Client::with_node(fabric, 1 << 20, 4, 8192);
    let bytes = pattern(1, 4096);
    node.pool().copy_in(12_288, &bytes).expect("inside");
    client.fill(4096, &[0xff; 4096]);
    assert_eq!(client.read(0, 4096, at(&export, 12_288)), Ok(()));
    assert_eq!(client.bytes(0, 4096), bytes);
    assert_eq!(client.bytes(4096, 4096), [0xff; 4096], "nothing beyond it");
}

pub(crate) fn write_stores_what_was_given<F: Fabric>(fabric: &F) {
    let (node, export, mut client) = Client::with_node(fabric, 1 << 20, 4, 4096);
    let bytes = pattern(2, 4096);
    client.fill(0, &bytes);
    assert_eq!(client.write(0, 4096, at(&export, 4096)), Ok(()));
    assert_eq!(stored(&node, 4096, 4096), bytes);
    assert_eq!(stored(&node, 0, 4096), [0; 4096], "nothing in front of it");
    assert_eq!(stored(&node, 8192, 4096), [0; 4096], "nothing behind it");
}

pub(crate) fn compare_swap_swaps_only_on_equality<F: Fabric>(fabric: &F) {
    let (node, export, mut client) = Client::with_node(fabric, 8192, 4, 4096);
    let place = at(&export, 64);
    assert_eq!(client.compare_swap(place, 0, 41), Ok(0));
    assert_eq!(word_in(&node, 64), 41);
    assert_eq!(client.compare_swap(place, 40, 99), Ok(41));
    assert_eq!(word_in(&node, 64), 41, "unequal: not swapped");
    assert_eq!(client.compare_swap(place, 41, u64::MAX), Ok(41));
    assert_eq!(word_in(&node, 64), u64::MAX);
}

pub(crate) fn fetch_add_wraps_and_returns_the_former_value<F: Fabric>(fabric: &F) {
    let (node, export, mut client) = Client::with_node(fabric, 8192, 4, 4096);
    let place = at(&export, 4088);
    assert_eq!(client.fetch_add(place, 5), Ok(0));
    assert_eq!(client.fetch_add(place, u64::MAX), Ok(5));
    assert_eq!(client.fetch_add(place, 0), Ok(4));
    assert_eq!(word_in(&node, 4088), 4);
}

pub(crate) fn zero_length_moves_nothing<F: Fabric>(fabric: &F) {
    let (node, export, mut client) = Client::with_node(fabric, 8192, 4, 4096);
    client.fill(0, &[7; 64]);
    assert_eq!(client.read(0, 0, at(&export, 0)), Ok(()));
    assert_eq!(client.write(0, 0, at(&export, 0)), Ok(()));
    assert_eq!(client.read(0, 0, at(&export, 8192)), Ok(()));
    assert_eq!(client.bytes(0, 64), [7; 64]);
    assert_eq!(stored(&node, 0, 64), [0; 64]);
}

pub(crate) fn maximum_length_moves_whole<F: Fabric>(fabric: &F) {
    let most = MAX_TRANSFER_BYTES;
    let (node, export, mut client) = Client::with_node(fabric, most + 4096, 4, most);
    let bytes = pattern(3, most);
    client.fill(0, &bytes);
    assert_eq!(client.write(0, most, at(&export, 4096)), Ok(()));
    assert!(stored(&node, 4096, most) == bytes, "16 MiB arrive whole");
    assert_eq!(stored(&node, 0, 4096), [0; 4096]);
    client.fill(0, &vec![0; most]);
    assert_eq!(client.read(0, most, at(&export, 4096)), Ok(()));
    assert!(client.bytes(0, most) == bytes, "16 MiB come back whole");
}

pub(crate) fn too_long_is_not_taken<F: Fabric>(fabric: &F) {
    let most = MAX_TRANSFER_BYTES;
    let (_node, export, mut client) = Client::with_node(fabric, 8192, 4, most + 1);
    let long = read(9, client.slice(0, most + 1), at(&export, 0));
    let fine = read(8, client.slice(0, 8), at(&export, 0));
    match client.pair.post(&[fine, long]) {
        Err(PostError::Invalid { id, .. }) => assert_eq!(id, WorkId(9)),
        other => panic!("more than 16 MiB was answered with {other:?}"),
    }
    assert_eq!(
        client.pair.free_slots(),
        4,
        "nothing of the chain is posted"
    );
    assert_eq!(
        client.read(0, 8, at(&export, 0)),
        Ok(()),
        "and it still works"
    );
}

pub(crate) fn unaligned_atomics_are_not_taken<F: Fabric>(fabric: &F) {
    let (_node, export, mut client) = Client::with_node(fabric, 8192, 4, 4096);
    for (local, len, remote) in [(0, 8, 4), (4, 8, 0), (0, 4, 0), (0, 16, 8)] {
        let operation = Operation::FetchAdd {
            old: client.slice(local, len),
            at: at(&export, remote),
            add: 1,
        };
        match client.pair.post(&[request(3, operation)]) {
            Err(PostError::Invalid { id, .. }) => assert_eq!(id, WorkId(3)),
            other => panic!("an unaligned atomic was answered with {other:?}"),
        }
    }
    assert_eq!(client.fetch_add(at(&export, 0), 1), Ok(0));
}

pub(crate) fn odd_offsets_and_lengths_move_whole<F: Fabric>(fabric: &F) {
    let (node, export, mut client) = Client::with_node(fabric, 1 << 20, 4, 1 << 20);
    for (n, (offset, len)) in [(1, 1), (3, 63), (4095, 2), (777, 65_537), (5, 300_001)]
        .into_iter()
        .enumerate()
    {
        let bytes = pattern(n as u64, len);
        client.fill(13, &bytes);
        assert_eq!(client.write(13, len, at(&export, offset)), Ok(()));
        assert_eq!(stored(&node, offset as usize, len), bytes);
        client.fill(13, &vec![0; len]);
        assert_eq!(client.read(7, len, at(&export, offset)), Ok(()));
        assert_eq!(client.bytes(7, len), bytes);
    }
}

pub(crate) fn posted_order_is_kept<F: Fabric>(fabric: &F) {
    let (_node, export, mut client) = Client::with_node(fabric, 1 << 20, 64, 1 << 20);
    // WRITE, READ, WRITE, READ … of one place in one chain: each READ sees the WRITE before it.
    let len = 24_000;
    for n in 0..16_usize {
        client.fill(n * len, &pattern(n as u64, len));
    }
    let mut chain = Vec::new();
    for n in 0..16_usize {
        let place = at(&export, 100);
        chain.push(write(2 * n as u64, client.slice(n * len, len), place));
        chain.push(read(
            2 * n as u64 + 1,
            client.slice(400_000 + n * len, len),
            place,
        ));
    }
    client.pair.post(&chain).expect("room");
    for (n, completion) in client.complete(32).into_iter().enumerate() {
        assert_eq!(
            completion.id,
            WorkId(n as u64),
            "completions keep the order"
        );
        assert_eq!(completion.result, Ok(()));
    }
    for n in 0..16 {
        assert!(
            client.bytes(400_000 + n * len, len) == pattern(n as u64, len),
            "READ {n} sees WRITE {n}"
        );
    }
}

pub(crate) fn atomics_of_many_connections_add_up<F: Fabric>(fabric: &F) {
    const CLIENTS: u64 = 4;
    let each = u64::from(fabric.rounds() / 8);
    let node = fabric.start_node(8192);
    let (tenant, ticket) = admit(&node, 1, 1, 1);
    let export = node.server().export(tenant, 0, 8192).expect("inside");
    let transport = fabric.transport();
    let address = node.server().address();
    let (swaps, place) = (at(&export, 8), at(&export, 0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = Client::connect(fabric, &transport, address, &ticket, 4, 4096)
                    .expect("admitted");
                let mut last = 0;
                for n in 0..each {
                    let former = client.fetch_add(place, 1).expect("adds");
                    assert!(n == 0 || former > last, "the sum only grows");
                    last = former;
                    let mut seen = 0;
                    loop {
                        let found = client.compare_swap(swaps, seen, seen + 1).expect("swaps");
                        if found == seen {
                            break;
                        }
                        seen = found;
                    }
                }
            });
        }
    });
    assert_eq!(word_in(&node, 0), CLIENTS * each);
    assert_eq!(word_in(&node, 8), CLIENTS * each);
}

pub(crate) fn concurrent_clients_keep_to_their_own_bytes<F: Fabric>(fabric: &F) {
    const CLIENTS: u64 = 4;
    const PART: u64 = 256 << 10;
    let node = fabric.start_node((CLIENTS * PART) as usize);
    let transport = fabric.transport();
    std::thread::scope(|scope| {
        for n in 0..CLIENTS {
            let (node, transport) = (&node, &transport);
            let (tenant, ticket) = admit(node, n + 1, n + 1, 1);
            let export = node
                .server()
                .export(tenant, n * PART, PART)
                .expect("inside");
            let address = node.server().address();
            scope.spawn(move || {
                let mut client =
                    Client::connect(fabric, transport, address, &ticket, 16, 2 * PART as usize)
                        .expect("admitted");
                for round in 0..8 {
                    let bytes = pattern(n << 32 | round, PART as usize);
                    client.fill(0, &bytes);
                    let piece = PART as usize / 16;
                    let chain: Vec<_> = (0..16)
                        .map(|p| {
                            let slice = client.slice(p * piece, piece);
                            write(p as u64, slice, at(&export, (p * piece) as u64))
                        })
                        .collect();
                    client.pair.post(&chain).expect("room");
                    assert!(client.complete(16).iter().all(|c| c.result.is_ok()));
                    assert_eq!(
                        client.read(PART as usize, PART as usize, at(&export, 0)),
                        Ok(())
                    );
                    assert!(client.bytes(PART as usize, PART as usize) == bytes);
                }
            });
        }
    });
}

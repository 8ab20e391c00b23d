//! Random operations against a model: a plain array of bytes. A failure prints its seed.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use mycoram_fabric::transport::{Operation, WorkRequest};

use super::client::{Client, request};
use super::{Fabric, Node, at};

const POOL: usize = 256 << 10;
const LOCAL: usize = 512 << 10;
const DEPTH: u32 = 32;

/// What one random request does, on the model; and what must then stand in the local buffer.
struct Expected {
    offset: usize,
    bytes: Vec<u8>,
}

fn below(random: &mut ChaCha8Rng, limit: usize) -> usize {
    (random.next_u64() % limit as u64) as usize
}

/// Draws an operation on `slot` (a part of the local buffer of its own) and applies it to the model.
fn draw(
    random: &mut ChaCha8Rng,
    client: &Client,
    export: &mycoram_fabric::transport::Export,
    model: &mut [u8],
    slot: usize,
    id: u64,
) -> (WorkRequest, Option<Expected>) {
    let base = slot * (LOCAL / DEPTH as usize);
    let most = LOCAL / DEPTH as usize;
    let word_at = |model: &[u8], offset: usize| {
        u64::from_ne_bytes(model[offset..offset + 8].try_into().expect("8 bytes"))
    };
    match random.next_u32() % 5 {
        0 | 1 => {
            let len = below(random, most + 1);
            let offset = below(random, POOL - len + 1);
            let operation = Operation::Read {
                into: client.slice(base, len),
                from: at(export, offset as u64),
            };
            let bytes = model[offset..offset + len].to_vec();
            (
                request(id, operation),
                Some(Expected {
                    offset: base,
                    bytes,
                }),
            )
        }
        2 | 3 => {
            let len = below(random, most + 1);
            let offset = below(random, POOL - len + 1);
            let mut bytes = vec![0; len];
            random.fill_bytes(&mut bytes);
            client.fill(base, &bytes);
            model[offset..offset + len].copy_from_slice(&bytes);
            let operation = Operation::Write {
                from: client.slice(base, len),
                into: at(export, offset as u64),
            };
            (request(id, operation), None)
        }
        _ => {
            let offset = below(random, POOL / 8) * 8;
            let former = word_at(model, offset);
            let (old, place) = (client.slice(base, 8), at(export, offset as u64));
            let operand = random.next_u64();
            let (operation, now) = if random.next_u32().is_multiple_of(2) {
                let add = Operation::FetchAdd {
                    old,
                    at: place,
                    add: operand,
                };
                (add, former.wrapping_add(operand))
            } else {
                let hit = random.next_u32().is_multiple_of(2);
                let expected = if hit { former } else { former ^ 1 };
                let swap = Operation::CompareSwap {
                    old,
                    at: place,
                    expected,
                    desired: operand,
                };
                (swap, if hit { operand } else { former })
            };
            model[offset..offset + 8].copy_from_slice(&now.to_ne_bytes());
            let bytes = former.to_ne_bytes().to_vec();
            (
                request(id, operation),
                Some(Expected {
                    offset: base,
                    bytes,
                }),
            )
        }
    }
}

fn agree<F: Fabric>(fabric: &F, seed: u64, rounds: u32, longest_chain: usize) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (node, export, mut client) = Client::with_node(fabric, POOL, DEPTH, LOCAL);
    let mut model = vec![0; POOL];
    let mut id = 0;
    for round in 0..rounds {
        let length = 1 + below(&mut random, longest_chain);
        let mut expected = Vec::new();
        let mut chain = Vec::new();
        let mut signaled = 0;
        for slot in 0..length {
            let (mut one, wanted) = draw(&mut random, &client, &export, &mut model, slot, id);
            id += 1;
            one.signaled = slot + 1 == length || random.next_u32().is_multiple_of(4);
            signaled += usize::from(one.signaled);
            chain.push(one);
            expected.extend(wanted);
        }
        client.pair.post(&chain).expect("room");
        for completion in client.complete(signaled) {
            assert_eq!(completion.result, Ok(()), "seed {seed}, round {round}");
        }
        for Expected { offset, bytes } in expected {
            assert!(
                client.bytes(offset, bytes.len()) == bytes,
                "seed {seed}, round {round}: a result differs from the model"
            );
        }
    }
    let mut stored = vec![0; POOL];
    node.pool().copy_out(0, &mut stored).expect("inside");
    assert!(
        stored == model,
        "seed {seed}: the pool differs from the model"
    );
}

pub(crate) fn random_operations_agree_with_a_model<F: Fabric>(fabric: &F) {
    agree(fabric, 0x5eed, fabric.rounds() / 2, 1);
}

pub(crate) fn random_chains_agree_with_a_model<F: Fabric>(fabric: &F) {
    for seed in 1..=4 {
        agree(fabric, seed, fabric.rounds() / 64, DEPTH as usize);
    }
}

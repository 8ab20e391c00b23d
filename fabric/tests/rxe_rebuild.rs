//! Replicas that are rebuilt while their owner goes on writing, on a real RDMA device.

#![cfg(any(feature = "verbs", feature = "rdma-sys"))]

mod cluster;
mod healer;
mod rebuild_suite;
mod rxe_place;

rebuild_suite!(match rxe_place::node_address_or_skip() {
    Some(address) => cluster::Fabric::Verbs(address),
    None => return,
});

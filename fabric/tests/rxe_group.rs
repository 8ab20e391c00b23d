//! A replication group over memory nodes on a real RDMA device.

#![cfg(any(feature = "verbs", feature = "rdma-sys"))]

mod cluster;
mod group_suite;
mod rxe_place;

group_suite!(match rxe_place::node_address_or_skip() {
    Some(address) => cluster::Fabric::Verbs(address),
    None => return,
});

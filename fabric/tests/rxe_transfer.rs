//! Parallel transfer to memory nodes on a real RDMA device.

#![cfg(any(feature = "verbs", feature = "rdma-sys"))]

mod cluster;
mod rxe_place;
mod transfer_places;
mod transfer_suite;

transfer_suite!(match rxe_place::node_address_or_skip() {
    Some(address) => cluster::Fabric::Verbs(address),
    None => return,
});

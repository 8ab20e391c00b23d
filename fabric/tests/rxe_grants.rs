//! Grants under attack, on a real RDMA device.

#![cfg(any(feature = "verbs", feature = "rdma-sys"))]

mod cluster;
mod grants_suite;
mod rxe_place;

grants_suite!(match rxe_place::node_address_or_skip() {
    Some(address) => cluster::Fabric::Verbs(address),
    None => return,
});

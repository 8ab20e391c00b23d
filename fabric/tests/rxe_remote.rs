//! Memory nodes, sessions and lanes together, on a real RDMA device.

#![cfg(any(feature = "verbs", feature = "rdma-sys"))]

mod cluster;
mod remote_suite;
mod rxe_place;

remote_suite!(match rxe_place::node_address_or_skip() {
    Some(address) => cluster::Fabric::Verbs(address),
    None => return,
});

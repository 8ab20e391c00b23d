//! The conformance suite on a real RDMA device: `cargo xtask testbed -- CMD` gives two on a link.

#![cfg(any(feature = "verbs", feature = "rdma-sys"))]

mod conformance;
mod rxe;
mod rxe_place;

/// Started once more by checks that kill a node; does nothing otherwise.
#[test]
#[ignore = "the body of another process"]
fn victim_process() {
    rxe::serve_as_victim();
}

conformance_suite!(match rxe::fabric() {
    Some(fabric) => fabric,
    None => return,
});

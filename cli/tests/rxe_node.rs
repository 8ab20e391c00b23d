//! `myco node serve --transport verbs` as a real process, on a real RDMA device.

mod node_process;
#[path = "../../fabric/tests/rxe_place/mod.rs"]
mod rxe_place;

use mycoram_fabric::pages::{Direction, LaneConfig, PageError, RemoteRegion};
use mycoram_fabric::units::{ByteCount, PAGE_BYTES};
use nix::sys::signal::Signal;
use node_process::{Node, ask, create, read};

#[test]
fn a_node_lends_over_rdma_until_it_is_killed() {
    let Some(data) = rxe_place::node_address_or_skip() else {
        return;
    };
    let data = data.to_string();
    let lends = [
        "--capacity",
        "4MiB",
        "--transport",
        "verbs",
        "--data-listen",
        &data,
    ];
    let mut node = Node::start(&lends);
    assert_eq!(node.ready["transport"], "verbs");
    let remote = create(&[&node], ByteCount::mib(2)).expect("room");
    let config = LaneConfig {
        // Nobody waits for a node that is known to be dead: this is longer than the test may take.
        node_deadline_ms: 600_000,
        ..LaneConfig::default()
    };
    let mut lane = remote.open_lane(&config).expect("a lane");
    for page in [0, 255, 256, 511] {
        let bytes = vec![(page % 251) as u8 + 1; PAGE_BYTES];
        lane.frames().copy_in(0, &bytes).expect("a frame");
        ask(&mut *lane, Direction::Write, page).expect("written");
    }
    for page in [511, 256, 255, 0] {
        read(&mut *lane, page).expect("read");
        let mut found = vec![0; PAGE_BYTES];
        lane.frames().copy_out(0, &mut found).expect("a frame");
        assert!(
            found.iter().all(|byte| *byte == (page % 251) as u8 + 1),
            "page {page}"
        );
    }
    node.signal(Signal::SIGKILL);
    node.ended();
    assert_eq!(read(&mut *lane, 0), Err(PageError::Lost { node: 0 }));
}

#[test]
fn a_node_on_rdma_ends_with_0_when_it_is_told_to() {
    let Some(data) = rxe_place::node_address_or_skip() else {
        return;
    };
    let data = data.to_string();
    let lends = [
        "--capacity",
        "1MiB",
        "--transport",
        "verbs",
        "--data-listen",
        &data,
    ];
    let mut node = Node::start(&lends);
    let remote = create(&[&node], ByteCount::mib(1)).expect("room");
    let mut lane = remote.open_lane(&LaneConfig::default()).expect("a lane");
    read(&mut *lane, 3).expect("read");
    node.signal(Signal::SIGTERM);
    drop(lane);
    remote.release();
    assert_eq!(node.ended(), Some(0));
}

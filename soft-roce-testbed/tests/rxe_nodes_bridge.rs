//! Devices in namespaces on a bridge: rdma_cm between any two, and a path that is cut at the bridge.

mod perftest;

use mycoram_testbed::is_inside;
use mycoram_testbed::link::{self, Node};

fn ping(from: &Node, to: &Node) -> bool {
    let words = ["ping", "-c", "1", "-W", "2", &to.address().to_string()];
    from.command("busybox")
        .args(words)
        .output()
        .unwrap()
        .status
        .success()
}

#[test]
fn nodes_reach_each_other_until_a_port_is_down() {
    if !is_inside("a test of rxe devices in namespaces") {
        return;
    }
    let (one, two, hub) = (
        Node::find(1).unwrap(),
        Node::find(2).unwrap(),
        Node::find(0).unwrap(),
    );
    for (client, server) in [(&one, &two), (&hub, &one), (&two, &hub)] {
        let before = server.counters().unwrap();
        let figures = perftest::figures(&perftest::run(
            client,
            server,
            "ib_read_lat",
            &["-s", "4096", "-n", "100"],
        ));
        let sent = server.counters().unwrap().sent_bytes - before.sent_bytes;
        assert!(sent > 100 * 4096, "only {sent} bytes crossed");
        println!(
            "ib_read_lat 4 KiB {} -> {}: {} us typical",
            client.device(),
            server.device(),
            figures[4]
        );
    }
    {
        let _fault = link::port_down(&two).unwrap();
        assert!(two.is_active(), "a cut elsewhere is no event of the device");
        assert!(
            !ping(&one, &two),
            "a ping crossed a bridge port that is down"
        );
        assert!(ping(&one, &hub), "the others are not cut off");
    }
    assert!(ping(&one, &two), "the port was not healed");
}

//! Devices in namespaces on a bridge: rdma_cm between any two, and a path that is cut at the bridge.

mod perftest;
mod ping;

use mycoram_testbed::is_inside;
use mycoram_testbed::link::{self, Node};

fn bridge_link_address(hub: &Node) -> String {
    let path = format!("/sys/class/net/{}/address", hub.netdev());
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn nodes_reach_each_other_until_a_port_is_down() {
    if !is_inside("a test of rxe devices in namespaces") {
        return;
    }
    let [hub, one, two, three] = [0, 1, 2, 3].map(|index| Node::find(index).unwrap());
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
    // Each in turn, as one of them has the least link address of all ports.
    let link_address = bridge_link_address(&hub);
    for (cut, other) in [(&one, &two), (&two, &three), (&three, &one)] {
        assert!(ping::answers(other, cut) && ping::answers(other, &hub));
        let fault = link::port_down(cut).unwrap();
        assert!(cut.is_active(), "a cut elsewhere is no event of the device");
        assert!(
            ping::is_cut_off(other, cut),
            "a ping crossed a bridge port that is down"
        );
        assert_eq!(
            bridge_link_address(&hub),
            link_address,
            "who has resolved the bridge does not reach it any more"
        );
        assert!(ping::answers(other, &hub), "the others are not cut off");
        fault.heal().unwrap();
        assert!(ping::answers(other, cut), "the port was not healed");
    }
}

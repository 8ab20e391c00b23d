//! Two rxe devices and the link between them: traffic crosses it, and what is done to it is felt.

mod perftest;
mod ping;

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use mycoram_testbed::is_inside;
use mycoram_testbed::link::{self, Netem, Node};

/// There is one link: tests take turns.
static LINK: Mutex<()> = Mutex::new(());

fn ends() -> Option<(MutexGuard<'static, ()>, Node, Node)> {
    if !is_inside("a test of two rxe devices on a link") {
        return None;
    }
    let turn = LINK
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    Some((turn, Node::find(1).unwrap(), Node::find(2).unwrap()))
}

fn await_active(node: &Node) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !(node.is_active() && node.gid_index().is_some()) {
        assert!(
            Instant::now() < deadline,
            "{} is not active again",
            node.device()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn writes_cross_the_link() {
    let Some((_turn, one, two)) = ends() else {
        return;
    };
    let before = (one.counters().unwrap(), two.counters().unwrap());
    let figures = perftest::figures(&perftest::run(
        &one,
        &two,
        "ib_write_bw",
        &["-s", "65536", "-n", "200"],
    ));
    assert_eq!(figures[0] as u64, 65536);
    let sent = one.counters().unwrap().sent_bytes - before.0.sent_bytes;
    let received = two.counters().unwrap().received_bytes - before.1.received_bytes;
    assert!(
        sent > 200 * 65536 && received > 200 * 65536,
        "only {sent} bytes sent and {received} received over the link"
    );
    println!(
        "ib_write_bw 64 KiB: {} MB/s on average, {sent} bytes over the link",
        figures[3]
    );
}

#[test]
fn reads_cross_the_link_the_other_way() {
    let Some((_turn, one, two)) = ends() else {
        return;
    };
    let before = two.counters().unwrap();
    let bandwidth = perftest::figures(&perftest::run(
        &one,
        &two,
        "ib_read_bw",
        &["-s", "65536", "-n", "100"],
    ));
    let sent = two.counters().unwrap().sent_bytes - before.sent_bytes;
    assert!(sent > 100 * 65536, "only {sent} bytes came over the link");
    let latency = perftest::figures(&perftest::run(
        &one,
        &two,
        "ib_read_lat",
        &["-s", "4096", "-n", "500"],
    ));
    println!(
        "ib_read_bw 64 KiB: {} MB/s; ib_read_lat 4 KiB: {} us typical",
        bandwidth[3], latency[4]
    );
}

#[test]
fn delay_is_felt_and_heals() {
    let Some((_turn, one, two)) = ends() else {
        return;
    };
    let delay = Duration::from_millis(3);
    let fault = link::netem(&one, Netem::delay(delay)).unwrap();
    let slow = perftest::figures(&perftest::run(
        &one,
        &two,
        "ib_read_lat",
        &["-s", "4096", "-n", "50"],
    ));
    fault.heal().unwrap();
    assert!(
        slow[2] >= 3000.0,
        "least latency {} us with 3000 us of delay",
        slow[2]
    );
    // A busy machine may be as slow as the delay for a while, but a delay that stays is in each packet.
    let healed = || {
        let figures = perftest::figures(&perftest::run(
            &one,
            &two,
            "ib_read_lat",
            &["-s", "4096", "-n", "50"],
        ));
        figures[2] < 3000.0
    };
    assert!((0..10).any(|_| healed()), "the delay is still felt");
}

#[test]
fn some_loss_is_survived() {
    let Some((_turn, one, two)) = ends() else {
        return;
    };
    let fault = link::netem(&one, Netem::loss(1.0)).unwrap();
    let figures = perftest::figures(&perftest::run(
        &one,
        &two,
        "ib_write_bw",
        &["-s", "4096", "-n", "200", "-u", "12"],
    ));
    assert_eq!(figures[0] as u64, 4096);
    fault.heal().unwrap();
}

#[test]
fn a_black_hole_ends_and_heals() {
    let Some((_turn, one, two)) = ends() else {
        return;
    };
    assert!(ping::answers(&one, &two));
    {
        let _fault = link::netem(&one, Netem::BLACK_HOLE).unwrap();
        // perftest exchanges addresses over TCP, which must not be awaited for minutes: pings show the hole.
        assert!(
            ping::is_cut_off(&one, &two),
            "a ping came back through a black hole"
        );
    }
    let figures = perftest::figures(&perftest::run(
        &one,
        &two,
        "ib_read_lat",
        &["-s", "64", "-n", "20"],
    ));
    assert_eq!(figures[0] as u64, 64);
}

#[test]
fn own_link_down_is_a_port_down_and_heals() {
    let Some((_turn, one, two)) = ends() else {
        return;
    };
    let fault = link::down(&one).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while one.is_active() {
        assert!(
            Instant::now() < deadline,
            "{} stays active without a link",
            one.device()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    fault.heal().unwrap();
    await_active(&one);
    await_active(&two);
    let figures = perftest::figures(&perftest::run(
        &one,
        &two,
        "ib_read_lat",
        &["-s", "64", "-n", "20"],
    ));
    assert_eq!(figures[0] as u64, 64);
}

//! The independent crate's word on both devices of the link.

use std::process::Command;

use mycoram_testbed::is_inside;
use mycoram_testbed::link::Node;

#[test]
fn messages_cross_between_the_two_devices() {
    if !is_inside("a check of two rxe devices") {
        return;
    }
    let (one, two) = (Node::find(1).unwrap(), Node::find(2).unwrap());
    let before = (one.counters().unwrap(), two.counters().unwrap());
    let output = Command::new(env!("CARGO_BIN_EXE_mycoram-device-check"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        said.contains(one.device()) && said.contains(two.device()),
        "{said}"
    );
    let bytes = 100 * 4096;
    assert!(
        one.counters().unwrap().sent_bytes - before.0.sent_bytes > bytes,
        "the messages took a short cut"
    );
    assert!(
        two.counters().unwrap().sent_bytes - before.1.sent_bytes > bytes,
        "the answers took a short cut"
    );
    print!("{said}");
}

#[test]
fn an_address_without_a_device_is_named() {
    if !is_inside("a check of an address without a device") {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_mycoram-device-check"))
        .args(["192.0.2.1", "192.0.2.2"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("192.0.2.1"));
}

//! Parallel transfer to memory nodes over the tcp transport on loopback; and the example.

mod cluster;
mod transfer_places;
mod transfer_suite;

use std::process::Command;

transfer_suite!(cluster::Fabric::Tcp);

#[test]
fn the_example_moves_all_pages_there_and_back() {
    let program = std::env::current_exe()
        .expect("a path")
        .ancestors()
        .nth(2)
        .expect("cargo's layout")
        .join("examples/parallel_transfer");
    let ended = Command::new(program)
        .args(["--mib", "8", "--rails", "3", "--rate", "200"])
        .output()
        .expect("it runs");
    let output = String::from_utf8_lossy(&ended.stdout);
    let words = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{output}{words}");
    assert!(output.contains("2048 of 2048 pages came back"), "{output}");
}

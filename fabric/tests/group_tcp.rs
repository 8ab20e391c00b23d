//! A replication group over the tcp transport on loopback; and the example.

mod cluster;
mod group_suite;

use std::process::Command;

group_suite!(cluster::Fabric::Tcp);

#[test]
fn the_example_keeps_its_pages_through_a_death_and_a_new_member() {
    let program = std::env::current_exe()
        .expect("a path")
        .ancestors()
        .nth(2)
        .expect("cargo's layout")
        .join("examples/replication_group");
    let ended = Command::new(program).output().expect("it runs");
    let output = String::from_utf8_lossy(&ended.stdout);
    let words = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{output}{words}");
    for node in ["backup 1", "backup 2"] {
        let line = format!("{node}: 2048 of 2048 pages are as they are here");
        assert!(output.contains(&line), "{output}");
    }
}

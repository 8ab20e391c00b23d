//! C programs against the installed library and real memory nodes, each a process of its own.

mod support;

use std::process::Command;
use std::time::Duration;

use support::{Node, c_program, resident_bytes, start, uri};

const LOCAL: u64 = 8 << 20;
/// What a region may be above its budget for a moment (see the agent's documentation).
const SLACK: u64 = 1 << 20;

/// Runs a program with one argument, the URI, and watches what it has resident.
fn run_watched(name: &str, nodes: &[&Node], more: &[&str]) -> (support::Ended, u64) {
    let running = start(
        Command::new(c_program(name))
            .arg(uri(nodes, "local=8MiB&extent=1MiB"))
            .args(more),
    );
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let pid = running.pid();
    let watcher = std::thread::spawn(move || {
        let mut peak = 0;
        while receiver
            .recv_timeout(Duration::from_millis(2))
            .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            peak = peak.max(resident_bytes(pid));
        }
        peak
    });
    let ended = running.finish();
    drop(sender);
    (ended, watcher.join().expect("the watcher ends"))
}

#[test]
fn impossible_arguments_are_refused_with_a_sentence() {
    let node = Node::start("256MiB");
    run_watched("arguments", &[&node], &[]).0.pass();
}

#[test]
fn a_forked_child_has_no_mapping_and_the_parent_goes_on() {
    let node = Node::start("256MiB");
    run_watched("fork", &[&node], &[]).0.pass();
}

#[test]
fn files_are_read_into_far_memory_and_written_from_it() {
    let node = Node::start("256MiB");
    // Not on tmpfs, which has no O_DIRECT on older kernels.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = directory.path().to_str().expect("plain text");
    run_watched("files", &[&node], &[path]).0.pass();
}

#[test]
fn threads_hammer_within_the_budget_and_signals_stay_with_the_program() {
    let nodes = [Node::start("128MiB"), Node::start("128MiB")];
    let (ended, peak) = run_watched("threads", &[&nodes[0], &nodes[1]], &[]);
    ended.pass();
    assert!(peak > LOCAL / 2, "the watcher saw nothing: {peak} bytes");
    assert!(
        peak <= LOCAL + SLACK,
        "{peak} bytes were resident at a time, with a budget of {LOCAL}"
    );
}

#[test]
fn a_node_that_dies_takes_its_pages_and_nothing_else() {
    let mut nodes = [Node::start("128MiB"), Node::start("128MiB")];
    let place = uri(&[&nodes[0], &nodes[1]], "local=8MiB&extent=1MiB");
    let mut running = start(Command::new(c_program("lost")).arg(place));
    running.await_line("filled");
    nodes[1].kill();
    running.go_on();
    running.await_line("done");
    running.go_on();
    let ended = running.finish().pass();
    let dead = nodes[1].control.to_string();
    assert!(
        ended.errors.contains("lost") && ended.errors.contains(&dead),
        "the message does not say which node is gone: {}",
        ended.errors
    );
}

#[test]
fn a_closed_library_stays_while_its_mappings_do() {
    let node = Node::start("256MiB");
    let library = support::installed().join("lib/libmycoram.so");
    run_watched("load", &[&node], &[library.to_str().expect("plain text")])
        .0
        .pass();
}

#[test]
fn as_many_mappings_as_there_may_be() {
    let node = Node::start("256MiB");
    let place = uri(&[&node], "local=1MiB&extent=1MiB");
    start(Command::new(c_program("many")).arg(place))
        .finish()
        .pass();
}

#[test]
fn a_moved_mapping_goes_on_where_it_is() {
    let node = Node::start("256MiB");
    run_watched("moved", &[&node], &[]).0.pass();
}

#[test]
fn a_mapping_unmapped_behind_the_librarys_back_hurts_nobody() {
    let node = Node::start("256MiB");
    run_watched("unmapped", &[&node], &[]).0.pass();
}

#[test]
fn advice_and_flush_do_what_the_figures_show() {
    let node = Node::start("256MiB");
    run_watched("advice", &[&node], &[]).0.pass();
}

#[test]
fn a_program_without_the_right_is_told_which_one() {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    let allowed = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    assert!(
        nix::unistd::geteuid().is_root() && allowed.is_ok_and(|text| text.trim() == "0"),
        "this test needs root, to become nobody, and vm.unprivileged_userfaultfd=0"
    );
    let node = Node::start("64MiB");
    let mut command = Command::new(c_program("permission"));
    command
        .arg(uri(&[&node], "local=8MiB"))
        .uid(NOBODY)
        .gid(NOBODY);
    start(&mut command).finish().pass();
    assert_eq!(
        node.free(),
        64 << 20,
        "room was taken for a mapping that did not come to be"
    );
}

#[test]
fn a_hash_table_far_larger_than_its_budget() {
    let nodes = [Node::start("128MiB"), Node::start("128MiB")];
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/hash_table.c");
    let program = support::built(&source);
    let place = uri(&[&nodes[0], &nodes[1]], "local=1MiB&extent=1MiB");
    let ended = start(Command::new(program).args([&place, "8"]))
        .finish()
        .pass();
    assert!(
        ended.output.ends_with("pass: every look-up was right"),
        "{}",
        ended.output
    );
}

//! What the tests with a real QEMU share: a guest of 146 bytes, a QEMU that never outlives its test,
//! and the smallest thing that can serve faults.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

pub mod guest;
pub mod qemu;
pub mod zero_pages;

/// A test that cannot run here: it fails where CI is set, and says so aloud elsewhere.
pub fn lacks(what: &str) {
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "this machine lacks something: {what}"
    );
    eprintln!("NOT TESTED: {what}");
}

/// Kills the processes that `parent` has started and not waited for.
pub fn kill_children(parent: nix::unistd::Pid) {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task"))
        .into_iter()
        .flatten()
        .flatten();
    for task in tasks {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children
            .split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok())
        {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(child),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}

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

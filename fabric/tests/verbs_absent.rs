//! A machine without RDMA, or without its libraries: one sentence that says so and names the way out.

#![cfg(any(feature = "verbs", feature = "rdma-sys"))]

use mycoram_fabric::transport::Mapping;
use mycoram_fabric::transport::verbs::{
    OpenError, ServerLimits, VerbsServer, VerbsTransport, local_addresses,
};

/// Set for the process that must find no library.
#[cfg(feature = "verbs")]
const WITHOUT_LIBRARY: &str = "MYCORAM_TEST_WITHOUT_LIBIBVERBS";

fn assert_names_the_alternative(error: &OpenError) {
    let sentence = error.to_string();
    assert!(sentence.contains("--transport tcp"), "{sentence}");
    assert!(!sentence.contains('\n'), "one sentence: {sentence}");
}

#[test]
fn without_a_device_both_sides_say_what_to_do() {
    let Err(error) = local_addresses() else {
        // There is a device: then it must open.
        VerbsTransport::open().expect("a device that has an address opens");
        return;
    };
    assert_names_the_alternative(&error);
    let Err(error) = VerbsTransport::open() else {
        panic!("a transport without a device");
    };
    assert_names_the_alternative(&error);
    let pool = std::sync::Arc::new(Mapping::anonymous(4096).expect("memory"));
    let any = "0.0.0.0:0".parse().expect("an address");
    let Err(error) = VerbsServer::listen(any, pool, ServerLimits::default()) else {
        panic!("a server without a device");
    };
    assert_names_the_alternative(&error);
}

/// Linked in at build time with `rdma-sys`, where the program then does not start at all.
#[cfg(feature = "verbs")]
#[test]
fn without_the_library_the_program_runs_and_says_what_is_missing() {
    if std::env::var_os(WITHOUT_LIBRARY).is_some() {
        match VerbsTransport::open() {
            Err(error @ OpenError::LibraryMissing { .. }) => assert_names_the_alternative(&error),
            Err(other) => panic!("a missing library was reported as {other:?}"),
            Ok(_) => panic!("a transport without a library"),
        }
        return;
    }
    // A file that is no library, found first, is as good as none.
    let hidden = tempfile::tempdir().expect("a directory");
    std::fs::write(hidden.path().join("libibverbs.so.1"), b"").expect("a file");
    let status = std::process::Command::new(std::env::current_exe().expect("our own path"))
        .args([
            "--exact",
            "without_the_library_the_program_runs_and_says_what_is_missing",
        ])
        .env("LD_LIBRARY_PATH", hidden.path())
        .env(WITHOUT_LIBRARY, "1")
        .output()
        .expect("the test executable starts again");
    assert!(
        status.status.success(),
        "{}",
        String::from_utf8_lossy(&status.stdout)
    );
}

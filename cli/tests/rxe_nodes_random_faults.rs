//! Random faults over verbs, on the test bed's devices in namespaces: `cargo xtask soak --transport verbs`.

mod faults;

/// Started once more by the other one; does nothing otherwise.
#[test]
#[ignore = "the body of another process"]
fn worker_process() {
    faults::worker::serve();
}

#[test]
fn no_page_is_lost_or_wrong_over_verbs() {
    if std::env::var_os("MYCORAM_FAULT_SECONDS").is_none() {
        eprintln!(
            "skipped: random faults over verbs take minutes and a release build: cargo xtask soak --transport verbs"
        );
        return;
    }
    let elsewhere = std::env::var_os("MYCORAM_RXE_ELSEWHERE").is_some_and(|value| value == "1");
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    let here = std::env::var_os("MYCORAM_TESTBED_TOPOLOGY").is_some();
    faults::run::random_faults("verbs", false, here || (ci && !elsewhere));
}

//! Random faults over tcp, in network namespaces that this test makes and removes.

mod faults;

/// Started once more by the other one; does nothing otherwise.
#[test]
#[ignore = "the body of another process"]
fn worker_process() {
    faults::worker::serve();
}

#[test]
fn no_page_is_lost_or_wrong_over_tcp() {
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    faults::run::random_faults("tcp", true, ci);
}

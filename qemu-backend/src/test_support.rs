//! What several tests share.

/// A test that cannot run here: it fails where CI is set, and says so aloud elsewhere.
pub(crate) fn lacks(what: &str) {
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "this machine lacks something: {what}"
    );
    eprintln!("NOT TESTED: {what}");
}

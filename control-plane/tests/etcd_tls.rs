//! A store in an etcd that takes only those who show a certificate of its authority, and is taken only with one.

mod etcd_certificates;
mod etcd_members;

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use etcd_certificates::Certificates;
use etcd_members::EtcdMembers;
use mycoram_control::cluster::Batch;
use mycoram_control::store::{EtcdError, EtcdOptions, EtcdStore, Lead, Store, StoreError};

/// How long anything may take before it counts as a hang.
const HANG: Duration = Duration::from_secs(60);

fn open(
    urls: &[String],
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
) -> Result<EtcdStore, EtcdError> {
    let options = EtcdOptions {
        ca,
        identity,
        ..EtcdOptions::default()
    };
    EtcdStore::open(urls, &options)
}

/// The last of the reasons.
fn root(error: &dyn Error) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

/// What it is refused with, by the store and by the member's health. A busy machine may not answer in time at first.
fn refused(store: &mut EtcdStore, expected: &str) {
    let until = Instant::now() + HANG;
    loop {
        let error = store.lead("one").expect_err("it was let in");
        assert!(matches!(error, StoreError::Failed(_)), "{error:?}");
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let health = runtime.block_on(store.probe().health());
        let [member] = &health.members[..] else {
            panic!("there is one member")
        };
        assert!(!member.up && !health.writable);
        let said = member.silent_because.as_deref().expect("it is silent");
        if root(&error).contains(expected) && said.contains(expected) {
            return;
        }
        assert!(
            Instant::now() < until,
            "{expected}: {error:?}, and its health: {said}"
        );
    }
}

#[test]
fn only_who_has_the_right_certificates_leads() {
    let ours = Certificates::new();
    let members = ours.of_members(&etcd_members::addresses(1));
    let Some(etcd) = EtcdMembers::start_tls(1, members) else {
        return;
    };
    let urls = etcd.urls();
    assert!(urls[0].starts_with("https://"));
    let theirs = Certificates::new();

    // The member refuses who shows none, or somebody else's.
    let mut none = open(&urls, Some(ours.ca()), None).expect("files");
    refused(&mut none, "received fatal alert: BadCertificate");
    let foreign = theirs.sign("foreign", &[]);
    let mut foreign = open(&urls, Some(ours.ca()), Some(foreign)).expect("files");
    refused(&mut foreign, "received fatal alert: BadCertificate");

    // And is refused where its authority is not trusted.
    let shown = ours.sign("control", &[]);
    let mut nobody = open(&urls, None, Some(shown.clone())).expect("files");
    refused(&mut nobody, "invalid peer certificate");
    let mut another = open(&urls, Some(theirs.ca()), Some(shown.clone())).expect("files");
    refused(&mut another, "invalid peer certificate");

    // A file that is none is said before anything is asked.
    let missing = shown.0.with_extension("nothing");
    assert!(matches!(
        open(&urls, Some(missing), None),
        Err(EtcdError::File(_))
    ));
    let swapped = open(
        &urls,
        Some(ours.ca()),
        Some((shown.1.clone(), shown.0.clone())),
    );
    assert!(swapped.is_err(), "a key is no certificate");

    let mut store = open(&urls, Some(ours.ca()), Some(shown)).expect("files");
    let until = Instant::now() + HANG;
    loop {
        match store.lead("one") {
            Ok(Lead::Ours { .. }) => break,
            other => assert!(Instant::now() < until, "it does not lead: {other:?}"),
        }
    }
    let loaded = store.load().expect("readable");
    assert!(loaded.records.is_empty(), "nobody else wrote to it");
    let at = store.commit(loaded.revision, &Batch::default());
    store.confirm(at.expect("it leads")).expect("it leads");
}

//! The store in a real etcd.

#[path = "../../../tests/etcd_members/mod.rs"]
mod etcd_members;

use std::time::Instant;

use mycoram_fabric::units::RegionId;

use self::etcd_members::EtcdMembers;
use super::*;
use crate::cluster::{Chunk, Homes, Key, NodeId, Record, Replica, ReplicaState};

const TTL: Duration = Duration::from_secs(2);
/// How long anything may take before it counts as a hang.
const HANG: Duration = Duration::from_secs(60);

fn open(etcd: &EtcdMembers, prefix: &str) -> EtcdStore {
    let options = EtcdOptions {
        prefix: prefix.to_owned(),
        leader_lease: TTL,
        ..EtcdOptions::default()
    };
    EtcdStore::open(&etcd.urls(), &options).expect("threads")
}

/// Leads, as soon as that can be; the guard.
fn lead(store: &mut EtcdStore, name: &str) -> u64 {
    let until = Instant::now() + HANG;
    loop {
        match store.lead(name) {
            Ok(Lead::Ours { guard }) => return guard,
            other => assert!(Instant::now() < until, "it does not lead: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Records that take about `bytes` each.
fn large(count: u32, bytes: usize, node: u16) -> Batch {
    let homes = Homes {
        replicas: vec![Replica {
            node: NodeId::new(node),
            state: ReplicaState::Live,
        }],
        lost: false,
    };
    let extents = (bytes / 3).min(crate::cluster::CHUNK_EXTENTS as usize);
    let chunk = Chunk {
        extents: vec![homes; extents],
    };
    let key = |number| Key::Extents(RegionId::new(u64::from(number)), 0);
    let change = |number| (key(number), Some(Record::Extents(chunk.clone())));
    Batch {
        changes: (0..count).map(change).collect(),
    }
}

/// All records are those of the batch.
fn holds(loaded: &Loaded, batch: &Batch) {
    let mut records: Vec<_> = loaded.records.iter().collect();
    records.sort_by_key(|(key, _)| *key);
    let expected: Vec<_> = batch.changes.iter().collect();
    assert_eq!(records.len(), expected.len());
    for ((key, record), (wanted, change)) in records.into_iter().zip(expected) {
        assert_eq!((key, Some(record)), (wanted, change.as_ref()));
    }
}

/// Somebody else may lead, and `store` does not know it.
fn depose(store: &mut EtcdStore) {
    let lease = store.lease.take().expect("it leads");
    let shared = Arc::clone(&store.shared);
    let revoked = store.runtime.block_on(lease.revoke(&shared.members, HANG));
    revoked.expect("etcd runs");
}

fn health(store: &EtcdStore) -> StoreHealth {
    store.runtime.block_on(store.probe().health())
}

#[test]
fn a_deposed_leader_changes_nothing_and_says_nothing() {
    let Some(etcd) = EtcdMembers::start(1, &[]) else {
        return;
    };
    let (mut first, mut second) = (open(&etcd, "c"), open(&etcd, "c"));
    let former = lead(&mut first, "one");
    assert_eq!(
        second.lead("two").expect("etcd runs"),
        Lead::Theirs("one".to_owned())
    );
    assert!(matches!(
        second.commit(Revision(0), &large(1, 30, 1)),
        Err(StoreError::Deposed { .. })
    ));
    let nothing = first.load().expect("readable");
    assert!(nothing.records.is_empty());
    let small = large(3, 30, 1);
    let at = first.commit(nothing.revision, &small).expect("it leads");
    first.confirm(at).expect("it leads");
    assert!(matches!(
        first.commit(nothing.revision, &small),
        Err(StoreError::Overtaken { .. })
    ));

    depose(&mut first);
    lead(&mut second, "two");
    // Nothing was written since: only the guard says that somebody else leads.
    let deposed = |refused: Result<_, StoreError>| match refused {
        Err(StoreError::Deposed { leader }) => assert_eq!(leader.as_deref(), Some("two")),
        other => panic!("{other:?}"),
    };
    let guard = first.guard;
    deposed(first.commit(at, &large(3, 30, 2)).map(drop));
    first.guard = guard;
    deposed(first.commit(at, &large(300, 30, 2)).map(drop));
    first.guard = guard;
    deposed(first.confirm(at));
    first.guard = guard;
    deposed(first.load().map(drop));
    let loaded = second.load().expect("readable");
    holds(&loaded, &small);
    // Who follows may read; and another cluster in the same etcd is another cluster.
    holds(&first.load().expect("readable"), &small);
    let mut other = open(&etcd, "c2");
    lead(&mut other, "three");
    assert!(other.load().expect("readable").records.is_empty());

    // A leader that ends is followed at once, not after its lease.
    drop(second);
    assert!(lead(&mut first, "one") > former);
    assert_eq!(first.load().expect("readable").revision, at);
    let health = health(&first);
    assert!(health.writable && health.members[0].leads, "{health:?}");
    let leaders = health.processes.iter().filter(|process| process.leads);
    let leaders: Vec<_> = leaders.map(|process| process.address.as_str()).collect();
    assert_eq!(leaders, ["one"]);
}

#[test]
fn a_batch_that_is_larger_than_a_transaction_is_seen_whole_or_not_at_all() {
    let Some(etcd) = EtcdMembers::start(1, &[]) else {
        return;
    };
    let (mut first, mut second) = (open(&etcd, "c"), open(&etcd, "c"));
    lead(&mut first, "one");
    let at = first.load().expect("readable").revision;
    // By number of operations, and more than a request may have.
    let before = large(3_000, 800, 1);
    let at = first.commit(at, &before).expect("committed");
    holds(&second.load().expect("readable"), &before);
    assert_eq!(first.state.parts, 0);

    // Killed at any step of the next one: what was written aside does not count before it is committed,
    let after = large(3_000, 800, 2);
    let changes = first.changes(&after);
    let guard = first.guard.expect("it leads");
    let mut next = State {
        revision: first.state.revision + 1,
        guard,
        attempt: 1_000,
        parts: 0,
    };
    let shared = Arc::clone(&first.shared);
    for (number, part) in (0..).zip(pack(&changes)) {
        let part = put(shared.keys.part(next, number), part, 0);
        let written = first.wait(async |store| store.write_beside(guard, vec![part]).await);
        written.expect("it leads");
        next.parts = number + 1;
    }
    assert!(next.parts > 1);
    holds(&second.load().expect("readable"), &before);
    // and does from then on.
    let advanced = first.wait(async |store| store.advance(guard, next, vec![]).await);
    advanced.expect("it leads");
    let seen = second.load().expect("readable");
    holds(&seen, &after);
    assert_eq!(seen.revision, Revision(at.get() + 1));
    // What was sent before, and comes now, undoes nothing.
    let old = first.shared.keys.record(&encode_key(before.changes[0].0));
    let old = put(old, b"old".to_vec(), 0);
    first.state = State {
        parts: 0,
        revision: at.get(),
        ..next
    };
    let late = first.wait(async |store| store.write_beside(guard, vec![old]).await);
    assert!(
        matches!(late, Err(StoreError::Overtaken { .. })),
        "{late:?}"
    );
    // Whoever leads next brings it to its place, and goes on.
    depose(&mut first);
    lead(&mut second, "two");
    let seen = second.load().expect("readable");
    holds(&seen, &after);
    assert_eq!(second.state.parts, 0);
    let last = large(3_000, 30, 3);
    second.commit(seen.revision, &last).expect("it leads");
    first.guard = None;
    holds(&first.load().expect("readable"), &last);
    let snapshot = RangeRequest {
        key: shared.keys.parts(),
        range_end: end_of(&shared.keys.parts()),
        ..RangeRequest::default()
    };
    let parts = first.runtime.block_on(shared.range(HANG, snapshot));
    assert_eq!(parts.expect("etcd runs").count, 0);
}

#[test]
fn a_member_may_die_and_of_two_nothing_is_lost() {
    let Some(mut etcd) = EtcdMembers::start(3, &[]) else {
        return;
    };
    let mut store = open(&etcd, "c");
    lead(&mut store, "one");
    let mut at = store.load().expect("readable").revision;
    let mut node = 0;
    let mut batch = large(1, 30, node);
    for dead in [0, 1, 2] {
        etcd.kill(dead);
        let until = Instant::now() + HANG;
        loop {
            node += 1;
            batch = large(200, 30, node);
            match store.commit(at, &batch) {
                Ok(next) => break at = next,
                Err(error) => assert!(Instant::now() < until, "{error:?}"),
            }
            lead(&mut store, "one");
            at = store.load().expect("two of three are there").revision;
        }
        holds(&store.load().expect("readable"), &batch);
        etcd.restart(dead);
        // It serves nobody before it has found the others.
        let until = Instant::now() + HANG;
        while !health(&store).members[dead].follows {
            assert!(Instant::now() < until, "it never follows");
        }
    }
    etcd.kill(0);
    etcd.kill(1);
    let error = store
        .commit(at, &large(200, 30, 9_000))
        .expect_err("one of three");
    assert!(matches!(error, StoreError::Failed(_)), "{error:?}");
    let health = health(&store);
    assert!(
        !health.writable && health.members[2].up && !health.members[0].up,
        "{health:?}"
    );
    etcd.restart(0);
    etcd.restart(1);
    lead(&mut store, "one");
    let until = Instant::now() + HANG;
    let loaded = loop {
        match store.load() {
            Ok(loaded) => break loaded,
            Err(error) => assert!(Instant::now() < until, "{error:?}"),
        }
        lead(&mut store, "one");
    };
    // It was not known whether the last one would be done.
    let expected = if loaded.revision == at {
        batch
    } else {
        large(200, 30, 9_000)
    };
    holds(&loaded, &expected);
}

#[test]
fn a_full_etcd_is_told_as_a_full_disk() {
    let Some(etcd) = EtcdMembers::start(1, &["--quota-backend-bytes", "4194304"]) else {
        return;
    };
    let mut store = open(&etcd, "c");
    lead(&mut store, "one");
    let mut at = store.load().expect("readable").revision;
    let mut done = large(0, 0, 0);
    let full = loop {
        let batch = large(90, 800, u16::try_from(at.get()).expect("few"));
        match store.commit(at, &batch) {
            Ok(next) => (at, done) = (next, batch),
            Err(error) => break error,
        }
        assert!(at.get() < 1_000, "it is never full");
    };
    assert!(matches!(full, StoreError::Full(_)), "{full:?}");
    // It still leads, and what was done is there.
    store.confirm(at).expect("nobody else leads");
    holds(&store.load().expect("readable"), &done);
    let health = health(&store);
    assert!(!health.members[0].alarms.is_empty(), "{health:?}");
}

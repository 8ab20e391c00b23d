//! Stores: what was committed is there, all of it or nothing.

use std::net::SocketAddr;

use mycoram_fabric::placement::FailureDomain;
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::units::{ByteCount, Epoch, Incarnation, RegionId, TenantId};
use mycoram_fabric::wire::FrameError;
use proptest::prelude::*;

use super::format::{decode, decode_key, encode, encode_key};
use super::*;
use crate::cluster::*;

fn node(id: u16) -> NodeRecord {
    NodeRecord {
        id: NodeId::new(id),
        name: format!("n{id}"),
        addresses: vec![NodeAddress {
            transport: TransportKind::Verbs,
            control: SocketAddr::from(([10, 0, 0, 1], 7000)),
        }],
        domain: FailureDomain {
            zone: "z".to_owned(),
            ..FailureDomain::default()
        },
        capacity: ByteCount::mib(1 << 20),
        incarnation: Incarnation::new(u64::MAX - 3),
        state: NodeState::Suspect,
        drain: true,
        returns: 3,
    }
}

fn region(id: u64) -> RegionRecord {
    RegionRecord {
        id: RegionId::new(id),
        name: "vm-7".to_owned(),
        tenant: TenantId::new(9),
        bytes: ByteCount::mib(1 << 20),
        extent_bytes: ByteCount::mib(16),
        replicas: 2,
        policy: RegionPolicy::default(),
        class: PriorityClass::High,
        locality: Locality::anywhere(),
        reservation: Some(ReservationId::new(4)),
        secret: [0xa5; 16],
        lease: Lease::Fencing {
            epoch: Epoch::new(8),
            owner: OwnerId::new(u64::MAX),
            unfenced: vec![NodeId::new(3), NodeId::new(4)],
        },
        stage: RegionStage::Deleting {
            unreleased: vec![NodeId::new(1)],
        },
        next_order: 77,
    }
}

pub(super) fn some_records() -> Vec<(Key, Record)> {
    let cluster = ClusterRecord { terms: 2 };
    let reservation = ReservationRecord {
        id: ReservationId::new(4),
        tenant: TenantId::new(9),
        bytes: ByteCount::mib(100),
        class: PriorityClass::Low,
    };
    let homes = Homes {
        replicas: vec![Replica {
            node: NodeId::new(5),
            state: ReplicaState::Copying {
                order: OrderId::new(u64::MAX),
            },
        }],
        lost: true,
    };
    let chunk = Chunk {
        extents: vec![Homes::default(), homes],
    };
    vec![
        (Key::Cluster, Record::Cluster(cluster)),
        (Key::Node(NodeId::new(5)), Record::Node(node(5))),
        (Key::Region(RegionId::new(6)), Record::Region(region(6))),
        (Key::Extents(RegionId::new(6), 9), Record::Extents(chunk)),
        (
            Key::Reservation(ReservationId::new(4)),
            Record::Reservation(reservation),
        ),
    ]
}

fn batch(records: Vec<(Key, Record)>) -> Batch {
    let changes = records.into_iter().map(|(key, record)| (key, Some(record)));
    Batch {
        changes: changes.collect(),
    }
}

pub(super) fn sorted(loaded: Loaded) -> Vec<(Key, Record)> {
    let mut records = loaded.records;
    records.sort_by_key(|(key, _)| *key);
    records
}

fn state() -> impl Strategy<Value = ReplicaState> {
    prop_oneof![
        Just(ReplicaState::Live),
        any::<u64>().prop_map(|order| ReplicaState::Copying {
            order: OrderId::new(order)
        }),
        Just(ReplicaState::Stale),
        Just(ReplicaState::Dropping),
    ]
}

fn chunk() -> impl Strategy<Value = Chunk> {
    let node = (0..MAX_NODES as u16).prop_map(NodeId::new);
    let replicas = proptest::collection::btree_map(node, state(), 0..6);
    let homes = (replicas, any::<bool>()).prop_map(|(replicas, lost)| Homes {
        replicas: replicas
            .into_iter()
            .map(|(node, state)| Replica { node, state })
            .collect(),
        lost,
    });
    proptest::collection::vec(homes, 0..40).prop_map(|extents| Chunk { extents })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn extents_are_read_as_they_were_packed(chunk in chunk(), id: u64, number: u32) {
        let key = Key::Extents(RegionId::new(id), number);
        prop_assert_eq!(decode_key(&encode_key(key)).expect("own key"), key);
        let record = Record::Extents(chunk);
        prop_assert_eq!(decode(key, &encode(key, &record)).expect("own record"), record);
    }

    #[test]
    fn damage_and_cuts_are_noticed(
        which in 0..5usize, at: prop::sample::Index, bit in 0..8u8, cut: prop::sample::Index,
    ) {
        let (key, record) = some_records().swap_remove(which);
        let bytes = encode(key, &record);
        let mut damaged = bytes.clone();
        damaged[at.index(bytes.len())] ^= 1 << bit;
        prop_assert!(decode(key, &damaged).is_err());
        prop_assert!(decode(key, &bytes[..cut.index(bytes.len())]).is_err());
    }
}

#[test]
fn another_version_and_another_kind_are_refused_by_name() {
    let (key, record) = some_records().swap_remove(1);
    let mut bytes = encode(key, &record);
    let other = decode(Key::Region(RegionId::new(1)), &bytes);
    assert!(matches!(
        other,
        Err(FormatError::Body {
            source: Malformed::Kind { kind: 2 },
            ..
        })
    ));
    bytes[4] = 9;
    assert!(matches!(
        decode(key, &bytes),
        Err(FormatError::Frame {
            source: FrameError::Version {
                ours: FORMAT_VERSION,
                theirs: 9
            },
            ..
        })
    ));
    assert!(decode_key(&[]).is_err() && decode_key(&[2, 0]).is_err() && decode_key(&[9]).is_err());
}

/// What every store must do.
fn conforms(open: &mut dyn FnMut() -> Box<dyn Store>) {
    let mut store = open();
    let nothing = store.load().expect("a new store");
    assert!(nothing.records.is_empty());
    let first = store
        .commit(nothing.revision, &batch(some_records()))
        .expect("committed");
    assert!(matches!(
        store.commit(nothing.revision, &Batch::default()),
        Err(StoreError::Overtaken { expected, current }) if expected == nothing.revision && current == first
    ));
    assert_eq!(sorted(store.load().expect("readable")), some_records());
    let removal = Batch {
        changes: vec![
            (Key::Extents(RegionId::new(6), 9), None),
            (Key::Node(NodeId::new(7)), Some(Record::Node(node(7)))),
        ],
    };
    let second = store.commit(first, &removal).expect("committed");
    drop(store);
    let mut store = open();
    let loaded = store.load().expect("readable");
    assert_eq!(loaded.revision, second);
    let keys: Vec<Key> = sorted(loaded).into_iter().map(|(key, _)| key).collect();
    let mut expected: Vec<Key> = some_records().into_iter().map(|(key, _)| key).collect();
    expected.retain(|key| !matches!(key, Key::Extents(..)));
    expected.insert(2, Key::Node(NodeId::new(7)));
    assert_eq!(keys, expected);
}

#[test]
fn the_store_in_memory_conforms() {
    let disk = Disk::default();
    conforms(&mut || Box::new(MemoryStore::new(disk.clone())));
}

#[test]
fn the_store_in_a_file_conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("control.redb");
    conforms(&mut || Box::new(RedbStore::open(&path).expect("opens")));
}

#[test]
fn a_file_has_one_control_plane() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("control.redb");
    let _first = RedbStore::open(&path).expect("opens");
    assert!(matches!(RedbStore::open(&path), Err(StoreError::InUse)));
}

#[test]
fn a_file_that_is_something_else_is_not_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("control.redb");
    std::fs::write(&path, "something of somebody's").expect("written");
    assert!(RedbStore::open(&path).is_err());
    assert_eq!(
        std::fs::read(&path).expect("there"),
        b"something of somebody's"
    );
}

#[test]
fn commits_fail_as_they_are_told() {
    let disk = Disk::default();
    let mut store = MemoryStore::new(disk.clone());
    let at = Revision::default();
    let all = batch(some_records());
    disk.set_fault(Fault::Full);
    for _ in 0..2 {
        assert!(matches!(store.commit(at, &all), Err(StoreError::Full(_))));
    }
    disk.set_fault(Fault::LoseNext);
    assert!(matches!(store.commit(at, &all), Err(StoreError::Failed(_))));
    assert_eq!(store.load().expect("readable").revision, at);
    disk.set_fault(Fault::KeepNext);
    assert!(matches!(store.commit(at, &all), Err(StoreError::Failed(_))));
    assert_eq!(sorted(store.load().expect("readable")), some_records());
    assert_ne!(disk.revision(), at);
}

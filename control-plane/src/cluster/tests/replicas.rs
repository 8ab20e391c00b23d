//! Live, copying, stale.

use mycoram_fabric::units::{Epoch, ExtentIndex};

use super::rig::{Owned, Rig};
use crate::cluster::*;

fn stale(owned: Owned, extent: u32, node: NodeId) -> MarkStale {
    MarkStale {
        region: owned.region,
        epoch: owned.epoch,
        replicas: vec![(ExtentIndex::new(extent), node)],
    }
}

#[test]
fn a_replica_is_marked_stale_but_never_the_last_live_one() {
    let mut rig = Rig::with_nodes(4, 100);
    let owned = rig.owned(1, 4, 2);
    rig.place(owned, 0..4);
    let nodes: Vec<_> = rig.homes(owned, 0).live().collect();
    rig.must(&stale(owned, 0, nodes[0]));
    rig.must(&stale(owned, 0, nodes[0]));
    rig.restart();
    assert_eq!(rig.homes(owned, 0).live().collect::<Vec<_>>(), [nodes[1]]);
    let refused = rig.run(&stale(owned, 0, nodes[1]));
    assert_eq!(
        refused,
        Err(ReplicaRefusal::LastLive {
            extent: ExtentIndex::new(0),
            left: 0,
            min_live: 1,
        })
    );
    // All or none.
    let other: Vec<_> = rig.homes(owned, 1).live().collect();
    let mut both = stale(owned, 1, other[0]);
    both.replicas.push((ExtentIndex::new(1), other[1]));
    assert!(rig.run(&both).is_err());
    assert_eq!(rig.homes(owned, 1).live().count(), 2);
}

#[test]
fn what_is_said_of_a_former_attempt_does_not_count() {
    let mut rig = Rig::with_nodes(2, 100);
    let owned = rig.owned(1, 1, 2);
    rig.place(owned, 0..1);
    let node = rig.homes(owned, 0).replicas[0].node;
    let order = |rig: &mut Rig| {
        rig.must(&stale(owned, 0, node));
        rig.pass(500);
        match rig.homes(owned, 0).on(node).map(|replica| replica.state) {
            Some(ReplicaState::Copying { order }) => order,
            other => panic!("made anew where it is: {other:?}"),
        }
    };
    let (first, second) = (order(&mut rig), order(&mut rig));
    assert_ne!(first, second);
    let copied = |order| Copied {
        region: owned.region,
        epoch: owned.epoch,
        extent: ExtentIndex::new(0),
        node,
        order,
    };
    assert!(matches!(
        rig.run(&copied(first)),
        Err(ReplicaRefusal::OrderOver { .. })
    ));
    rig.must(&copied(second));
    rig.must(&copied(second));
    assert_eq!(rig.homes(owned, 0).live().count(), 2);
}

#[test]
fn only_what_is_to_be_dropped_is_dropped() {
    let mut rig = Rig::with_nodes(2, 100);
    let owned = rig.owned(1, 1, 2);
    rig.place(owned, 0..1);
    let dropped = Dropped {
        region: owned.region,
        epoch: owned.epoch,
        extent: ExtentIndex::new(0),
        node: rig.alive[0].0,
    };
    assert!(matches!(
        rig.run(&dropped),
        Err(ReplicaRefusal::NotDropping { .. })
    ));
    assert_eq!(rig.homes(owned, 0).live().count(), 2);
}

#[test]
fn a_step_that_is_undone_leaves_no_trace() {
    let mut rig = Rig::with_nodes(4, 1_000);
    let owned = rig.owned(1, 300, 2);
    rig.place(owned, 0..300);
    let before = rig.cluster.records();
    let node = rig.homes(owned, 0).replicas[0].node;
    let now = rig.now;
    let first = rig
        .cluster
        .apply(now, &stale(owned, 0, node))
        .expect("two are live");
    let place = Place {
        region: owned.region,
        epoch: owned.epoch,
        round: 0,
        without: Vec::new(),
        extents: vec![ExtentIndex::new(7)],
    };
    let second = rig.cluster.apply(now, &place).expect("placed");
    assert!(second.changes.batch().is_empty(), "it was placed already");
    let delete = DeleteRegion {
        region: owned.region,
        force: true,
        by: None,
    };
    let third = rig.cluster.apply(now, &delete).expect("forced");
    for changes in [third.changes, second.changes, first.changes] {
        rig.cluster.undo(changes);
    }
    assert_eq!(rig.cluster.records(), before);
    rig.restart();
}

#[test]
fn the_owner_that_follows_sees_every_home_in_pages() {
    let mut rig = Rig::with_nodes(4, 10_000);
    let owned = rig.owned(1, 5_000, 2);
    rig.place(owned, 0..5_000);
    let next = rig.acquire(owned.region, 2, true);
    let mut seen = 0;
    let mut first = ExtentIndex::new(0);
    loop {
        let homes = rig
            .cluster
            .directory(next.region, next.epoch, first)
            .expect("its owner");
        let Some((last, _)) = homes.last() else { break };
        seen += homes.len();
        first = ExtentIndex::new(last.get() + 1);
    }
    assert_eq!(seen, 5_000);
    let former = rig
        .cluster
        .directory(owned.region, owned.epoch, ExtentIndex::new(0));
    assert!(matches!(former, Err(LeaseRefusal::EpochTooLow { .. })));
    assert_ne!(next.epoch, Epoch::new(0));
}

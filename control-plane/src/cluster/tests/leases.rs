//! One owner at a time.

use mycoram_fabric::units::{Epoch, ExtentIndex};

use super::rig::Rig;
use crate::cluster::*;

#[test]
fn a_second_owner_waits_for_the_lease_or_takes_over() {
    let mut rig = Rig::with_nodes(3, 100);
    let first = rig.owned(1, 10, 2);
    let second = |take_over| Acquire {
        region: first.region,
        owner: OwnerId::new(2),
        take_over,
        waiting_for: None,
    };
    assert!(matches!(
        rig.run(&second(false)),
        Err(LeaseRefusal::Owned { epoch, .. }) if epoch == first.epoch
    ));
    // The same process asks again: nothing new.
    assert_eq!(rig.acquire(first.region, 1, false).epoch, first.epoch);
    rig.must(&second(true));
    let renew = Renew {
        region: first.region,
        epoch: first.epoch,
    };
    assert_eq!(
        rig.run(&renew),
        Err(LeaseRefusal::EpochTooLow {
            requested: first.epoch,
            current: Epoch::new(first.epoch.get() + 1),
        })
    );
}

#[test]
fn an_owner_that_is_not_heard_can_be_followed() {
    let mut rig = Rig::with_nodes(3, 100);
    let first = rig.owned(1, 10, 2);
    let second = Acquire {
        region: first.region,
        owner: OwnerId::new(2),
        take_over: false,
        waiting_for: None,
    };
    for _ in 0..21 {
        rig.now += 500;
        rig.must(&Tick);
    }
    assert!(matches!(rig.must(&second), Acquired::GoOn { .. }));
}

#[test]
fn the_new_owner_goes_on_only_when_all_nodes_have_confirmed() {
    let mut rig = Rig::with_nodes(3, 100);
    let first = rig.owned(1, 30, 2);
    rig.place(first, 0..30);
    let acquire = Acquire {
        region: first.region,
        owner: OwnerId::new(2),
        take_over: true,
        waiting_for: None,
    };
    let Acquired::Wait { epoch, nodes } = rig.must(&acquire) else {
        panic!("nobody has confirmed");
    };
    assert_eq!(nodes.len(), 3);
    // Neither the former nor the new owner can do anything now.
    let stale = |epoch| MarkStale {
        region: first.region,
        epoch,
        replicas: vec![(ExtentIndex::new(0), nodes[0])],
    };
    assert!(matches!(
        rig.run(&stale(first.epoch)),
        Err(ReplicaRefusal::Lease(LeaseRefusal::EpochTooLow { .. }))
    ));
    assert!(matches!(
        rig.run(&stale(epoch)),
        Err(ReplicaRefusal::Lease(LeaseRefusal::NotYet { waiting: 3 }))
    ));
    for (confirmed, (node, incarnation)) in rig.alive.clone().into_iter().enumerate() {
        assert!(
            matches!(rig.must(&acquire), Acquired::Wait { nodes, .. } if nodes.len() == 3 - confirmed)
        );
        rig.restart();
        for order in rig.cluster.node_orders(node) {
            rig.must(&Confirm {
                node,
                incarnation,
                order,
            });
        }
    }
    assert!(matches!(rig.must(&acquire), Acquired::GoOn { epoch: now, .. } if now == epoch));
}

#[test]
fn a_node_that_is_down_is_not_waited_for_nor_trusted_and_is_fenced_before_it_counts() {
    let mut rig = Rig::with_nodes(3, 100);
    let first = rig.owned(1, 30, 2);
    rig.place(first, 0..30);
    let (silent, incarnation) = rig.alive[0];
    rig.silence(silent);
    let acquire = Acquire {
        region: first.region,
        owner: OwnerId::new(2),
        take_over: true,
        waiting_for: None,
    };
    assert!(matches!(rig.must(&acquire), Acquired::Wait { .. }));
    rig.pass(4_000);
    assert!(matches!(rig.must(&acquire), Acquired::Wait { nodes, .. } if nodes == [silent]));
    rig.pass(2_000);
    let second = rig.acquire(first.region, 2, true);
    let trusted = |rig: &Rig| {
        (0..30).all(|extent| rig.homes(second, extent).live().all(|node| node != silent))
    };
    assert!(trusted(&rig), "the former owner could have written there");
    // It comes back: first it confirms.
    rig.restart();
    rig.now += 100;
    let heard = rig.must(&Heartbeat {
        node: silent,
        incarnation,
        load_percent: 0,
    });
    assert_eq!(heard.state, NodeState::Joining);
    assert!(matches!(heard.orders[..], [NodeOrder::Fence { epoch, .. }] if epoch == second.epoch));
    rig.must(&Confirm {
        node: silent,
        incarnation,
        order: heard.orders[0],
    });
    assert_eq!(rig.state(silent), NodeState::Up);
}

#[test]
fn a_lease_given_back_is_free_and_the_epoch_goes_on() {
    let mut rig = Rig::with_nodes(2, 100);
    let first = rig.owned(1, 4, 1);
    let back = GiveBack {
        region: first.region,
        epoch: first.epoch,
    };
    rig.must(&back);
    rig.must(&back);
    assert!(matches!(
        rig.cluster.orders(first.region, first.epoch),
        Err(LeaseRefusal::GivenBack { .. })
    ));
    let next = rig.acquire(first.region, 2, false);
    assert_eq!(next.epoch, Epoch::new(first.epoch.get() + 1));
    let never = Epoch::new(99);
    assert_eq!(
        rig.cluster.orders(first.region, never),
        Err(LeaseRefusal::EpochUnknown {
            requested: never,
            current: next.epoch
        })
    );
}

#[test]
fn a_region_that_is_deleted_is_gone_when_every_node_has_freed_it() {
    let mut rig = Rig::with_nodes(3, 100);
    let owned = rig.owned(1, 30, 2);
    rig.place(owned, 0..30);
    let delete = |force| DeleteRegion {
        region: owned.region,
        force,
        by: None,
    };
    assert!(matches!(
        rig.run(&delete(false)),
        Err(RegionRefusal::InUse { .. })
    ));
    assert_eq!(rig.must(&delete(true)), 3);
    assert!(matches!(
        rig.cluster.orders(owned.region, owned.epoch),
        Err(LeaseRefusal::UnknownRegion(_))
    ));
    rig.restart();
    assert_eq!(rig.must(&delete(false)), 3);
    rig.pass(500);
    assert!(rig.cluster.region(owned.region).is_none());
    assert!(rig.cluster.nodes().all(|node| node.placed.get() == 0));
}

#[test]
fn an_owner_that_was_succeeded_deletes_nothing() {
    let mut rig = Rig::with_nodes(3, 100);
    let former = rig.owned(1, 30, 2);
    rig.place(former, 0..30);
    let owner = rig.acquire(former.region, 2, true);
    let delete = |by| DeleteRegion {
        region: former.region,
        force: true,
        by: Some(by),
    };
    assert!(matches!(
        rig.run(&delete(former.epoch)),
        Err(RegionRefusal::Lease(LeaseRefusal::EpochTooLow { .. }))
    ));
    assert!(rig.homes(owner, 7).live().count() == 2, "it was deleted");
    rig.must(&delete(owner.epoch));
}

#[test]
fn of_two_that_wait_the_later_one_wins() {
    let mut rig = Rig::with_nodes(3, 100);
    let first = rig.owned(1, 30, 2);
    rig.place(first, 0..30);
    let acquire = |owner, waiting_for| Acquire {
        region: first.region,
        owner: OwnerId::new(owner),
        take_over: true,
        waiting_for,
    };
    let Acquired::Wait { epoch: second, .. } = rig.must(&acquire(2, None)) else {
        panic!("nobody has confirmed");
    };
    let Acquired::Wait { epoch: third, .. } = rig.must(&acquire(3, None)) else {
        panic!("nobody has confirmed");
    };
    assert_eq!(
        rig.run(&acquire(2, Some(second))),
        Err(LeaseRefusal::EpochTooLow {
            requested: second,
            current: third
        })
    );
    rig.pass(500);
    assert!(
        matches!(rig.must(&acquire(3, Some(third))), Acquired::GoOn { epoch, .. } if epoch == third)
    );
}

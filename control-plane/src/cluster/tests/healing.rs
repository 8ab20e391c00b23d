//! Lost copies are replaced, nodes are emptied, nothing is forgotten.

use mycoram_fabric::units::ExtentIndex;

use super::rig::{Owned, Rig};
use crate::cluster::*;

fn live_where_they_count(rig: &Rig, owned: Owned, extent: u32) -> usize {
    let homes = rig.homes(owned, extent);
    homes
        .live()
        .filter(|node| rig.state(*node).counts())
        .count()
}

#[test]
fn what_was_on_a_dead_node_is_made_elsewhere() {
    let mut rig = Rig::with_nodes(8, 200);
    let owned = rig.owned(1, 300, 2);
    rig.place(owned, 0..300);
    let dead = rig.alive[0].0;
    let on_it = (0..300)
        .filter(|extent| rig.homes(owned, *extent).on(dead).is_some())
        .count();
    assert!(on_it > 0);
    rig.silence(dead);
    rig.pass(7_000);
    let orders = rig
        .cluster
        .orders(owned.region, owned.epoch)
        .expect("its owner");
    assert_eq!(orders.len(), 16, "few at once");
    let copies = rig.settle(owned);
    assert_eq!(copies, on_it);
    assert!((0..300).all(|extent| live_where_they_count(&rig, owned, extent) == 2));
}

#[test]
fn healing_goes_on_after_everybody_was_killed() {
    let mut rig = Rig::with_nodes(8, 200);
    let owned = rig.owned(1, 300, 2);
    rig.place(owned, 0..300);
    rig.silence(rig.alive[0].0);
    rig.pass(7_000);
    for round in 0..5 {
        rig.obey(owned);
        rig.restart();
        rig.pass(500 * round);
    }
    let next = rig.acquire(owned.region, 2, true);
    rig.settle(next);
    assert!((0..300).all(|extent| live_where_they_count(&rig, next, extent) == 2));
}

#[test]
fn the_most_endangered_come_first() {
    let mut rig = Rig::with_nodes(12, 200);
    let owned = rig.owned(1, 200, 3);
    rig.place(owned, 0..200);
    let dead = [rig.alive[0].0, rig.alive[1].0];
    let held = |rig: &Rig, extent| {
        dead.iter()
            .filter(|node| rig.homes(owned, extent).on(**node).is_some())
            .count()
    };
    // In the middle, so that the first by number is another one.
    let mut twice: Vec<u32> = (0..200).filter(|extent| held(&rig, *extent) == 2).collect();
    if twice.is_empty() {
        let extent = (0..200)
            .find(|extent| rig.homes(owned, *extent).on(dead[0]).is_some())
            .expect("one");
        let other = rig
            .homes(owned, extent)
            .live()
            .find(|node| *node != dead[0])
            .expect("three");
        rig.must(&MarkStale {
            region: owned.region,
            epoch: owned.epoch,
            replicas: vec![(ExtentIndex::new(extent), other)],
        });
        twice.push(extent);
    }
    for node in dead {
        rig.silence(node);
    }
    rig.pass(6_000);
    let ordered: Vec<u32> = rig
        .cluster
        .orders(owned.region, owned.epoch)
        .expect("its owner")
        .iter()
        .map(|order| match order {
            Order::Copy { extent, .. } | Order::Drop { extent, .. } => extent.get(),
        })
        .collect();
    assert!(
        twice.iter().take(8).all(|extent| ordered.contains(extent)),
        "{twice:?} {ordered:?}"
    );
}

#[test]
fn a_node_is_drained_with_nothing_lost_on_the_way() {
    let mut rig = Rig::with_nodes(6, 200);
    let owned = rig.owned(1, 200, 2);
    rig.place(owned, 0..200);
    let node = rig.alive[2].0;
    let drain = Drain {
        node: "n2".to_owned(),
    };
    assert_eq!(rig.must(&drain).state, NodeState::Draining);
    for _ in 0..1_000 {
        rig.pass(500);
        assert!((0..200).all(|extent| rig.homes(owned, extent).live().count() >= 2));
        rig.obey(owned);
        if rig.state(node) == NodeState::Left {
            break;
        }
    }
    let drained = rig.must(&drain);
    assert_eq!((drained.state, drained.left.get()), (NodeState::Left, 0));
    rig.settle(owned);
    assert!((0..200).all(|extent| live_where_they_count(&rig, owned, extent) == 2));
}

#[test]
fn a_drain_goes_on_after_everybody_was_killed() {
    let mut rig = Rig::with_nodes(6, 200);
    let owned = rig.owned(1, 200, 2);
    rig.place(owned, 0..200);
    let node = rig.alive[2].0;
    rig.must(&Drain {
        node: "n2".to_owned(),
    });
    for _ in 0..3 {
        rig.pass(500);
        assert!(rig.obey(owned) > 0);
        rig.restart();
    }
    assert_eq!(rig.state(node), NodeState::Draining);
    assert!(rig.cluster.placed_on(node) > 0, "there is more to be moved");
    // The owner is another one by now, and nobody asks for the drain again.
    let next = rig.acquire(owned.region, 2, true);
    rig.settle(next);
    assert_eq!(rig.state(node), NodeState::Left);
    assert!((0..200).all(|extent| live_where_they_count(&rig, next, extent) == 2));
}

#[test]
fn added_nodes_are_filled_a_little_at_a_time_also_after_everybody_was_killed() {
    let mut rig = Rig::with_nodes(6, 1_000);
    let owned = rig.owned(1, 600, 2);
    rig.place(owned, 0..600);
    rig.settle(owned);
    // More than one: each by itself takes only so many at once in any case.
    let added = [6, 7].map(|n| rig.join(n, 1_000));
    let few = rig.cluster.limits().moves_at_once as usize;
    let mut ticks = 0;
    loop {
        rig.pass(500);
        let orders = rig.cluster.orders(owned.region, owned.epoch);
        let orders = orders.expect("its owner");
        let moves = orders
            .iter()
            .filter(|order| matches!(order, Order::Copy { .. }));
        let moves = moves.count();
        assert!(moves <= few, "{moves} at once");
        if orders.is_empty() {
            break;
        }
        rig.obey(owned);
        rig.restart();
        ticks += 1;
        assert!(ticks < 1_000, "it never comes to rest");
    }
    let share = 2 * 600 / 8;
    let placed = added.map(|node| rig.cluster.placed_on(node) / super::rig::EXTENT.get());
    for placed in placed {
        assert!((share - share / 10..=share).contains(&placed), "{placed}");
    }
    assert!(
        ticks >= placed.iter().sum::<u64>() as usize / few,
        "{ticks} ticks"
    );
    assert!((0..600).all(|extent| live_where_they_count(&rig, owned, extent) == 2));
}

#[test]
fn a_drain_is_refused_when_there_is_no_room() {
    let mut rig = Rig::with_nodes(3, 100);
    let owned = rig.owned(1, 120, 2);
    rig.place(owned, 0..120);
    let drain = Drain {
        node: "n0".to_owned(),
    };
    assert!(matches!(rig.run(&drain), Err(NodeRefusal::NoRoom { .. })));
    assert_eq!(rig.state(rig.alive[0].0), NodeState::Up);
    // Also when there is room, but no other failure domain.
    let mut rig = Rig::with_nodes(2, 100);
    let owned = rig.owned(1, 10, 2);
    rig.place(owned, 0..10);
    assert!(matches!(
        rig.run(&drain),
        Err(NodeRefusal::NoRoom { extents: 10, .. })
    ));
}

#[test]
fn a_drain_can_be_ended() {
    let mut rig = Rig::with_nodes(4, 100);
    let owned = rig.owned(1, 40, 2);
    rig.place(owned, 0..40);
    let node = "n1".to_owned();
    rig.must(&Drain { node: node.clone() });
    rig.pass(1_000);
    rig.must(&EndDrain { node });
    rig.settle(owned);
    assert!((0..40).all(|extent| live_where_they_count(&rig, owned, extent) == 2));
    assert!(
        rig.cluster
            .nodes()
            .all(|status| status.node.state == NodeState::Up)
    );
}

#[test]
fn a_node_that_comes_back_in_time_is_used_again() {
    let mut rig = Rig::with_nodes(4, 100);
    let owned = rig.owned(1, 60, 2);
    rig.place(owned, 0..60);
    let (node, incarnation) = rig.alive[0];
    rig.silence(node);
    rig.pass(7_000);
    rig.obey(owned);
    rig.alive.push((node, incarnation));
    rig.settle(owned);
    for extent in 0..60 {
        assert_eq!(live_where_they_count(&rig, owned, extent), 2);
        assert_eq!(
            rig.homes(owned, extent).replicas.len(),
            2,
            "what was over is dropped"
        );
    }
}

#[test]
fn regions_without_an_owner_hold_nobody_up() {
    let mut rig = Rig::with_nodes(6, 200);
    let idle = rig.owned(1, 100, 2);
    rig.place(idle, 0..100);
    let busy = rig.owned(2, 100, 2);
    rig.place(busy, 0..100);
    rig.must(&GiveBack {
        region: idle.region,
        epoch: idle.epoch,
    });
    rig.silence(rig.alive[0].0);
    rig.pass(7_000);
    rig.settle(busy);
    assert!((0..100).all(|extent| live_where_they_count(&rig, busy, extent) == 2));
    let again = rig.acquire(idle.region, 2, false);
    rig.settle(again);
    assert!((0..100).all(|extent| live_where_they_count(&rig, again, extent) == 2));
}

fn stuck(rig: &Rig, owned: Owned) -> (u32, StuckExtents) {
    let status = rig.cluster.region_status(owned.region).expect("a region");
    (status.endangered_extents, status.stuck)
}

#[test]
fn what_cannot_be_healed_is_said_with_its_reason() {
    let none = StuckExtents::default();
    // No other failure domain.
    let mut rig = Rig::with_nodes(2, 100);
    let owned = rig.owned(1, 10, 2);
    rig.place(owned, 0..10);
    assert_eq!(stuck(&rig, owned), (0, none));
    let (first, incarnation) = rig.alive[0];
    rig.silence(first);
    rig.pass(7_000);
    let no_domain = StuckExtents {
        no_domain: 10,
        ..none
    };
    assert_eq!(stuck(&rig, owned), (10, no_domain));
    assert_eq!(no_domain.total(), 10);
    // One that has just come may take them.
    rig.join(2, 100);
    assert_eq!(stuck(&rig, owned), (10, none));
    rig.settle(owned);
    assert_eq!(stuck(&rig, owned), (0, none));

    // Nobody is left who has them.
    let last = rig.alive[0].0;
    rig.silence(last);
    rig.silence(rig.alive[0].0);
    rig.pass(7_000);
    let no_source = StuckExtents {
        no_source: 10,
        ..none
    };
    assert_eq!(stuck(&rig, owned), (10, no_source));
    // With one of the two back there is a source, and the first node may hold the other one.
    rig.alive.push((first, incarnation));
    rig.alive.push((last, incarnation));
    rig.pass(7_000);
    rig.settle(owned);
    assert_eq!(stuck(&rig, owned).1, none);

    // No room.
    let mut rig = Rig::with_nodes(3, 100);
    let owned = rig.owned(1, 120, 2);
    rig.place(owned, 0..120);
    rig.silence(rig.alive[0].0);
    rig.pass(7_000);
    rig.settle(owned);
    let (endangered, why) = stuck(&rig, owned);
    assert!(why.no_room > 0, "240 replicas on 200 places");
    assert_eq!(
        (endangered, why),
        (
            why.no_room,
            StuckExtents {
                no_room: endangered,
                ..none
            }
        )
    );
}

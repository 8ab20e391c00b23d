//! Balance, failure domains, limits.

use mycoram_fabric::units::ExtentIndex;

use super::rig::{Owned, Rig};
use crate::cluster::*;

/// The fullest node over the mean.
fn imbalance(rig: &Rig) -> f64 {
    let placed: Vec<f64> = rig
        .cluster
        .nodes()
        .map(|node| node.placed.get() as f64)
        .collect();
    let mean = placed.iter().sum::<f64>() / placed.len() as f64;
    placed.iter().copied().fold(0.0, f64::max) / mean
}

fn racks(rig: &Rig, owned: Owned, extent: u32) -> Vec<String> {
    let homes = rig.homes(owned, extent);
    let rack = |node| rig.cluster.node(node).expect("a node").domain.rack.clone();
    homes.live().map(rack).collect()
}

#[test]
fn copies_are_on_different_racks_where_there_are_some_and_the_fullest_node_is_near_the_mean() {
    let mut rig = Rig::with_nodes(64, 10_000);
    let owned = rig.owned(1, 20_000, 2);
    rig.place(owned, 0..20_000);
    for extent in 0..20_000 {
        let racks = racks(&rig, owned, extent);
        assert!(racks.len() == 2 && racks[0] != racks[1], "{racks:?}");
    }
    let imbalance = imbalance(&rig);
    assert!(imbalance <= 1.05, "{imbalance}");
}

#[test]
fn an_added_node_takes_its_share_and_little_else_moves() {
    let mut rig = Rig::with_nodes(20, 10_000);
    let owned = rig.owned(1, 4_000, 1);
    rig.place(owned, 0..4_000);
    assert_eq!(rig.settle(owned), 0, "what was just placed stays");
    rig.join(20, 10_000);
    let moved = rig.settle(owned);
    let ideal = 4_000 / 21;
    assert!(
        moved as f64 <= 1.2 * f64::from(ideal),
        "{moved} moved, ideally {ideal}"
    );
    assert!(
        moved as f64 >= 0.85 * f64::from(ideal),
        "{moved} moved, ideally {ideal}"
    );
    let imbalance = imbalance(&rig);
    assert!(imbalance <= 1.05, "{imbalance}");
}

#[test]
fn larger_nodes_get_more() {
    let mut rig = Rig::new(Limits::default());
    for n in 0..8 {
        rig.join(n, if n % 2 == 0 { 1_000 } else { 3_000 });
    }
    let owned = rig.owned(1, 4_000, 1);
    rig.place(owned, 0..4_000);
    for status in rig.cluster.nodes() {
        let share = status.placed.get() as f64 / status.node.capacity.get() as f64;
        assert!(
            (0.22..0.27).contains(&share),
            "{share} of {}",
            status.node.name
        );
    }
}

#[test]
fn one_machine_never_holds_two_copies() {
    let mut rig = Rig::new(Limits::default());
    for n in 0..3 {
        let mut register = Rig::register(n, 100, 1);
        register.domain.host = format!("h{}", n / 2);
        register.domain.rack = "rack".to_owned();
        let node = rig.must(&register).node;
        rig.alive.push((node, register.incarnation));
    }
    assert!(matches!(
        rig.run(&Rig::create(9, 1, 3)),
        Err(RegionRefusal::Domains { asked: 3, there: 2 })
    ));
    let owned = rig.owned(1, 40, 2);
    rig.place(owned, 0..40);
    let third = rig.alive[2].0;
    assert!((0..40).all(|extent| rig.homes(owned, extent).on(third).is_some()));
}

#[test]
fn a_locality_keeps_everything_within() {
    let mut rig = Rig::new(Limits::default());
    for n in 0..9 {
        let mut register = Rig::register(n, 100, 1);
        register.domain.zone = format!("z{}", n % 3);
        let node = rig.must(&register).node;
        rig.alive.push((node, register.incarnation));
    }
    let mut create = Rig::create(1, 50, 2);
    create.locality.zone = Some("z1".to_owned());
    rig.must(&create);
    let owned = rig.acquire(create.id, 1, false);
    rig.place(owned, 0..50);
    for status in rig.cluster.nodes() {
        assert_eq!(status.placed.get() > 0, status.node.domain.zone == "z1");
    }
    create = Rig::create(2, 50, 2);
    create.locality.apart = Level::Zone;
    rig.must(&create);
    let owned = rig.acquire(create.id, 1, false);
    rig.place(owned, 0..50);
    let zone = |node| rig.cluster.node(node).expect("a node").domain.zone.clone();
    for extent in 0..50 {
        let zones: Vec<_> = rig.homes(owned, extent).live().map(zone).collect();
        assert_ne!(zones[0], zones[1]);
    }
}

#[test]
fn an_extent_is_placed_once_and_never_outside_its_region() {
    let mut rig = Rig::with_nodes(4, 100);
    let owned = rig.owned(1, 10, 2);
    rig.place(owned, 0..10);
    let before: Vec<_> = (0..10).map(|extent| rig.homes(owned, extent)).collect();
    rig.place(owned, 0..10);
    assert_eq!(
        before,
        (0..10)
            .map(|extent| rig.homes(owned, extent))
            .collect::<Vec<_>>()
    );
    let outside = Place {
        region: owned.region,
        epoch: owned.epoch,
        round: 0,
        without: Vec::new(),
        extents: vec![ExtentIndex::new(10)],
    };
    assert!(matches!(
        rig.run(&outside),
        Err(RegionRefusal::NoExtent { extents: 10, .. })
    ));
}

#[test]
fn a_busy_node_gets_nothing_new_while_another_one_could_have_it() {
    let mut rig = Rig::with_nodes(4, 100);
    let (node, _) = rig.alive[0];
    let busy = |rig: &mut Rig, (node, incarnation)| {
        rig.must(&Heartbeat {
            node,
            incarnation,
            load_percent: 95,
        });
    };
    let first = rig.alive[0];
    busy(&mut rig, first);
    let owned = rig.owned(1, 80, 1);
    rig.place(owned, 0..40);
    assert_eq!(rig.cluster.placed_on(node), 0);
    // With all of them busy it is as if none were: a write would wait for ever else.
    for other in rig.alive.clone() {
        busy(&mut rig, other);
    }
    rig.place(owned, 40..80);
    assert!(rig.cluster.placed_on(node) > 0);
}

#[test]
fn with_one_of_two_nodes_down_extents_are_placed_on_the_other_and_healed_later() {
    let mut rig = Rig::with_nodes(2, 100);
    let owned = rig.owned(1, 10, 2);
    let (node, incarnation) = rig.alive[0];
    rig.silence(node);
    rig.pass(7_000);
    rig.place(owned, 0..10);
    assert!((0..10).all(|extent| rig.homes(owned, extent).live().count() == 1));
    rig.settle(owned);
    rig.alive.push((node, incarnation));
    rig.settle(owned);
    assert!((0..10).all(|extent| rig.homes(owned, extent).live().count() == 2));
}

#[test]
fn a_place_that_was_never_used_is_void_but_not_by_a_request_that_was_overtaken() {
    let mut rig = Rig::with_nodes(6, 100);
    let owned = rig.owned(1, 10, 2);
    rig.place(owned, 0..10);
    let full = rig.homes(owned, 3).replicas[0].node;
    let kept = rig.homes(owned, 3).replicas[1].node;
    let again = |round| Place {
        region: owned.region,
        epoch: owned.epoch,
        round,
        extents: vec![ExtentIndex::new(3)],
        without: vec![full],
    };
    let homes = &rig.must(&again(2))[0].1;
    assert!(homes.on(full).is_none() && homes.on(kept).is_some());
    assert_eq!(homes.live().count(), 2);
    let homes = homes.clone();
    assert_eq!(
        rig.run(&again(1)),
        Err(RegionRefusal::Overtaken { round: 1 })
    );
    assert_eq!(rig.homes(owned, 3), homes);
}

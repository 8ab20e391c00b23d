//! States of nodes.

use super::rig::Rig;
use crate::cluster::*;

#[test]
fn the_transitions_are_these_and_no_others() {
    use NodeEvent as E;
    use NodeState as S;
    let states = [S::Joining, S::Up, S::Suspect, S::Down, S::Draining, S::Left];
    let table = [
        (E::Registered, [Some(S::Joining); 6]),
        (E::Admitted, [Some(S::Up), None, None, None, None, None]),
        (
            E::Reported,
            [
                Some(S::Joining),
                Some(S::Suspect),
                Some(S::Suspect),
                Some(S::Down),
                Some(S::Draining),
                None,
            ],
        ),
        (E::Cleared, [None, None, Some(S::Up), None, None, None]),
        (
            E::HeardAgain,
            [None, None, None, Some(S::Joining), None, None],
        ),
        (
            E::LeaseMissed,
            [
                Some(S::Down),
                Some(S::Down),
                Some(S::Down),
                None,
                Some(S::Down),
                None,
            ],
        ),
        (
            E::DrainAsked,
            [
                Some(S::Joining),
                Some(S::Draining),
                Some(S::Draining),
                Some(S::Down),
                Some(S::Draining),
                None,
            ],
        ),
        (
            E::DrainEnded,
            [
                Some(S::Joining),
                None,
                None,
                Some(S::Down),
                Some(S::Up),
                None,
            ],
        ),
        (E::Emptied, [None; 6]),
    ];
    for (event, after) in table {
        for (state, expected) in states.into_iter().zip(after) {
            let got = state.after(event, false);
            assert_eq!(got.ok(), expected, "{state:?} {event:?}");
            if expected.is_none() {
                assert_eq!(got, Err(IllegalTransition { state, event }));
            }
        }
    }
    assert_eq!(S::Draining.after(E::Emptied, true), Ok(S::Left));
    assert_eq!(S::Down.after(E::Emptied, true), Ok(S::Left));
    assert_eq!(S::Joining.after(E::Admitted, true), Ok(S::Draining));
}

#[test]
fn a_node_that_is_heard_is_up_and_one_that_is_not_goes_down_after_its_lease() {
    let mut rig = Rig::with_nodes(2, 100);
    let (kept, lost) = (rig.alive[0].0, rig.alive[1].0);
    rig.silence(lost);
    rig.pass(4_500);
    assert_eq!(rig.state(lost), NodeState::Up);
    rig.pass(1_500);
    assert_eq!(
        (rig.state(kept), rig.state(lost)),
        (NodeState::Up, NodeState::Down)
    );
}

#[test]
fn a_report_makes_a_node_suspect_and_not_down() {
    let mut rig = Rig::with_nodes(1, 100);
    let node = rig.alive[0].0;
    let report = Report {
        node: "n0".to_owned(),
        seen: Seen::Unreachable,
    };
    assert_eq!(rig.must(&report), NodeState::Suspect);
    rig.pass(2_000);
    assert_eq!(rig.state(node), NodeState::Suspect);
    rig.pass(1_500);
    assert_eq!(rig.state(node), NodeState::Up);
    let unknown = Report {
        node: "n9".to_owned(),
        seen: Seen::Corrupt,
    };
    assert!(matches!(
        rig.run(&unknown),
        Err(NodeRefusal::UnknownName { .. })
    ));
}

#[test]
fn a_node_that_flaps_is_watched_longer_each_time() {
    let mut rig = Rig::with_nodes(1, 100);
    let (node, incarnation) = rig.alive[0];
    let mut watched = Vec::new();
    for _ in 0..5 {
        rig.silence(node);
        rig.pass(7_000);
        assert_eq!(rig.state(node), NodeState::Down);
        rig.alive.push((node, incarnation));
        let mut joining = 0;
        rig.pass(500);
        while rig.state(node) == NodeState::Joining {
            rig.pass(500);
            joining += 1;
        }
        watched.push(joining);
    }
    assert_eq!(watched[0], 0, "once is no flapping");
    assert!(
        watched.windows(2).all(|pair| pair[0] < pair[1]),
        "{watched:?}"
    );
    // Time heals.
    rig.pass(rig.cluster.limits().forgive_ms + 1_000);
    assert_eq!(rig.cluster.node(node).expect("a node").returns, 0);
}

#[test]
fn a_clock_that_jumps_takes_no_node_down() {
    let mut rig = Rig::with_nodes(3, 100);
    rig.now += 3_600_000;
    rig.must(&Tick);
    assert!(
        rig.cluster
            .nodes()
            .all(|node| node.node.state == NodeState::Up)
    );
    rig.now -= 3_700_000;
    rig.must(&Tick);
    rig.pass(20_000);
    assert!(
        rig.cluster
            .nodes()
            .all(|node| node.node.state == NodeState::Up)
    );
}

#[test]
fn a_restarted_control_plane_gives_everybody_a_whole_lease() {
    let mut rig = Rig::with_nodes(2, 100);
    let silent = rig.alive[1].0;
    rig.silence(silent);
    rig.pass(4_000);
    rig.restart();
    rig.pass(4_000);
    assert_eq!(rig.state(silent), NodeState::Up);
    rig.pass(2_000);
    assert_eq!(rig.state(silent), NodeState::Down);
    rig.restart();
    assert_eq!(
        rig.state(silent),
        NodeState::Down,
        "what is down stays down until it is heard"
    );
}

#[test]
fn another_process_under_the_name_replaces_it_and_its_replicas_are_gone() {
    let mut rig = Rig::with_nodes(2, 100);
    let owned = rig.owned(1, 10, 2);
    rig.place(owned, 0..10);
    let (node, old) = rig.alive.remove(0);
    let register = Rig::register(0, 100, 2);
    assert_eq!(rig.must(&register).node, node);
    assert_eq!(rig.cluster.placed_on(node), 0);
    assert!((0..10).all(|extent| rig.homes(owned, extent).live().count() == 1));
    let late = Heartbeat {
        node,
        incarnation: old,
        load_percent: 0,
    };
    assert_eq!(
        rig.run(&late),
        Err(NodeRefusal::Replaced {
            node,
            asked: old,
            current: register.incarnation,
        })
    );
    // The other one too: all is lost, and that is remembered.
    rig.must(&Rig::register(1, 100, 2));
    assert!((0..10).all(|extent| rig.homes(owned, extent).lost));
    let status = rig.cluster.region_status(owned.region).expect("a region");
    assert_eq!(status.lost_extents, 10);
}

#[test]
fn what_is_no_node_is_refused() {
    let mut rig = Rig::new(Limits::default());
    let mut nameless = Rig::register(0, 1, 1);
    nameless.name.clear();
    assert_eq!(rig.run(&nameless), Err(NodeRefusal::Name { bytes: 0 }));
    let mut nowhere = Rig::register(0, 1, 1);
    nowhere.addresses.clear();
    assert_eq!(rig.run(&nowhere), Err(NodeRefusal::Nothing));
    assert_eq!(rig.run(&Rig::register(0, 0, 1)), Err(NodeRefusal::Nothing));
    assert!(rig.cluster.nodes().next().is_none());
}

#[test]
fn a_node_that_is_gone_for_good_can_be_removed_but_not_the_last_copies_unsaid() {
    let mut rig = Rig::with_nodes(2, 100);
    let owned = rig.owned(1, 4, 1);
    rig.place(owned, 0..4);
    let holder = rig.homes(owned, 0).replicas[0].node;
    let node = rig.cluster.node(holder).expect("a node").name.clone();
    let remove = |lose| RemoveNode {
        node: node.clone(),
        lose,
    };
    assert!(matches!(
        rig.run(&remove(true)),
        Err(NodeRefusal::StillThere { .. })
    ));
    rig.silence(holder);
    rig.pass(7_000);
    assert!(matches!(
        rig.run(&remove(false)),
        Err(NodeRefusal::LastCopies { .. })
    ));
    rig.must(&remove(true));
    assert!(rig.cluster.node(holder).is_none());
    assert!(rig.homes(owned, 0).lost);
}

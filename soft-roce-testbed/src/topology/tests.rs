//! The plans, as text.

use super::*;

fn commands(topology: Topology) -> Vec<String> {
    topology
        .steps()
        .into_iter()
        .filter_map(|step| {
            if let Step::Run(words) = step {
                Some(words.join(" "))
            } else {
                None
            }
        })
        .collect()
}

#[test]
fn a_device_is_added_in_its_own_namespace() {
    let commands = commands(Topology::Nodes(2));
    assert!(
        commands.contains(&"ip netns exec n2 rdma link add rxe2 type rxe netdev eth0".to_owned()),
        "{commands:#?}"
    );
    assert!(commands.contains(&"rdma link add rxe0 type rxe netdev mycbr".to_owned()));
}

#[test]
fn a_pair_loses_the_short_cut_only_after_the_other_rules_stand() {
    let commands = commands(Topology::Pair);
    let at = |text: &str| {
        commands
            .iter()
            .position(|command| command.contains(text))
            .unwrap()
    };
    assert!(at("pref 100 lookup local") < at("rule del pref 0"));
    assert!(at("iif mycv1") < at("rule del pref 0"));
}

#[test]
fn each_device_is_announced() {
    let variables = Topology::Pair.environment();
    let value = |name: &str| {
        variables
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    assert_eq!(value("MYCORAM_RXE_ADDR_2"), Some("10.77.0.2"));
    assert_eq!(value("MYCORAM_RXE_COUNT"), Some("2"));
    assert_eq!(value("MYCORAM_RXE_NETNS_1"), Some(""));
    assert_eq!(
        Topology::Nodes(3)
            .environment()
            .iter()
            .filter(|(key, _)| key.contains("_PORT_"))
            .count(),
        3
    );
}

#[test]
fn parses_and_prints_alike() {
    for text in ["pair", "nodes:1", "nodes:16"] {
        assert_eq!(text.parse::<Topology>().unwrap().to_string(), text);
    }
    for text in ["", "nodes", "nodes:0", "nodes:17", "nodes:x", "pair:2"] {
        assert!(text.parse::<Topology>().is_err(), "{text}");
    }
    assert!(Topology::Nodes(2).checked_for(KernelSeries::V6_1).is_err());
    assert!(Topology::Nodes(2).checked_for(KernelSeries::V7_2).is_ok());
}

#[test]
fn undo_names_every_device() {
    let undone = Topology::Nodes(2).undo();
    for device in ["rxe0", "rxe1", "rxe2"] {
        assert!(undone.contains(&run(&["rdma", "link", "del", device])));
    }
}

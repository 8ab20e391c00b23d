//! Placement over a fixed list of nodes.

use mycoram_fabric::placement::{NodeEntry, Placement, PlacementError, RegionEntry};
use mycoram_fabric::units::ExtentIndex;

use crate::rendezvous::{NodeSeed, Weight, score};

/// Nodes that do not change, each with its weight.
#[derive(Clone, Debug)]
pub struct StaticPlacement {
    nodes: Vec<NodeEntry>,
    draws: Vec<(NodeSeed, Weight)>,
}

impl StaticPlacement {
    /// Nodes of one weight. Their names are different.
    #[must_use]
    pub fn new(nodes: Vec<NodeEntry>) -> Self {
        Self::weighted(nodes.into_iter().map(|node| (node, Weight::ONE)).collect())
    }

    /// Nodes, each with its weight. Their names are different.
    #[must_use]
    pub fn weighted(nodes: Vec<(NodeEntry, Weight)>) -> Self {
        let draws = nodes
            .iter()
            .map(|(node, weight)| (NodeSeed::of(&node.name), *weight))
            .collect();
        let nodes = nodes.into_iter().map(|(node, _)| node).collect();
        Self { nodes, draws }
    }
}

impl Placement for StaticPlacement {
    fn nodes(&self) -> &[NodeEntry] {
        &self.nodes
    }

    fn candidates(
        &self,
        region: &RegionEntry,
        extent: ExtentIndex,
        into: &mut Vec<usize>,
    ) -> Result<(), PlacementError> {
        if self.nodes.is_empty() {
            return Err(PlacementError::NoNodes);
        }
        let before = into.len();
        into.extend(0..self.nodes.len());
        let score = |node: &usize| {
            let (seed, weight) = self.draws[*node];
            score(seed, weight, region.id, extent)
        };
        into[before..].sort_by(|a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use mycoram_fabric::placement::FailureDomain;
    use mycoram_fabric::transport::TransportKind;
    use mycoram_fabric::units::{ByteCount, Epoch, RegionId, TenantId};
    use proptest::prelude::*;

    use super::*;

    const EXTENTS: u32 = 4000;

    fn placement(weights: &[f64]) -> StaticPlacement {
        let node = |(n, weight): (usize, &f64)| {
            let entry = NodeEntry {
                name: format!("node-{n}"),
                control: SocketAddr::from(([10, 0, 0, 1], 7000 + n as u16)),
                transport: TransportKind::Tcp,
                domain: FailureDomain::default(),
            };
            (entry, Weight::new(*weight).expect("a weight"))
        };
        StaticPlacement::weighted(weights.iter().enumerate().map(node).collect())
    }

    fn region(id: u64) -> RegionEntry {
        RegionEntry {
            id: RegionId::new(id),
            tenant: TenantId::new(1),
            epoch: Epoch::new(1),
            bytes: ByteCount::mib(1),
            extent_bytes: ByteCount::mib(1),
            replicas: 1,
        }
    }

    fn candidates(placement: &StaticPlacement, id: u64, extent: u32) -> Vec<usize> {
        let mut into = Vec::new();
        let found = placement.candidates(&region(id), ExtentIndex::new(extent), &mut into);
        found.expect("there are nodes");
        into
    }

    fn weights() -> impl Strategy<Value = Vec<f64>> {
        proptest::collection::vec(prop_oneof![Just(1.0), Just(2.0), Just(4.0)], 1..7)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn every_node_is_a_candidate_once(weights in weights(), id: u64, extent: u32) {
            let mut found = candidates(&placement(&weights), id, extent);
            found.sort_unstable();
            prop_assert_eq!(found, (0..weights.len()).collect::<Vec<_>>());
        }

        /// Shares follow the weights, within five standard deviations of what chance allows.
        #[test]
        fn shares_are_in_proportion_to_weights(weights in weights(), id: u64) {
            let placement = placement(&weights);
            let mut shares = vec![0u32; weights.len()];
            for extent in 0..EXTENTS {
                shares[candidates(&placement, id, extent)[0]] += 1;
            }
            let total: f64 = weights.iter().sum();
            for (share, weight) in shares.iter().zip(&weights) {
                let p = weight / total;
                let expected = f64::from(EXTENTS) * p;
                let deviation = (f64::from(EXTENTS) * p * (1.0 - p)).sqrt();
                prop_assert!(
                    (f64::from(*share) - expected).abs() <= 5.0 * deviation + 1.0,
                    "{share} instead of about {expected}"
                );
            }
        }

        /// An added node takes extents for itself; no other extent moves, in any place of its order.
        #[test]
        fn an_added_node_changes_nothing_between_the_others(mut weights in weights(), id: u64) {
            let before = placement(&weights);
            weights.push(2.0);
            let added = weights.len() - 1;
            let after = placement(&weights);
            for extent in 0..200 {
                let mut order = candidates(&after, id, extent);
                order.retain(|node| *node != added);
                prop_assert_eq!(order, candidates(&before, id, extent));
            }
        }

        /// With capacities, as regions are placed: full nodes are passed over, and all there is gets used.
        #[test]
        fn capacity_is_used_to_the_last_extent(
            capacities in proptest::collection::vec(0..200u32, 1..6), id: u64,
        ) {
            let placement = placement(&vec![1.0; capacities.len()]);
            let mut left = capacities.clone();
            for extent in 0..capacities.iter().sum::<u32>() {
                let order = candidates(&placement, id, extent);
                let home = order.into_iter().find(|node| left[*node] > 0);
                left[home.expect("somebody has room")] -= 1;
            }
            prop_assert!(left.iter().all(|left| *left == 0));
        }
    }

    #[test]
    fn without_nodes_there_is_no_place() {
        let found = StaticPlacement::new(Vec::new()).candidates(
            &region(1),
            ExtentIndex::new(0),
            &mut Vec::new(),
        );
        assert!(matches!(found, Err(PlacementError::NoNodes)));
    }

    #[test]
    fn the_draws_are_the_same_in_every_version() {
        let placement = placement(&[1.0, 1.0, 1.0]);
        let firsts: Vec<_> = (0..12)
            .map(|extent| candidates(&placement, 7, extent)[0])
            .collect();
        assert_eq!(firsts, [2, 2, 0, 0, 1, 1, 1, 1, 2, 0, 0, 1]);
    }
}

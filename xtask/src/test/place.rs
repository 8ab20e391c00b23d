//! Where a test program runs, decided by its name: pure.

use std::fmt;

use mycoram_testbed::{KernelSeries, Topology};

/// A set of test programs that share a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// This machine.
    Host,
    /// Two devices on a link: `rxe_*`.
    Pair,
    /// Devices in namespaces: `rxe_nodes_*`.
    Nodes,
    /// Debian 12's kernel: `k61_*`, and the device's own tests.
    OldKernel,
    /// The kernel between: the device's own tests.
    MiddleKernel,
}

/// The guest a group needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestNeed {
    pub(crate) kernel: KernelSeries,
    pub(crate) topology: Topology,
}

/// Namespaces of the `rxe_nodes_*` tests.
const NODES: u8 = 3;

/// All groups, in the order they run.
pub(crate) fn groups(all_kernels: bool) -> Vec<Group> {
    let mut groups = vec![Group::Host, Group::Pair, Group::Nodes, Group::OldKernel];
    if all_kernels {
        groups.push(Group::MiddleKernel);
    }
    groups
}

impl Group {
    /// Whether the test program built from target `name` runs here. Some run in two places.
    pub(crate) fn takes(self, name: &str) -> bool {
        let is_nodes = name.starts_with("rxe_nodes_");
        match self {
            Self::Host => !name.starts_with("rxe_") && !name.starts_with("k61_"),
            Self::Pair => name.starts_with("rxe_") && !is_nodes,
            Self::Nodes => is_nodes,
            Self::OldKernel => name.starts_with("k61_") || name.starts_with("rxe_device_"),
            Self::MiddleKernel => name.starts_with("rxe_device_"),
        }
    }

    /// The guest it needs; none for the host.
    pub(crate) fn guest(self) -> Option<GuestNeed> {
        let need = |kernel, topology| Some(GuestNeed { kernel, topology });
        match self {
            Self::Host => None,
            Self::Pair => need(KernelSeries::V7_2, Topology::Pair),
            Self::Nodes => need(KernelSeries::V7_2, Topology::Nodes(NODES)),
            Self::OldKernel => need(KernelSeries::V6_1, Topology::Pair),
            Self::MiddleKernel => need(KernelSeries::V6_12, Topology::Pair),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.guest() {
            None => f.write_str("host"),
            Some(guest) => write!(f, "guest {}, {}", guest.kernel, guest.topology),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(name: &str) -> Vec<Group> {
        groups(true)
            .into_iter()
            .filter(|group| group.takes(name))
            .collect()
    }

    #[test]
    fn every_program_runs_somewhere_and_rxe_never_on_the_host() {
        assert_eq!(places("conformance"), [Group::Host]);
        assert_eq!(places("mycoram_fabric"), [Group::Host]);
        assert_eq!(places("rxe_conformance"), [Group::Pair]);
        assert_eq!(places("rxe_nodes_bridge"), [Group::Nodes]);
        assert_eq!(places("k61_fallbacks"), [Group::OldKernel]);
        assert_eq!(
            places("rxe_device_check"),
            [Group::Pair, Group::OldKernel, Group::MiddleKernel]
        );
    }
}

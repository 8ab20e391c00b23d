//! What figures are to be. The names are fixed, so that they can be followed over time.

use mycoram_fabric::transport::TransportKind;
use serde::Serialize;

/// On which side of a number a figure is to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    pub(crate) fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "at most {most}"),
            Self::AtLeast(least) => write!(f, "at least {least}"),
        }
    }
}

/// The bound of a figure over `transport`; none for those that only explain others.
pub(crate) fn of(figure: &str, transport: TransportKind) -> Option<Bound> {
    use Bound::{AtLeast, AtMost};
    Some(match figure {
        "fault_p50_over_floor" if transport == TransportKind::Verbs => AtMost(1.5),
        "fault_p50_over_floor" => AtMost(1.3),
        "scan_over_wire" => AtLeast(0.5),
        "resident_over_shmem" => AtMost(1.02),
        "idle_cpu_share" => AtMost(0.01),
        "page_table_bytes_per_page" => AtMost(16.0),
        "fault_p50_over_nvmeof_swap" => AtMost(0.6),
        "faults_per_s_over_nvmeof_swap" => AtLeast(1.6),
        "scan_over_nvmeof_swap" => AtLeast(2.0),
        "runs_killed" => AtMost(0.0),
        "writeback_r2_over_r1" => AtLeast(0.55),
        "writeback_latency_r2_over_r1" => AtMost(1.5),
        // Twice the bytes, and 2%.
        "writeback_bytes_ratio" => AtMost(2.04),
        "read_r2_over_r1" => AtMost(1.03),
        "checksum_us" => AtMost(0.3),
        "failover_extra_ms" => AtMost(5.0),
        "failover_visible_ms" => AtMost(30.0),
        "rebuild_over_given" => AtLeast(0.8),
        "fault_slowdown_in_rebuild" => AtMost(1.1),
        "place_1tib_ms" => AtMost(1000.0),
        "imbalance" => AtMost(1.05),
        "moved_over_ideal" => AtMost(1.2),
        "metadata_bytes_per_replica" => AtMost(64.0),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_part_of_what_it_allows() {
        assert!(Bound::AtMost(1.5).holds(1.5) && !Bound::AtMost(1.5).holds(1.51));
        assert!(Bound::AtLeast(0.5).holds(0.5) && !Bound::AtLeast(0.5).holds(0.49));
        assert!(!Bound::AtMost(1.0).holds(f64::NAN));
    }

    #[test]
    fn every_figure_that_a_bench_is_asked_for_has_one() {
        use crate::bench::{fault, idle, peers, replicas, resident, scan};
        let asked = [
            fault::nothing(),
            idle::nothing(),
            peers::nothing(),
            replicas::nothing(),
            resident::nothing(),
            scan::nothing(),
        ];
        for figure in asked.iter().flatten() {
            assert!(
                of(figure.name(), TransportKind::Tcp).is_some(),
                "{figure:?}"
            );
        }
    }
}

//! The figures of an agent: of each region that it serves.

use std::iter::repeat;

use mycoram_agent::{LATENCY_BUCKETS_US, RegionStats};
use mycoram_fabric::units::PAGE_BYTES;
use prometheus_client::registry::Unit;

use super::page::{Histogram, Labels, Page, label};

/// Values of one sort by a label, in one region.
type Split = fn(&RegionStats) -> Vec<(&'static str, u64)>;

/// What goes up and down.
const GAUGES: [(&str, &str, &str, Option<Unit>, Split); 4] = [
    (
        "agent_memory",
        "Memory of the region, by where it is",
        "state",
        Some(Unit::Bytes),
        |s| {
            let pages = [
                ("resident", s.resident),
                ("remote", s.remote),
                ("fetching", s.fetching),
                ("leaving", s.leaving),
                ("never_written", s.never_written),
                ("lost", s.lost),
            ];
            pages.map(|(state, pages)| (state, bytes(pages))).into()
        },
    ),
    (
        "agent_budget",
        "Memory that may be resident, and the most that was",
        "which",
        Some(Unit::Bytes),
        |s| {
            vec![
                ("allowed", bytes(s.budget_pages)),
                ("peak", bytes(s.peak_resident)),
            ]
        },
    ),
    (
        "agent_replicas",
        "Replicas of the region's extents, by state",
        "state",
        None,
        |s| {
            let t = &s.transport;
            vec![
                ("live", t.replicas_live),
                ("copying", t.replicas_copying),
                ("stale", t.replicas_stale),
            ]
        },
    ),
    (
        "agent_rebuild_left",
        "What is still to be copied: replicas that wait, and pages of those that are being copied",
        "what",
        None,
        |s| {
            vec![
                ("replicas", s.transport.rebuild_waiting),
                ("pages", s.transport.rebuild_pages_left),
            ]
        },
    ),
];

/// What only goes up.
const COUNTERS: [(&str, &str, &str, Split); 8] = [
    (
        "agent_faults",
        "Faults that were served, by whether a page had to be read",
        "kind",
        |s| vec![("major", s.majors), ("hit", s.hits)],
    ),
    (
        "agent_evictions",
        "Pages that were evicted, by whether they had to be written",
        "kind",
        |s| {
            let spared = s.evictions_clean + s.evictions_zero;
            vec![
                ("written", s.evictions.saturating_sub(spared)),
                ("clean", s.evictions_clean),
                ("zero", s.evictions_zero),
            ]
        },
    ),
    (
        "agent_prefetched_pages",
        "Pages that were fetched ahead, and those of them that were asked for while on their way",
        "kind",
        |s| vec![("issued", s.prefetch_issued), ("used", s.prefetch_used)],
    ),
    (
        "agent_huge_pages",
        "Huge pages of 2 MiB that came, and left, as one",
        "direction",
        |s| vec![("in", s.huge_in), ("out", s.huge_out)],
    ),
    (
        "agent_moved_bytes",
        "Bytes between the agent and memory nodes",
        "direction",
        |s| {
            let t = &s.transport;
            vec![
                ("read", t.bytes_read),
                ("written", t.bytes_written),
                ("rebuilt", t.rebuilt_bytes),
            ]
        },
    ),
    (
        "agent_reads_elsewhere",
        "Reads that another replica was asked for, by why and what came of it",
        "kind",
        |s| {
            let t = &s.transport;
            vec![
                ("failover", t.failovers),
                ("hedge_won", t.hedges_won),
                ("hedge_lost", t.hedges_lost),
            ]
        },
    ),
    (
        "agent_repairs",
        "Replicas that were made right again, by how",
        "kind",
        |s| {
            vec![
                ("page", s.transport.repairs),
                ("extent", s.transport.rebuilt_replicas),
            ]
        },
    ),
    ("agent_errors", "What went wrong, by kind", "kind", |s| {
        let t = &s.transport;
        vec![
            ("page_lost", s.losses),
            (
                "page_wrong",
                s.checksum_mismatches.saturating_sub(s.seals_broken),
            ),
            ("seal_broken", s.seals_broken),
            ("connection_broken", t.reconnects),
            ("node_lost", t.nodes_lost),
            ("rebuild_failed", t.rebuild_failures),
            ("place_refused", t.places_refused),
            ("place_not_answered", t.places_away),
            ("thread_panicked", s.thread_panics),
        ]
    }),
];

fn bytes(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_BYTES as u64)
}

fn of(stats: &RegionStats) -> Labels {
    vec![label("region", stats.name.clone())]
}

fn split<'a>(
    regions: &'a [RegionStats],
    name: &'static str,
    values: Split,
) -> impl Iterator<Item = (Labels, u64)> + 'a {
    regions.iter().flat_map(move |stats| {
        values(stats).into_iter().map(move |(word, value)| {
            let mut labels = of(stats);
            labels.push(label(name, word));
            (labels, value)
        })
    })
}

fn times(
    regions: &[RegionStats],
    counted: fn(&RegionStats) -> (&[u64], f64),
) -> Vec<(Labels, Histogram)> {
    let histogram = |stats| {
        let (buckets, sum_us) = counted(stats);
        let bounds = LATENCY_BUCKETS_US.iter();
        let bounds = bounds.map(|bound| f64::from(*bound) / 1e6);
        Histogram {
            sum: sum_us / 1e6,
            buckets: bounds
                .chain([f64::INFINITY])
                .zip(buckets.iter().copied().chain(repeat(0)))
                .collect(),
        }
    };
    let all = regions.iter();
    all.map(|stats| (of(stats), histogram(stats))).collect()
}

/// The page of an agent that serves these regions.
#[must_use]
pub fn agent_page(regions: &[RegionStats]) -> String {
    let mut page = Page::default();
    page.gauge(
        "agent_regions",
        "Regions that are served",
        None,
        regions.len() as u64,
    );
    for (name, help, key, unit, values) in GAUGES {
        page.gauges(name, help, unit, split(regions, key, values));
    }
    page.gauges(
        "agent_writeback_lag",
        "Memory that has left the region and is not yet acknowledged by its memory nodes",
        Some(Unit::Bytes),
        regions
            .iter()
            .map(|stats| (of(stats), bytes(stats.leaving))),
    );
    page.reals(
        "agent_writeback_lag",
        "How long the oldest of that memory has been on its way",
        Unit::Seconds,
        regions
            .iter()
            .map(|stats| (of(stats), stats.writeback_lag_s)),
    );
    page.gauges(
        "agent_writes_unplaced",
        "Writes that wait for a place on a memory node",
        None,
        regions
            .iter()
            .map(|stats| (of(stats), stats.transport.writes_unplaced)),
    );
    page.reals(
        "agent_hit",
        "Share of the faults for which nothing had to be read",
        Unit::Other("ratio".to_owned()),
        regions.iter().map(|stats| (of(stats), stats.hit_rate)),
    );
    for (name, help, key, values) in COUNTERS {
        page.counters(name, help, split(regions, key, values));
    }
    page.histograms(
        "agent_fault_service",
        "From a fault's event to its page's installation",
        Unit::Seconds,
        times(regions, |s| (&s.fault_buckets, s.fault_sum_us)),
    );
    page.histograms(
        "agent_writeback",
        "Of an eviction that had to write: from the choice of its pages to their last acknowledgement",
        Unit::Seconds,
        times(regions, |s| (&s.writeback_buckets, s.writeback_sum_us)),
    );
    page.text()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Figures of which none is 0.
    fn moved() -> RegionStats {
        fn fill(value: &mut Value, next: &mut u64) {
            match value {
                Value::Number(_) => {
                    *next += 1;
                    *value = (*next).into();
                }
                Value::Object(fields) => fields.values_mut().for_each(|field| fill(field, next)),
                _ => {}
            }
        }
        let mut figures = serde_json::to_value(RegionStats::default()).expect("figures");
        fill(&mut figures, &mut 100);
        let mut stats: RegionStats = serde_json::from_value(figures).expect("figures");
        stats.fault_buckets = vec![1; LATENCY_BUCKETS_US.len() + 1];
        stats.writeback_buckets = vec![2; LATENCY_BUCKETS_US.len() + 1];
        // Of the pages that left, some were written; of those that were wrong, some had no seal.
        stats.evictions = 10_000;
        stats.checksum_mismatches = 10_000;
        stats
    }

    /// What a page says, but for words about it; figures of one sort come in any order.
    fn samples(page: &str) -> Vec<&str> {
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        let mut lines: Vec<_> = lines.collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn every_figure_of_a_region_moves() {
        let still = agent_page(&[RegionStats::default()]);
        let moved = agent_page(&[moved()]);
        let (still, moved) = (samples(&still), samples(&moved));
        assert_eq!(still.len(), moved.len());
        for (still, moved) in still.iter().zip(&moved) {
            let name = |line: &str| line.rsplit_once(' ').map(|(name, _)| name.to_owned());
            assert_eq!(name(still), name(moved));
            if !still.starts_with("mycoram_agent_regions ") {
                assert_ne!(still, moved);
            }
        }
        assert!(still.len() > 70, "{still:?}");
    }

    #[test]
    fn each_figure_of_a_region_is_on_the_page() {
        let mut stats = RegionStats {
            name: "r".to_owned(),
            hit_rate: 0.25,
            fault_sum_us: 30.0,
            fault_buckets: vec![0; LATENCY_BUCKETS_US.len() + 1],
            leaving: 2,
            ..RegionStats::default()
        };
        stats.fault_buckets[1] = 3;
        stats.transport.rebuilt_replicas = 7;
        let page = agent_page(&[stats]);
        for line in [
            "mycoram_agent_regions 1",
            "mycoram_agent_hit_ratio{region=\"r\"} 0.25",
            "mycoram_agent_writeback_lag_bytes{region=\"r\"} 8192",
            "mycoram_agent_repairs_total{region=\"r\",kind=\"extent\"} 7",
            "mycoram_agent_fault_service_seconds_count{region=\"r\"} 3",
            "mycoram_agent_fault_service_seconds_sum{region=\"r\"} 0.00003",
            "le=\"+Inf\"",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
    }
}

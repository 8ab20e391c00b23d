//! The figures of an agent: of each region that it serves.

use mycoram_agent::{FAULT_BUCKETS_US, RegionStats};
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
const COUNTERS: [(&str, &str, &str, Split); 7] = [
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
            ("page_lost", s.lost),
            ("page_wrong", s.checksum_mismatches),
            ("connection_broken", t.reconnects),
            ("node_lost", t.nodes_lost),
            ("rebuild_failed", t.rebuild_failures),
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
    page.ratios(
        "agent_hit",
        "Share of the faults for which nothing had to be read",
        regions.iter().map(|stats| (of(stats), stats.hit_rate)),
    );
    for (name, help, key, values) in COUNTERS {
        page.counters(name, help, split(regions, key, values));
    }
    let services = regions.iter().map(|stats| {
        let mut bounds: Vec<f64> = FAULT_BUCKETS_US
            .iter()
            .map(|bound| f64::from(*bound) / 1e6)
            .collect();
        bounds.push(f64::INFINITY);
        let histogram = Histogram {
            sum: stats.fault_sum_us / 1e6,
            buckets: bounds
                .into_iter()
                .zip(stats.fault_buckets.clone())
                .collect(),
        };
        (of(stats), histogram)
    });
    page.histograms(
        "agent_fault_service",
        "From a fault's event to its page's installation",
        Unit::Seconds,
        services.collect(),
    );
    page.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_of_a_region_is_on_the_page() {
        let mut stats = RegionStats {
            name: "r".to_owned(),
            hit_rate: 0.25,
            fault_sum_us: 30.0,
            fault_buckets: vec![0; FAULT_BUCKETS_US.len() + 1],
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

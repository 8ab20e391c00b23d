//! The figures of a memory node.

use mycoram_fabric::wire::control::StatusReport;
use prometheus_client::registry::Unit;

use super::page::{Page, label};

/// The page of a node that says this of itself; `refusals`: how often it refused, by kind.
#[must_use]
pub fn node_page(report: &StatusReport, refusals: &[(&'static str, u64)]) -> String {
    let mut page = Page::default();
    let bytes = Some(Unit::Bytes);
    for (name, help, unit, value) in [
        (
            "node_pool_capacity",
            "Memory that the node lends in all",
            bytes.clone(),
            report.capacity.get(),
        ),
        (
            "node_pool_lent",
            "Memory in extents",
            bytes.clone(),
            report.lent.get(),
        ),
        (
            "node_pool_free",
            "Memory that nobody has",
            bytes.clone(),
            report.free.get(),
        ),
        (
            "node_pool_unzeroed",
            "Free memory that is still to be zeroed",
            bytes,
            report.unzeroed.get(),
        ),
        (
            "node_uptime",
            "How long the node runs",
            Some(Unit::Seconds),
            report.uptime_ms / 1000,
        ),
        ("node_extents", "Extents", None, report.extents),
        (
            "node_tenants",
            "Tenants with a region",
            None,
            report.tenants.into(),
        ),
        ("node_regions", "Regions", None, report.regions.into()),
        (
            "node_orphans",
            "Regions without an owner",
            None,
            report.orphans.into(),
        ),
        (
            "node_sessions",
            "Open sessions",
            None,
            report.sessions.into(),
        ),
        (
            "node_control_connections",
            "Control connections",
            None,
            report.control_connections.into(),
        ),
        (
            "node_data_connections",
            "Queue pairs",
            None,
            report.data_connections.into(),
        ),
        (
            "node_draining",
            "1 while the node is being stopped",
            None,
            report.draining.into(),
        ),
    ] {
        page.gauge(name, help, unit, value);
    }
    page.counters(
        "node_refusals",
        "Requests that the node refused, by kind",
        refusals
            .iter()
            .map(|(kind, count)| (vec![label("kind", *kind)], *count)),
    );
    page.text()
}

#[cfg(test)]
mod tests {
    use mycoram_fabric::transport::TransportKind;
    use mycoram_fabric::units::{ByteCount, Incarnation};

    use super::*;

    /// Each figure another one, from `first` on.
    fn report(first: u32, draining: bool) -> StatusReport {
        let bytes = |more: u32| ByteCount::mib(u64::from(first + more));
        StatusReport {
            incarnation: Incarnation::new(1),
            transport: TransportKind::Tcp,
            data: ([127, 0, 0, 1], 1).into(),
            uptime_ms: u64::from(first) * 1000,
            draining,
            hugepages: false,
            capacity: bytes(1),
            lent: bytes(2),
            free: bytes(3),
            unzeroed: bytes(4),
            extents: u64::from(first + 5),
            tenants: first + 6,
            regions: first + 7,
            orphans: first + 8,
            sessions: first + 9,
            control_connections: first + 10,
            data_connections: first + 11,
        }
    }

    #[test]
    fn every_figure_of_a_node_moves() {
        let still = node_page(&report(0, false), &[("Full", 0)]);
        let moved = node_page(&report(100, true), &[("Full", 1)]);
        let pairs = still.lines().zip(moved.lines());
        let figures = pairs.filter(|(still, _)| !still.starts_with('#'));
        let mut count = 0;
        for (still, moved) in figures {
            assert_ne!(still, moved);
            count += 1;
        }
        assert_eq!(count, 14);
    }
}

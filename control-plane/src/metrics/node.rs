//! The figures of a memory node.

use mycoram_fabric::wire::control::StatusReport;
use prometheus_client::registry::Unit;

use super::page::{Page, label};

/// The page of a node that says this of itself; `refusals`: how often it refused, by kind.
#[must_use]
pub fn node_page(report: &StatusReport, refusals: &[(&'static str, u64)]) -> String {
    let mut page = Page::default();
    for (name, help, value) in [
        (
            "node_pool_capacity",
            "Memory that the node lends in all",
            report.capacity.get(),
        ),
        ("node_pool_lent", "Memory in extents", report.lent.get()),
        (
            "node_pool_free",
            "Memory that nobody has",
            report.free.get(),
        ),
        (
            "node_pool_unzeroed",
            "Free memory that is still to be zeroed",
            report.unzeroed.get(),
        ),
    ] {
        page.gauge(name, help, Some(Unit::Bytes), value);
    }
    page.gauge(
        "node_uptime",
        "How long the node runs",
        Some(Unit::Seconds),
        report.uptime_ms / 1000,
    );
    for (name, help, value) in [
        ("node_extents", "Extents", report.extents),
        (
            "node_tenants",
            "Tenants with a region",
            report.tenants.into(),
        ),
        ("node_regions", "Regions", report.regions.into()),
        (
            "node_orphans",
            "Regions without an owner",
            report.orphans.into(),
        ),
        ("node_sessions", "Open sessions", report.sessions.into()),
        (
            "node_control_connections",
            "Control connections",
            report.control_connections.into(),
        ),
        (
            "node_data_connections",
            "Queue pairs",
            report.data_connections.into(),
        ),
        (
            "node_draining",
            "1 while the node is being stopped",
            report.draining.into(),
        ),
    ] {
        page.gauge(name, help, None, value);
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

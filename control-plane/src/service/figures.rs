//! The figures of the control plane.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::registry::Unit;
use tonic::Code;

use super::keeper::{Keeper, NotDone};
use crate::cluster::{NodeState, NodeStatus, RegionStatus};
use crate::metrics::{Page, label};

/// What is counted of the calls.
#[derive(Debug, Default)]
pub(super) struct Calls {
    answered: Mutex<BTreeMap<&'static str, u64>>,
}

impl Calls {
    /// A call came to this.
    pub(super) fn count(&self, code: Code) {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        *answered.entry(word(code)).or_default() += 1;
    }

    /// Of every kind, so that a monitor knows each before it happens.
    fn errors(&self) -> Vec<(&'static str, u64)> {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |code| answered.get(word(code)).copied().unwrap_or_default();
        ERRORS.map(|code| (word(code), count(code))).into()
    }

    fn all(&self) -> u64 {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.values().sum()
    }
}

/// One code for each word but that of success.
const ERRORS: [Code; 9] = [
    Code::InvalidArgument,
    Code::NotFound,
    Code::AlreadyExists,
    Code::FailedPrecondition,
    Code::ResourceExhausted,
    Code::PermissionDenied,
    Code::Unavailable,
    Code::DeadlineExceeded,
    Code::Unknown,
];

/// One word for each code that the service uses.
fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::InvalidArgument => "invalid_argument",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::FailedPrecondition => "failed_precondition",
        Code::ResourceExhausted => "resource_exhausted",
        Code::PermissionDenied => "permission_denied",
        Code::Unavailable => "unavailable",
        Code::DeadlineExceeded | Code::Cancelled => "deadline_exceeded",
        _ => "other",
    }
}

/// The page, as things are now; `None` when the keeper has ended. Not on a runtime's thread.
pub(super) fn page(
    runtime: &tokio::runtime::Handle,
    keeper: &Keeper,
    calls: &Arc<Calls>,
    started: Instant,
) -> Option<String> {
    let look = keeper.look_for_all(|cluster| {
        let nodes: Vec<_> = cluster.nodes().collect();
        let regions: Vec<_> = cluster.regions().collect();
        (nodes, regions)
    });
    let (nodes, regions) = match runtime.block_on(look) {
        Ok(seen) => seen,
        // Its own figures can be read all the same.
        Err(NotDone::Store | NotDone::Busy) => Default::default(),
        Err(NotDone::Ending | NotDone::NotLeader { .. }) => return None,
    };
    let mut page = Page::default();
    page.gauge(
        "control_uptime",
        "How long this process serves",
        Some(Unit::Seconds),
        started.elapsed().as_secs(),
    );
    add_nodes(&mut page, &nodes);
    add_regions(&mut page, &regions);
    let counted = keeper.counted();
    page.gauge(
        "rebuild_waiting_extents",
        "Extents with too few replicas that wait for their turn, or for room",
        None,
        counted.waiting(),
    );
    page.counter("control_calls", "Calls that were answered", calls.all());
    page.counter(
        "control_store_failures",
        "Changes that the store did not take",
        counted.store_failures(),
    );
    page.gauge(
        "control_leader",
        "1 if this process of the control plane leads",
        None,
        counted.leads().into(),
    );
    page.counter(
        "control_terms",
        "How often this process began to lead",
        counted.terms(),
    );
    page.counter(
        "control_deposed",
        "How often another process led before this one gave the lead back",
        counted.deposed(),
    );
    let errors = calls.errors();
    page.counters(
        "control_errors",
        "Calls that were refused or failed, by kind",
        errors
            .iter()
            .map(|(kind, count)| (vec![label("kind", *kind)], *count)),
    );
    page.counter(
        "rebuild_replicas",
        "Replicas that were made anew",
        counted.copied(),
    );
    Some(page.text())
}

fn add_nodes(page: &mut Page, nodes: &[NodeStatus]) {
    type Figure = fn(&NodeStatus) -> u64;
    let figures: [(&str, &str, Figure); 3] = [
        ("pool_capacity", "Memory that is lent", |node| {
            node.node.capacity.get()
        }),
        ("pool_placed", "Memory in replicas", |node| {
            node.placed.get()
        }),
        (
            "pool_available",
            "Memory that a region of the class normal could still get",
            |node| node.available.get(),
        ),
    ];
    for (name, help, figure) in figures {
        let of = |node: &NodeStatus| {
            let labels = vec![
                label("node", node.node.name.clone()),
                label("zone", node.node.domain.zone.clone()),
                label("region", node.node.domain.region.clone()),
            ];
            (labels, figure(node))
        };
        page.gauges(name, help, Some(Unit::Bytes), nodes.iter().map(of));
    }
    let states = [
        (NodeState::Joining, "joining"),
        (NodeState::Up, "up"),
        (NodeState::Suspect, "suspect"),
        (NodeState::Down, "down"),
        (NodeState::Draining, "draining"),
        (NodeState::Left, "left"),
    ];
    let counts = states.map(|(state, word)| {
        let count = nodes.iter().filter(|node| node.node.state == state).count();
        (vec![label("state", word)], count as u64)
    });
    page.gauges("nodes", "Memory nodes, by state", None, counts);
}

fn add_regions(page: &mut Page, regions: &[RegionStatus]) {
    let sum = |figure: fn(&RegionStatus) -> u32| -> u64 {
        regions.iter().map(|region| u64::from(figure(region))).sum()
    };
    page.gauge("regions", "Regions", None, regions.len() as u64);
    let extents: u64 = regions.iter().map(|r| u64::from(r.region.extents())).sum();
    page.gauge("extents", "Extents of all regions", None, extents);
    page.gauge(
        "extents_placed",
        "Of these, extents that are on memory nodes, or were",
        None,
        sum(|region| region.placed_extents),
    );
    let replicas = [
        ("live", sum(|region| region.live)),
        ("copying", sum(|region| region.copying)),
        ("stale", sum(|region| region.stale)),
    ];
    let replicas = replicas.map(|(state, count)| (vec![label("state", state)], count));
    page.gauges("replicas", "Replicas, by state", None, replicas);
    page.gauge(
        "extents_endangered",
        "Extents with fewer live replicas than asked for",
        None,
        sum(|region| region.endangered_extents),
    );
    page.gauge(
        "extents_lost",
        "Extents whose replicas were all lost at some time",
        None,
        sum(|region| region.lost_extents),
    );
}

//! `replicas`: what a second replica costs, how soon a dead node is got over, how fast it is made up for, and
//! what the control plane's placement costs and comes to.
//!
//! Write-back is an agent's. In the other parts pages are moved over a lane, as fault workers and evictors move
//! them, between this process and memory nodes that are processes of their own; what the kernel's part of a fault
//! takes is not in these figures, so the ratios are harder than those of whole faults. All ratios are taken within
//! a round.

mod checksum;
mod failover;
mod lanes;
mod placement;
mod rebuild;
mod region;
mod sealing;
mod turns;
mod write_back;

use clap::ValueEnum;
use serde::Serialize;

use super::{BenchError, Findings, Setting};
use crate::report::Metric;

/// What the figures are called, and their units: those that are asked for by name.
const NAMES: [(&str, &str); 13] = [
    ("writeback_r2_over_r1", "ratio"),
    ("writeback_latency_r2_over_r1", "ratio"),
    ("writeback_bytes_ratio", "ratio"),
    ("read_r2_over_r1", "ratio"),
    ("checksum_us", "us"),
    ("failover_extra_ms", "ms"),
    ("failover_visible_ms", "ms"),
    ("rebuild_over_given", "ratio"),
    ("fault_slowdown_in_rebuild", "ratio"),
    ("place_1tib_ms", "ms"),
    ("imbalance", "ratio"),
    ("moved_over_ideal", "ratio"),
    ("metadata_bytes_per_replica", "B"),
];

#[derive(Debug, Serialize)]
pub(crate) struct Parameters {
    #[serde(flatten)]
    setting: Setting,
    write_back: write_back::Parameters,
    lanes: lanes::Parameters,
    failover: failover::Parameters,
    rebuild: rebuild::Parameters,
    placement: placement::Parameters,
    /// Null: all of them.
    parts: Option<Vec<Part>>,
}

/// Only `parts` are measured, all if none is named.
pub(crate) fn parameters(setting: Setting, parts: &[Part]) -> Parameters {
    Parameters {
        setting,
        parts: (!parts.is_empty()).then(|| parts.to_vec()),
        write_back: write_back::Parameters::default(),
        lanes: lanes::Parameters::default(),
        failover: failover::Parameters::default(),
        rebuild: rebuild::Parameters::default(),
        placement: placement::Parameters::default(),
    }
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Part {
    /// A program's write-back to one replica and to two.
    WriteBack,
    /// Writes and reads of bare lanes, to one replica and to two.
    Lanes,
    /// What a page's checksum adds to its copy.
    Checksum,
    /// What sealing a page costs, and opening it.
    Sealing,
    /// From a node's death to the next answer.
    Failover,
    /// How fast a replica is made up for, and what that does to reads.
    Rebuild,
    /// The control plane's placement.
    Placement,
}

/// Takes the figures of a part.
type Take<'a> = &'a dyn Fn() -> Result<Vec<Metric>, Unmeasured>;

/// Why a part has no figures; the others go on.
pub(crate) type Unmeasured = Box<dyn std::error::Error>;

pub(crate) fn run(parameters: &Parameters) -> Result<Findings, BenchError> {
    let setting = &parameters.setting;
    crate::placement::pin(setting.placement.program_cpu).map_err(std::io::Error::from)?;
    let parts: [(Part, Take<'_>); 7] = [
        (Part::WriteBack, &|| {
            write_back::run(setting, &parameters.write_back)
        }),
        (Part::Lanes, &|| lanes::run(setting, &parameters.lanes)),
        (Part::Checksum, &|| checksum::run(setting.rounds)),
        (Part::Sealing, &|| sealing::run(setting.rounds)),
        (Part::Failover, &|| {
            failover::run(setting, &parameters.failover)
        }),
        (Part::Rebuild, &|| {
            rebuild::run(setting, &parameters.rebuild)
        }),
        (Part::Placement, &|| {
            placement::run(setting.rounds, &parameters.placement)
        }),
    ];
    let asked = |part| {
        let asked = parameters.parts.as_deref();
        asked.is_none_or(|asked| asked.contains(&part))
    };
    let mut metrics: Vec<Metric> = Vec::new();
    let mut reasons = Vec::new();
    for (part, take) in parts {
        if !asked(part) {
            continue;
        }
        match take() {
            Ok(found) => metrics.extend(found),
            Err(error) => reasons.push(format!("{part:?}: {}", crate::in_words(&*error))),
        }
    }
    for (name, unit) in NAMES {
        if !metrics.iter().any(|metric| metric.name() == name) {
            let reason = if reasons.is_empty() {
                "not asked for".to_owned()
            } else {
                reasons.join("; ")
            };
            metrics.push(Metric::missing_because(name, unit, reason));
        }
    }
    Ok(metrics.into())
}

/// Figures when nothing could be measured.
pub(crate) fn nothing() -> Vec<Metric> {
    let missing = |(name, unit): &(&'static str, &'static str)| Metric::missing(name, unit);
    NAMES.iter().map(missing).collect()
}

/// The median of what is there.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

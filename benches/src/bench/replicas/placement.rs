//! The control plane's decisions: placing 1 TiB over 64 nodes, how even that is, what moves when a node is
//! added, and what it takes on disk.

use std::time::Instant;

use mycoram_control::measure::Trial;
use serde::Serialize;

use super::Unmeasured;
use crate::report::Metric;

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Parameters {
    nodes: u16,
    /// Of 16 MiB: 1 TiB.
    extents: u32,
    replicas: u8,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            nodes: 64,
            extents: 65_536,
            replicas: 2,
        }
    }
}

pub(super) fn run(rounds: u32, parameters: &Parameters) -> Result<Vec<Metric>, Unmeasured> {
    let mut place_ms = Vec::new();
    let mut placed = None;
    for _ in 0..rounds.max(1) {
        let mut trial = Trial::new(parameters.nodes);
        let start = Instant::now();
        trial.place(parameters.extents, parameters.replicas);
        place_ms.push(start.elapsed().as_secs_f64() * 1e3);
        placed = Some(trial);
    }
    let mut metrics = vec![Metric::median("place_1tib_ms", place_ms, "ms")];
    // Placement is drawn by names: the same in each round.
    if let Some(mut trial) = placed {
        metrics.push(Metric::once("imbalance", trial.imbalance(), "ratio"));
        let store = std::env::temp_dir().join(format!("mycoram-bench-{}.redb", std::process::id()));
        let bytes = trial.store_bytes(&store);
        // It may not have been made.
        let _ = std::fs::remove_file(&store);
        metrics.push(Metric::once("metadata_bytes_per_replica", bytes?, "B"));
        metrics.push(Metric::once("moved_over_ideal", trial.add_node(), "ratio"));
    }
    Ok(metrics)
}

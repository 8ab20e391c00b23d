//! From a node's death to the read being answered by another replica.
//!
//! One node is killed (its peers see the connection end) or stopped (they see nothing) while single pages are
//! read one after the other; the longest read after that is the figure. What a stopped node costs is taken
//! over the time after which the transport itself gives a silent peer up; it is negative where a second
//! replica was asked before. A burst of reads beside it, more than may be asked for twice in a row, says what
//! waits for patience to end.

use std::time::{Duration, Instant};

use mycoram_fabric::transport::QueuePairConfig;
use serde::Serialize;

use super::Unmeasured;
use super::lanes::Driver;
use super::region::{nodes, region};
use crate::bench::Setting;
use crate::report::Metric;

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Parameters {
    /// Reads before the death: latencies are known then.
    reads_before: u32,
    /// How long is read after it, ms.
    after_ms: u64,
    /// Reads at once, where a burst is.
    burst: u32,
    region_bytes: u64,
    extent_bytes: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            reads_before: 4_000,
            after_ms: 1_500,
            burst: 48,
            region_bytes: 32 << 20,
            extent_bytes: 4 << 20,
        }
    }
}

pub(super) fn run(setting: &Setting, parameters: &Parameters) -> Result<Vec<Metric>, Unmeasured> {
    let detection_ms = f64::from(QueuePairConfig::default().response_timeout_ms);
    let (mut visible, mut extra, mut bursts) = (vec![], vec![], vec![]);
    for round in 0..setting.rounds {
        visible.push(longest(setting, parameters, round, (true, 1))?);
        extra.push(longest(setting, parameters, round, (false, 1))? - detection_ms);
        bursts.push(longest(
            setting,
            parameters,
            round,
            (false, parameters.burst),
        )?);
    }
    Ok(vec![
        Metric::median("failover_visible_ms", visible, "ms"),
        Metric::median("failover_extra_ms", extra, "ms"),
        Metric::median("failover_burst_ms", bursts, "ms"),
        Metric::once("failover_detection_ms", detection_ms, "ms"),
    ])
}

/// The longest read after a death, or burst of reads, ms.
fn longest(
    setting: &Setting,
    parameters: &Parameters,
    round: u32,
    (kill, burst): (bool, u32),
) -> Result<f64, Unmeasured> {
    let sizes = (parameters.region_bytes, parameters.extent_bytes);
    let mut nodes = nodes(setting, 2, 2 * parameters.region_bytes)?;
    let controls: Vec<_> = nodes.iter().map(crate::node::Node::control).collect();
    let measured = region(setting, &controls, 2, 2, sizes)?;
    let mut driver = Driver::open(&measured)?;
    for number in 0..parameters.reads_before {
        driver.read(number)?;
    }
    let victim = nodes.swap_remove((round % 2) as usize);
    let after = Duration::from_millis(parameters.after_ms);
    // The node ends beside the reads, so that one of them is under way.
    std::thread::scope(|scope| {
        let death = scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            if kill {
                drop(victim);
                Ok(None)
            } else {
                victim.stop().map(|()| Some(victim))
            }
        });
        let begun = Instant::now();
        let mut longest = 0.0_f64;
        let mut number = parameters.reads_before;
        while begun.elapsed() < after {
            longest = longest.max(driver.reads(number, burst)?);
            number += burst;
        }
        let ended = death.join();
        // A node that only sleeps is ended here.
        ended.map_err(|_| "the thread that ends a node panicked")??;
        Ok(longest / 1000.0)
    })
}

//! From a node's death to the read being answered by another replica.
//!
//! The node that reads go to is killed (its peers see the connection end) or stopped (they see nothing) while pages
//! are read; the longest read after that is the figure.
//!
//! ```text
//!   killed    single pages           failover_visible_ms
//!   stopped   runs of 16, fetched    failover_extra_ms: over the time after which the transport gives a silent peer
//!             ahead                  up. Nobody else is asked before, so this is what getting over it takes.
//!   stopped   single pages           failover_hedged_ms: another replica is asked long before that
//!   stopped   48 pages at once       failover_burst_ms: more than may be asked for twice in a row
//! ```

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
    /// Pages of a run that is fetched ahead.
    run: u16,
    region_bytes: u64,
    extent_bytes: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            reads_before: 4_000,
            after_ms: 1_500,
            burst: 48,
            run: 16,
            region_bytes: 32 << 20,
            extent_bytes: 4 << 20,
        }
    }
}

/// How a node ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    Stopped,
}

/// What is read meanwhile.
#[derive(Clone, Copy)]
enum Reads {
    Pages(u32),
    Run(u16),
}

impl Reads {
    fn once(self, driver: &mut Driver, number: u32) -> Result<f64, Unmeasured> {
        match self {
            Self::Pages(count) => driver.reads(number, count),
            Self::Run(pages) => driver.read_run(number, pages),
        }
    }
}

pub(super) fn run(setting: &Setting, parameters: &Parameters) -> Result<Vec<Metric>, Unmeasured> {
    let detection_ms = f64::from(QueuePairConfig::default().response_timeout_ms);
    let (mut visible, mut extra, mut hedged, mut bursts) = (vec![], vec![], vec![], vec![]);
    let take = |end, reads| longest(setting, parameters, end, reads);
    for _ in 0..setting.rounds {
        visible.push(take(End::Killed, Reads::Pages(1))?);
        extra.push(take(End::Stopped, Reads::Run(parameters.run))? - detection_ms);
        hedged.push(take(End::Stopped, Reads::Pages(1))?);
        bursts.push(take(End::Stopped, Reads::Pages(parameters.burst))?);
    }
    Ok(vec![
        Metric::median("failover_visible_ms", visible, "ms"),
        Metric::median("failover_extra_ms", extra, "ms"),
        Metric::median("failover_hedged_ms", hedged, "ms"),
        Metric::median("failover_burst_ms", bursts, "ms"),
        Metric::once("failover_detection_ms", detection_ms, "ms"),
    ])
}

/// The longest read after the end of the node that served the last one before it, ms.
fn longest(
    setting: &Setting,
    parameters: &Parameters,
    end: End,
    reads: Reads,
) -> Result<f64, Unmeasured> {
    let sizes = (parameters.region_bytes, parameters.extent_bytes);
    let mut nodes = nodes(setting, 2, 2 * parameters.region_bytes)?;
    let controls: Vec<_> = nodes.iter().map(crate::node::Node::control).collect();
    let measured = region(setting, &controls, 2, 2, sizes)?;
    let mut driver = Driver::open(&measured)?;
    for number in 0..parameters.reads_before {
        driver.read(number)?;
    }
    // The one that answers sooner is asked.
    let nearest = driver.served_by().map_or(0, usize::from);
    let victim = nodes.swap_remove(nearest.min(nodes.len() - 1));
    let after = Duration::from_millis(parameters.after_ms);
    // The node ends beside the reads, so that one of them is under way.
    std::thread::scope(|scope| {
        let death = scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            match end {
                End::Killed => {
                    drop(victim);
                    Ok(None)
                }
                End::Stopped => victim.stop().map(|()| Some(victim)),
            }
        });
        let begun = Instant::now();
        let mut longest = 0.0_f64;
        let mut number = parameters.reads_before;
        while begun.elapsed() < after {
            longest = longest.max(reads.once(&mut driver, number)?);
            number += 1;
        }
        let ended = death.join();
        // A node that only sleeps is ended here.
        ended.map_err(|_| "the thread that ends a node panicked")??;
        Ok(longest / 1000.0)
    })
}

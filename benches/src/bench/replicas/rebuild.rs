//! Making up for a replica: how much of the bandwidth it was given a rebuild uses, and what it does to the
//! reads of faults meanwhile.
//!
//! In each round all extents are copied to a third node, first without a limit: that is the bandwidth; and
//! then, after they were dropped there, with half of it, while single pages are read.

use std::time::{Duration, Instant};

use mycoram_fabric::rebuild::{Pace, RebuildConfig, Rebuilder};
use mycoram_fabric::units::ByteCount;
use serde::Serialize;

use super::lanes::{Driver, PAGE};
use super::region::{Measured, nodes, region};
use super::{Unmeasured, median};
use crate::bench::Setting;
use crate::report::Metric;

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Parameters {
    /// Of the bandwidth, how much a rebuild is given, percent.
    share_percent: u64,
    /// Reads before it, for comparison.
    reads: u32,
    region_bytes: u64,
    extent_bytes: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            share_percent: 50,
            reads: 10_000,
            region_bytes: 256 << 20,
            extent_bytes: 16 << 20,
        }
    }
}

/// The node that is copied to.
const NEW: usize = 2;
/// A rebuild that is not over by then is stuck.
const STUCK: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
enum RebuildError {
    #[error("a rebuild was not over after {} s", STUCK.as_secs())]
    Stuck,
}

pub(super) fn run(setting: &Setting, parameters: &Parameters) -> Result<Vec<Metric>, Unmeasured> {
    let sizes = (parameters.region_bytes, parameters.extent_bytes);
    let nodes = nodes(setting, 3, parameters.region_bytes + (64 << 20))?;
    let controls: Vec<_> = nodes.iter().map(crate::node::Node::control).collect();
    let measured = region(setting, &controls, 2, 2, sizes)?;
    let mut driver = Driver::open(&measured)?;
    let config = RebuildConfig {
        orders_every_ms: 20,
        ..RebuildConfig::default()
    };
    let rebuilder = Rebuilder::start(&measured.remote, config)?;
    let (mut given, mut over, mut slower) = (vec![], vec![], vec![]);
    for _ in 0..setting.rounds {
        rebuilder.set_pace(Pace::Unlimited);
        let (seconds, _) = copy(&measured, &rebuilder, &mut driver, false)?;
        let bandwidth = parameters.region_bytes as f64 / seconds;
        drop_again(&measured, &rebuilder, &mut driver)?;

        let mut before = Vec::new();
        for number in 0..parameters.reads {
            before.push(driver.read(number)?);
        }
        let rate = bandwidth * parameters.share_percent as f64 / 100.0;
        rebuilder.set_pace(Pace::Rate(ByteCount::new(rate as u64)));
        let (seconds, during) = copy(&measured, &rebuilder, &mut driver, true)?;
        drop_again(&measured, &rebuilder, &mut driver)?;
        given.push(rate / 1e6);
        over.push(parameters.region_bytes as f64 / seconds / rate);
        slower.push(median(during) / median(before));
    }
    Ok(vec![
        Metric::median("rebuild_over_given", over, "ratio"),
        Metric::median("rebuild_given_megabytes_per_s", given, "MB/s"),
        Metric::median("fault_slowdown_in_rebuild", slower, "ratio"),
    ])
}

/// Has all extents copied to the new node; seconds from the first page to the last, and the reads
/// meanwhile.
fn copy(
    measured: &Measured,
    rebuilder: &Rebuilder,
    driver: &mut Driver,
    read: bool,
) -> Result<(f64, Vec<f64>), Unmeasured> {
    let before = rebuilder.progress();
    let goal = before.copied + u64::from(measured.extents);
    measured.told.order_copies(measured.extents, NEW);
    let stuck = Instant::now() + STUCK;
    let mut begun = None;
    let mut reads = Vec::new();
    let mut number = 0;
    loop {
        // Lanes hear of a copy when they are polled; a few reads see to that.
        let took = driver.read(number)?;
        number += 1;
        let progress = rebuilder.progress();
        if begun.is_none() && progress.bytes >= before.bytes + 16 * PAGE {
            begun = Some(Instant::now());
        }
        if let Some(begun) = begun
            && progress.copied >= goal
        {
            return Ok((begun.elapsed().as_secs_f64(), reads));
        }
        if Instant::now() > stuck {
            return Err(RebuildError::Stuck.into());
        }
        if read {
            if begun.is_some() {
                reads.push(took);
            }
        } else {
            // Not in the way of what is measured.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn drop_again(
    measured: &Measured,
    rebuilder: &Rebuilder,
    driver: &mut Driver,
) -> Result<(), Unmeasured> {
    let goal = rebuilder.progress().dropped + u64::from(measured.extents);
    measured.told.order_drops(measured.extents, NEW);
    let stuck = Instant::now() + STUCK;
    while rebuilder.progress().dropped < goal {
        driver.read(0)?;
        if Instant::now() > stuck {
            return Err(RebuildError::Stuck.into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

//! What a second replica costs a program's write-back: as many pages as go, one batch alone, bytes on the wire.
//!
//! Two mappings on the same nodes, one with one replica of each extent, in turn on both nodes, and one with both.
//! A turn: every page is written to, which is not measured; then all are written back by a flush, which is over
//! when every replica has acknowledged every page. A batch is a mapping of four runs.

use std::net::SocketAddr;
use std::time::Instant;

use mycoram::{FarMap, FarMemory};
use mycoram_fabric::units::PAGE_BYTES;
use serde::Serialize;

use super::region::nodes;
use super::turns::Turns;
use super::{Unmeasured, median};
use crate::bench::Setting;
use crate::report::Metric;

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Parameters {
    /// What a shared cache holds, with one replica as with two: processors are to be the limit, and not
    /// the memory that both nodes of this machine share.
    region_bytes: usize,
    extent_bytes: usize,
    /// Flushes of each mapping in a round.
    flushes: u32,
    /// A batch written back alone.
    batch_bytes: usize,
    /// Such batches in a round, of each mapping.
    batches: u32,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            region_bytes: 16 << 20,
            extent_bytes: 4 << 20,
            flushes: 48,
            batch_bytes: 256 << 10,
            batches: 500,
        }
    }
}

/// The smallest local budget there is, bytes.
const LEAST_LOCAL: usize = 1 << 20;

/// Memory of which every page is at home, and is written to before each flush.
struct Written {
    map: FarMap,
    value: u64,
}

impl Written {
    fn map(
        setting: &Setting,
        nodes: &[SocketAddr],
        replicas: u8,
        (bytes, extent_bytes): (usize, usize),
    ) -> Result<Self, Unmeasured> {
        let place = setting.place(nodes, (2 * bytes).max(LEAST_LOCAL));
        let place = format!("{place}&extent={extent_bytes}&replicas={replicas}");
        let map = FarMemory::open(&place)?.map(bytes)?;
        let mut written = Self { map, value: 0 };
        // What is new is slow.
        written.turn()?;
        Ok(written)
    }

    /// Seconds that the flush took.
    fn turn(&mut self) -> Result<f64, Unmeasured> {
        self.value += 1;
        for page in 0..self.map.size() / PAGE_BYTES {
            // SAFETY: the first word of a page of the mapping, which nobody else uses.
            unsafe {
                let word = self.map.as_ptr().add(page * PAGE_BYTES).cast::<u64>();
                word.write_volatile(self.value.rotate_left(32) ^ page as u64);
            }
        }
        let start = Instant::now();
        self.map.flush()?;
        Ok(start.elapsed().as_secs_f64())
    }
}

pub(super) fn run(setting: &Setting, parameters: &Parameters) -> Result<Vec<Metric>, Unmeasured> {
    let nodes = nodes(setting, 2, 8 * parameters.region_bytes as u64)?;
    let controls: Vec<_> = nodes.iter().map(crate::node::Node::control).collect();
    let map = |replicas, bytes| {
        let sizes = (bytes, parameters.extent_bytes);
        Written::map(setting, &controls, replicas, sizes)
    };
    let (mut one, mut two) = (
        map(1, parameters.region_bytes)?,
        map(2, parameters.region_bytes)?,
    );
    let (mut one_batch, mut two_batch) = (
        map(1, parameters.batch_bytes)?,
        map(2, parameters.batch_bytes)?,
    );
    let pages = (parameters.region_bytes / PAGE_BYTES) as f64;
    let (mut over, mut rate_one, mut rate_two, mut bytes) = (vec![], vec![], vec![], vec![]);
    let (mut alone, mut alone_us) = (vec![], vec![]);
    for _ in 0..setting.rounds {
        let mut turns = Turns::default();
        for _ in 0..parameters.flushes {
            turns.take(|| one.turn(), || two.turn())?;
        }
        let (first, second) = turns.medians();
        over.push(first / second);
        rate_one.push(pages / first);
        rate_two.push(pages / second);
        bytes.extend(turns.bytes_ratio());
        let (mut first, mut second) = (vec![], vec![]);
        for _ in 0..parameters.batches {
            first.push(one_batch.turn()?);
            second.push(two_batch.turn()?);
        }
        let second = median(second);
        alone.push(second / median(first));
        alone_us.push(second * 1e6);
    }
    Ok(vec![
        Metric::median("writeback_r2_over_r1", over, "ratio"),
        Metric::median("writeback_r1_pages_per_s", rate_one, "1/s"),
        Metric::median("writeback_r2_pages_per_s", rate_two, "1/s"),
        Metric::median("writeback_latency_r2_over_r1", alone, "ratio"),
        Metric::median("writeback_r2_batch_p50_us", alone_us, "us"),
        Metric::median("writeback_bytes_ratio", bytes, "ratio"),
    ])
}

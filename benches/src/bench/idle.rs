//! `idle`: what an agent costs that has nothing to do: processor time, and bytes of page table.

use serde::Serialize;

use super::{BenchError, Findings, Setting};
use crate::node::Node;
use crate::program::{MemoryKind, Order, Program};
use crate::report::Metric;

/// How long the program does nothing before it counts: what was on its way has to arrive.
const SETTLE_MS: u64 = 2_000;
/// How long it then does nothing.
const IDLE_MS: u64 = 5_000;

#[derive(Debug, Serialize)]
pub(crate) struct Parameters {
    #[serde(flatten)]
    setting: Setting,
    idle_ms: u64,
}

pub(crate) fn parameters(setting: Setting) -> Parameters {
    Parameters {
        setting,
        idle_ms: IDLE_MS,
    }
}

pub(crate) fn run(parameters: &Parameters) -> Result<Findings, BenchError> {
    let setting = &parameters.setting;
    let node = Node::start(
        setting.transport,
        setting.capacity(),
        setting.placement.node_cpu,
    )?;
    let mut program = Program::start(setting.placement.program_cpu, None)?;
    let place = setting.place(&[node.control()], setting.local_bytes);
    // A table has a part that does not grow with the region: two sizes tell them apart.
    let mut tables = [None; 2];
    for (table, times) in tables.iter_mut().zip([2, 1]) {
        program.order(&Order::Map {
            kind: MemoryKind::Far(place.clone()),
            bytes: times * setting.region_bytes,
        })?;
        *table = program.page_table_bytes()?;
    }
    program.order(&Order::Fill)?;
    program.order(&Order::Idle {
        milliseconds: SETTLE_MS,
    })?;
    let mut shares = vec![];
    for _ in 0..setting.rounds {
        let answer = program.order(&Order::Idle {
            milliseconds: IDLE_MS,
        })?;
        let used: f64 = answer.threads.iter().map(|thread| thread.seconds).sum();
        shares.push(used / answer.seconds);
    }
    let pages = setting.region_bytes / 4096;
    Ok(Findings::from(vec![
        Metric::median("idle_cpu_share", shares, "share of one core"),
        match tables {
            [Some(double), Some(single)] => Metric::once(
                "page_table_bytes_per_page",
                (double as f64 - single as f64) / pages as f64,
                "bytes",
            ),
            _ => Metric::missing("page_table_bytes_per_page", "bytes"),
        },
        match tables[1] {
            Some(single) => Metric::once("page_table_file_bytes", single as f64, "bytes"),
            None => Metric::missing("page_table_file_bytes", "bytes"),
        },
    ]))
}

pub(crate) fn nothing() -> Vec<Metric> {
    vec![
        Metric::missing("idle_cpu_share", "share of one core"),
        Metric::missing("page_table_bytes_per_page", "bytes"),
    ]
}

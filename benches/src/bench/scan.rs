//! `scan`: reading a region in order, most of it remote, over the transport's own bandwidth for 64 KiB READs
//! between the same two processors. Where the rest of the time goes stands beside it.
//!
//! ```text
//!   one processor     the program, its fault worker, and who reads for the bandwidth
//!   the other one     the memory node, and the program's evictor, which works in the background
//! ```

use serde::Serialize;

use super::{BenchError, Breakdown, Findings, Setting};
use crate::cpu_time;
use crate::node::Node;
use crate::program::{MemoryKind, Order, Program};
use crate::report::Metric;
use crate::wire::WirePlace;

/// Depths at which the bandwidth is taken; the best one counts.
const DEPTHS: [u32; 3] = [4, 16, 32];
/// Bytes moved for each figure of the bandwidth.
const WIRE_BYTES: u64 = 128 << 20;

#[derive(Debug, Serialize)]
pub(crate) struct Parameters {
    #[serde(flatten)]
    setting: Setting,
    evictor_cpu: Option<usize>,
    wire_read_bytes: u32,
    wire_depths: [u32; 3],
}

pub(crate) fn parameters(setting: Setting) -> Parameters {
    Parameters {
        evictor_cpu: setting.placement.node_cpu,
        setting,
        wire_read_bytes: 64 << 10,
        wire_depths: DEPTHS,
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
    program.order(&Order::Map {
        kind: MemoryKind::Far(setting.place(&[node.control()], setting.local_bytes)),
        bytes: setting.region_bytes,
    })?;
    if let Some(cpu) = setting.placement.node_cpu {
        program.order(&Order::PutEvictors { cpu })?;
    }
    program.order(&Order::Fill)?;
    program.order(&Order::Scan)?;
    let place = WirePlace {
        node: node.control(),
        transport: setting.transport,
    };
    let (mut wires, mut scans, mut ratios, mut breakdown) = (vec![], vec![], vec![], vec![]);
    for _ in 0..setting.rounds {
        let before = wire(&mut program, place)?;
        let threads = cpu_time::threads_of(&node.pid());
        let scan = program.order(&Order::Scan)?;
        let node_threads = cpu_time::difference(&threads, &cpu_time::threads_of(&node.pid()));
        let after = wire(&mut program, place)?;
        let wire = (before + after) / 2.0;
        let speed = setting.region_bytes as f64 / scan.seconds;
        wires.push(wire / 1e6);
        scans.push(speed / 1e6);
        ratios.push(speed / wire);
        breakdown.push(Breakdown {
            seconds: scan.seconds,
            program_threads: scan.threads,
            node_threads,
        });
    }
    let metrics = vec![
        Metric::median("scan_over_wire", ratios, "ratio"),
        Metric::median("scan_megabytes_per_s", scans, "MB/s"),
        Metric::median("wire_megabytes_per_s", wires, "MB/s"),
    ];
    Ok(Findings { metrics, breakdown })
}

pub(crate) fn nothing() -> Vec<Metric> {
    vec![Metric::missing("scan_over_wire", "ratio")]
}

/// Bytes a second at the best depth.
fn wire(program: &mut Program, place: WirePlace) -> Result<f64, BenchError> {
    let mut best = 0.0f64;
    for depth in DEPTHS {
        let answer = program.order(&Order::Wire {
            place,
            bytes: WIRE_BYTES,
            depth,
        })?;
        best = best.max(answer.count as f64 / answer.seconds);
    }
    Ok(best)
}

//! `fault`: how long a fault takes, over how long it cannot but take.
//!
//! The floor is a bare round trip for 4 KiB (TCP on a plain socket; over verbs, perftest's `ib_read_lat`)
//! and a bare userfaultfd fault. The program that touches is the client of the one and the toucher of the
//! other, on the same processor, and waits in the same way. A round takes both, then ours, then both again.

use serde::Serialize;

use super::{BenchError, Breakdown, Findings, Setting};
use crate::cpu_time;
use crate::floor::{ReadLatency, Server, Waiting};
use crate::node::Node;
use crate::program::{MemoryKind, Order, Program};
use crate::report::Metric;

use mycoram_fabric::transport::TransportKind;

/// Touches of each round.
const TOUCHES: usize = 12_000;
/// Round trips and bare faults before and after.
const FLOOR_COUNT: u32 = 4_000;

#[derive(Debug, Serialize)]
pub(crate) struct Parameters {
    #[serde(flatten)]
    setting: Setting,
    touches_per_round: usize,
    floor_count_per_round: u32,
    floor_waiting: Waiting,
    floor_server_waiting: Waiting,
    writes_per_hundred: [u32; 2],
}

pub(crate) fn parameters(setting: Setting, waiting: Waiting, server: Waiting) -> Parameters {
    Parameters {
        setting,
        touches_per_round: TOUCHES,
        floor_count_per_round: 2 * FLOOR_COUNT,
        floor_waiting: waiting,
        floor_server_waiting: server,
        writes_per_hundred: [0, 50],
    }
}

#[derive(Default)]
struct Samples {
    wire: Vec<f64>,
    fault: Vec<f64>,
    floor: Vec<f64>,
    ours: Vec<f64>,
    ours_p99: Vec<f64>,
    ours_p999: Vec<f64>,
    over_floor: Vec<f64>,
    half_writes: Vec<f64>,
    half_writes_over_floor: Vec<f64>,
    rate: Vec<f64>,
    inside: Vec<f64>,
    missing: Vec<f64>,
    breakdown: Vec<Breakdown>,
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
    program.order(&Order::Map {
        kind: MemoryKind::FarRandom(place),
        bytes: setting.region_bytes,
    })?;
    program.order(&Order::Fill)?;
    let mut samples = Samples::default();
    for round in 0..setting.rounds {
        let before = floor(parameters, &mut program)?;
        let threads = cpu_time::threads_of(&node.pid());
        let reads = random(&mut program, round.into(), 0)?;
        let node_threads = cpu_time::difference(&threads, &cpu_time::threads_of(&node.pid()));
        let after = floor(parameters, &mut program)?;
        let writes = random(&mut program, u64::from(round) << 32, 50)?;
        let (wire, fault) = ((before.0 + after.0) / 2.0, (before.1 + after.1) / 2.0);
        let floor = wire + fault;
        let p50 = |answer: &crate::program::Answer| answer.latency.p50_us.unwrap_or(f64::NAN);
        samples.wire.push(wire);
        samples.fault.push(fault);
        samples.floor.push(floor);
        samples.ours.push(p50(&reads));
        samples
            .ours_p99
            .push(reads.latency.p99_us.unwrap_or(f64::NAN));
        samples
            .ours_p999
            .push(reads.latency.p999_us.unwrap_or(f64::NAN));
        samples.over_floor.push(p50(&reads) / floor);
        samples.half_writes.push(p50(&writes));
        samples.half_writes_over_floor.push(p50(&writes) / floor);
        samples
            .rate
            .push(reads.latency.count as f64 / reads.seconds);
        samples
            .missing
            .push(reads.latency.count as f64 / TOUCHES as f64);
        if let Some(stats) = reads.stats {
            samples.inside.push(stats.fault_p50_ns as f64 / 1000.0);
        }
        eprintln!(
            "round {round}: ours {:.0} us over a floor of {floor:.0} us",
            p50(&reads)
        );
        samples.breakdown.push(Breakdown {
            seconds: reads.seconds,
            program_threads: reads.threads,
            node_threads,
        });
    }
    let metrics = vec![
        Metric::median("fault_p50_over_floor", samples.over_floor, "ratio"),
        Metric::median("fault_p50_us", samples.ours, "us"),
        Metric::median("fault_p99_us", samples.ours_p99, "us"),
        Metric::median("fault_p999_us", samples.ours_p999, "us"),
        Metric::median("faults_per_s", samples.rate, "1/s"),
        Metric::median(
            "touches_that_found_their_page_missing",
            samples.missing,
            "share",
        ),
        Metric::median("floor_p50_us", samples.floor, "us"),
        Metric::median("floor_round_trip_p50_us", samples.wire, "us"),
        Metric::median("floor_userfault_p50_us", samples.fault, "us"),
        Metric::median("fault_p50_half_writes_us", samples.half_writes, "us"),
        Metric::median(
            "fault_p50_half_writes_over_floor",
            samples.half_writes_over_floor,
            "ratio",
        ),
        Metric::median("breakdown_agent_service_p50_us", samples.inside, "us"),
    ];
    Ok(Findings {
        metrics,
        breakdown: samples.breakdown,
    })
}

/// Figures when nothing could be measured.
pub(crate) fn nothing() -> Vec<Metric> {
    vec![Metric::missing("fault_p50_over_floor", "ratio")]
}

/// Median round trip and median bare fault, microseconds.
fn floor(parameters: &Parameters, program: &mut Program) -> Result<(f64, f64), BenchError> {
    let waiting = parameters.floor_waiting;
    let placement = parameters.setting.placement;
    let wire = match parameters.setting.transport {
        TransportKind::Verbs => ReadLatency::measure(FLOOR_COUNT, placement)?,
        TransportKind::Tcp | TransportKind::Sim => {
            let server = Server::start(placement.node_cpu, parameters.floor_server_waiting)?;
            let order = Order::FloorTcp {
                server: server.address(),
                count: FLOOR_COUNT,
                waiting,
            };
            program.order(&order)?.latency.p50_us.unwrap_or(f64::NAN)
        }
    };
    let order = Order::FloorFault {
        count: FLOOR_COUNT,
        waiting,
    };
    let fault = program.order(&order)?.latency.p50_us.unwrap_or(f64::NAN);
    Ok((wire, fault))
}

fn random(
    program: &mut Program,
    seed: u64,
    writes_per_hundred: u32,
) -> Result<crate::program::Answer, BenchError> {
    Ok(program.order(&Order::Random {
        count: TOUCHES,
        seed,
        writes_per_hundred,
    })?)
}

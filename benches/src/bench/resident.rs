//! `resident`: what far memory costs while all of it is local: random touches of it over the same touches
//! of plain shared memory. Rounds alternate, because a machine's speed drifts.

use serde::Serialize;

use super::{BenchError, Findings, Setting};
use crate::node::Node;
use crate::program::{MemoryKind, Order, Program};
use crate::report::Metric;

/// Times that every page is touched in a round.
const PASSES: usize = 40;

#[derive(Debug, Serialize)]
pub(crate) struct Parameters {
    #[serde(flatten)]
    setting: Setting,
    touches_per_round: usize,
}

pub(crate) fn parameters(setting: Setting) -> Parameters {
    Parameters {
        setting,
        touches_per_round: PASSES * (setting.region_bytes / 4096),
    }
}

pub(crate) fn run(parameters: &Parameters) -> Result<Findings, BenchError> {
    let setting = &parameters.setting;
    let node = Node::start(
        setting.transport,
        setting.capacity(),
        setting.placement.node_cpu,
    )?;
    let cpu = setting.placement.program_cpu;
    let (mut ours, mut plain) = (Program::start(cpu, None)?, Program::start(cpu, None)?);
    // All of it fits, with room for the reserve that the agent keeps free.
    let local = setting.region_bytes * 5 / 4;
    ours.order(&Order::Map {
        kind: MemoryKind::Far(setting.place(&[node.control()], local)),
        bytes: setting.region_bytes,
    })?;
    plain.order(&Order::Map {
        kind: MemoryKind::Shared,
        bytes: setting.region_bytes,
    })?;
    for program in [&mut ours, &mut plain] {
        program.order(&Order::Fill)?;
        touch(program, parameters, 0)?;
    }
    let (mut times, mut plain_times, mut ratios) = (vec![], vec![], vec![]);
    for round in 0..setting.rounds {
        let seed = u64::from(round) + 1;
        let first = touch(&mut plain, parameters, seed)?;
        let far = touch(&mut ours, parameters, seed)?;
        let far_again = touch(&mut ours, parameters, seed)?;
        let second = touch(&mut plain, parameters, seed)?;
        times.push((far + far_again) / 2.0);
        plain_times.push((first + second) / 2.0);
        ratios.push((far + far_again) / (first + second));
    }
    Ok(Findings::from(vec![
        Metric::median("resident_over_shmem", ratios, "ratio"),
        Metric::median("resident_touch_ns", times, "ns"),
        Metric::median("shmem_touch_ns", plain_times, "ns"),
    ]))
}

pub(crate) fn nothing() -> Vec<Metric> {
    vec![Metric::missing("resident_over_shmem", "ratio")]
}

/// Nanoseconds a touch.
fn touch(program: &mut Program, parameters: &Parameters, seed: u64) -> Result<f64, BenchError> {
    let count = parameters.touches_per_round;
    let answer = program.order(&Order::RandomBlind { count, seed })?;
    Ok(answer.seconds * 1e9 / count as f64)
}

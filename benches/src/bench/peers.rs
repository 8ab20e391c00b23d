//! `peers`: the same program on ours and on the kernel's swap over NVMe-oF RDMA: one run, one device, the same
//! share of memory local. A round takes each pattern on both, ours first in one round and last in the next.
//!
//! The kernel is given its best setting for each pattern: single pages for random faults, and for the walk
//! whichever read-ahead is faster in that round. A run of either that is killed (the kernel's are, when
//! reclaim does not keep up) is counted, and its figures are missing.

use serde::Serialize;

use super::{BenchError, Findings, Setting};
use crate::node::Node;
use crate::peer::{ControlGroup, NvmeSwap};
use crate::program::{Answer, MemoryKind, Order, Program, ProgramError};
use crate::report::Metric;

/// Random touches of a round.
const TOUCHES: usize = 6_000;
/// Read-ahead settings of the kernel that the walk is tried with, as powers of two.
const CLUSTERS: [u32; 2] = [3, 0];

#[derive(Debug, Serialize)]
pub(crate) struct Parameters {
    #[serde(flatten)]
    setting: Setting,
    random_touches_per_round: usize,
    swap_bytes: u64,
    swap_walk_page_clusters: [u32; 2],
}

pub(crate) fn parameters(setting: Setting) -> Parameters {
    Parameters {
        setting,
        random_touches_per_round: TOUCHES,
        swap_bytes: (setting.region_bytes as u64 * 2).next_multiple_of(1 << 20),
        swap_walk_page_clusters: CLUSTERS,
    }
}

/// What one side did in a round; missing where it was killed.
#[derive(Clone, Copy)]
struct Round {
    miss_p50_us: f64,
    miss_p99_us: f64,
    misses_per_s: f64,
    half_writes_p50_us: f64,
    walks_per_s: f64,
}

impl Round {
    const KILLED: Self = Self {
        miss_p50_us: f64::NAN,
        miss_p99_us: f64::NAN,
        misses_per_s: f64::NAN,
        half_writes_p50_us: f64::NAN,
        walks_per_s: f64::NAN,
    };
}

pub(crate) fn run(parameters: &Parameters) -> Result<Findings, BenchError> {
    let setting = &parameters.setting;
    let address = std::env::var("MYCORAM_RXE_ADDR_2").unwrap_or_else(|_| "10.77.0.2".into());
    let swap = NvmeSwap::start(&address, parameters.swap_bytes)?;
    let node = Node::start(
        setting.transport,
        setting.capacity(),
        setting.placement.node_cpu,
    )?;
    let place = setting.place(&[node.control()], setting.local_bytes);
    let (mut ours, mut theirs) = (vec![], vec![]);
    let (mut ours_killed, mut theirs_killed) = (0.0, 0.0);
    for number in 0..setting.rounds {
        for turn in 0..2 {
            if (turn == 0) == (number % 2 == 0) {
                let round = survived(ours_round(parameters, &place, number), &mut ours_killed)?;
                eprintln!(
                    "round {number}: ours {:.0} us, {:.0} misses/s, {:.0} walked/s",
                    round.miss_p50_us, round.misses_per_s, round.walks_per_s
                );
                ours.push(round);
            } else {
                let round = survived(theirs_round(parameters, &swap, number), &mut theirs_killed)?;
                eprintln!(
                    "round {number}: swap {:.0} us, {:.0} misses/s, {:.0} walked/s",
                    round.miss_p50_us, round.misses_per_s, round.walks_per_s
                );
                theirs.push(round);
            }
        }
    }
    let of =
        |rounds: &[Round], figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
    let ratio = |figure: fn(&Round) -> f64| {
        ours.iter()
            .zip(&theirs)
            .map(|(ours, theirs)| figure(ours) / figure(theirs))
            .collect::<Vec<_>>()
    };
    Ok(Findings::from(vec![
        Metric::median(
            "fault_p50_over_nvmeof_swap",
            ratio(|r| r.miss_p50_us),
            "ratio",
        ),
        Metric::median(
            "faults_per_s_over_nvmeof_swap",
            ratio(|r| r.misses_per_s),
            "ratio",
        ),
        Metric::median("scan_over_nvmeof_swap", ratio(|r| r.walks_per_s), "ratio"),
        Metric::median(
            "half_writes_fault_p50_over_nvmeof_swap",
            ratio(|r| r.half_writes_p50_us),
            "ratio",
        ),
        Metric::median("fault_p50_us", of(&ours, |r| r.miss_p50_us), "us"),
        Metric::median("fault_p99_us", of(&ours, |r| r.miss_p99_us), "us"),
        Metric::median("faults_per_s", of(&ours, |r| r.misses_per_s), "1/s"),
        Metric::median("walked_pages_per_s", of(&ours, |r| r.walks_per_s), "1/s"),
        Metric::median(
            "nvmeof_swap_fault_p50_us",
            of(&theirs, |r| r.miss_p50_us),
            "us",
        ),
        Metric::median(
            "nvmeof_swap_fault_p99_us",
            of(&theirs, |r| r.miss_p99_us),
            "us",
        ),
        Metric::median(
            "nvmeof_swap_faults_per_s",
            of(&theirs, |r| r.misses_per_s),
            "1/s",
        ),
        Metric::median(
            "nvmeof_swap_walked_pages_per_s",
            of(&theirs, |r| r.walks_per_s),
            "1/s",
        ),
        Metric::once("runs_killed", ours_killed, "runs"),
        Metric::once("nvmeof_swap_runs_killed", theirs_killed, "runs"),
    ]))
}

pub(crate) fn nothing() -> Vec<Metric> {
    vec![
        Metric::missing("fault_p50_over_nvmeof_swap", "ratio"),
        Metric::missing("faults_per_s_over_nvmeof_swap", "ratio"),
        Metric::missing("scan_over_nvmeof_swap", "ratio"),
    ]
}

/// A killed program is a result, any other failure ends the bench.
fn survived(round: Result<Round, BenchError>, killed: &mut f64) -> Result<Round, BenchError> {
    match round {
        Err(BenchError::Program(ProgramError::Killed(_))) => {
            *killed += 1.0;
            Ok(Round::KILLED)
        }
        other => other,
    }
}

fn ours_round(parameters: &Parameters, place: &str, number: u32) -> Result<Round, BenchError> {
    let setting = &parameters.setting;
    let mut program = Program::start(setting.placement.program_cpu, None)?;
    let map = |kind| Order::Map {
        kind,
        bytes: setting.region_bytes,
    };
    program.order(&map(MemoryKind::Far(place.to_owned())))?;
    program.order(&Order::Fill)?;
    let walk = program.order(&Order::Walk)?;
    patterns(&mut program, number, &walk)
}

fn theirs_round(
    parameters: &Parameters,
    swap: &NvmeSwap,
    number: u32,
) -> Result<Round, BenchError> {
    let setting = &parameters.setting;
    let group = ControlGroup::with_memory("mycoram-bench", u64::MAX >> 1)?;
    let mut program = Program::start(setting.placement.program_cpu, Some(&group.processes()))?;
    program.order(&Order::Map {
        kind: MemoryKind::Private,
        bytes: setting.region_bytes,
    })?;
    // What the program needs besides the memory that is measured is not taken from its budget.
    group.set_memory(group.memory() + setting.local_bytes as u64)?;
    swap.set_cluster(0)?;
    program.order(&Order::Fill)?;
    let mut best: Option<Answer> = None;
    for cluster in CLUSTERS {
        swap.set_cluster(cluster)?;
        let walk = program.order(&Order::Walk)?;
        if best.as_ref().is_none_or(|best| walk.seconds < best.seconds) {
            best = Some(walk);
        }
    }
    swap.set_cluster(0)?;
    let round = patterns(&mut program, number, &best.unwrap_or_default());
    drop(program);
    round
}

fn patterns(program: &mut Program, number: u32, walk: &Answer) -> Result<Round, BenchError> {
    let seed = u64::from(number);
    let random = |writes_per_hundred| Order::Random {
        count: TOUCHES,
        seed,
        writes_per_hundred,
    };
    let reads = program.order(&random(0))?;
    let half_writes = program.order(&random(50))?;
    let or_missing = |us: Option<f64>| us.unwrap_or(f64::NAN);
    Ok(Round {
        miss_p50_us: or_missing(reads.latency.p50_us),
        miss_p99_us: or_missing(reads.latency.p99_us),
        misses_per_s: reads.latency.count as f64 / reads.seconds,
        half_writes_p50_us: or_missing(half_writes.latency.p50_us),
        walks_per_s: walk.count as f64 / walk.seconds,
    })
}

//! What a program can be asked to do, and what it answers.

use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::memory::{Memory, MemoryKind};
use super::touch::{self, Touched};
use crate::cpu_time::{self, ThreadTime};
use crate::floor::{self, Waiting};
use crate::placement;
use crate::wire::{self, WirePlace};

/// One order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "order")]
pub(crate) enum Order {
    /// Makes the memory that the other orders use; what was there before is unmapped.
    Map { kind: MemoryKind, bytes: usize },
    /// Unmaps it.
    Unmap,
    /// Puts the memory's evictors on a processor.
    PutEvictors { cpu: usize },
    /// Writes every page, in order, with its number and bytes that do not repeat.
    Fill,
    /// Touches `count` pages in random order (no page twice before all were touched once); a part of them with
    /// a write. Latencies are of the touches that found their page missing.
    Random {
        count: usize,
        seed: u64,
        writes_per_hundred: u32,
    },
    /// As above, and only time over all is taken: nothing but the touches is done.
    RandomBlind { count: usize, seed: u64 },
    /// Reads every byte in order.
    Scan,
    /// Reads one word of every page in order.
    Walk,
    /// Does nothing for so long.
    Idle { milliseconds: u64 },
    /// The bare TCP round trip with a page server.
    FloorTcp {
        server: SocketAddr,
        count: u32,
        waiting: Waiting,
    },
    /// The bare userfaultfd fault.
    FloorFault { count: u32, waiting: Waiting },
    /// The transport's own bandwidth for 64 KiB READs.
    Wire {
        place: WirePlace,
        bytes: u64,
        depth: u32,
    },
}

/// Percentiles of a latency, microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
}

impl Percentiles {
    pub(crate) fn of(latencies: &crate::samples::Latencies) -> Self {
        let at = |percent| Some(latencies.percentile_us(percent)).filter(|us| us.is_finite());
        Self {
            count: latencies.count(),
            p50_us: at(50.0),
            p99_us: at(99.0),
            p999_us: at(99.9),
        }
    }
}

/// What was seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// How long the order took, without what belongs to measuring only, seconds.
    pub(crate) seconds: f64,
    /// Pages or bytes moved or touched, as the order has it.
    pub(crate) count: u64,
    /// Latencies, where the order takes them.
    pub(crate) latency: Percentiles,
    /// Processor time of each thread of the program during the order.
    pub(crate) threads: Vec<ThreadTime>,
    /// The mapping's figures after the order, for far memory.
    pub(crate) stats: Option<FarStats>,
    /// Major faults that the kernel counted during the order.
    pub(crate) kernel_major_faults: u64,
}

/// Figures of far memory that benches use.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FarStats {
    pub(crate) faults: u64,
    pub(crate) major_faults: u64,
    pub(crate) prefetched_pages: u64,
    pub(crate) evicted_pages: u64,
    pub(crate) resident_bytes: u64,
    pub(crate) fault_p50_ns: u64,
    pub(crate) fault_p99_ns: u64,
}

/// Carries out orders.
#[derive(Default)]
pub(super) struct Worker {
    memory: Option<Memory>,
}

/// An error and its causes, in one sentence.
fn in_words(error: &dyn Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        sentence = format!("{sentence}: {error}");
        cause = error.source();
    }
    sentence
}

impl Worker {
    pub(super) fn carry_out(&mut self, order: Order) -> Result<Answer, String> {
        let threads = cpu_time::threads();
        let major_faults = cpu_time::major_faults();
        let mut answer = self.run(order)?;
        answer.threads = cpu_time::since(&threads);
        answer.kernel_major_faults = cpu_time::major_faults().saturating_sub(major_faults);
        answer.stats = self.memory.as_ref().and_then(Memory::stats);
        Ok(answer)
    }

    fn run(&mut self, order: Order) -> Result<Answer, String> {
        match order {
            Order::Map { kind, bytes } => {
                self.memory = None;
                let start = Instant::now();
                self.memory =
                    Some(Memory::map(&kind, bytes).map_err(|error| in_words(error.as_ref()))?);
                Ok(timed(start, bytes as u64))
            }
            Order::Unmap => {
                let start = Instant::now();
                self.memory = None;
                Ok(timed(start, 0))
            }
            Order::PutEvictors { cpu } => {
                let start = Instant::now();
                placement::put_threads("myco-evict", cpu).map_err(|error| in_words(&error))?;
                Ok(timed(start, 0))
            }
            Order::Fill => self.touching(touch::fill),
            Order::Random {
                count,
                seed,
                writes_per_hundred,
            } => self.touching(|memory| touch::random(memory, count, seed, writes_per_hundred)),
            Order::RandomBlind { count, seed } => {
                self.touching(|memory| touch::random_blind(memory, count, seed))
            }
            Order::Scan => self.touching(touch::scan),
            Order::Walk => self.touching(touch::walk),
            Order::Idle { milliseconds } => {
                let start = Instant::now();
                std::thread::sleep(Duration::from_millis(milliseconds));
                Ok(timed(start, 0))
            }
            Order::FloorTcp {
                server,
                count,
                waiting,
            } => {
                let start = Instant::now();
                let latencies = floor::tcp::Client::connect(server, waiting)
                    .and_then(|mut client| client.round_trips(count))
                    .map_err(|error| in_words(&error))?;
                let mut answer = timed(start, count.into());
                answer.latency = Percentiles::of(&latencies);
                Ok(answer)
            }
            Order::FloorFault { count, waiting } => {
                let start = Instant::now();
                let latencies =
                    floor::userfault::faults(count, waiting).map_err(|error| in_words(&error))?;
                let mut answer = timed(start, count.into());
                answer.latency = Percentiles::of(&latencies);
                Ok(answer)
            }
            Order::Wire {
                place,
                bytes,
                depth,
            } => {
                let (seconds, moved) = wire::bandwidth(&place, bytes, depth)
                    .map_err(|error| in_words(error.as_ref()))?;
                Ok(Answer {
                    seconds,
                    count: moved,
                    ..Answer::default()
                })
            }
        }
    }

    fn touching(
        &mut self,
        body: impl FnOnce(&mut Memory) -> Result<Touched, touch::WrongPage>,
    ) -> Result<Answer, String> {
        let memory = self.memory.as_mut().ok_or("nothing is mapped")?;
        let touched = body(memory).map_err(|error| in_words(&error))?;
        Ok(Answer {
            seconds: touched.elapsed.as_secs_f64(),
            count: touched.pages,
            latency: Percentiles::of(&touched.missing),
            ..Answer::default()
        })
    }
}

fn timed(start: Instant, count: u64) -> Answer {
    Answer {
        seconds: start.elapsed().as_secs_f64(),
        count,
        ..Answer::default()
    }
}

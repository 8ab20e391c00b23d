//! What a second replica costs on bare lanes, without an agent's work: writes that saturate, one batch alone, reads.
//!
//! The same nodes hold two regions, one with one replica of each extent, in turn on both nodes, and one with
//! both. Rounds of the two alternate.

use std::time::{Duration, Instant};

use mycoram_fabric::pages::{
    Direction, FrameIndex, LaneConfig, PageDone, PageLane, PageRequest, RemoteRegion, Which,
    await_answers,
};
use mycoram_fabric::units::{PAGE_BYTES, PageIndex};
use serde::Serialize;

use super::region::{Measured, nodes, region};
use super::turns::Turns;
use super::{Unmeasured, median};
use crate::bench::Setting;
use crate::report::Metric;

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Parameters {
    /// Pages of a run: as evictors write them.
    run: u16,
    /// Runs in flight when writes saturate.
    in_flight: u32,
    /// Pages written at a stretch, before it is the other region's turn.
    pages: u32,
    /// Such stretches in each round, of each region.
    stretches: u32,
    /// Batches written alone in each round: four runs each.
    batches: u32,
    /// Pages read alone in each round.
    reads: u32,
    /// What a shared cache holds, with one replica as with two: processors are to be the limit, and not
    /// the memory that both nodes of this machine share.
    region_bytes: u64,
    extent_bytes: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            run: 16,
            in_flight: 16,
            pages: 8 << 10,
            stretches: 24,
            batches: 500,
            reads: 8_000,
            region_bytes: 16 << 20,
            extent_bytes: 4 << 20,
        }
    }
}

/// Runs of a batch that is written alone.
const BATCH_RUNS: u32 = 4;
/// A lane that says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(10);

/// A lane, and what it has answered.
pub(super) struct Driver {
    lane: Box<dyn PageLane>,
    done: Vec<PageDone>,
    pages: u32,
}

/// What a driver waits for in vain.
#[derive(Debug, thiserror::Error)]
enum DriverError {
    #[error("a lane answered nothing for {} s", SILENCE.as_secs())]
    Silence,
}

impl Driver {
    pub(super) fn open(measured: &Measured) -> Result<Self, Unmeasured> {
        let config = LaneConfig::default();
        Ok(Self {
            lane: measured.remote.open_lane(&config)?,
            done: Vec::with_capacity(64),
            pages: measured.remote.pages().get(),
        })
    }

    fn queue(
        &mut self,
        direction: Direction,
        page: u32,
        run: u16,
        frame: u32,
    ) -> Result<(), Unmeasured> {
        self.lane.queue(PageRequest {
            tag: u64::from(frame),
            direction,
            page: PageIndex::new(page),
            run,
            frame: FrameIndex(frame),
            which: Which::Live,
        })?;
        Ok(())
    }

    /// Waits until something was answered: of reads as a fault worker does, which polls and lets others have the
    /// processor in between; of writes as an evictor does, which sleeps.
    fn answers(&mut self, direction: Direction) -> Result<usize, Unmeasured> {
        self.done.clear();
        let begun = Instant::now();
        while self.lane.poll(&mut self.done) == 0 {
            if begun.elapsed() > SILENCE {
                return Err(DriverError::Silence.into());
            }
            match direction {
                Direction::Read => std::thread::yield_now(),
                Direction::Write => await_answers(&mut *self.lane, SILENCE),
            }
        }
        for done in &self.done {
            done.result?;
        }
        Ok(self.done.len())
    }

    /// Writes `pages` pages in runs, `in_flight` at a time; seconds.
    fn saturate(&mut self, pages: u32, run: u16, in_flight: u32) -> Result<f64, Unmeasured> {
        let runs = pages / u32::from(run);
        let places = self.pages / u32::from(run);
        let (mut begun, mut ended) = (0, 0);
        let mut free: Vec<u32> = (0..in_flight).map(|nth| nth * u32::from(run)).collect();
        let start = Instant::now();
        while ended < runs {
            while begun < runs
                && let Some(frame) = free.pop()
            {
                let page = begun % places * u32::from(run);
                self.queue(Direction::Write, page, run, frame)?;
                begun += 1;
            }
            self.lane.ring();
            ended += self.answers(Direction::Write)? as u32;
            free.extend(self.done.iter().map(|done| done.frame.0));
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Writes a few runs at once and waits for all of them; microseconds.
    fn batch(&mut self, number: u32, run: u16) -> Result<f64, Unmeasured> {
        let places = self.pages / u32::from(run);
        let start = Instant::now();
        for nth in 0..BATCH_RUNS {
            let place = (number * BATCH_RUNS + nth).wrapping_mul(2_654_435_761) % places;
            let frame = nth * u32::from(run);
            self.queue(Direction::Write, place * u32::from(run), run, frame)?;
        }
        self.lane.ring();
        let mut ended = 0;
        while ended < BATCH_RUNS as usize {
            ended += self.answers(Direction::Write)?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6)
    }

    /// Reads one page and waits for it; microseconds.
    pub(super) fn read(&mut self, number: u32) -> Result<f64, Unmeasured> {
        self.reads(number, 1)
    }

    /// Reads so many pages at once and waits for the last; microseconds.
    pub(super) fn reads(&mut self, number: u32, count: u32) -> Result<f64, Unmeasured> {
        let start = Instant::now();
        for nth in 0..count {
            let page = (number + nth).wrapping_mul(2_654_435_761) % self.pages;
            self.queue(Direction::Read, page, 1, nth)?;
        }
        self.lane.ring();
        let mut ended = 0;
        while ended < count as usize {
            ended += self.answers(Direction::Read)?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6)
    }

    /// Reads neighbouring pages, as they are fetched ahead, and waits for them; microseconds.
    pub(super) fn read_run(&mut self, number: u32, run: u16) -> Result<f64, Unmeasured> {
        let places = self.pages / u32::from(run);
        let place = number.wrapping_mul(2_654_435_761) % places;
        let start = Instant::now();
        self.queue(Direction::Read, place * u32::from(run), run, 0)?;
        self.lane.ring();
        while self.answers(Direction::Read)? == 0 {}
        Ok(start.elapsed().as_secs_f64() * 1e6)
    }

    /// Which node of the region gave what was answered last.
    pub(super) fn served_by(&self) -> Option<u16> {
        self.done.last().and_then(|done| done.node)
    }
}

pub(super) fn run(setting: &Setting, parameters: &Parameters) -> Result<Vec<Metric>, Unmeasured> {
    let sizes = (parameters.region_bytes, parameters.extent_bytes);
    let nodes = nodes(setting, 2, 4 * parameters.region_bytes)?;
    let controls: Vec<_> = nodes.iter().map(crate::node::Node::control).collect();
    let one = region(setting, &controls, 2, 1, sizes)?;
    let two = region(setting, &controls, 2, 2, sizes)?;
    let mut ones = Driver::open(&one)?;
    let mut twos = Driver::open(&two)?;
    let Parameters { run, in_flight, .. } = *parameters;
    let (mut over, mut rate_one, mut rate) = (vec![], vec![], vec![]);
    let (mut alone, mut alone_us) = (vec![], vec![]);
    let (mut read, mut read_us) = (vec![], vec![]);
    // Once unmeasured: what is new is slow.
    ones.saturate(parameters.pages, run, in_flight)?;
    twos.saturate(parameters.pages, run, in_flight)?;
    for round in 0..setting.rounds {
        let mut turns = Turns::default();
        for _ in 0..parameters.stretches {
            turns.take(
                || ones.saturate(parameters.pages, run, in_flight),
                || twos.saturate(parameters.pages, run, in_flight),
            )?;
        }
        let (first, second) = turns.medians();
        over.push(first / second);
        rate_one.push(f64::from(parameters.pages) / first);
        rate.push(f64::from(parameters.pages) / second);
        let (mut first, mut second) = (vec![], vec![]);
        for number in 0..parameters.batches {
            let number = number + round * parameters.batches;
            first.push(ones.batch(number, run)?);
            second.push(twos.batch(number, run)?);
        }
        let second = median(second);
        alone.push(second / median(first));
        alone_us.push(second);
        let (mut first, mut second) = (vec![], vec![]);
        for number in 0..parameters.reads {
            let number = number + round * parameters.reads;
            first.push(ones.read(number)?);
            second.push(twos.read(number)?);
        }
        let second = median(second);
        read.push(second / median(first));
        read_us.push(second);
    }
    Ok(vec![
        Metric::median("lane_writes_r2_over_r1", over, "ratio"),
        Metric::median("lane_r1_pages_per_s", rate_one, "1/s"),
        Metric::median("lane_r2_pages_per_s", rate, "1/s"),
        Metric::median("lane_batch_r2_over_r1", alone, "ratio"),
        Metric::median("lane_r2_batch_p50_us", alone_us, "us"),
        Metric::median("read_r2_over_r1", read, "ratio"),
        Metric::median("read_r2_p50_us", read_us, "us"),
    ])
}

/// Bytes of a page, where figures need them.
pub(super) const PAGE: u64 = PAGE_BYTES as u64;

//! An evictor with one pipe, one step at a time.

use mycoram_fabric::units::PageIndex;

use super::world::World;
use crate::engine::{Action, Batch, BatchStep, Content, Pages, Run};

#[derive(Clone, Debug)]
struct Write {
    run: Run,
    values: Vec<u64>,
    arrived: bool,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Out,
    Choosing(u32),
    /// In the gate.
    Punching,
    /// In the gate, a run was named and is about to be punched.
    Punch(Run),
    /// In the gate, punched, about to say so.
    Punched(Run),
    Judging(usize),
    /// A page comes home: value.
    Home(PageIndex, u64),
    HomeLooking(PageIndex, u64),
    HomeFilled(PageIndex, bool),
}

#[derive(Debug)]
pub(super) struct ModelEvictor {
    actor: usize,
    pub(super) batch: Batch,
    phase: Phase,
    writes: Vec<Write>,
    /// Dead slots whose pages stayed resident: they share a credit.
    pub(super) stayed: usize,
}

impl ModelEvictor {
    pub(super) fn new(actor: usize, batch: Batch) -> Self {
        Self {
            actor,
            batch,
            phase: Phase::Out,
            writes: Vec::new(),
            stayed: 0,
        }
    }

    /// The agent dies: what was in flight arrived, or did not.
    pub(super) fn abandon_writes(&self, world: &mut World) {
        for write in &self.writes {
            if !write.arrived && world.dice(2) == 0 {
                arrive(world, write);
            }
        }
    }

    pub(super) fn step(&mut self, world: &mut World, pages: &Pages) {
        match self.phase {
            Phase::Out => self.next(world, pages),
            Phase::Choosing(left) => {
                if left == 0 {
                    self.phase = Phase::Out;
                    return;
                }
                let page = PageIndex::new(world.dice(u64::from(world.config.pages)) as u32);
                self.batch.choose(pages, page);
                self.phase = Phase::Choosing(left - 1);
            }
            Phase::Punching => {
                let next = self.batch.next_punch(pages);
                self.stayed += self.batch.stayed().count();
                if let Some(run) = next {
                    self.phase = Phase::Punch(run);
                } else {
                    world.leave(self.actor);
                    self.phase = Phase::Out;
                }
            }
            Phase::Punch(run) => {
                for at in 0..run.count {
                    world.punch(PageIndex::new(run.page.get() + at));
                }
                self.phase = Phase::Punched(run);
            }
            Phase::Punched(run) => {
                self.batch.punched(pages, run, true);
                // One system call a section.
                self.stayed += self.batch.stayed().count();
                world.leave(self.actor);
                self.phase = Phase::Out;
            }
            Phase::Judging(slot) => {
                if slot == self.batch.len() {
                    self.batch.judged();
                    self.phase = Phase::Out;
                    return;
                }
                if self.batch.wants_judgement(slot) {
                    let value = world.parked(self.batch.pipe(), slot);
                    self.batch.judge(pages, slot, value, value == 0);
                }
                self.phase = Phase::Judging(slot + 1);
            }
            Phase::Home(page, value) => {
                if world.enter(self.actor, false) {
                    self.phase = Phase::HomeLooking(page, value);
                }
            }
            Phase::HomeLooking(page, value) => {
                let zero = pages.content(page) == Content::Zero;
                match world.fill(page, if zero { 0 } else { value }) {
                    Some(free) => self.phase = Phase::HomeFilled(page, free),
                    None => {
                        world.leave(self.actor);
                        self.phase = Phase::Home(page, value);
                    }
                }
            }
            Phase::HomeFilled(page, free) => {
                if pages.installed(page) || !free {
                    world.wake(page);
                }
                world.leave(self.actor);
                self.phase = Phase::Out;
            }
        }
    }

    fn next(&mut self, world: &mut World, pages: &Pages) {
        if !self.writes.is_empty() && world.dice(world.config.write_steps) == 0 {
            return self.progress_write(world, pages);
        }
        match self.batch.step(pages, 0, 0) {
            BatchStep::Idle => {
                if pages.credits.free() < 2 {
                    self.phase = Phase::Choosing(1 + world.dice(6) as u32);
                }
            }
            BatchStep::Splice(run) => {
                let taken = if world.dice(8) == 0 {
                    world.dice(u64::from(run.count) + 1) as u32
                } else {
                    run.count
                };
                for at in 0..taken {
                    let page = PageIndex::new(run.page.get() + at);
                    world.splice(usize::from(self.batch.pipe()), page);
                }
                self.batch.spliced(pages, run, taken);
                let _ = self.batch.stayed().count();
            }
            BatchStep::Punch => {
                if world.enter(self.actor, false) {
                    self.phase = Phase::Punching;
                }
            }
            BatchStep::Settle { .. } | BatchStep::Wait => {}
            BatchStep::Read => self.phase = Phase::Judging(0),
            BatchStep::Write(run) => {
                let values = (0..run.count as usize)
                    .map(|at| world.parked(self.batch.pipe(), run.slot + at))
                    .collect();
                for at in 0..run.count {
                    let page = PageIndex::new(run.page.get() + at);
                    assert!(world.writing.insert(page), "two WRITEs of {page} at once");
                }
                self.batch.writing(run);
                self.writes.push(Write {
                    run,
                    values,
                    arrived: false,
                });
            }
            BatchStep::Home(run) => {
                let value = world.parked(self.batch.pipe(), run.slot);
                // As the runtime has it: no more than half of the budget stays for want of a home.
                let homeless = (0..world.config.pages)
                    .filter(|page| pages.table.word(PageIndex::new(*page)).homeless())
                    .count() as u64;
                let keep = world.dice(3) > 0 && homeless < world.config.budget / 2;
                match self.batch.bring_home(pages, run.slot, keep) {
                    Action::ReadParked => self.phase = Phase::Home(run.page, value),
                    // EAGAIN: whoever waits faults again, and meets a lost page.
                    Action::Poison if !world.poison(run.page) => world.wake(run.page),
                    _ => {}
                }
            }
            BatchStep::Drain => {
                world.pipes[usize::from(self.batch.pipe())].clear();
                self.batch.drained(pages);
                self.stayed = 0;
            }
        }
    }

    /// A WRITE arrives, or what became of it is heard.
    fn progress_write(&mut self, world: &mut World, pages: &Pages) {
        let at = world.dice(self.writes.len() as u64) as usize;
        if !self.writes[at].arrived {
            self.writes[at].arrived = true;
            arrive(world, &self.writes[at]);
            return;
        }
        let write = self.writes.swap_remove(at);
        let run = write.run;
        let mut failed = false;
        for at in 0..run.count {
            let page = PageIndex::new(run.page.get() + at);
            world.writing.remove(&page);
            failed |= world.node_is_dead(page);
        }
        let count = run.count as usize;
        if failed {
            self.batch.write_failed(pages, run.slot, count);
        } else {
            self.batch.written(pages, run.slot, count);
        }
    }
}

fn arrive(world: &mut World, write: &Write) {
    for (at, value) in write.values.iter().enumerate() {
        let page = PageIndex::new(write.run.page.get() + at as u32);
        if !world.node_is_dead(page) {
            world.remote[page.as_usize()] = *value;
        }
    }
}

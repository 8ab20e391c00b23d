//! A fault worker, one step at a time.

use mycoram_fabric::units::PageIndex;

use super::world::{Told, World};
use crate::engine::{Content, FaultStep, Pages};
use crate::page_table::Source;

#[derive(Clone, Copy, Debug)]
enum Operation {
    Fault(PageIndex),
    Zero(PageIndex),
    /// A READ in flight.
    Reading(PageIndex),
    /// What came.
    Read(PageIndex, u64),
    /// To be copied out of a pipe.
    Parked(PageIndex, u8, u8),
    /// What was copied out.
    Peeked(PageIndex, u8, u64),
    /// To be poisoned.
    Poison(PageIndex),
    /// A fetch that is given up before it began.
    Drop(PageIndex),
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Out,
    Reading,
    Applying,
    /// In the gate, about to look at the word.
    Looking(Operation),
    /// In the gate, about to fill.
    Filling(Operation, Content),
    /// Filled; about to say so.
    Filled(Operation, bool),
}

#[derive(Debug)]
pub(super) struct ModelWorker {
    actor: usize,
    phase: Phase,
    removes: Vec<PageIndex>,
    operations: Vec<Operation>,
}

impl ModelWorker {
    pub(super) fn new(actor: usize) -> Self {
        Self {
            actor,
            phase: Phase::Out,
            removes: Vec::new(),
            operations: Vec::new(),
        }
    }

    /// No removal was read and is not applied yet.
    pub(super) fn calm(&self) -> bool {
        self.removes.is_empty()
    }

    pub(super) fn step(&mut self, world: &mut World, pages: &Pages) {
        match self.phase {
            Phase::Out => {
                let choices = self.operations.len() as u64 + 2;
                let choice = world.dice(choices) as usize;
                if choice < self.operations.len() {
                    let operation = self.operations.swap_remove(choice);
                    self.go_on(world, pages, operation);
                } else if choice == self.operations.len() {
                    if world.enter(self.actor, true) {
                        self.phase = Phase::Reading;
                    }
                } else {
                    self.prefetch(world, pages);
                }
            }
            Phase::Reading => {
                for _ in 0..1 + world.dice(3) {
                    match world.read_event() {
                        Some(Told::Fault(page)) => self.operations.push(Operation::Fault(page)),
                        Some(Told::Remove(page, _)) => self.removes.push(page),
                        None => {}
                    }
                }
                self.phase = Phase::Applying;
            }
            Phase::Applying => match self.removes.pop() {
                Some(page) => {
                    if pages.discard(page) {
                        world.suspect(page);
                    }
                }
                None => {
                    world.leave(self.actor);
                    self.phase = Phase::Out;
                }
            },
            Phase::Looking(operation) => {
                let page = match operation {
                    Operation::Read(page, _)
                    | Operation::Peeked(page, ..)
                    | Operation::Zero(page) => page,
                    other => unreachable!("{other:?} is not installed"),
                };
                self.phase = Phase::Filling(operation, pages.content(page));
            }
            Phase::Filling(operation, content) => {
                let (page, value) = match operation {
                    Operation::Read(page, value) | Operation::Peeked(page, _, value) => {
                        (page, value)
                    }
                    Operation::Zero(page) => (page, 0),
                    other => unreachable!("{other:?} is not installed"),
                };
                let value = if content == Content::Zero { 0 } else { value };
                match world.fill(page, value) {
                    Some(free) => self.phase = Phase::Filled(operation, free),
                    None => {
                        // EAGAIN: an event waits to be read.
                        world.leave(self.actor);
                        self.operations.push(operation);
                        self.phase = Phase::Out;
                    }
                }
            }
            Phase::Filled(operation, free) => {
                let (page, batch) = match operation {
                    Operation::Peeked(page, batch, _) => (page, Some(batch)),
                    Operation::Read(page, _) | Operation::Zero(page) => (page, None),
                    other => unreachable!("{other:?} is not installed"),
                };
                if pages.installed(page) || !free {
                    world.wake(page);
                }
                if let Some(batch) = batch {
                    pages.reader_done(batch);
                }
                world.leave(self.actor);
                self.phase = Phase::Out;
            }
        }
    }

    fn prefetch(&mut self, world: &mut World, pages: &Pages) {
        if world.dice(4) == 0 {
            let page = PageIndex::new(world.dice(u64::from(world.config.pages)) as u32);
            match pages.prefetch(page, 1) {
                FaultStep::Read if world.dice(4) == 0 => {
                    self.operations.push(Operation::Drop(page));
                }
                FaultStep::Read => self.operations.push(Operation::Reading(page)),
                _ => {}
            }
        }
    }

    fn go_on(&mut self, world: &mut World, pages: &Pages, operation: Operation) {
        match operation {
            Operation::Fault(page) => match pages.fault(page) {
                FaultStep::Zero => self.operations.push(Operation::Zero(page)),
                FaultStep::Read => self.operations.push(Operation::Reading(page)),
                FaultStep::Parked { batch, slot } => {
                    self.operations.push(Operation::Parked(page, batch, slot));
                }
                FaultStep::Wait | FaultStep::NotWanted => {}
                FaultStep::Again | FaultStep::NoCredit => self.operations.push(operation),
                FaultStep::LookForHole(word) => {
                    if world.file[page.as_usize()].is_none() {
                        pages.hole_found(page, word);
                        self.operations.push(operation);
                    } else {
                        world.wake(page);
                    }
                }
                FaultStep::Poison => self.operations.push(Operation::Poison(page)),
            },
            Operation::Drop(page) => {
                if pages.fetch_dropped(page) {
                    world.wake(page);
                }
            }
            Operation::Poison(page) => {
                if !world.poison(page) {
                    self.operations.push(Operation::Fault(page));
                }
            }
            Operation::Reading(page) => {
                if world.node_is_dead(page) {
                    if pages.fetch_failed(page) {
                        self.operations.push(Operation::Poison(page));
                    } else {
                        self.operations.push(Operation::Zero(page));
                    }
                    return;
                }
                let value = world.remote[page.as_usize()];
                let word = pages.table.word(page);
                if word.source() == Source::Remote {
                    assert_eq!(
                        pages.table.checksum(page),
                        value,
                        "{page}: the checksum does not match what is remote"
                    );
                }
                self.operations.push(Operation::Read(page, value));
            }
            Operation::Parked(page, batch, slot) => {
                let value = world.parked(batch, usize::from(slot));
                self.operations.push(Operation::Peeked(page, batch, value));
            }
            Operation::Read(..) | Operation::Peeked(..) | Operation::Zero(_) => {
                if world.enter(self.actor, false) {
                    self.phase = Phase::Looking(operation);
                } else {
                    self.operations.push(operation);
                }
            }
        }
    }
}

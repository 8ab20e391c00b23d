//! The simulated kernel, target and memory nodes.

use std::collections::{HashSet, VecDeque};

use mycoram_fabric::units::PageIndex;

use crate::engine::Pages;
use crate::page_table::PageState;

/// How large this seed's world is, and what befalls it.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) pages: u32,
    pub(super) budget: u64,
    pub(super) mutators: usize,
    pub(super) workers: usize,
    pub(super) evictors: usize,
    pub(super) kills: u32,
    pub(super) deaths: u32,
    pub(super) operations: u32,
    pub(super) discards: bool,
    /// Of so many steps of an evictor, one is a step of a WRITE: few are a fast network, many a slow one.
    pub(super) write_steps: u64,
}

/// What a read of a page may return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    Is(u64),
    /// After MADV_DONTNEED: kept or gone.
    Either(u64, u64),
    /// Declared lost; never used again.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Fault(PageIndex),
    /// The page, and the mutator that waits for the event to be read.
    Remove(PageIndex, usize),
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) config: Config,
    dice: u64,
    physical: Vec<u64>,
    pub(super) file: Vec<Option<usize>>,
    pub(super) pipes: Vec<Vec<usize>>,
    pub(super) remote: Vec<u64>,
    pub(super) dead: [bool; 2],
    pub(super) events: VecDeque<Told>,
    poisoned: Vec<bool>,
    truth: Vec<Truth>,
    /// Mutators that may go on with their discard.
    read: HashSet<usize>,
    woken: HashSet<PageIndex>,
    /// The kernel refuses copies while this is not 0.
    changing: u32,
    suspects: Vec<PageIndex>,
    in_motion: HashSet<PageIndex>,
    /// Pages whose WRITE is in flight.
    pub(super) writing: HashSet<PageIndex>,
    /// Who is in which section: (actor, reading).
    pub(super) gate: Vec<(usize, bool)>,
    next_value: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut world = Self {
            config: Config {
                pages: 0,
                budget: 0,
                mutators: 0,
                workers: 0,
                evictors: 0,
                kills: 0,
                deaths: 0,
                operations: 0,
                discards: false,
                write_steps: 1,
            },
            dice: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            physical: Vec::new(),
            file: Vec::new(),
            pipes: Vec::new(),
            remote: Vec::new(),
            dead: [false; 2],
            events: VecDeque::new(),
            poisoned: Vec::new(),
            truth: Vec::new(),
            read: HashSet::new(),
            woken: HashSet::new(),
            changing: 0,
            suspects: Vec::new(),
            in_motion: HashSet::new(),
            writing: HashSet::new(),
            gate: Vec::new(),
            next_value: 1,
        };
        let pages = 6 + world.dice(12) as u32;
        world.config = Config {
            pages,
            budget: 3 + world.dice(6),
            mutators: 1 + world.dice(4) as usize,
            workers: 1 + world.dice(3) as usize,
            evictors: 1 + world.dice(2) as usize,
            kills: world.dice(3) as u32,
            deaths: u32::from(world.dice(4) == 0),
            operations: 60,
            discards: world.dice(2) == 0,
            write_steps: [2, 4, 40][world.dice(3) as usize],
        };
        let all = pages as usize;
        world.file = vec![None; all];
        world.pipes = vec![Vec::new(); world.config.evictors];
        world.remote = vec![u64::MAX; all];
        world.poisoned = vec![false; all];
        world.truth = vec![Truth::Is(0); all];
        world
    }

    pub(super) fn dice(&mut self, n: u64) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    pub(super) fn node_is_dead(&self, page: PageIndex) -> bool {
        self.dead[page.as_usize() % 2]
    }

    /// Enters a section if nobody is in one of the other kind.
    pub(super) fn enter(&mut self, actor: usize, reading: bool) -> bool {
        let free = self.gate.iter().all(|(_, other)| *other == reading);
        if free {
            self.gate.push((actor, reading));
        }
        free
    }

    pub(super) fn leave(&mut self, actor: usize) {
        self.gate.retain(|(inside, _)| *inside != actor);
    }

    /// What userfaultfd's read does: the mutator behind a removal goes on.
    pub(super) fn read_event(&mut self) -> Option<Told> {
        let event = self.events.pop_front()?;
        if let Told::Remove(_, mutator) = event {
            self.read.insert(mutator);
        }
        Some(event)
    }

    /// UFFDIO_COPY or ZEROPAGE. `None`: EAGAIN. False: it was there.
    pub(super) fn fill(&mut self, page: PageIndex, value: u64) -> Option<bool> {
        if self.changing > 0 {
            return None;
        }
        let free = self.file[page.as_usize()].is_none();
        if free {
            self.physical.push(value);
            self.file[page.as_usize()] = Some(self.physical.len() - 1);
            self.wake(page);
        }
        Some(free)
    }

    pub(super) fn wake(&mut self, page: PageIndex) {
        self.woken.insert(page);
    }

    pub(super) fn poison(&mut self, page: PageIndex) -> bool {
        if self.changing > 0 {
            return false;
        }
        if self.file[page.as_usize()].is_none() {
            self.poisoned[page.as_usize()] = true;
        }
        self.wake(page);
        true
    }

    pub(super) fn splice(&mut self, pipe: usize, page: PageIndex) {
        let physical = self.file[page.as_usize()].unwrap_or_else(|| {
            self.physical.push(0);
            self.physical.len() - 1
        });
        self.pipes[pipe].push(physical);
    }

    pub(super) fn punch(&mut self, page: PageIndex) {
        self.file[page.as_usize()] = None;
    }

    pub(super) fn parked(&self, pipe: u8, slot: usize) -> u64 {
        self.physical[self.pipes[usize::from(pipe)][slot]]
    }

    pub(super) fn suspect(&mut self, page: PageIndex) {
        self.suspects.push(page);
    }

    /// The keeper: a hole ends the suspicion, and so does data once the discard must be over.
    pub(super) fn look_at_suspects(&mut self, pages: &Pages) {
        let Some(page) = self.suspects.pop() else {
            return;
        };
        let word = pages.table.word(page);
        if word.state() == PageState::Resident && word.suspect() {
            if self.file[page.as_usize()].is_none() {
                pages.hole_found(page, word);
                return;
            } else if !self.in_motion.contains(&page) {
                pages.data_found(page, word);
                return;
            }
        } else if !word.suspect() {
            return;
        }
        self.suspects.insert(0, page);
    }

    /// Every physical page that is in the file or in a pipe is paid for.
    pub(super) fn check_credits(&self, pages: &Pages, stayed: usize) {
        let mut alive: HashSet<usize> = self.file.iter().flatten().copied().collect();
        alive.extend(self.pipes.iter().flatten());
        let used = pages.credits.budget() - pages.credits.free();
        assert!(
            alive.len() as i64 <= used + stayed as i64,
            "{} pages are alive, {used} are paid for, {stayed} stayed",
            alive.len()
        );
        let over = self.config.kills > 0 || self.config.deaths > 0;
        assert!(
            over || used <= pages.credits.budget(),
            "the budget is exceeded"
        );
    }

    fn check_read(&mut self, page: PageIndex, got: u64) {
        let right = match self.truth[page.as_usize()] {
            Truth::Is(value) => got == value,
            Truth::Either(a, b) => got == a || got == b,
            Truth::Gone => false,
        };
        assert!(
            right,
            "{page} reads {got}, and is {:?}",
            self.truth[page.as_usize()]
        );
        self.truth[page.as_usize()] = Truth::Is(got);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Nothing,
    Accessing(PageIndex, Access),
    Asleep(PageIndex, Access),
    /// The event was sent; waits for it to be read.
    Discarding {
        page: PageIndex,
        removes: bool,
    },
    /// About to punch.
    Removing(PageIndex),
}

/// A thread of the target, with pages of its own.
#[derive(Debug)]
pub(super) struct Mutator {
    index: usize,
    doing: Doing,
    done: u32,
}

impl Mutator {
    pub(super) fn new(index: usize) -> Self {
        Self {
            index,
            doing: Doing::Nothing,
            done: 0,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done == u32::MAX
    }

    fn own(&self, world: &World) -> Vec<PageIndex> {
        (0..world.config.pages)
            .filter(|page| *page as usize % world.config.mutators == self.index)
            .map(PageIndex::new)
            .collect()
    }

    pub(super) fn step(&mut self, world: &mut World) {
        match self.doing {
            Doing::Nothing => self.begin(world),
            Doing::Accessing(page, access) => self.access(world, page, access),
            Doing::Asleep(page, access) => {
                if world.woken.remove(&page) {
                    self.doing = Doing::Accessing(page, access);
                }
            }
            Doing::Discarding { page, removes } => {
                if world.read.remove(&self.index) {
                    world.changing -= 1;
                    if removes {
                        self.doing = Doing::Removing(page);
                    } else {
                        world.in_motion.remove(&page);
                        self.doing = Doing::Nothing;
                    }
                }
            }
            Doing::Removing(page) => {
                world.punch(page);
                world.truth[page.as_usize()] = Truth::Is(0);
                world.in_motion.remove(&page);
                self.doing = Doing::Nothing;
            }
        }
    }

    fn begin(&mut self, world: &mut World) {
        let own = self.own(world);
        let operations = world.config.operations;
        if self.done >= operations {
            // At the end every page is read once more.
            let at = (self.done - operations) as usize;
            match own.get(at) {
                Some(page) => self.doing = Doing::Accessing(*page, Access::Read),
                None => self.done = u32::MAX,
            }
        } else if !own.is_empty() {
            let page = own[world.dice(own.len() as u64) as usize];
            let lost = world.truth[page.as_usize()] == Truth::Gone;
            match world.dice(12) {
                _ if lost => {}
                0..6 => self.doing = Doing::Accessing(page, Access::Write),
                6..9 => self.doing = Doing::Accessing(page, Access::Read),
                kind if world.config.discards => self.discard(world, page, kind),
                _ => {}
            }
        }
        self.done = self.done.saturating_add(1);
    }

    fn discard(&mut self, world: &mut World, page: PageIndex, kind: u64) {
        let old = world.truth[page.as_usize()];
        let removes = kind == 9;
        if kind == 10 {
            // The balloon punches first; the event comes behind.
            world.punch(page);
            world.truth[page.as_usize()] = match old {
                // What was not resident is gone when the event is applied, and may be read before.
                Truth::Is(value) | Truth::Either(value, _) => Truth::Either(value, 0),
                Truth::Gone => Truth::Gone,
            };
        } else if !removes {
            world.truth[page.as_usize()] = match old {
                Truth::Is(value) => Truth::Either(value, 0),
                other => other,
            };
        }
        world.changing += 1;
        world.in_motion.insert(page);
        world.events.push_back(Told::Remove(page, self.index));
        self.doing = Doing::Discarding { page, removes };
    }

    fn access(&mut self, world: &mut World, page: PageIndex, access: Access) {
        let at = page.as_usize();
        if world.truth[at] == Truth::Gone {
            self.doing = Doing::Nothing;
            return;
        }
        if world.poisoned[at] {
            assert!(
                world.node_is_dead(page),
                "{page} is lost, and its node lives"
            );
            world.truth[at] = Truth::Gone;
            self.doing = Doing::Nothing;
            return;
        }
        let Some(physical) = world.file[at] else {
            world.woken.remove(&page);
            world.events.push_back(Told::Fault(page));
            self.doing = Doing::Asleep(page, access);
            return;
        };
        match access {
            Access::Read => {
                let got = world.physical[physical];
                world.check_read(page, got);
            }
            Access::Write => {
                // Zero now and then: what is all zero need not be kept anywhere. An old value now and
                // then: what looks clean may not be.
                let value = match world.dice(6) {
                    0 => 0,
                    1 => 1 + world.dice(3),
                    _ => {
                        world.next_value += 1;
                        world.next_value + 10
                    }
                };
                world.physical[physical] = value;
                world.truth[at] = Truth::Is(value);
            }
        }
        self.doing = Doing::Nothing;
    }
}

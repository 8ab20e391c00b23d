//! Who leaves when the budget is used up.
//!
//! ```text
//!                    main has room, or seen before (ghost)
//!   admit --+---------------------------------------------> [ main ] --any one--> leaves
//!           |                                                  ^                     |
//!           +--> [ small: a tenth ] --used again---------------+                     |
//!                        | oldest                                                    |
//!                        +--> leaves -----> [ ghost: names only ] <------------------+
//! ```
//!
//! S3-FIFO without access bits: what is fetched once and never asked for again passes through the
//! small queue and does not disturb main. A page that faults again while its name is still in the
//! ghost queue has shown that it is used; it goes to main. Without access bits nothing tells main's
//! pages apart, so any of them leaves: in order of age, a loop a little larger than the budget would
//! never hit. Main would grow old if no page came back, so one victim of 32 is main's in any case. With such
//! a page its neighbours leave that came to main together with it: alone they would stand in the way of every
//! run that a scan reads or evicts from then on.

use mycoram_fabric::units::{PageCount, PageIndex};

use super::admissions::{Admission, AdmissionKind};
use super::index::{Chance, PageMap, PageQueue, Ticket, Tickets};
use crate::config::VictimPolicy;

/// Picks the pages that leave. Owned by the evictor; all it hears comes through [`Victims::hear`].
pub trait Victims: Send {
    /// Something happened to a page.
    fn hear(&mut self, news: Admission);

    /// Appends up to `count` resident pages to `out`, the first to leave first. They are no longer
    /// resident as far as the policy knows; one that cannot leave is admitted again.
    fn pick(&mut self, count: usize, out: &mut Vec<PageIndex>);

    /// Does it know the page as resident? For the walk after news was dropped.
    fn contains(&self, page: PageIndex) -> bool;

    /// Pages that can be picked.
    fn len(&self) -> usize;

    /// None?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The budget has changed. Allocates.
    fn set_budget(&mut self, budget: PageCount);
}

/// The policy that a configuration asks for.
#[must_use]
pub fn victims_for(policy: VictimPolicy, budget: PageCount) -> Box<dyn Victims> {
    match policy {
        VictimPolicy::S3Fifo => Box::new(S3Fifo::new(budget)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    First,
    Small,
    Main,
    Ghost,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    ticket: Ticket,
    place: Place,
    used_again: bool,
}

/// Share of the budget that the small queue gets: 1/10.
const SMALL_SHARE: usize = 10;
/// One victim of so many comes from main, even when the small queue is over its share.
const MAIN_DECAY: u32 = 32;
/// Most pages of main that leave together: the longest run that is read at once. They came within twice as
/// many admissions.
const MAIN_RUN: u32 = 16;

/// Neighbours of a page of main that left, in both directions, as far as they have not been looked at.
#[derive(Clone, Copy, Debug)]
struct MainRun {
    up: Option<PageIndex>,
    down: Option<PageIndex>,
    left: u32,
    /// Of the page that left first.
    ticket: Ticket,
}

/// Of the choices in main. Any number does; a fixed one makes runs repeatable.
const SEED: u64 = 0x6d79_636f_7261_6d21;

/// S3-FIFO, fed by faults only. About 80 bytes a budget page.
#[derive(Debug)]
pub struct S3Fifo {
    known: PageMap<Known>,
    tickets: Tickets,
    /// Pages that the target will not need soon; they leave before all others.
    first: PageQueue,
    small: PageQueue,
    main: PageQueue,
    ghost: PageQueue,
    budget: usize,
    /// Victims that the small queue gives before main gives one in any case.
    until_decay: u32,
    main_run: Option<MainRun>,
    chance: Chance,
}

impl S3Fifo {
    /// For a budget of so many pages. The ghost queue remembers as many again.
    #[must_use]
    pub fn new(budget: PageCount) -> Self {
        let budget = budget.as_usize().max(1);
        Self {
            known: PageMap::with_capacity_and_hasher(budget * 2, Default::default()),
            tickets: Tickets::default(),
            first: PageQueue::with_room_for(0),
            small: PageQueue::with_room_for(budget / SMALL_SHARE),
            main: PageQueue::with_room_for(budget),
            ghost: PageQueue::with_room_for(budget),
            budget,
            until_decay: MAIN_DECAY,
            main_run: None,
            chance: Chance::seeded(SEED),
        }
    }

    /// Everything that is remembered, alive or dead.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        let queues = [&self.first, &self.small, &self.main, &self.ghost];
        queues.map(PageQueue::entries).iter().sum::<usize>() + self.known.len()
    }

    fn small_share(&self) -> usize {
        (self.budget / SMALL_SHARE).max(1)
    }

    fn queue(&mut self, place: Place) -> &mut PageQueue {
        match place {
            Place::First => &mut self.first,
            Place::Small => &mut self.small,
            Place::Main => &mut self.main,
            Place::Ghost => &mut self.ghost,
        }
    }

    fn put(&mut self, page: PageIndex, place: Place) {
        let ticket = self.tickets.next();
        let before = self.known.insert(
            page.get(),
            Known {
                ticket,
                place,
                used_again: false,
            },
        );
        if let Some(before) = before {
            self.queue(before.place).forget_one();
        }
        let known = &self.known;
        let is_live = |page: PageIndex, ticket| {
            known
                .get(&page.get())
                .is_some_and(|k| k.ticket == ticket && k.place == place)
        };
        match place {
            Place::First => self.first.push(page, ticket, is_live),
            Place::Small => self.small.push(page, ticket, is_live),
            Place::Main => self.main.push(page, ticket, is_live),
            Place::Ghost => self.ghost.push(page, ticket, is_live),
        }
    }

    /// Takes the oldest page out of a queue; it is unknown then.
    fn take_oldest(&mut self, place: Place) -> Option<(PageIndex, Known)> {
        let known = &self.known;
        let is_live = |page: PageIndex, ticket| {
            known
                .get(&page.get())
                .is_some_and(|k| k.ticket == ticket && k.place == place)
        };
        let chance = &mut self.chance;
        let page = match place {
            Place::First => self.first.pop(is_live),
            Place::Small => self.small.pop(is_live),
            Place::Main => self.main.pop_at(|| chance.next(), is_live),
            Place::Ghost => self.ghost.pop(is_live),
        }?;
        self.known.remove(&page.get()).map(|known| (page, known))
    }

    fn forget(&mut self, page: PageIndex) {
        if let Some(known) = self.known.remove(&page.get()) {
            self.queue(known.place).forget_one();
        }
    }

    fn admit(&mut self, page: PageIndex, asked: bool) {
        let main_has_room = self.main.len() < self.budget - self.small_share();
        match self.known.get(&page.get()).map(|k| k.place) {
            Some(Place::First | Place::Small | Place::Main) => {}
            Some(Place::Ghost) if asked => self.put(page, Place::Main),
            _ if main_has_room => self.put(page, Place::Main),
            _ => self.put(page, Place::Small),
        }
    }

    fn next_victim(&mut self) -> Option<PageIndex> {
        if let Some((page, _)) = self.take_oldest(Place::First) {
            return Some(page);
        }
        if let Some(page) = self.next_of_main_run() {
            return Some(page);
        }
        // Each turn either answers or takes a page's mark away, so it ends.
        loop {
            let small_over = self.small.len() >= self.small_share() || self.main.len() == 0;
            let decays = self.until_decay == 0 && self.main.len() > 0;
            let place = if small_over && !decays && self.small.len() > 0 {
                Place::Small
            } else {
                Place::Main
            };
            let (page, known) = self.take_oldest(place)?;
            if known.used_again {
                self.put(page, Place::Main);
                continue;
            }
            match place {
                Place::Small => self.until_decay = self.until_decay.saturating_sub(1),
                _ if !decays => self.until_decay = MAIN_DECAY,
                _ => {
                    self.until_decay = MAIN_DECAY;
                    let one = PageCount::new(1);
                    self.main_run = Some(MainRun {
                        up: page.checked_add(one),
                        down: page.checked_sub(one),
                        left: MAIN_RUN - 1,
                        ticket: known.ticket,
                    });
                }
            }
            return Some(page);
        }
    }

    /// Takes the next neighbour of the page of main that left last.
    fn next_of_main_run(&mut self) -> Option<PageIndex> {
        let mut run = self.main_run.filter(|run| run.left > 0)?;
        let one = PageCount::new(1);
        let is_main = |page: &PageIndex| {
            let known = self.known.get(&page.get());
            known.is_some_and(|known| {
                known.place == Place::Main
                    && !known.used_again
                    && known.ticket.is_within(2 * MAIN_RUN, run.ticket)
            })
        };
        run.up = run.up.filter(is_main);
        run.down = run.down.filter(is_main);
        let page = match (run.up, run.down) {
            (Some(page), _) => {
                run.up = page.checked_add(one);
                page
            }
            (None, Some(page)) => {
                run.down = page.checked_sub(one);
                page
            }
            (None, None) => {
                self.main_run = None;
                return None;
            }
        };
        run.left -= 1;
        self.main_run = Some(run);
        self.until_decay += MAIN_DECAY;
        self.forget(page);
        Some(page)
    }
}

impl Victims for S3Fifo {
    fn hear(&mut self, news: Admission) {
        match news.kind {
            AdmissionKind::Asked => self.admit(news.page, true),
            AdmissionKind::Ahead => self.admit(news.page, false),
            AdmissionKind::Again => match self.known.get_mut(&news.page.get()) {
                Some(known) if known.place != Place::Ghost => known.used_again = true,
                _ => self.admit(news.page, true),
            },
            AdmissionKind::Discarded => self.forget(news.page),
            AdmissionKind::NotSoon => {
                if self.contains(news.page) {
                    self.put(news.page, Place::First);
                }
            }
            // They leave as they came, before this is asked.
            AdmissionKind::Huge => {}
        }
    }

    fn pick(&mut self, count: usize, out: &mut Vec<PageIndex>) {
        for _ in 0..count {
            let Some(page) = self.next_victim() else {
                return;
            };
            while self.ghost.len() >= self.budget {
                self.take_oldest(Place::Ghost);
            }
            self.put(page, Place::Ghost);
            out.push(page);
        }
    }

    fn contains(&self, page: PageIndex) -> bool {
        self.known
            .get(&page.get())
            .is_some_and(|k| k.place != Place::Ghost)
    }

    fn len(&self) -> usize {
        self.first.len() + self.small.len() + self.main.len()
    }

    fn set_budget(&mut self, budget: PageCount) {
        self.budget = budget.as_usize().max(1);
        while self.ghost.len() > self.budget {
            self.take_oldest(Place::Ghost);
        }
    }
}

/// First in, first out: for comparison.
#[derive(Debug)]
pub struct Fifo {
    known: PageMap<Ticket>,
    tickets: Tickets,
    queue: PageQueue,
}

impl Fifo {
    /// For a budget of so many pages.
    #[must_use]
    pub fn new(budget: PageCount) -> Self {
        Self {
            known: PageMap::with_capacity_and_hasher(budget.as_usize(), Default::default()),
            tickets: Tickets::default(),
            queue: PageQueue::with_room_for(budget.as_usize()),
        }
    }
}

impl Victims for Fifo {
    fn hear(&mut self, news: Admission) {
        match news.kind {
            AdmissionKind::Asked | AdmissionKind::Ahead | AdmissionKind::Again => {
                if !self.contains(news.page) {
                    let ticket = self.tickets.next();
                    self.known.insert(news.page.get(), ticket);
                    let known = &self.known;
                    self.queue.push(news.page, ticket, |page, ticket| {
                        known.get(&page.get()) == Some(&ticket)
                    });
                }
            }
            AdmissionKind::Discarded => {
                if self.known.remove(&news.page.get()).is_some() {
                    self.queue.forget_one();
                }
            }
            AdmissionKind::NotSoon | AdmissionKind::Huge => {}
        }
    }

    fn pick(&mut self, count: usize, out: &mut Vec<PageIndex>) {
        for _ in 0..count {
            let known = &self.known;
            let Some(page) = self
                .queue
                .pop(|page, ticket| known.get(&page.get()) == Some(&ticket))
            else {
                return;
            };
            self.known.remove(&page.get());
            out.push(page);
        }
    }

    fn contains(&self, page: PageIndex) -> bool {
        self.known.contains_key(&page.get())
    }

    fn len(&self) -> usize {
        self.queue.len()
    }

    fn set_budget(&mut self, _budget: PageCount) {}
}

/// Any page with the same chance: for comparison.
#[derive(Debug)]
pub struct RandomVictims {
    pages: Vec<PageIndex>,
    at: PageMap<usize>,
    chance: Chance,
}

impl RandomVictims {
    /// For a budget of so many pages; the same seed makes the same choices.
    #[must_use]
    pub fn new(budget: PageCount, seed: u64) -> Self {
        Self {
            pages: Vec::with_capacity(budget.as_usize()),
            at: PageMap::with_capacity_and_hasher(budget.as_usize(), Default::default()),
            chance: Chance::seeded(seed),
        }
    }

    fn remove(&mut self, page: PageIndex) {
        if let Some(at) = self.at.remove(&page.get()) {
            self.pages.swap_remove(at);
            if let Some(moved) = self.pages.get(at) {
                self.at.insert(moved.get(), at);
            }
        }
    }
}

impl Victims for RandomVictims {
    fn hear(&mut self, news: Admission) {
        match news.kind {
            AdmissionKind::Asked | AdmissionKind::Ahead | AdmissionKind::Again => {
                if !self.contains(news.page) {
                    self.at.insert(news.page.get(), self.pages.len());
                    self.pages.push(news.page);
                }
            }
            AdmissionKind::Discarded => self.remove(news.page),
            AdmissionKind::NotSoon | AdmissionKind::Huge => {}
        }
    }

    fn pick(&mut self, count: usize, out: &mut Vec<PageIndex>) {
        for _ in 0..count.min(self.pages.len()) {
            let at = (self.chance.next() % self.pages.len() as u64) as usize;
            let page = self.pages[at];
            self.remove(page);
            out.push(page);
        }
    }

    fn contains(&self, page: PageIndex) -> bool {
        self.at.contains_key(&page.get())
    }

    fn len(&self) -> usize {
        self.pages.len()
    }

    fn set_budget(&mut self, _budget: PageCount) {}
}

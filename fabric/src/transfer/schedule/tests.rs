//! Seeded stories against a model of memory: whatever rails and endpoints do, each piece is answered
//! once, what is said to have arrived has arrived, and no bound is passed.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::transfer::piece::MemoryIndex;
use crate::units::{RemoteAddr, Rkey};

const CHUNK: u64 = 8;
const DEPTH: usize = 3;
const FRAMES: usize = 4;
const PIECES: usize = 12;
const TRIES: u32 = 3;
const MEMORY: u64 = 4096;
/// Steps after which a story in which nothing breaks any more must be over.
const PATIENCE: u32 = 20_000;
const BAD_KEY: u32 = 13;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

fn limits() -> Limits {
    Limits {
        chunk_bytes: CHUNK,
        depth: DEPTH,
        frames: FRAMES,
        pieces: PIECES,
        tries: TRIES,
        rate: None,
    }
}

fn local(offset: u64) -> Place {
    Place::Local {
        memory: MemoryIndex(1),
        offset,
    }
}

fn remote(endpoint: EndpointIndex, addr: u64) -> Place {
    keyed(endpoint, addr, 1)
}

fn keyed(endpoint: EndpointIndex, addr: u64, rkey: u32) -> Place {
    Place::Remote {
        endpoint,
        at: RemoteSlice {
            addr: RemoteAddr::new(addr),
            rkey: Rkey::new(rkey),
        },
    }
}

/// Memory here and there, and what is on each rail.
struct World {
    dice: Dice,
    schedule: Schedule,
    now: Duration,
    here: Vec<u8>,
    frames: Vec<u8>,
    there: BTreeMap<EndpointIndex, Vec<u8>>,
    rails: Vec<VecDeque<Step>>,
    ends: Vec<EndpointIndex>,
    queued: BTreeMap<u64, Piece>,
    answered: u64,
    arrived: u64,
}

impl World {
    fn new(seed: u64, rate: Option<u64>) -> Self {
        let mut dice = Dice(seed);
        let now = Duration::from_secs(1);
        let mut schedule = Schedule::new(Limits { rate, ..limits() }, now);
        let mut there = BTreeMap::new();
        let (mut rails, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..2 + dice.roll(3) {
            let count = 1 + dice.roll(3) as usize;
            let (index, first) = schedule.add_endpoint(count);
            assert_eq!(first, rails.len());
            rails.extend((0..count).map(|_| VecDeque::new()));
            ends.extend((0..count).map(|_| index));
            let bytes = (0..MEMORY).map(|_| dice.roll(256) as u8).collect();
            there.insert(index, bytes);
        }
        let here = (0..MEMORY).map(|_| dice.roll(256) as u8).collect();
        Self {
            dice,
            schedule,
            now,
            here,
            frames: vec![0; FRAMES * CHUNK as usize],
            there,
            rails,
            ends,
            queued: BTreeMap::new(),
            answered: 0,
            arrived: 0,
        }
    }

    /// A piece from the lower half of one memory into a part of the upper half of another that no other
    /// piece uses.
    fn piece(&mut self, tag: u64) -> Piece {
        let ends: Vec<_> = self.there.keys().copied().collect();
        let any = |dice: &mut Dice| ends[dice.roll(ends.len() as u64) as usize];
        let bytes = self.dice.roll(40);
        let from = self.dice.roll(MEMORY / 2 - 40);
        let into = MEMORY / 2 + tag * 40;
        let (a, b) = (any(&mut self.dice), any(&mut self.dice));
        let (from, into) = match self.dice.roll(3) {
            0 => (local(from), remote(b, into)),
            1 => (remote(a, from), local(into)),
            _ => (remote(a, from), remote(b, into)),
        };
        Piece {
            tag,
            from,
            into,
            bytes,
        }
    }

    fn bytes(&self, place: Place, bytes: u64) -> Vec<u8> {
        let (memory, at) = match place {
            Place::Local { offset, .. } => (&self.here, offset),
            Place::Remote { endpoint, at } => (&self.there[&endpoint], at.addr.get()),
        };
        memory[at as usize..(at + bytes) as usize].to_vec()
    }

    fn post(&mut self) {
        while let Some(step) = self.schedule.next(self.now) {
            assert!(step.bytes <= CHUNK && step.bytes > 0);
            self.rails[step.rail].push_back(step);
            assert!(self.rails[step.rail].len() <= DEPTH, "a rail is too deep");
        }
    }

    /// Lets the oldest transfer of a rail happen.
    fn carry_out(&mut self, rail: usize) {
        let Some(step) = self.rails[rail].pop_front() else {
            return;
        };
        if step.remote.rkey.get() == BAD_KEY {
            let kind = ErrorKind::RemoteAccess;
            assert!(self.schedule.completed(rail, step.chunk as u64, Err(kind)));
            self.break_rail(rail);
            return;
        }
        let there = self.there.get_mut(&self.ends[rail]).expect("known");
        let range = step.remote.addr.get() as usize..(step.remote.addr.get() + step.bytes) as usize;
        let (here, at) = match step.local {
            Local::Frame(frame) => (&mut self.frames, frame * CHUNK as usize),
            Local::Place(Place::Local { offset, .. }) => (&mut self.here, offset as usize),
            Local::Place(other) => panic!("not local: {other:?}"),
        };
        let here = &mut here[at..at + step.bytes as usize];
        match step.way {
            Way::Read => here.copy_from_slice(&there[range]),
            Way::Write => there[range].copy_from_slice(here),
        }
        assert!(!self.schedule.completed(rail, step.chunk as u64, Ok(())));
    }

    /// Some of what was on it happens all the same, until it is gone.
    fn break_rail(&mut self, rail: usize) {
        self.schedule.broke(rail);
        self.post();
        let landed = self.dice.roll(1 + self.rails[rail].len() as u64) as usize;
        let steps: Vec<_> = self.rails[rail].drain(..).take(landed).collect();
        for step in steps {
            if step.way == Way::Write && step.remote.rkey.get() != BAD_KEY {
                let from = match step.local {
                    Local::Frame(frame) => &self.frames[frame * CHUNK as usize..],
                    Local::Place(Place::Local { offset, .. }) => &self.here[offset as usize..],
                    Local::Place(other) => panic!("not local: {other:?}"),
                };
                let at = step.remote.addr.get() as usize;
                let there = self.there.get_mut(&self.ends[rail]).expect("known");
                there[at..at + step.bytes as usize].copy_from_slice(&from[..step.bytes as usize]);
            }
        }
        self.schedule.gone(rail);
    }

    fn lose(&mut self, endpoint: EndpointIndex) {
        self.schedule.lost(endpoint, Why::Lost);
        for rail in 0..self.rails.len() {
            if self.ends[rail] == endpoint {
                self.rails[rail].clear();
                self.schedule.ended(rail);
                self.schedule.gone(rail);
            }
        }
    }

    /// Takes the answers and sees that they are true.
    fn take(&mut self, may_fail: bool) -> Vec<Piece> {
        let mut rests = Vec::new();
        while let Some(finished) = self.schedule.take_finished() {
            let piece = self.queued.remove(&finished.piece.tag);
            assert_eq!(piece, Some(finished.piece), "answered twice, or not asked");
            self.answered += 1;
            let arrived = match finished.result {
                Ok(()) => finished.piece.bytes,
                Err(not) => {
                    assert!(may_fail, "{not}");
                    assert!(finished.piece.touches(not.endpoint));
                    let done = finished.piece.bytes - not.rest.bytes;
                    assert_eq!(not.rest, finished.piece.rest(done));
                    rests.push(not.rest);
                    done
                }
            };
            self.arrived += arrived;
            let (from, into) = (finished.piece.from, finished.piece.into);
            assert_eq!(self.bytes(from, arrived), self.bytes(into, arrived));
        }
        rests
    }

    fn queue(&mut self, piece: Piece) {
        self.queued.insert(piece.tag, piece);
        self.schedule.queue(piece);
    }

    /// Everything that is away comes back, and all is carried out.
    fn play_out(&mut self) {
        for rail in 0..self.rails.len() {
            if self.schedule.has_endpoint(self.ends[rail]) {
                self.schedule.up(rail);
            }
        }
        for _ in 0..PATIENCE {
            self.post();
            if self.schedule.is_idle() {
                return;
            }
            for rail in 0..self.rails.len() {
                self.carry_out(rail);
                self.schedule.up(rail);
            }
            self.now += Duration::from_micros(100);
        }
        panic!("not over: {:?}", self.schedule);
    }
}

proptest! {
    #[test]
    fn each_piece_is_answered_once_and_truly(seed: u64) {
        let mut world = World::new(seed, None);
        let mut tag = 0;
        for _ in 0..400 {
            match world.dice.roll(40) {
                0..=3 if tag < 50 && world.schedule.room() > 0 => {
                    let mut piece = world.piece(tag);
                    if world.dice.roll(20) == 0 && let Place::Remote { endpoint, at } = piece.into {
                        piece.into = keyed(endpoint, at.addr.get(), BAD_KEY);
                    }
                    world.queue(piece);
                    tag += 1;
                }
                4..=5 => {
                    let rail = world.dice.roll(world.rails.len() as u64) as usize;
                    if world.schedule.progress().rails[rail].state == RailState::Up {
                        world.break_rail(rail);
                    }
                }
                6..=10 => {
                    let rail = world.dice.roll(world.rails.len() as u64) as usize;
                    if world.schedule.progress().rails[rail].state == RailState::Away {
                        world.schedule.up(rail);
                    }
                }
                11 if world.dice.roll(30) == 0 => {
                    let rail = world.dice.roll(world.rails.len() as u64) as usize;
                    world.lose(world.ends[rail]);
                }
                12..=14 => { world.take(true); }
                15..=20 => world.post(),
                _ => {
                    let rail = world.dice.roll(world.rails.len() as u64) as usize;
                    world.carry_out(rail);
                }
            }
            let held = world.queued.len();
            prop_assert!(held <= PIECES && world.schedule.room() == PIECES - held);
        }
        world.play_out();
        world.take(true);
        prop_assert!(world.queued.is_empty());
        prop_assert_eq!(world.schedule.free_frames.len(), FRAMES);
        prop_assert_eq!(world.schedule.free_chunks.len(), world.schedule.chunks.len());
        let progress = world.schedule.progress();
        prop_assert_eq!(progress.pieces_left(), 0);
        prop_assert_eq!(progress.pieces_queued, world.answered);
        // What did not count as arrived may have been moved all the same.
        prop_assert!(progress.bytes_done >= world.arrived);
    }

    #[test]
    fn with_one_rail_left_everything_arrives_and_rests_can_be_handed_in_again(seed: u64) {
        let mut world = World::new(seed, None);
        let mut rests: Vec<Piece> = (0..PIECES as u64).map(|tag| world.piece(tag)).collect();
        for _round in 0..50 {
            for piece in std::mem::take(&mut rests) {
                world.queue(piece);
            }
            for _ in 0..20 {
                world.post();
                let rail = world.dice.roll(world.rails.len() as u64) as usize;
                let up = world.schedule.progress().rails[rail].state == RailState::Up;
                match world.dice.roll(6) {
                    0 if up => world.break_rail(rail),
                    1 => world.schedule.up(rail),
                    _ => world.carry_out(rail),
                }
                rests.extend(world.take(true));
            }
        }
        world.play_out();
        rests.extend(world.take(true));
        for piece in rests {
            world.queue(piece);
        }
        world.play_out();
        prop_assert!(world.take(false).is_empty());
    }

    #[test]
    fn the_rate_is_kept_and_used(seed: u64, rate in 1_000..1_000_000_u64) {
        let mut world = World::new(seed, Some(rate));
        let begun = world.now;
        let end = world.ends[0];
        let mut set_out = 0_u64;
        let mut tag = 0;
        for _ in 0..300 {
            while world.schedule.room() > 0 {
                let piece = Piece { tag, from: remote(end, 0), into: local(2048), bytes: 40 };
                world.schedule.queue(piece);
                tag += 1;
            }
            let before: u64 = world.rails.iter().flatten().map(|step| step.bytes).sum();
            world.post();
            let after: u64 = world.rails.iter().flatten().map(|step| step.bytes).sum();
            set_out += after - before;
            // Either all rails are full, or it says when to come again.
            let mut rails = world.rails.iter().zip(&world.ends);
            let full = rails.all(|(rail, of)| *of != end || rail.len() == DEPTH);
            prop_assert!(full || world.schedule.wait().is_some());
            for rail in 0..world.rails.len() {
                while !world.rails[rail].is_empty() {
                    world.carry_out(rail);
                }
            }
            while world.schedule.take_finished().is_some() {}
            let wait = world.schedule.wait().unwrap_or_default();
            let seconds = (world.now - begun).as_secs_f64();
            let given = rate as f64 * seconds;
            let bucket = rate as f64 * 0.02 + CHUNK as f64;
            prop_assert!(set_out as f64 <= given + bucket + 1.0);
            world.now += wait;
        }
    }
}

#[test]
fn a_broken_rails_chunks_go_out_on_the_other_one() {
    let mut schedule = Schedule::new(limits(), Duration::ZERO);
    let (end, _) = schedule.add_endpoint(2);
    schedule.queue(Piece {
        tag: 1,
        from: local(0),
        into: remote(end, 0),
        bytes: 2 * CHUNK,
    });
    let steps: Vec<_> = std::iter::from_fn(|| schedule.next(Duration::ZERO)).collect();
    assert_eq!(steps.len(), 2);
    assert_ne!(steps[0].rail, steps[1].rail, "both rails are used");
    schedule.broke(steps[0].rail);
    assert_eq!(schedule.next(Duration::ZERO), None, "it may still land");
    schedule.gone(steps[0].rail);
    let again = schedule.next(Duration::ZERO).expect("another try");
    assert_eq!(again.rail, steps[1].rail);
    assert_eq!(
        (again.remote, again.local),
        (steps[0].remote, steps[0].local)
    );
}

#[test]
fn copies_to_an_endpoint_that_is_away_hold_up_no_others() {
    let mut schedule = Schedule::new(limits(), Duration::ZERO);
    let (from, _) = schedule.add_endpoint(1);
    let (away, rail) = schedule.add_endpoint(1);
    let (up, _) = schedule.add_endpoint(1);
    schedule.broke(rail);
    for (tag, into) in [(1, away), (2, up)] {
        schedule.queue(Piece {
            tag,
            from: remote(from, 0),
            into: remote(into, 0),
            bytes: CHUNK,
        });
    }
    let read = schedule.next(Duration::ZERO).expect("the second piece");
    assert!(!schedule.completed(read.rail, read.chunk as u64, Ok(())));
    let write = schedule.next(Duration::ZERO).expect("its second half");
    assert!(!schedule.completed(write.rail, write.chunk as u64, Ok(())));
    let finished = schedule.take_finished().expect("arrived");
    assert_eq!((finished.piece.tag, finished.result), (2, Ok(())));
    schedule.gone(rail);
    schedule.up(rail);
    assert!(schedule.next(Duration::ZERO).is_some(), "now the first one");
}

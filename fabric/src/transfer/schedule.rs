//! Which chunk goes out on which rail, and when. Pure: events and `now` in, transfers out.
//!
//! ```text
//!   a piece:  waits at its first endpoint --cut--> chunks --all settled--> finished, once
//!
//!   a chunk:  cut --> READ posted --> [frame filled: waits at its second endpoint] --> WRITE posted --> done
//!              ^          |                          ^                                      |
//!              '---again--+-------------------------'+--------------------------again------+
//!                         '--- tried too often, refused, endpoint lost: its piece fails ---'
//!
//!   a rail:   Up --broke--> Broken --gone: nothing of it can land--> Away --up--> Up
//!                             '------------------------------------------ended--> Ended
//! ```
//!
//! What was posted on a rail that broke stays with it until somebody says that it is gone for good. A
//! piece that fails is cut no further, waits for its chunks that are under way, and gives back what lies
//! behind the first byte that did not arrive. Everything in it is bounded: pieces by `pieces`, chunks by
//! what rails carry and frames hold, tries by `tries`.

use std::collections::VecDeque;
use std::time::Duration;

use super::budget::Budget;
use super::piece::{EndpointIndex, Finished, NotArrived, Piece, Place, Why};
use super::progress::{Progress, RailProgress, RailState};
use crate::transport::{ErrorKind, RemoteSlice, Retry};

/// Pieces that are looked at when the first of an endpoint cannot go on for want of another endpoint.
const LOOK_AHEAD: usize = 16;

/// The bounds of a schedule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of a chunk; the last of a piece is shorter.
    pub(super) chunk_bytes: u64,
    /// Chunks that are under way on a rail.
    pub(super) depth: usize,
    /// Chunks that stand between two endpoints.
    pub(super) frames: usize,
    /// Pieces that are not finished, or whose end was not taken yet.
    pub(super) pieces: usize,
    /// How often a chunk is tried.
    pub(super) tries: u32,
    /// Bytes a second that set out.
    pub(super) rate: Option<u64>,
}

/// Where a transfer's local bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Local {
    /// In a frame of the session.
    Frame(usize),
    /// In the caller's memory.
    Place(Place),
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Read,
    Write,
}

/// A chunk that is to be posted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) rail: usize,
    pub(super) chunk: usize,
    pub(super) way: Way,
    pub(super) local: Local,
    pub(super) remote: RemoteSlice,
    pub(super) bytes: u64,
}

#[derive(Debug)]
struct Cut {
    piece: Piece,
    /// Bytes of it that are cut into chunks.
    next: u64,
    /// Its chunks that are not settled.
    open: u32,
    failed: Option<(Why, EndpointIndex)>,
    /// Where the first byte is that did not arrive, once it has failed.
    missing_from: u64,
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    piece: usize,
    offset: u64,
    bytes: u64,
    frame: Option<usize>,
    way: Way,
    tries: u32,
    /// Set out before: a chunk that is tried again takes from the budget again.
    paid: bool,
    failed: Option<ErrorKind>,
}

#[derive(Debug)]
struct Endpoint {
    lost: Option<Why>,
    rails: Vec<usize>,
    /// Whose rail is looked at first next time.
    turn: usize,
    /// Pieces that begin here and are not all cut.
    pieces: VecDeque<usize>,
    /// Chunks whose next step is here: second halves of copies, and what is tried again.
    ready: VecDeque<usize>,
}

#[derive(Debug)]
struct Rail {
    endpoint: usize,
    state: RailState,
    posted: Vec<usize>,
    bytes: u64,
    breaks: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Schedule {
    limits: Limits,
    budget: Budget,
    wait: Option<Duration>,
    pieces: Vec<Option<Cut>>,
    free_pieces: Vec<usize>,
    chunks: Vec<Option<Chunk>>,
    free_chunks: Vec<usize>,
    free_frames: Vec<usize>,
    endpoints: Vec<Endpoint>,
    rails: Vec<Rail>,
    turn: usize,
    finished: VecDeque<Finished>,
    totals: Progress,
}

impl Schedule {
    pub(super) fn new(limits: Limits, now: Duration) -> Self {
        Self {
            limits,
            budget: Budget::new(limits.rate, limits.chunk_bytes, now),
            wait: None,
            pieces: Vec::new(),
            free_pieces: Vec::new(),
            chunks: Vec::new(),
            free_chunks: Vec::new(),
            free_frames: (0..limits.frames).rev().collect(),
            endpoints: Vec::new(),
            rails: Vec::new(),
            turn: 0,
            finished: VecDeque::new(),
            totals: Progress::default(),
        }
    }

    /// Another endpoint with as many rails, all up; returns the first of them.
    pub(super) fn add_endpoint(&mut self, rails: usize) -> (EndpointIndex, usize) {
        let index = self.endpoints.len();
        let first = self.rails.len();
        self.rails.extend((0..rails).map(|_| Rail {
            endpoint: index,
            state: RailState::Up,
            posted: Vec::with_capacity(self.limits.depth),
            bytes: 0,
            breaks: 0,
        }));
        self.endpoints.push(Endpoint {
            lost: None,
            rails: (first..first + rails).collect(),
            turn: 0,
            pieces: VecDeque::new(),
            ready: VecDeque::new(),
        });
        // Endpoints are added by people and nodes, far less than 2^32 times.
        (EndpointIndex(index as u32), first)
    }

    /// Whether pieces may name it.
    pub(super) fn has_endpoint(&self, endpoint: EndpointIndex) -> bool {
        self.endpoints
            .get(endpoint.0 as usize)
            .is_some_and(|endpoint| endpoint.lost.is_none())
    }

    pub(super) fn set_rate(&mut self, rate: Option<u64>, now: Duration) {
        self.budget.set_rate(rate, now);
    }

    /// How many more pieces [`Self::queue`] takes.
    pub(super) fn room(&self) -> usize {
        let held = self.pieces.len() - self.free_pieces.len() + self.finished.len();
        self.limits.pieces.saturating_sub(held)
    }

    /// Takes a piece that was checked. Its endpoints exist; one that was lost meanwhile fails it at once.
    pub(super) fn queue(&mut self, piece: Piece) {
        self.totals.pieces_queued += 1;
        self.totals.bytes_queued += piece.bytes;
        let lost = [piece.from, piece.into]
            .into_iter()
            .filter_map(Place::endpoint)
            .find_map(|e| self.endpoints[e.0 as usize].lost.map(|why| (why, e)));
        let cut = Cut {
            piece,
            next: 0,
            open: 0,
            failed: lost,
            missing_from: 0,
        };
        let index = match self.free_pieces.pop() {
            Some(index) => index,
            None => {
                self.pieces.push(None);
                self.pieces.len() - 1
            }
        };
        self.pieces[index] = Some(cut);
        if lost.is_some() || piece.bytes == 0 {
            self.finish(index);
            return;
        }
        let first = piece.from.endpoint().or(piece.into.endpoint());
        if let Some(first) = first {
            self.endpoints[first.0 as usize].pieces.push_back(index);
        }
    }

    /// The next chunk to be posted. `None`: nothing can go now; see [`Self::wait`].
    pub(super) fn next(&mut self, now: Duration) -> Option<Step> {
        self.wait = None;
        for nth in 0..self.endpoints.len() {
            let endpoint = (self.turn + nth) % self.endpoints.len();
            if let Some(step) = self.next_of(endpoint, now) {
                self.turn = (endpoint + 1) % self.endpoints.len();
                return Some(step);
            }
        }
        None
    }

    /// In how long the budget gives more, if that is what [`Self::next`] waited for.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.wait
    }

    fn next_of(&mut self, endpoint: usize, now: Duration) -> Option<Step> {
        let rail = self.rail_with_room(endpoint)?;
        let chunk = match self.endpoints[endpoint].ready.front() {
            Some(&chunk) => {
                if !self.pay(chunk, now) {
                    return None;
                }
                self.endpoints[endpoint].ready.pop_front();
                chunk
            }
            None => self.cut(endpoint, now)?,
        };
        let step = self.step(chunk, rail)?;
        let rails = &self.endpoints[endpoint].rails;
        let place = rails.iter().position(|known| *known == rail).unwrap_or(0);
        self.endpoints[endpoint].turn = (place + 1) % rails.len();
        self.rails[rail].posted.push(chunk);
        Some(step)
    }

    /// The rail with the fewest chunks on it; of equals, the one whose turn it is.
    fn rail_with_room(&self, endpoint: usize) -> Option<usize> {
        let endpoint = &self.endpoints[endpoint];
        let count = endpoint.rails.len();
        (0..count)
            .map(|nth| endpoint.rails[(endpoint.turn + nth) % count])
            .filter(|rail| {
                let rail = &self.rails[*rail];
                rail.state == RailState::Up && rail.posted.len() < self.limits.depth
            })
            .min_by_key(|rail| self.rails[*rail].posted.len())
    }

    fn pay(&mut self, chunk: usize, now: Duration) -> bool {
        let Some(chunk) = &mut self.chunks[chunk] else {
            unreachable!("a settled chunk waits")
        };
        if !chunk.paid {
            if let Err(wait) = self.budget.take(chunk.bytes, now) {
                self.wait = Some(self.wait.map_or(wait, |known| known.min(wait)));
                return false;
            }
            chunk.paid = true;
        }
        true
    }

    fn has_rail_up(&self, endpoint: EndpointIndex) -> bool {
        let rails = &self.endpoints[endpoint.0 as usize].rails;
        rails
            .iter()
            .any(|rail| self.rails[*rail].state == RailState::Up)
    }

    /// Cuts a chunk off the first piece of `endpoint` that can go on.
    fn cut(&mut self, endpoint: usize, now: Duration) -> Option<usize> {
        let looked_at = self.endpoints[endpoint].pieces.len().min(LOOK_AHEAD);
        for nth in 0..looked_at {
            let index = self.endpoints[endpoint].pieces[nth];
            let Some(cut) = &self.pieces[index] else {
                unreachable!("a finished piece waits")
            };
            let (piece, offset) = (cut.piece, cut.next);
            let copy = piece.from.endpoint().and(piece.into.endpoint());
            if let Some(second) = copy
                && (self.free_frames.is_empty() || !self.has_rail_up(second))
            {
                continue;
            }
            let bytes = (piece.bytes - offset).min(self.limits.chunk_bytes);
            if let Err(wait) = self.budget.take(bytes, now) {
                self.wait = Some(self.wait.map_or(wait, |known| known.min(wait)));
                return None;
            }
            let chunk = Chunk {
                piece: index,
                offset,
                bytes,
                frame: copy.and_then(|_| self.free_frames.pop()),
                way: match piece.from {
                    Place::Remote { .. } => Way::Read,
                    Place::Local { .. } => Way::Write,
                },
                tries: 0,
                paid: true,
                failed: None,
            };
            if let Some(cut) = &mut self.pieces[index] {
                cut.next += bytes;
                cut.open += 1;
            }
            if offset + bytes == piece.bytes {
                self.endpoints[endpoint].pieces.remove(nth);
            }
            return Some(self.keep(chunk));
        }
        None
    }

    fn keep(&mut self, chunk: Chunk) -> usize {
        match self.free_chunks.pop() {
            Some(index) => {
                self.chunks[index] = Some(chunk);
                index
            }
            None => {
                self.chunks.push(Some(chunk));
                self.chunks.len() - 1
            }
        }
    }

    fn step(&self, index: usize, rail: usize) -> Option<Step> {
        let chunk = self.chunks[index].as_ref()?;
        let piece = self.pieces[chunk.piece].as_ref()?.piece;
        let place = match chunk.way {
            Way::Read => piece.from,
            Way::Write => piece.into,
        };
        let other = match chunk.way {
            Way::Read => piece.into,
            Way::Write => piece.from,
        };
        let Place::Remote { at, .. } = place.behind(chunk.offset)? else {
            return None;
        };
        Some(Step {
            rail,
            chunk: index,
            way: chunk.way,
            local: match chunk.frame {
                Some(frame) => Local::Frame(frame),
                None => Local::Place(other.behind(chunk.offset)?),
            },
            remote: at,
            bytes: chunk.bytes,
        })
    }

    /// A completion came over `rail`. True if the rail is of no use any more: say [`Self::broke`].
    pub(super) fn completed(
        &mut self,
        rail: usize,
        chunk: u64,
        result: Result<(), ErrorKind>,
    ) -> bool {
        let posted = &mut self.rails[rail].posted;
        let Some(at) = posted.iter().position(|known| *known as u64 == chunk) else {
            // Only a provider's fault can do that; taking the rail down harms no bytes.
            return true;
        };
        let index = posted[at];
        let Some(chunk) = &mut self.chunks[index] else {
            unreachable!("a settled chunk is posted")
        };
        if let Err(kind) = result {
            chunk.failed = Some(kind);
            return true;
        }
        posted.swap_remove(at);
        self.rails[rail].bytes += chunk.bytes;
        let second = match (chunk.frame, chunk.way) {
            (Some(_), Way::Read) => self.pieces[chunk.piece]
                .as_ref()
                .and_then(|cut| cut.piece.into.endpoint()),
            _ => None,
        };
        match second {
            None => self.settle(index, true),
            Some(second) => {
                (chunk.way, chunk.tries) = (Way::Write, 0);
                self.wait_at(index, second);
            }
        }
        false
    }

    /// The chunk's next step is at `endpoint`, unless its piece has failed meanwhile.
    fn wait_at(&mut self, index: usize, endpoint: EndpointIndex) {
        let failed = self.chunks[index]
            .as_ref()
            .and_then(|chunk| self.pieces[chunk.piece].as_ref())
            .is_some_and(|cut| cut.failed.is_some());
        if failed {
            self.settle(index, false);
        } else {
            self.endpoints[endpoint.0 as usize].ready.push_back(index);
        }
    }

    /// Its queue pair broke. What it had posted is not touched yet.
    pub(super) fn broke(&mut self, rail: usize) {
        let rail = &mut self.rails[rail];
        if rail.state == RailState::Up {
            rail.state = RailState::Broken;
            rail.breaks += 1;
        }
    }

    /// Nothing of the broken queue pair can touch memory any more, here or there: what it had posted is
    /// tried again, or is given up.
    pub(super) fn gone(&mut self, rail: usize) {
        if self.rails[rail].state != RailState::Ended {
            self.rails[rail].state = RailState::Away;
        }
        let endpoint = EndpointIndex(self.rails[rail].endpoint as u32);
        let posted = std::mem::take(&mut self.rails[rail].posted);
        let mut again = Vec::with_capacity(posted.len());
        for index in posted {
            let Some(chunk) = &mut self.chunks[index] else {
                unreachable!("a settled chunk is posted")
            };
            chunk.tries += 1;
            chunk.paid = false;
            let failed = chunk.failed.take();
            let (piece, tries) = (chunk.piece, chunk.tries);
            let why = match failed {
                Some(ErrorKind::Fenced) => Some(Why::Fenced),
                Some(kind) if kind.retry() == Retry::Never => Some(Why::Refused(kind)),
                _ if tries >= self.limits.tries => Some(Why::TriedTooOften),
                _ => self.endpoints[endpoint.0 as usize].lost,
            };
            match why {
                Some(why) => {
                    // The chunk first: its piece may not be finished while it is open.
                    self.fail(piece, why, endpoint);
                    self.settle(index, false);
                }
                None if self.has_failed(piece) => self.settle(index, false),
                None => again.push(index),
            }
        }
        for index in again {
            // A later one may have failed the piece of an earlier one.
            self.wait_at(index, endpoint);
        }
    }

    /// There is a new queue pair.
    pub(super) fn up(&mut self, rail: usize) {
        if self.rails[rail].posted.is_empty() {
            self.rails[rail].state = RailState::Up;
        }
    }

    /// There will be no other queue pair. What it had posted is settled by [`Self::gone`].
    pub(super) fn ended(&mut self, rail: usize) {
        self.rails[rail].state = RailState::Ended;
    }

    /// Whether a rail of `endpoint` is there, or may come back.
    pub(super) fn has_hope(&self, endpoint: EndpointIndex) -> bool {
        let rails = &self.endpoints[endpoint.0 as usize].rails;
        rails
            .iter()
            .any(|rail| self.rails[*rail].state != RailState::Ended)
    }

    /// The endpoint will take part no more. Chunks that are posted on its rails are settled when these
    /// are gone.
    pub(super) fn lost(&mut self, endpoint: EndpointIndex, why: Why) {
        let index = endpoint.0 as usize;
        if self.endpoints[index].lost.is_some() {
            return;
        }
        self.endpoints[index].lost = Some(why);
        for piece in 0..self.pieces.len() {
            let touched = self.pieces[piece]
                .as_ref()
                .is_some_and(|cut| cut.piece.touches(endpoint));
            if touched {
                self.fail(piece, why, endpoint);
            }
        }
    }

    fn has_failed(&self, piece: usize) -> bool {
        self.pieces[piece]
            .as_ref()
            .is_some_and(|cut| cut.failed.is_some())
    }

    /// Cuts the piece no further, and settles its chunks that only wait.
    fn fail(&mut self, piece: usize, why: Why, endpoint: EndpointIndex) {
        let Some(cut) = &mut self.pieces[piece] else {
            return;
        };
        if cut.failed.is_some() {
            return;
        }
        cut.failed = Some((why, endpoint));
        cut.missing_from = cut.next;
        // Held open until its chunks are looked at.
        cut.open += 1;
        let mut waiting = Vec::new();
        for endpoint in &mut self.endpoints {
            endpoint.pieces.retain(|known| *known != piece);
            endpoint.ready.retain(|index| {
                let of_piece = self.chunks[*index]
                    .as_ref()
                    .is_some_and(|chunk| chunk.piece == piece);
                if of_piece {
                    waiting.push(*index);
                }
                !of_piece
            });
        }
        for index in waiting {
            self.settle(index, false);
        }
        self.close(piece);
    }

    /// The chunk is done with: it arrived, or its piece has failed.
    fn settle(&mut self, index: usize, arrived: bool) {
        let Some(chunk) = self.chunks[index].take() else {
            unreachable!("a chunk is settled twice")
        };
        self.free_chunks.push(index);
        self.free_frames.extend(chunk.frame);
        if arrived {
            self.totals.bytes_done += chunk.bytes;
        } else if let Some(cut) = &mut self.pieces[chunk.piece] {
            cut.missing_from = cut.missing_from.min(chunk.offset);
        }
        self.close(chunk.piece);
    }

    /// One of those that held the piece open does so no more.
    fn close(&mut self, piece: usize) {
        let Some(cut) = &mut self.pieces[piece] else {
            unreachable!("a chunk outlives its piece")
        };
        cut.open -= 1;
        let cut_up = cut.next == cut.piece.bytes || cut.failed.is_some();
        if cut.open == 0 && cut_up {
            self.finish(piece);
        }
    }

    fn finish(&mut self, index: usize) {
        let Some(cut) = self.pieces[index].take() else {
            unreachable!("a piece is finished twice")
        };
        self.free_pieces.push(index);
        let result = match cut.failed {
            None => {
                self.totals.pieces_done += 1;
                Ok(())
            }
            Some((why, endpoint)) => {
                self.totals.pieces_not_arrived += 1;
                let rest = cut.piece.rest(cut.missing_from);
                Err(NotArrived {
                    why,
                    endpoint,
                    rest,
                })
            }
        };
        self.finished.push_back(Finished {
            piece: cut.piece,
            result,
        });
    }

    /// What became of a piece.
    pub(super) fn take_finished(&mut self) -> Option<Finished> {
        self.finished.pop_front()
    }

    /// Whether every piece is finished. The answers may still be there to be taken.
    pub(super) fn is_idle(&self) -> bool {
        self.pieces.len() == self.free_pieces.len()
    }

    pub(super) fn progress(&self) -> Progress {
        let rail = |rail: &Rail| RailProgress {
            endpoint: EndpointIndex(rail.endpoint as u32),
            state: rail.state,
            bytes: rail.bytes,
            in_flight: rail.posted.len() as u32,
            breaks: rail.breaks,
        };
        Progress {
            rails: self.rails.iter().map(rail).collect(),
            ..self.totals.clone()
        }
    }
}

#[cfg(test)]
mod tests;

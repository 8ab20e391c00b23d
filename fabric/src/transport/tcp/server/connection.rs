//! One connection as the serving side sees it: what has come in, what is to go out, how it ends.
//!
//! ```text
//!   Greeting --hello--> Open --refusal or shutdown--> Draining --all sent--> Lingering --+
//!      |                  |                                                              |
//!      |                  +--session ended--> Ending --kernel lets go--> (farewell) -----+
//!      +--malformed, gone, too late ------------------> Closing <------------------------+
//! ```
//!
//! Requests are parsed out of `inbox` in order. A READ becomes an answer whose payload is the pool
//! itself; the payload of a WRITE that did not come with its header is received straight into the pool.
//! Parsing stops while the answers' ring is full, or while a READ that is not sent yet overlaps with a
//! request that changes memory: so order is kept, and a peer that does not read holds up only itself.
//! Answers without a payload wait, up to a bound, as long as the socket has more of the next WRITE.
//!
//! This module decides; the worker talks to the kernel.

use std::convert::Infallible;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::transport::Mapping;
use crate::transport::access::{Access, Keys, Session, SessionNumber};
use crate::transport::tcp::frames::{FrameRing, Payload};
use crate::transport::tcp::message::Direction;
use crate::units::Rkey;
use crate::wire::data::{FRAME_BYTES, Frame, FrameKind, MalformedFrame, Status};
use crate::wire::header::FrameError;

/// Answers that a connection may owe its peer before it is read no further.
const MAX_ANSWERS: usize = 256;
/// WRITEs that are answered together at most: half of what an owner has under way when it saturates, so that
/// it can go on meanwhile.
const ANSWERS_AT_ONCE: usize = 8;
/// Bytes that are received ahead of parsing: 512 requests.
const INBOX_BYTES: usize = 32 << 10;
/// WRITEs longer than this are received straight into the pool; shorter ones come with the requests
/// around them, because copying them costs less than a receive of their own.
const DIRECT_WRITE_BYTES: usize = 8 << 10;
/// Most bytes that are sent at once, so that connections take turns.
const SEND_BYTES: usize = 256 << 10;
/// Most bytes that are received at once, for the same reason.
const RECEIVE_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(super) enum Phase {
    /// Nothing is believed yet.
    Greeting,
    /// Requests are served.
    Open(Session),
    /// Nothing more is taken; what is owed is sent.
    Draining,
    /// The session was ended; the kernel is to give back what it has. The status is the farewell's.
    Ending(Status),
    /// Everything is said; the peer's last bytes are thrown away until it hangs up.
    Lingering,
    /// Only the kernel is waited for.
    Closing,
}

/// The payload of a WRITE on its way into the pool.
#[derive(Clone, Copy, Debug)]
struct Arriving {
    rkey: Rkey,
    offset: usize,
    left: usize,
}

/// Why parsing stopped.
enum Parsed {
    /// More bytes are needed.
    All,
    /// Answers must be sent first.
    Blocked,
    /// The peer broke the protocol.
    Malformed,
}

/// Counters that all workers share.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Sockets that workers hold.
    pub(super) sockets: AtomicUsize,
    /// Of these, the ones in [`Phase::Open`].
    pub(super) open: AtomicUsize,
    /// Of these, the ones in [`Phase::Greeting`].
    pub(super) greeting: AtomicUsize,
}

/// What a connection may look at while it serves.
pub(super) struct Surroundings<'a> {
    pub(super) pool: &'a Mapping,
    pub(super) access: &'a Access,
    pub(super) census: &'a Census,
    pub(super) max_session_connections: usize,
}

/// See the module.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) receive: Direction,
    pub(super) send: Direction,
    pub(super) phase: Phase,
    session: Option<SessionNumber>,
    /// When the peer must have gone on, in the phases that end by themselves.
    pub(super) deadline: Option<Instant>,
    /// Dropped with the connection, or when the kernel has let go of the pool.
    pub(super) waiters: Vec<Sender<Infallible>>,
    /// The last receive left bytes in the socket.
    pub(super) more: bool,
    inbox: Box<[u8]>,
    start: usize,
    end: usize,
    arriving: Option<Arriving>,
    /// WRITEs are coming that are received directly: no more than a header is read ahead.
    direct: bool,
    blocked: bool,
    /// Number of the next request.
    sequence: u64,
    answers: FrameRing,
    /// By answer: the key that its payload was reached with.
    keys: Box<[Rkey]>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, deadline: Instant, census: &Census) -> Self {
        census.sockets.fetch_add(1, Ordering::Relaxed);
        census.greeting.fetch_add(1, Ordering::Relaxed);
        Self {
            stream,
            receive: Direction::new(),
            send: Direction::new(),
            phase: Phase::Greeting,
            session: None,
            deadline: Some(deadline),
            waiters: Vec::new(),
            more: false,
            inbox: vec![0; INBOX_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            arriving: None,
            direct: false,
            blocked: false,
            sequence: 0,
            answers: FrameRing::new(MAX_ANSWERS),
            keys: vec![Rkey::default(); MAX_ANSWERS].into_boxed_slice(),
        }
    }

    /// Goes on to another phase, and keeps the census.
    pub(super) fn enter(&mut self, phase: Phase, census: &Census) {
        match &self.phase {
            Phase::Greeting => {
                census.greeting.fetch_sub(1, Ordering::Relaxed);
            }
            Phase::Open(session) => {
                session.connections.fetch_sub(1, Ordering::Relaxed);
                census.open.fetch_sub(1, Ordering::Release);
            }
            _ => {}
        }
        if matches!(phase, Phase::Open(_)) {
            census.open.fetch_add(1, Ordering::Release);
        }
        self.phase = phase;
    }

    /// Whether it was opened with one of these sessions, also if it is past serving.
    pub(super) fn belongs_to(&self, sessions: &[SessionNumber]) -> bool {
        self.session
            .is_some_and(|session| sessions.contains(&session))
    }

    /// Whether something that is not finished uses the memory behind `rkey`.
    pub(super) fn uses(&self, rkey: Rkey) -> bool {
        self.arriving.is_some_and(|arriving| arriving.rkey == rkey)
            || self
                .owed()
                .any(|number| self.keys[number as usize % MAX_ANSWERS] == rkey)
    }

    /// Answers with a payload that are not sent whole.
    fn owed(&self) -> impl Iterator<Item = u64> {
        (self.answers.done()..self.answers.end())
            .filter(|number| self.answers.payload(*number).len > 0)
    }

    /// Whether the kernel has any of its memory.
    pub(super) fn is_pending(&self) -> bool {
        self.receive.pending || self.send.pending
    }

    pub(super) fn owes_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Whether a frame is sent in part, so that no other may follow.
    pub(super) fn is_inside_an_answer(&self) -> bool {
        self.answers.is_inside_a_frame()
    }

    /// `bytes` of answers were sent.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.answers.advance(bytes);
        self.blocked = false;
    }

    /// `bytes` came in where [`Self::fill_receive`] said.
    pub(super) fn received(&mut self, mut bytes: usize) {
        if let Some(arriving) = &mut self.arriving {
            let direct = bytes.min(arriving.left);
            arriving.offset += direct;
            arriving.left -= direct;
            bytes -= direct;
        }
        self.end += bytes;
    }

    /// Fills the message of what is to be sent. False if there is nothing.
    pub(super) fn fill_send(&mut self) -> bool {
        let sends = matches!(
            self.phase,
            Phase::Greeting | Phase::Open(_) | Phase::Draining
        );
        if !sends || self.answers.is_empty() || self.may_answer_later() {
            return false;
        }
        self.answers.fill(&mut self.send.message, SEND_BYTES);
        true
    }

    /// Whether what is owed says only that something is done, and the rest of another WRITE is in the socket: they
    /// are answered together, because a send takes as long as the copy of some pages.
    fn may_answer_later(&self) -> bool {
        let receives = matches!(self.phase, Phase::Open(_)) && self.more;
        receives
            && self.arriving.is_some()
            && self.answers.len() < ANSWERS_AT_ONCE
            && self.owed().next().is_none()
    }

    /// Fills the message of where the next bytes go. False if none are wanted now.
    pub(super) fn fill_receive(&mut self, pool: &Mapping) -> bool {
        match self.phase {
            Phase::Greeting => {}
            Phase::Open(_) if self.blocked => return false,
            Phase::Open(_) => {}
            Phase::Lingering => {
                self.arriving = None;
                (self.start, self.end) = (0, 0);
            }
            Phase::Draining | Phase::Ending(_) | Phase::Closing => return false,
        }
        let message = &mut self.receive.message;
        message.clear();
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            self.inbox.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if let Some(Arriving { offset, left, .. }) = self.arriving {
            let now = left.min(RECEIVE_BYTES);
            debug_assert!(pool.check(offset, left).is_ok(), "resolved inside the pool");
            message.push(pool.as_ptr().wrapping_add(offset), now);
            if now < left {
                return true;
            }
        }
        let most = if self.direct || matches!(self.phase, Phase::Greeting) {
            // At most the rest of one header.
            FRAME_BYTES.max(self.end)
        } else {
            INBOX_BYTES
        };
        let free = &mut self.inbox[self.end..most];
        message.push(free.as_mut_ptr(), free.len());
        true
    }

    /// Serves what has come in, as far as it goes.
    pub(super) fn serve(&mut self, around: &Surroundings<'_>) {
        let parsed = match &self.phase {
            Phase::Greeting => self.greet(around),
            Phase::Open(_) => self.parse(around),
            _ => return,
        };
        match parsed {
            Parsed::All => self.blocked = false,
            Parsed::Blocked => self.blocked = true,
            Parsed::Malformed => self.enter(Phase::Closing, around.census),
        }
    }

    /// The next header, if it is here whole.
    fn next_header(&self) -> Option<&[u8; FRAME_BYTES]> {
        self.inbox[self.start..self.end].first_chunk()
    }

    fn greet(&mut self, around: &Surroundings<'_>) -> Parsed {
        let Some(header) = self.next_header() else {
            return Parsed::All;
        };
        let mut welcome = Frame::new(FrameKind::Welcome);
        let session = match Frame::decode(header) {
            Ok(hello) if hello.kind == FrameKind::Hello => around
                .access
                .open(&hello.secret(), around.max_session_connections),
            Err(MalformedFrame::Header(FrameError::Version { .. })) => {
                welcome.status = Status::Version;
                None
            }
            _ => return Parsed::Malformed,
        };
        self.start += FRAME_BYTES;
        let phase = match session {
            Some(session) => {
                self.deadline = None;
                self.session = Some(session.number);
                welcome.epoch = session.epoch;
                Phase::Open(session)
            }
            None => {
                if welcome.status == Status::Done {
                    welcome.status = Status::Refused;
                }
                Phase::Draining
            }
        };
        self.answers.push(welcome.encode(), Payload::default());
        self.enter(phase, around.census);
        Parsed::All
    }

    fn parse(&mut self, around: &Surroundings<'_>) -> Parsed {
        let keys = around.access.keys();
        loop {
            if let Some(arriving) = self.arriving {
                self.take_arriving(around.pool, arriving);
                if self.arriving.is_some() {
                    return Parsed::All;
                }
            }
            if self.answers.is_full() {
                return Parsed::Blocked;
            }
            let Some(header) = self.next_header() else {
                return Parsed::All;
            };
            let Ok(frame) = Frame::decode(header) else {
                return Parsed::Malformed;
            };
            match self.carry_out(&frame, &keys, around) {
                Parsed::All => {}
                stopped => return stopped,
            }
            if !matches!(self.phase, Phase::Open(_)) {
                return Parsed::All;
            }
        }
    }

    /// Moves what came with the headers to where it belongs, and answers the WRITE when it is whole.
    fn take_arriving(&mut self, pool: &Mapping, mut arriving: Arriving) {
        let here = (self.end - self.start).min(arriving.left);
        if here > 0 {
            let bytes = &self.inbox[self.start..self.start + here];
            pool.copy_in(arriving.offset, bytes)
                .expect("resolved inside the pool");
            self.start += here;
            arriving.offset += here;
            arriving.left -= here;
        }
        self.arriving = (arriving.left > 0).then_some(arriving);
        if self.arriving.is_none() {
            self.answer(Status::Done, 0, None);
        }
    }

    /// Owes the answer to the request that is being served.
    fn answer(&mut self, status: Status, former: u64, payload: Option<(Rkey, Payload)>) {
        let Phase::Open(session) = &self.phase else {
            return;
        };
        let (rkey, payload) = payload.unwrap_or_default();
        let mut frame = Frame::answer(session.epoch, self.sequence, status);
        frame.first = former;
        frame.payload = payload.len as u32;
        self.keys[self.answers.end() as usize % MAX_ANSWERS] = rkey;
        self.answers.push(frame.encode(), payload);
        self.sequence += 1;
    }

    /// One request; its header is still in the inbox, and stays there if it is blocked.
    fn carry_out(&mut self, frame: &Frame, keys: &Keys<'_>, around: &Surroundings<'_>) -> Parsed {
        let Phase::Open(session) = &self.phase else {
            return Parsed::Malformed;
        };
        let is_request = matches!(
            frame.kind,
            FrameKind::Read | FrameKind::Write | FrameKind::CompareSwap | FrameKind::FetchAdd
        );
        if !is_request || frame.epoch != session.epoch {
            return Parsed::Malformed;
        }
        let len = frame.payload as usize;
        let atomic = matches!(frame.kind, FrameKind::CompareSwap | FrameKind::FetchAdd);
        let place = if len == 0 {
            // Nothing is touched, so nothing is checked.
            Some(0)
        } else if atomic && !frame.addr.get().is_multiple_of(8) {
            None
        } else {
            keys.resolve(session.tenant, frame.rkey, frame.addr, len)
        };
        let Some(offset) = place else {
            self.start += FRAME_BYTES;
            self.answer(Status::Access, 0, None);
            self.enter(Phase::Draining, around.census);
            return Parsed::All;
        };
        let start = around.pool.as_ptr().wrapping_add(offset);
        if frame.kind != FrameKind::Read && self.is_owed(start as u64, len) {
            return Parsed::Blocked;
        }
        self.start += FRAME_BYTES;
        match frame.kind {
            FrameKind::Read => {
                let addr = start as u64;
                let payload = (len > 0).then_some((frame.rkey, Payload { addr, len }));
                self.direct = false;
                self.answer(Status::Done, 0, payload);
            }
            FrameKind::Write => {
                self.direct = len > DIRECT_WRITE_BYTES;
                let arriving = Arriving {
                    rkey: frame.rkey,
                    offset,
                    left: len,
                };
                self.take_arriving(around.pool, arriving);
            }
            _ => {
                let Some(word) = around.pool.word(offset) else {
                    return Parsed::Malformed;
                };
                let former = if frame.kind == FrameKind::FetchAdd {
                    word.fetch_add(frame.first, Ordering::SeqCst)
                } else {
                    word.compare_exchange(
                        frame.first,
                        frame.second,
                        Ordering::SeqCst,
                        Ordering::SeqCst,
                    )
                    .unwrap_or_else(|found| found)
                };
                self.answer(Status::Done, former, None);
            }
        }
        Parsed::All
    }

    /// Whether a READ of any of these bytes is not sent yet.
    fn is_owed(&self, start: u64, len: usize) -> bool {
        self.owed().any(|number| {
            let payload = self.answers.payload(number);
            start < payload.addr + payload.len as u64 && payload.addr < start + len as u64
        })
    }
}

#[cfg(test)]
mod tests;

//! The work requests of a queue pair that have not been given back: what is to be sent, what is to be
//! received, what has been answered, what the owner has yet to hear of.
//!
//! ```text
//!    retired      scanned     answered     sent       posted
//!       v            v           v           v           v
//!  free | silent     | to report | in flight | unsent    | free
//! ```
//!
//! A slot is freed when a signaled completion at or behind it is polled. When the queue pair breaks,
//! the request at `answered` completes with the reason, and everything behind it is flushed. Pure: it
//! decides what an answer means; moving the bytes is the queue pair's.

use std::net::SocketAddr;

use super::frames::{FrameRing, Payload, Step};
use super::message::Message;
use crate::transport::{Completion, ErrorKind, Opcode, Operation, WorkError, WorkId, WorkRequest};
use crate::units::Epoch;
use crate::wire::data::{FRAME_BYTES, Frame, FrameKind, Status};

/// Most bytes that are handed to the kernel for sending at once.
const SEND_BYTES: usize = 1 << 20;
/// Most bytes that the kernel is asked to receive at once.
const RECEIVE_BYTES: usize = 4 << 20;

#[derive(Clone, Copy, Debug)]
struct Slot {
    id: WorkId,
    opcode: Opcode,
    signaled: bool,
    /// Where the former value of an atomic goes.
    addr: u64,
}

/// See the module.
pub(super) struct Window {
    peer: SocketAddr,
    epoch: Epoch,
    depth: usize,
    slots: Box<[Slot]>,
    requests: FrameRing,
    answers: FrameRing,
    retired: u64,
    scanned: u64,
    /// Signaled requests that are answered and not scanned.
    reportable: usize,
    broken: Option<WorkError>,
}

impl Window {
    pub(super) fn new(peer: SocketAddr, epoch: Epoch, depth: usize) -> Self {
        let empty = Slot {
            id: WorkId(0),
            opcode: Opcode::Read,
            signaled: false,
            addr: 0,
        };
        Self {
            peer,
            epoch,
            depth,
            slots: vec![empty; depth.next_power_of_two()].into_boxed_slice(),
            requests: FrameRing::new(depth),
            answers: FrameRing::new(depth),
            retired: 0,
            scanned: 0,
            reportable: 0,
            broken: None,
        }
    }

    fn slot(&self, number: u64) -> usize {
        number as usize & (self.slots.len() - 1)
    }

    fn posted(&self) -> u64 {
        self.requests.end()
    }

    /// Requests that could be pushed now.
    pub(super) fn free(&self) -> usize {
        self.depth - (self.posted() - self.retired) as usize
    }

    /// Whether answers are outstanding.
    pub(super) fn is_waiting(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Whether there is something to send.
    pub(super) fn has_unsent(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Whether [`Self::collect`] would give something.
    pub(super) fn has_reportable(&self) -> bool {
        self.reportable > 0 || (self.broken.is_some() && self.scanned < self.posted())
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(super) fn broken(&self) -> Option<WorkError> {
        self.broken
    }

    /// Takes a checked request; the owner has seen that a slot is free.
    pub(super) fn push(&mut self, request: &WorkRequest) {
        let (local, remote) = (request.local(), request.remote());
        let opcode = request.opcode();
        let number = self.posted();
        let slot = self.slot(number);
        self.slots[slot] = Slot {
            id: request.id,
            opcode,
            signaled: request.signaled,
            addr: local.addr(),
        };
        let (kind, first, second) = match request.operation {
            Operation::Read { .. } => (FrameKind::Read, 0, 0),
            Operation::Write { .. } => (FrameKind::Write, 0, 0),
            Operation::CompareSwap {
                expected, desired, ..
            } => (FrameKind::CompareSwap, expected, desired),
            Operation::FetchAdd { add, .. } => (FrameKind::FetchAdd, add, 0),
        };
        let header = Frame {
            kind,
            status: Status::Done,
            epoch: self.epoch,
            rkey: remote.rkey,
            payload: local.len() as u32,
            addr: remote.addr,
            first,
            second,
        }
        .encode();
        let bytes = Payload {
            addr: local.addr(),
            len: local.len(),
        };
        let (sent, received) = match opcode {
            Opcode::Write => (bytes, Payload::default()),
            Opcode::Read => (Payload::default(), bytes),
            Opcode::CompareSwap | Opcode::FetchAdd => (Payload::default(), Payload::default()),
        };
        self.requests.push(header, sent);
        self.answers.push([0; FRAME_BYTES], received);
    }

    /// What is to be sent next.
    pub(super) fn fill_send(&mut self, message: &mut Message) {
        self.requests.fill(message, SEND_BYTES);
    }

    /// Where the next bytes belong that come in, and how many they may be.
    pub(super) fn fill_receive(&mut self, message: &mut Message) -> usize {
        self.answers.fill(message, RECEIVE_BYTES);
        message.bytes()
    }

    /// `bytes` were sent.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.requests.advance(bytes);
    }

    /// `bytes` came in. `Err` says what they break the queue pair with.
    pub(super) fn received(&mut self, mut bytes: usize) -> Result<(), ErrorKind> {
        while let Some(step) = self.answers.step(&mut bytes) {
            match step {
                Step::Header(number) => self.check(number)?,
                Step::Frame(number) => {
                    let signaled = self.slots[self.slot(number)].signaled;
                    self.reportable += usize::from(signaled);
                }
            }
        }
        Ok(())
    }

    /// Whether the header of answer `number` says that the request was carried out.
    fn check(&self, number: u64) -> Result<(), ErrorKind> {
        let frame = Frame::decode(self.answers.header(number)).map_err(|_| ErrorKind::Protocol)?;
        match (frame.kind, frame.status) {
            (FrameKind::Farewell, Status::Fenced) => return Err(ErrorKind::Fenced),
            (FrameKind::Farewell, _) => return Err(ErrorKind::PeerDisconnected),
            (FrameKind::Answer, Status::Done | Status::Access) => {}
            _ => return Err(ErrorKind::Protocol),
        }
        if frame.addr.get() != number || frame.epoch != self.epoch {
            return Err(ErrorKind::Protocol);
        }
        let asked = self.requests.done();
        match frame.status {
            // A WRITE is refused by its header, while its payload may still be on its way.
            Status::Access if number <= asked => return Err(ErrorKind::RemoteAccess),
            // What is done was asked before, and all of it.
            Status::Done if number < asked => {}
            _ => return Err(ErrorKind::Protocol),
        }
        if frame.payload as usize != self.answers.payload(number).len {
            return Err(ErrorKind::Protocol);
        }
        let Slot { opcode, addr, .. } = self.slots[self.slot(number)];
        if matches!(opcode, Opcode::CompareSwap | Opcode::FetchAdd) {
            let into = addr as *mut u64;
            // SAFETY: 8 aligned bytes of registered memory (checked when it was posted), which stays
            // mapped as long as the queue pair lives.
            unsafe { into.write_volatile(frame.first) };
        }
        Ok(())
    }

    /// Ends it: nothing more is taken, and what is not answered completes with an error.
    pub(super) fn break_with(&mut self, kind: ErrorKind) {
        if self.broken.is_some() {
            return;
        }
        let opcode = if self.is_waiting() {
            self.slots[self.slot(self.answers.done())].opcode
        } else {
            Opcode::Read
        };
        self.broken = Some(WorkError {
            peer: self.peer,
            opcode,
            kind,
        });
    }

    /// Gives completions back, as many as `into` has room for.
    pub(super) fn collect(&mut self, into: &mut Vec<Completion>) -> usize {
        let before = into.len();
        let answered = self.answers.done();
        while into.len() < into.capacity() && self.scanned < self.posted() {
            let number = self.scanned;
            let slot = self.slots[self.slot(number)];
            let result = if number < answered {
                if !slot.signaled {
                    self.scanned += 1;
                    continue;
                }
                self.reportable -= 1;
                Ok(())
            } else if let Some(error) = self.broken {
                let kind = if number == answered {
                    error.kind
                } else {
                    ErrorKind::Flushed
                };
                Err(WorkError {
                    opcode: slot.opcode,
                    kind,
                    ..error
                })
            } else {
                break;
            };
            into.push(Completion {
                id: slot.id,
                opcode: slot.opcode,
                result,
            });
            self.scanned += 1;
            self.retired = self.scanned;
        }
        if self.broken.is_some() && self.scanned == self.posted() {
            self.retired = self.scanned;
        }
        into.len() - before
    }
}

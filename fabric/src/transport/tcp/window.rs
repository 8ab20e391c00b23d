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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::transport::{LocalMemory, Mapping, RemoteSlice};
    use crate::units::{RemoteAddr, Rkey};

    const EPOCH: Epoch = Epoch::new(5);

    struct Scene {
        window: Window,
        memory: LocalMemory,
        message: Message,
    }

    impl Scene {
        fn new() -> Self {
            let memory = Arc::new(Mapping::anonymous(4096).expect("memory"));
            Self {
                window: Window::new(([127, 0, 0, 1], 1).into(), EPOCH, 8),
                memory: LocalMemory::new(memory, 1),
                message: Message::new(),
            }
        }

        fn remote() -> RemoteSlice {
            RemoteSlice {
                addr: RemoteAddr::new(64),
                rkey: Rkey::new(9),
            }
        }

        fn post(&mut self, id: u64, signaled: bool, operation: Operation) {
            self.window.push(&WorkRequest {
                id: WorkId(id),
                operation,
                signaled,
            });
        }

        fn read(&mut self, id: u64, signaled: bool, len: usize) {
            let into = self.memory.slice(0, len).expect("inside");
            let from = Self::remote();
            self.post(id, signaled, Operation::Read { into, from });
        }

        fn send_all(&mut self) {
            while self.window.has_unsent() {
                self.window.fill_send(&mut self.message);
                self.window.sent(self.message.bytes());
            }
        }

        /// The peer says this.
        fn hear(&mut self, bytes: &[u8]) -> Result<(), ErrorKind> {
            self.window.fill_receive(&mut self.message);
            self.message.scatter(bytes);
            self.window.received(bytes.len())
        }

        fn collect(&mut self) -> Vec<(u64, Result<(), ErrorKind>)> {
            let mut completions = Vec::with_capacity(16);
            self.window.collect(&mut completions);
            completions
                .iter()
                .map(|c| (c.id.0, c.result.map_err(|error| error.kind)))
                .collect()
        }
    }

    fn answer(number: u64, change: impl FnOnce(&mut Frame)) -> Vec<u8> {
        let mut frame = Frame::answer(EPOCH, number, Status::Done);
        change(&mut frame);
        let mut bytes = frame.encode().to_vec();
        bytes.resize(FRAME_BYTES + frame.payload as usize, 0x3c);
        bytes
    }

    #[test]
    fn silent_ones_are_freed_by_the_next_signaled_one() {
        let mut scene = Scene::new();
        for id in 0..4 {
            scene.read(id, id == 2, 0);
        }
        scene.send_all();
        for id in 0..4 {
            assert_eq!(scene.hear(&answer(id, |_| {})), Ok(()));
            let expected: &[_] = if id == 2 { &[(2, Ok(()))] } else { &[] };
            assert_eq!(scene.collect(), expected);
            assert_eq!(scene.window.free(), if id < 2 { 4 } else { 7 });
        }
    }

    #[test]
    fn what_is_no_answer_breaks_the_protocol() {
        let protocol = Err(ErrorKind::Protocol);
        let lies: Vec<(&str, Vec<u8>)> = vec![
            ("another request's", answer(1, |_| {})),
            ("another epoch's", answer(0, |f| f.epoch = Epoch::new(6))),
            ("too short", answer(0, |f| f.payload = 8)),
            (
                "refused as a ticket is",
                answer(0, |f| f.status = Status::Refused),
            ),
            ("a request", Frame::new(FrameKind::Read).encode().to_vec()),
            ("noise", vec![0xee; FRAME_BYTES]),
        ];
        for (what, bytes) in lies {
            let mut scene = Scene::new();
            scene.read(0, true, 64);
            scene.send_all();
            assert_eq!(scene.hear(&bytes), protocol, "{what}");
        }
        let mut scene = Scene::new();
        scene.read(0, true, 64);
        let early = answer(0, |f| f.payload = 64);
        assert_eq!(scene.hear(&early), protocol, "answered before it was asked");
        let mut scene = Scene::new();
        assert_eq!(scene.hear(&answer(0, |_| {})), protocol, "unasked");
    }

    #[test]
    fn the_reason_goes_to_the_first_and_the_rest_is_flushed() {
        let mut scene = Scene::new();
        for id in 0..4 {
            scene.read(id, id != 2, 0);
        }
        scene.send_all();
        assert_eq!(scene.hear(&answer(0, |_| {})), Ok(()));
        let refusal = answer(1, |f| f.status = Status::Access);
        let reason = scene.hear(&refusal).expect_err("refused");
        scene.window.break_with(reason);
        scene.window.break_with(ErrorKind::PeerDisconnected);
        assert_eq!(
            scene.collect(),
            [
                (0, Ok(())),
                (1, Err(ErrorKind::RemoteAccess)),
                (2, Err(ErrorKind::Flushed)),
                (3, Err(ErrorKind::Flushed)),
            ]
        );
        assert_eq!(scene.collect(), []);
        assert_eq!(scene.window.free(), 8);
    }

    #[test]
    fn a_farewell_says_why() {
        for (status, kind) in [
            (Status::Fenced, ErrorKind::Fenced),
            (Status::Done, ErrorKind::PeerDisconnected),
        ] {
            for waiting in [false, true] {
                let mut scene = Scene::new();
                if waiting {
                    scene.read(0, true, 64);
                    scene.send_all();
                }
                let mut farewell = Frame::new(FrameKind::Farewell);
                farewell.status = status;
                assert_eq!(scene.hear(&farewell.encode()), Err(kind));
            }
        }
    }

    #[test]
    fn an_atomic_brings_the_former_value() {
        let mut scene = Scene::new();
        let old = scene.memory.slice(8, 8).expect("inside");
        let at = Scene::remote();
        scene.post(3, true, Operation::FetchAdd { old, at, add: 1 });
        scene.send_all();
        assert_eq!(scene.hear(&answer(0, |f| f.first = 41)), Ok(()));
        assert_eq!(scene.collect(), [(3, Ok(()))]);
        let mut word = [0; 8];
        let copied = scene.memory.mapping().copy_out(8, &mut word);
        assert_eq!((copied, u64::from_ne_bytes(word)), (Ok(()), 41));
    }
}

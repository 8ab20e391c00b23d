//! A ring of frames on their way through a socket: which bytes are next, and what is whole already.
//!
//! ```text
//!      done                            end
//!        v                              v
//!   [.. | H P | H P | H | H P | H | ... |        H header, 64 bytes, in the ring
//!         ^^^^^^                                 P payload, in registered memory
//!         moved: bytes of the first frame that are through
//! ```
//!
//! The same ring serves both directions: frames that are to be sent, and, because answers come in
//! order, frames that are expected. Pure: it touches no socket and no payload.

use crate::wire::data::FRAME_BYTES;

use super::message::Message;

/// Bytes behind a header, somewhere in registered memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Payload {
    /// Address in this process.
    pub(super) addr: u64,
    /// How many.
    pub(super) len: usize,
}

/// What became whole as bytes moved; the number is the frame's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The header of this frame is there.
    Header(u64),
    /// All of this frame is through.
    Frame(u64),
}

/// See the module. Frames are numbered from 0, in the order in which they were pushed.
#[derive(Debug)]
pub(super) struct FrameRing {
    headers: Box<[[u8; FRAME_BYTES]]>,
    payloads: Box<[Payload]>,
    mask: u64,
    done: u64,
    moved: usize,
    end: u64,
}

impl FrameRing {
    /// Room for at least `frames` frames.
    pub(super) fn new(frames: usize) -> Self {
        let slots = frames.next_power_of_two();
        Self {
            headers: vec![[0; FRAME_BYTES]; slots].into_boxed_slice(),
            payloads: vec![Payload::default(); slots].into_boxed_slice(),
            mask: slots as u64 - 1,
            done: 0,
            moved: 0,
            end: 0,
        }
    }

    fn slot(&self, number: u64) -> usize {
        (number & self.mask) as usize
    }

    /// Number of the first frame that is not through.
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    /// Number of the next frame that is pushed.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Frames that are not through.
    pub(super) fn len(&self) -> usize {
        (self.end - self.done) as usize
    }

    pub(super) fn is_empty(&self) -> bool {
        self.done == self.end
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() == self.headers.len()
    }

    /// Whether the first frame is through in part.
    pub(super) fn is_inside_a_frame(&self) -> bool {
        self.moved != 0
    }

    /// Adds a frame. Its header is overwritten where frames come in.
    pub(super) fn push(&mut self, header: [u8; FRAME_BYTES], payload: Payload) {
        debug_assert!(!self.is_full(), "the owner counts its slots");
        let slot = self.slot(self.end);
        self.headers[slot] = header;
        self.payloads[slot] = payload;
        self.end += 1;
    }

    /// The header of frame `number`, which is in the ring.
    pub(super) fn header(&self, number: u64) -> &[u8; FRAME_BYTES] {
        &self.headers[self.slot(number)]
    }

    /// The payload of frame `number`, which is in the ring.
    pub(super) fn payload(&self, number: u64) -> Payload {
        self.payloads[self.slot(number)]
    }

    /// Puts what comes next into `message`, as much as fits and at most about `most` bytes. An empty
    /// ring still offers the place of one header, for a peer that speaks unasked.
    pub(super) fn fill(&mut self, message: &mut Message, most: usize) {
        message.clear();
        let mut number = self.done;
        let mut skip = self.moved;
        let mut bytes = 0;
        loop {
            let slot = self.slot(number);
            if skip < FRAME_BYTES {
                let rest = &mut self.headers[slot][skip..];
                if !message.push(rest.as_mut_ptr(), rest.len()) {
                    return;
                }
                bytes += rest.len();
            }
            if number == self.end {
                return;
            }
            let Payload { addr, len } = self.payloads[slot];
            let skipped = skip.saturating_sub(FRAME_BYTES);
            if len > skipped {
                if !message.push((addr as usize + skipped) as *mut u8, len - skipped) {
                    return;
                }
                bytes += len - skipped;
            }
            number += 1;
            skip = 0;
            if number == self.end || bytes >= most {
                return;
            }
        }
    }

    /// Accounts for up to `bytes` more bytes that moved, as far as the next step; `None` when they are
    /// used up.
    pub(super) fn step(&mut self, bytes: &mut usize) -> Option<Step> {
        let inside = self.done != self.end;
        let len = if inside {
            self.payloads[self.slot(self.done)].len
        } else {
            0
        };
        if inside && self.moved == FRAME_BYTES + len {
            self.done += 1;
            self.moved = 0;
            return Some(Step::Frame(self.done - 1));
        }
        if self.moved < FRAME_BYTES {
            let moved = (*bytes).min(FRAME_BYTES - self.moved);
            self.moved += moved;
            *bytes -= moved;
            return (moved != 0 && self.moved == FRAME_BYTES).then_some(Step::Header(self.done));
        }
        if inside {
            let moved = (*bytes).min(FRAME_BYTES + len - self.moved);
            self.moved += moved;
            *bytes -= moved;
            if self.moved == FRAME_BYTES + len {
                return self.step(bytes);
            }
        }
        None
    }

    /// Accounts for `bytes` that were sent.
    pub(super) fn advance(&mut self, mut bytes: usize) {
        while self.step(&mut bytes).is_some() {}
        debug_assert_eq!(bytes, 0, "no more is sent than there was");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_side_by_side_are_one_part() {
        let mut ring = FrameRing::new(8);
        let mut message = Message::new();
        for _ in 0..5 {
            ring.push([0; FRAME_BYTES], Payload::default());
        }
        ring.fill(&mut message, usize::MAX);
        assert_eq!(message.lengths(), [5 * FRAME_BYTES]);
    }

    #[test]
    fn an_empty_ring_offers_a_header() {
        let mut ring = FrameRing::new(2);
        let mut message = Message::new();
        ring.fill(&mut message, usize::MAX);
        assert_eq!(message.lengths(), [FRAME_BYTES]);
        let mut bytes = FRAME_BYTES;
        assert_eq!(ring.step(&mut bytes), Some(Step::Header(0)));
        assert_eq!(ring.step(&mut bytes), None);
    }

    proptest! {
        /// Whatever the cuts, each header and each frame is reported once, in order, and what `fill`
        /// offers is exactly what is still to come.
        #[test]
        fn any_cut_gives_the_same_steps(
            lengths in proptest::collection::vec(0..200_usize, 1..40),
            cuts in proptest::collection::vec(1..300_usize, 1..400),
            least in 1..300_usize,
        ) {
            let mut ring = FrameRing::new(lengths.len());
            let mut message = Message::new();
            // Apart from each other, so that no two payloads are one part by chance.
            for (n, len) in lengths.iter().enumerate() {
                ring.push([0; FRAME_BYTES], Payload { addr: 0x10000 * (n as u64 + 1), len: *len });
            }
            let mut rest: usize = lengths.iter().map(|len| len + FRAME_BYTES).sum();
            let mut steps = Vec::new();
            let mut cuts = cuts.into_iter();
            while rest > 0 {
                ring.fill(&mut message, usize::MAX);
                prop_assert_eq!(message.lengths().iter().sum::<usize>(), rest);
                let mut bytes = cuts.next().unwrap_or(least).min(rest);
                rest -= bytes;
                while let Some(step) = ring.step(&mut bytes) {
                    steps.push(step);
                }
                prop_assert_eq!(bytes, 0);
            }
            let expected: Vec<_> = (0..lengths.len() as u64)
                .flat_map(|n| [Step::Header(n), Step::Frame(n)])
                .collect();
            prop_assert_eq!(steps, expected);
            prop_assert!(ring.is_empty() && !ring.is_inside_a_frame());
        }
    }
}

//! The frames of a TCP data connection: the header of everything, a body of 32 bytes, and a payload.
//!
//! ```text
//! offset bytes field
//!      0    32 header     magic Data; kind = what the frame is, + 256 times its status; the session's
//!                         epoch (0 in a hello); length 32
//!     32     4 rkey
//!     36     4 payload    READ: bytes wanted; WRITE and answers: bytes behind this frame; atomics: 8
//!     40     8 addr       request: place in the peer's memory; answer: number of the request that is
//!                         answered, in its connection, from 0
//!     48     8 first      COMPARE_SWAP: expected; FETCH_ADD: summand; answer to an atomic: former value;
//!                         hello: first half of the ticket
//!     56     8 second     COMPARE_SWAP: desired; hello: second half of the ticket
//!     64       payload
//! ```
//!
//! The header's checksum covers the 64 bytes, not the payload: who owns a page checks the page. Fields
//! that a kind has no use for are zero, and are checked to be. A peer of another version is told so
//! by a welcome in this side's version, which every version can tell apart by its first eight bytes.
//!
//! Pure: bytes in, a [`Frame`] or a [`MalformedFrame`] out. Sockets are others' business.

use super::header::{FrameError, HEADER_BYTES, Header, Magic};
use crate::transport::MAX_TRANSFER_BYTES;
use crate::units::{Epoch, RemoteAddr, Rkey};

/// The version of the data protocol.
pub const DATA_VERSION: u16 = 1;
/// Bytes of a frame without its payload.
pub const FRAME_BYTES: usize = HEADER_BYTES + BODY_BYTES;
const BODY_BYTES: usize = 32;

const RKEY: usize = HEADER_BYTES;
const PAYLOAD: usize = 36;
const ADDR: usize = 40;
const FIRST: usize = 48;
const SECOND: usize = 56;

const _: () = {
    assert!(PAYLOAD == RKEY + size_of::<u32>());
    assert!(ADDR == PAYLOAD + size_of::<u32>());
    assert!(FIRST == ADDR + size_of::<u64>());
    assert!(SECOND == FIRST + size_of::<u64>());
    assert!(FRAME_BYTES == SECOND + size_of::<u64>());
    assert!(FRAME_BYTES == 64, "frames lie side by side in cache lines");
};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// The first frame of a connection, from the compute side: the ticket.
    Hello = 1,
    /// Asks for bytes.
    Read = 2,
    /// Brings bytes.
    Write = 3,
    /// Atomic compare and swap.
    CompareSwap = 4,
    /// Atomic fetch and add.
    FetchAdd = 5,
    /// Answers a hello.
    Welcome = 0x81,
    /// Answers one of the four operations; those of a connection are answered in order.
    Answer = 0x82,
    /// The node ends the connection: the status says why.
    Farewell = 0x83,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Done = 0,
    /// The ticket admits nobody.
    Refused = 1,
    /// Wrong or revoked key, or outside of what it covers.
    Access = 2,
    /// A higher epoch ended the session.
    Fenced = 3,
    /// The node does not speak the version of the hello; the header tells which one it does.
    Version = 4,
}

impl FrameKind {
    fn known(found: u8) -> Option<Self> {
        Some(match found {
            1 => Self::Hello,
            2 => Self::Read,
            3 => Self::Write,
            4 => Self::CompareSwap,
            5 => Self::FetchAdd,
            0x81 => Self::Welcome,
            0x82 => Self::Answer,
            0x83 => Self::Farewell,
            _ => return None,
        })
    }
}

impl Status {
    fn known(found: u8) -> Option<Self> {
        Some(match found {
            0 => Self::Done,
            1 => Self::Refused,
            2 => Self::Access,
            3 => Self::Fenced,
            4 => Self::Version,
            _ => return None,
        })
    }
}

/// Why 64 bytes are not a frame. The connection they came over is at an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedFrame {
    /// The header is not one, is of another version, or does not hold for the body.
    #[error(transparent)]
    Header(#[from] FrameError),
    /// No such kind of frame, or no such status.
    #[error("unknown kind of frame {found:#06x}")]
    Kind {
        /// As received, with the status in the upper byte.
        found: u16,
    },
    /// A body of another size than this version has.
    #[error("a data frame has a body of 32 bytes, not {length}")]
    Length {
        /// As received.
        length: u32,
    },
    /// A field that a frame of this kind does not use is not zero.
    #[error("a {kind:?} frame with a field set that it has no use for")]
    Reserved {
        /// Of which kind.
        kind: FrameKind,
    },
    /// A payload that a frame of this kind cannot have.
    #[error("a {kind:?} frame with {payload} bytes of payload")]
    Payload {
        /// Of which kind.
        kind: FrameKind,
        /// As received.
        payload: u32,
    },
}

/// A frame, its fields in the machine's own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// How it went; [`Status::Done`] in requests.
    pub status: Status,
    /// Epoch of the session; 0 in a hello, which the welcome answers with the ticket's.
    pub epoch: Epoch,
    /// Key of the peer's memory.
    pub rkey: Rkey,
    /// Bytes; see the module's table.
    pub payload: u32,
    /// Place in the peer's memory, or number of the request that is answered.
    pub addr: RemoteAddr,
    /// See the module's table.
    pub first: u64,
    /// See the module's table.
    pub second: u64,
}

impl Frame {
    /// A frame of `kind` with every other field zero.
    #[must_use]
    pub const fn new(kind: FrameKind) -> Self {
        Self {
            kind,
            status: Status::Done,
            epoch: Epoch::new(0),
            rkey: Rkey::new(0),
            payload: 0,
            addr: RemoteAddr::new(0),
            first: 0,
            second: 0,
        }
    }

    /// The hello that shows `secret`.
    #[must_use]
    pub fn hello(secret: [u8; 16]) -> Self {
        let secret = u128::from_le_bytes(secret);
        Self {
            first: secret as u64,
            second: (secret >> 64) as u64,
            ..Self::new(FrameKind::Hello)
        }
    }

    /// The secret in a hello.
    #[must_use]
    pub fn secret(&self) -> [u8; 16] {
        (u128::from(self.second) << 64 | u128::from(self.first)).to_le_bytes()
    }

    /// The answer to request number `sequence`.
    #[must_use]
    pub fn answer(epoch: Epoch, sequence: u64, status: Status) -> Self {
        Self {
            status,
            epoch,
            addr: RemoteAddr::new(sequence),
            ..Self::new(FrameKind::Answer)
        }
    }

    /// As it goes over the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_BYTES] {
        let mut bytes = [0; FRAME_BYTES];
        put(&mut bytes, RKEY, self.rkey.get().to_le_bytes());
        put(&mut bytes, PAYLOAD, self.payload.to_le_bytes());
        put(&mut bytes, ADDR, self.addr.get().to_le_bytes());
        put(&mut bytes, FIRST, self.first.to_le_bytes());
        put(&mut bytes, SECOND, self.second.to_le_bytes());
        let kind = u16::from_le_bytes([self.kind as u8, self.status as u8]);
        let body = &bytes[HEADER_BYTES..];
        let header = Header::seal(Magic::Data, DATA_VERSION, kind, self.epoch, body)
            .expect("32 bytes fit any length field");
        put(&mut bytes, 0, header.encode(Magic::Data));
        bytes
    }

    /// What the bytes say, if they are a frame of this version with nothing wrong in it.
    pub fn decode(bytes: &[u8; FRAME_BYTES]) -> Result<Self, MalformedFrame> {
        let header = Header::decode(&get(bytes, 0), Magic::Data, DATA_VERSION, BODY_BYTES as u32)?;
        if header.length as usize != BODY_BYTES {
            let length = header.length;
            return Err(MalformedFrame::Length { length });
        }
        header.verify(Magic::Data, &bytes[HEADER_BYTES..])?;
        let [kind, status] = header.kind.to_le_bytes();
        let (Some(kind), Some(status)) = (FrameKind::known(kind), Status::known(status)) else {
            return Err(MalformedFrame::Kind { found: header.kind });
        };
        let frame = Self {
            kind,
            status,
            epoch: header.epoch,
            rkey: Rkey::new(u32::from_le_bytes(get(bytes, RKEY))),
            payload: u32::from_le_bytes(get(bytes, PAYLOAD)),
            addr: RemoteAddr::new(u64::from_le_bytes(get(bytes, ADDR))),
            first: u64::from_le_bytes(get(bytes, FIRST)),
            second: u64::from_le_bytes(get(bytes, SECOND)),
        };
        if frame.sets_unused_fields() {
            return Err(MalformedFrame::Reserved { kind });
        }
        let payload = frame.payload;
        let possible = match kind {
            FrameKind::Read | FrameKind::Write | FrameKind::Answer => {
                payload as usize <= MAX_TRANSFER_BYTES
            }
            FrameKind::CompareSwap | FrameKind::FetchAdd => payload == 8,
            FrameKind::Hello | FrameKind::Welcome | FrameKind::Farewell => payload == 0,
        };
        if possible {
            Ok(frame)
        } else {
            Err(MalformedFrame::Payload { kind, payload })
        }
    }

    fn sets_unused_fields(&self) -> bool {
        let status = self.status != Status::Done;
        let (rkey, addr) = (self.rkey.get() != 0, self.addr.get() != 0);
        let (first, second) = (self.first != 0, self.second != 0);
        match self.kind {
            FrameKind::Hello => status || rkey || addr || self.epoch.get() != 0,
            FrameKind::Read | FrameKind::Write => status || first || second,
            FrameKind::CompareSwap => status,
            FrameKind::FetchAdd => status || second,
            FrameKind::Answer => rkey || second,
            FrameKind::Welcome | FrameKind::Farewell => rkey || addr || first || second,
        }
    }
}

fn put<const N: usize>(bytes: &mut [u8; FRAME_BYTES], offset: usize, field: [u8; N]) {
    bytes[offset..offset + N].copy_from_slice(&field);
}

fn get<const N: usize>(bytes: &[u8; FRAME_BYTES], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[offset..offset + N]);
    field
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Frame {
        Frame {
            epoch: Epoch::new(3),
            payload: 4096,
            rkey: Rkey::new(0x0403_0201),
            addr: RemoteAddr::new(0x1122_3344_5566_7788),
            ..Frame::new(FrameKind::Read)
        }
    }

    /// Puts the right checksum on a changed frame, as a peer with other ideas would.
    fn sealed(change: impl FnOnce(&mut Header, &mut [u8])) -> [u8; FRAME_BYTES] {
        let mut bytes = sample().encode();
        let mut header =
            Header::decode(&get(&bytes, 0), Magic::Data, DATA_VERSION, 32).expect("our own header");
        change(&mut header, &mut bytes[HEADER_BYTES..]);
        let body = &bytes[HEADER_BYTES..];
        let header = Header::seal(Magic::Data, header.version, header.kind, header.epoch, body)
            .expect("32 bytes");
        put(&mut bytes, 0, header.encode(Magic::Data));
        bytes
    }

    #[test]
    fn version_1_is_these_bytes() {
        let bytes = sample().encode();
        assert_eq!(&bytes[..8], b"MyCd\x01\x00\x02\x00");
        assert_eq!(bytes[8..16], [3, 0, 0, 0, 0, 0, 0, 0], "epoch");
        assert_eq!(bytes[16..24], [32, 0, 0, 0, 0, 0, 0, 0], "length, reserved");
        assert_eq!(bytes[32..40], [1, 2, 3, 4, 0, 0x10, 0, 0], "rkey, payload");
        assert_eq!(
            bytes[40..48],
            [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11],
            "addr"
        );
        assert_eq!(bytes[48..], [0; 16]);
    }

    #[test]
    fn another_version_is_told_apart_whatever_else_it_changed() {
        for theirs in [0, 2, u16::MAX] {
            let mut bytes = [0xa5; FRAME_BYTES];
            bytes[..4].copy_from_slice(b"MyCd");
            put(&mut bytes, 4, theirs.to_le_bytes());
            let ours = DATA_VERSION;
            assert_eq!(
                Frame::decode(&bytes),
                Err(FrameError::Version { ours, theirs }.into())
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let kind = FrameKind::Read;
        let answer = |change: fn(&mut Header, &mut [u8])| Frame::decode(&sealed(change));
        assert_eq!(answer(|_, _| {}), Ok(sample()));
        assert_eq!(
            answer(|header, _| header.kind = 77),
            Err(MalformedFrame::Kind { found: 77 })
        );
        assert_eq!(
            answer(|header, _| header.kind = 0x6302),
            Err(MalformedFrame::Kind { found: 0x6302 })
        );
        assert_eq!(
            answer(|header, _| header.kind = 0x0102),
            Err(MalformedFrame::Reserved { kind }),
            "a request has no status"
        );
        assert_eq!(
            answer(|_, body| body[16] = 1),
            Err(MalformedFrame::Reserved { kind }),
            "a READ has no operand"
        );
        assert_eq!(
            answer(|_, body| body[7] = 0xff),
            Err(MalformedFrame::Payload {
                kind,
                payload: 0xff00_1000
            })
        );
        let mut bytes = sample().encode();
        bytes[ADDR] ^= 1;
        assert_eq!(Frame::decode(&bytes), Err(FrameError::Checksum.into()));
    }

    #[test]
    fn a_hello_carries_the_secret() {
        let secret = std::array::from_fn(|n| n as u8 + 1);
        let hello = Frame::decode(&Frame::hello(secret).encode());
        assert_eq!(hello.map(|frame| frame.secret()), Ok(secret));
    }

    proptest! {
        #[test]
        fn requests_come_out_as_they_went_in(
            which in 0..3_usize, payload in 0..=16_u32 << 20, rkey: u32, addr: u64,
            epoch: u64, first: u64, second: u64,
        ) {
            let kind = [FrameKind::Read, FrameKind::Write, FrameKind::CompareSwap][which];
            let atomic = kind == FrameKind::CompareSwap;
            let frame = Frame {
                kind,
                status: Status::Done,
                epoch: Epoch::new(epoch),
                rkey: Rkey::new(rkey),
                payload: if atomic { 8 } else { payload },
                addr: RemoteAddr::new(addr),
                first: if atomic { first } else { 0 },
                second: if atomic { second } else { 0 },
            };
            prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }

        #[test]
        fn one_flipped_bit_is_never_taken(bit in 0..512_usize) {
            let mut bytes = sample().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Frame::decode(&bytes).is_err());
        }

        #[test]
        fn any_body_is_answered_without_a_panic(kind: u16, epoch: u64, body: [u8; 32]) {
            let _ = Frame::decode(&sealed(|header, bytes| {
                header.kind = kind;
                header.epoch = Epoch::new(epoch);
                bytes.copy_from_slice(&body);
            }));
        }
    }
}

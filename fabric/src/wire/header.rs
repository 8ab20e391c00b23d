//! The header in front of every frame, of the control channel and of data connections alike.

use twox_hash::XxHash3_64;

use crate::units::Epoch;

/// Bytes of an encoded [`Header`].
pub const HEADER_BYTES: usize = 32;
/// Where the checksum starts; what stands before it is covered by it.
const CHECKSUM_AT: usize = 24;

/// What a connection speaks. The first four bytes of every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Magic {
    /// A memory node's control channel: `MyCc`.
    Control,
    /// A data connection of the tcp transport: `MyCd`.
    Data,
    /// A region's directory, kept by its owner: `MyCr`.
    Directory,
    /// The socket between a program and the agent's daemon on its machine, and the daemon's records of
    /// its clients: `MyCa`.
    Agent,
    /// A record of the control plane's store: `MyCs`.
    Record,
}

impl Magic {
    /// The four bytes.
    #[must_use]
    pub const fn bytes(self) -> [u8; 4] {
        match self {
            Self::Control => *b"MyCc",
            Self::Data => *b"MyCd",
            Self::Directory => *b"MyCr",
            Self::Agent => *b"MyCa",
            Self::Record => *b"MyCs",
        }
    }
}

/// What stands in front of every body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sender's version.
    pub version: u16,
    /// Which message the body is; each protocol numbers its own.
    pub kind: u16,
    /// The sender's epoch; 0 where there is none.
    pub epoch: Epoch,
    /// Bytes of the body.
    pub length: u32,
    /// See the module; checked by [`Self::verify`].
    pub checksum: u64,
}

/// Why a frame is not taken. The connection it came over is at an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The other side speaks something else.
    #[error("the other side does not speak this protocol (first bytes {found:02x?})")]
    Magic {
        /// What came instead.
        found: [u8; 4],
    },
    /// The other side speaks another version.
    #[error("the other side speaks version {theirs} of the protocol, this side version {ours}")]
    Version {
        /// Ours.
        ours: u16,
        /// What came.
        theirs: u16,
    },
    /// Bytes that must be zero are not.
    #[error("reserved bytes of the header are not zero")]
    Reserved,
    /// More bytes than this side ever takes.
    #[error("a body of {length} bytes is announced, at most {limit} are taken")]
    TooLong {
        /// Announced.
        length: u32,
        /// The bound.
        limit: u32,
    },
    /// Header or body were damaged on the way.
    #[error("the checksum does not hold: the frame was damaged")]
    Checksum,
}

impl Header {
    /// The header for `body`, with its checksum. `None` if the body has more than 2^32 - 1 bytes.
    #[must_use]
    pub fn seal(magic: Magic, version: u16, kind: u16, epoch: Epoch, body: &[u8]) -> Option<Self> {
        let mut header = Self {
            version,
            kind,
            epoch,
            length: u32::try_from(body.len()).ok()?,
            checksum: 0,
        };
        header.checksum = header.checksum_of(magic, body);
        Some(header)
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self, magic: Magic) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&magic.bytes());
        bytes[4..6].copy_from_slice(&self.version.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.epoch.get().to_le_bytes());
        bytes[16..20].copy_from_slice(&self.length.to_le_bytes());
        bytes[CHECKSUM_AT..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// Reads a header; `limit` bounds the body that it may announce. The checksum is checked by
    /// [`Self::verify`] when the body is there.
    pub fn decode(
        bytes: &[u8; HEADER_BYTES],
        magic: Magic,
        version: u16,
        limit: u32,
    ) -> Result<Self, FrameError> {
        let [m0, m1, m2, m3, v0, v1, k0, k1, rest @ ..] = *bytes;
        let [
            e @ ..,
            l0,
            l1,
            l2,
            l3,
            r0,
            r1,
            r2,
            r3,
            c0,
            c1,
            c2,
            c3,
            c4,
            c5,
            c6,
            c7,
        ] = rest;
        let found = [m0, m1, m2, m3];
        if found != magic.bytes() {
            return Err(FrameError::Magic { found });
        }
        let theirs = u16::from_le_bytes([v0, v1]);
        if theirs != version {
            return Err(FrameError::Version {
                ours: version,
                theirs,
            });
        }
        if [r0, r1, r2, r3] != [0; 4] {
            return Err(FrameError::Reserved);
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length > limit {
            return Err(FrameError::TooLong { length, limit });
        }
        Ok(Self {
            version: theirs,
            kind: u16::from_le_bytes([k0, k1]),
            epoch: Epoch::new(u64::from_le_bytes(e)),
            length,
            checksum: u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
        })
    }

    /// Whether `body` is what the sender sealed.
    pub fn verify(&self, magic: Magic, body: &[u8]) -> Result<(), FrameError> {
        if body.len() == self.length as usize && self.checksum == self.checksum_of(magic, body) {
            Ok(())
        } else {
            Err(FrameError::Checksum)
        }
    }

    fn checksum_of(&self, magic: Magic, body: &[u8]) -> u64 {
        let head = self.encode(magic);
        XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&head[..CHECKSUM_AT]), body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_is_read_as_it_was_written(
            kind: u16, epoch: u64, body in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let sealed = Header::seal(Magic::Data, 1, kind, Epoch::new(epoch), &body).expect("short body");
            let read = Header::decode(&sealed.encode(Magic::Data), Magic::Data, 1, 300).expect("own header");
            prop_assert_eq!(read, sealed);
            prop_assert_eq!(read.verify(Magic::Data, &body), Ok(()));
        }

        #[test]
        fn a_flipped_bit_anywhere_is_noticed(
            body in proptest::collection::vec(any::<u8>(), 0..300), at: prop::sample::Index, bit in 0..8u8,
        ) {
            let sealed = Header::seal(Magic::Control, 1, 7, Epoch::new(3), &body).expect("short body");
            let mut bytes = sealed.encode(Magic::Control).to_vec();
            bytes.extend_from_slice(&body);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let (head, body) = bytes.split_at(HEADER_BYTES);
            let head: &[u8; HEADER_BYTES] = head.try_into().expect("split there");
            let taken = Header::decode(head, Magic::Control, 1, 300)
                .and_then(|header| header.verify(Magic::Control, body));
            prop_assert!(taken.is_err());
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let header =
            Header::seal(Magic::Control, 2, 1, Epoch::new(0), &[0; 64]).expect("short body");
        let bytes = header.encode(Magic::Control);
        let decode = |bytes, magic, version, limit| Header::decode(bytes, magic, version, limit);
        assert_eq!(
            decode(&bytes, Magic::Data, 2, 64),
            Err(FrameError::Magic { found: *b"MyCc" })
        );
        assert_eq!(
            decode(&bytes, Magic::Control, 1, 64),
            Err(FrameError::Version { ours: 1, theirs: 2 })
        );
        assert_eq!(
            decode(&bytes, Magic::Control, 2, 63),
            Err(FrameError::TooLong {
                length: 64,
                limit: 63
            })
        );
        let mut reserved = bytes;
        reserved[20] = 1;
        assert_eq!(
            decode(&reserved, Magic::Control, 2, 64),
            Err(FrameError::Reserved)
        );
    }
}

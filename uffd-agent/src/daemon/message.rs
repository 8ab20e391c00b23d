//! What program and daemon say to each other: one request, one answer; and notices, unasked. Pure.
//!
//! A message is a packet of a SOCK_SEQPACKET socket: the fabric's frame header, then JSON, at most 16 KiB
//! together. Descriptors travel beside it. The header's `kind` says which of the three it is; its version
//! is [`VERSION`].

use std::fmt;

use mycoram_fabric::units::{ByteCount, Epoch};
use mycoram_fabric::wire::{FrameError, HEADER_BYTES, Header, Magic};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::intake::DescriptorFault;
use crate::{Advice, RegionName, RegionStats};

/// The protocol's version. It is raised when a message changes.
pub const VERSION: u16 = 1;
/// Most bytes of a message, header included.
pub const MAX_MESSAGE_BYTES: usize = 16 << 10;

/// The right to speak for a region: drawn by the daemon, known to its client only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Token(pub(super) [u8; 16]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// Compared in a time that does not tell where they differ.
    pub(super) fn matches(&self, other: &Self) -> bool {
        let differing = self.0.iter().zip(&other.0).fold(0, |d, (a, b)| d | (a ^ b));
        std::hint::black_box(differing) == 0
    }
}

/// A mapping, and what its descriptors are called in the program. The descriptors themselves come along
/// in this order: userfaultfd, memory, then out and into end of each pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mapping {
    /// Where it starts in the program's address space.
    pub(crate) base: u64,
    /// How long it is.
    pub(crate) bytes: ByteCount,
    /// Where it starts in the memory file.
    pub(crate) file_offset: u64,
    /// Numbers of the descriptors.
    pub(crate) held_uffd: i32,
    pub(crate) held_memory: i32,
    pub(crate) held_pipes: Vec<(i32, i32)>,
}

/// What a program asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// First of all.
    Hello {
        /// The program may not make a userfaultfd itself.
        lend_device: bool,
    },
    /// Serve this mapping.
    Attach {
        mapping: Mapping,
        /// Bytes that may be resident.
        local_budget: ByteCount,
        /// Unit of placement.
        extent_bytes: ByteCount,
        /// Threads that serve its faults; 0: the daemon chooses.
        fault_workers: u8,
    },
    /// Serve this mapping on, which an earlier connection or an earlier daemon attached.
    Resume {
        mapping: Mapping,
        name: RegionName,
        token: Token,
    },
    /// What the program knows about its coming accesses.
    Advise {
        first: u32,
        pages: u32,
        advice: Advice,
    },
    /// Write back what is dirty; answered when it is done.
    Flush,
    /// Figures.
    Stats,
    /// Another budget.
    SetBudget { local_budget: ByteCount },
    /// The region is not needed any more.
    End,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// To hello. With a descriptor of /dev/userfaultfd if it was asked for and is lent.
    Welcome {
        /// Bytes that nobody was promised.
        free: ByteCount,
        /// Whether the descriptor comes along.
        device: bool,
    },
    /// To attach and resume.
    Attached { name: RegionName, token: Token },
    /// To the others.
    Done,
    /// To stats.
    Stats(Box<RegionStats>),
    /// To any.
    Refused(Refusal),
}

/// What the daemon says unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Notice {
    /// So many pages are lost, all in all.
    Lost { total: u64 },
    /// Another owner has the region.
    Fenced,
}

/// Memory that a daemon's clients share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// This machine's.
    Local,
    /// The memory nodes'.
    Far,
}

impl Resource {
    /// The option of `myco agent serve` that bounds it.
    #[must_use]
    pub const fn option(self, of_user: bool) -> &'static str {
        match (self, of_user) {
            (Self::Local, false) => "--max-local",
            (Self::Local, true) => "--max-local-per-user",
            (Self::Far, false) => "--max-far",
            (Self::Far, true) => "--max-far-per-user",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local memory",
            Self::Far => "far memory",
        })
    }
}

/// Why the daemon does not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Not one of those who may.
    #[error("the daemon does not serve user {uid}: start it with --allow {uid}")]
    NotAllowed {
        /// Who asked.
        uid: u32,
    },
    /// As many connections as there may be.
    #[error(
        "the daemon serves no more than {limit} clients{} (--max-clients)",
        if *of_user { " of one user" } else { "" }
    )]
    TooManyClients {
        /// The bound.
        limit: usize,
        /// Whether it is a user's.
        of_user: bool,
    },
    /// All clients together have too much.
    #[error(
        "{asked} of {what} was asked for; the daemon has {free} left of {limit} ({})",
        what.option(*of_user)
    )]
    Budget {
        /// Of what.
        what: Resource,
        /// Whether it is the user that has had its share, rather than all users together.
        of_user: bool,
        /// Asked for.
        asked: ByteCount,
        /// What could be had.
        free: ByteCount,
        /// The bound.
        limit: ByteCount,
    },
    /// The other side speaks another version.
    #[error("the daemon speaks version {daemon} of its protocol, the program version {program}")]
    Version {
        /// Of the daemon.
        daemon: u16,
        /// Of the program.
        program: u16,
    },
    /// A message that is none, or at the wrong time.
    #[error("the daemon got a message that it does not understand, or did not expect")]
    Malformed,
    /// A descriptor is not what it should be.
    #[error("the daemon does not take the descriptors")]
    Descriptor(#[source] DescriptorFault),
    /// No such region, or another token.
    #[error("the daemon does not know this region, or it belongs to another process")]
    UnknownRegion,
    /// The region is being taken over just now.
    #[error("the region is being taken over; ask again")]
    Busy,
    /// Nothing can be done with it any more.
    #[error(
        "the region is over: its process has ended, another owner has it, or it fails again and again"
    )]
    Over,
    /// The memory nodes gave none, or are not there.
    #[error("the daemon has no remote memory for it: {words}")]
    Remote {
        /// The whole story, in words.
        words: String,
    },
    /// The engine does not.
    #[error("the daemon could not do it: {words}")]
    Engine {
        /// The whole story, in words.
        words: String,
    },
}

/// An error and all its causes in one line: what can be sent to another process.
pub(super) fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        next = cause.source();
    }
    // A message is bounded; a story may be cut.
    words.chars().take(MAX_WORDS).collect()
}

/// Most letters of words in a refusal; each takes at most 6 bytes in JSON.
const MAX_WORDS: usize = 2000;

/// Which of the three a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Kind {
    Request = 1,
    Reply = 2,
    Notice = 3,
    /// Not sent: what [`super::record`] writes.
    Record = 4,
}

impl Kind {
    fn of(number: u16) -> Option<Self> {
        [Self::Request, Self::Reply, Self::Notice, Self::Record]
            .into_iter()
            .find(|kind| *kind as u16 == number)
    }
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Shorter than a header, or than it says.
    #[error("a message is cut short")]
    Length,
    /// The header or the checksum.
    #[error("a message's frame does not hold")]
    Frame(#[from] FrameError),
    /// A number that means nothing, or a message that does not belong here.
    #[error("a message of a kind that is not expected here")]
    Kind,
    /// The body.
    #[error("a message makes no sense")]
    Body(#[from] serde_json::Error),
}

/// A message as bytes.
pub(super) fn encode<T: Serialize>(kind: Kind, body: &T) -> Result<Vec<u8>, MessageError> {
    let body = serde_json::to_vec(body)?;
    if body.len() > MAX_MESSAGE_BYTES - HEADER_BYTES {
        return Err(MessageError::Length);
    }
    let header = Header::seal(Magic::Agent, VERSION, kind as u16, Epoch::new(0), &body)
        .ok_or(MessageError::Length)?;
    let mut bytes = header.encode(Magic::Agent).to_vec();
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Takes the frame off: the kind and the body that it covers.
pub(super) fn open(bytes: &[u8]) -> Result<(Kind, &[u8]), MessageError> {
    let (header, body) = bytes
        .split_at_checked(HEADER_BYTES)
        .ok_or(MessageError::Length)?;
    let header: &[u8; HEADER_BYTES] = header.try_into().map_err(|_| MessageError::Length)?;
    let limit = (MAX_MESSAGE_BYTES - HEADER_BYTES) as u32;
    let header = Header::decode(header, Magic::Agent, VERSION, limit)?;
    header.verify(Magic::Agent, body)?;
    let kind = Kind::of(header.kind).ok_or(MessageError::Kind)?;
    Ok((kind, body))
}

/// Reads a message of one kind.
pub(super) fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, MessageError> {
    match open(bytes)? {
        (found, body) if found == kind => Ok(serde_json::from_slice(body)?),
        _ => Err(MessageError::Kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> Request {
        Request::Advise {
            first: 3,
            pages: 4,
            advice: Advice::Sequential,
        }
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let bytes = encode(Kind::Request, &request()).expect("short");
        assert_eq!(
            decode::<Request>(Kind::Request, &bytes).expect("own"),
            request()
        );
        assert!(matches!(
            decode::<Request>(Kind::Reply, &bytes),
            Err(MessageError::Kind)
        ));
        let refused = Reply::Refused(Refusal::Descriptor(DescriptorFault::NotUserfault));
        let bytes = encode(Kind::Reply, &refused).expect("short");
        assert_eq!(decode::<Reply>(Kind::Reply, &bytes).expect("own"), refused);
    }

    #[test]
    fn another_version_is_named() {
        let body = serde_json::to_vec(&request()).expect("json");
        let header = Header::seal(Magic::Agent, 9, 1, Epoch::new(0), &body).expect("short");
        let mut bytes = header.encode(Magic::Agent).to_vec();
        bytes.extend_from_slice(&body);
        assert!(matches!(
            decode::<Request>(Kind::Request, &bytes),
            Err(MessageError::Frame(FrameError::Version { theirs: 9, .. }))
        ));
    }

    #[test]
    fn what_is_too_long_is_not_sent() {
        let long = "x".repeat(MAX_MESSAGE_BYTES);
        assert!(matches!(
            encode(Kind::Request, &long),
            Err(MessageError::Length)
        ));
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_nothing_else(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode::<Request>(Kind::Request, &bytes).is_err());
        }

        #[test]
        fn a_flipped_bit_is_noticed(at: prop::sample::Index, bit in 0..8_u8) {
            let mut bytes = encode(Kind::Request, &request()).expect("short");
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode::<Request>(Kind::Request, &bytes).is_err());
        }

        #[test]
        fn a_sealed_body_may_still_be_nonsense(body in "\\PC{0,200}") {
            let header = Header::seal(Magic::Agent, VERSION, 1, Epoch::new(0), body.as_bytes())
                .expect("short");
            let mut bytes = header.encode(Magic::Agent).to_vec();
            bytes.extend_from_slice(body.as_bytes());
            let _ = decode::<Request>(Kind::Request, &bytes);
        }
    }
}

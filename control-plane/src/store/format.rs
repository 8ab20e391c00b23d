//! How keys and records stand in a store.
//!
//! ```text
//!   key     1 Cluster | 2 Node id(u16) | 3 Region id(u64) | 4 Extents region(u64) chunk(u32) | 5 Reservation
//!           big-endian, so that they sort
//!   value   the header of `fabric::wire` (magic MyCs, version, kind, length, checksum), then
//!           JSON, or for extents, packed:
//!             per extent    1 byte   bits 0-3 replicas, bit 4 lost, others zero
//!             per replica   2 bytes  bits 0-13 node, bits 14-15 live | copying | stale | dropping
//!                           8 bytes  the order, of copying ones only
//! ```
//!
//! Another version is refused by its number: there has been only this one.

use mycoram_fabric::units::{Epoch, RegionId};
use mycoram_fabric::wire::{FrameError, HEADER_BYTES, Header, Magic};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cluster::{
    CHUNK_EXTENTS, Chunk, Homes, Key, MAX_NODES, MAX_RECORDED_REPLICAS, NodeId, OrderId, Record,
    Replica, ReplicaState, ReservationId,
};

/// Version of keys and records.
pub const FORMAT_VERSION: u16 = 1;
/// Longest record that is read: 1 MiB.
const MAX_BYTES: u32 = 1 << 20;

const CLUSTER: u8 = 1;
const NODE: u8 = 2;
const REGION: u8 = 3;
const EXTENTS: u8 = 4;
const RESERVATION: u8 = 5;

const COUNT_MASK: u8 = 0x0f;
const LOST: u8 = 0x10;
const NODE_MASK: u16 = 0x3fff;
const STATE_SHIFT: u32 = 14;

const _: () =
    assert!(MAX_NODES <= NODE_MASK as usize + 1 && MAX_RECORDED_REPLICAS <= COUNT_MASK as usize);

/// Why bytes are no record.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The key.
    #[error("{bytes:02x?} is no key")]
    Key {
        /// What stands there.
        bytes: Vec<u8>,
    },
    /// Magic, version or checksum.
    #[error("the record of {key:?} is damaged, or of another version")]
    Frame {
        /// Whose.
        key: Key,
        /// What is wrong.
        #[source]
        source: FrameError,
    },
    /// What stands in a store beside records.
    #[error("the {which} in the store is damaged, or of another version")]
    Note {
        /// What it is.
        which: &'static str,
    },
    /// JSON that is none, or says something else.
    #[error("the record of {key:?} makes no sense")]
    Json {
        /// Whose.
        key: Key,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Its length, its kind, or what is packed in it.
    #[error("the record of {key:?} makes no sense")]
    Body {
        /// Whose.
        key: Key,
        /// What is wrong.
        #[source]
        source: Malformed,
    },
}

/// What is wrong with a record's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter or longer than it says.
    #[error("it is cut short, or something follows it")]
    Length,
    /// The kind of another key.
    #[error("it is of kind {kind}")]
    Kind {
        /// What stands there.
        kind: u16,
    },
    /// Bits that must be zero are not.
    #[error("reserved bits are not zero")]
    Reserved,
    /// More extents than a record has.
    #[error("it has more than {CHUNK_EXTENTS} extents")]
    TooMany,
    /// The same node twice in an extent.
    #[error("an extent has two replicas on one node")]
    Twice,
}

/// A key's bytes.
pub(super) fn encode_key(key: Key) -> Vec<u8> {
    match key {
        Key::Cluster => vec![CLUSTER],
        Key::Node(id) => [&[NODE][..], &id.get().to_be_bytes()].concat(),
        Key::Region(id) => [&[REGION][..], &id.get().to_be_bytes()].concat(),
        Key::Extents(id, chunk) => {
            let (id, chunk) = (id.get().to_be_bytes(), chunk.to_be_bytes());
            [&[EXTENTS][..], &id, &chunk].concat()
        }
        Key::Reservation(id) => [&[RESERVATION][..], &id.get().to_be_bytes()].concat(),
    }
}

/// The key of bytes.
pub(super) fn decode_key(bytes: &[u8]) -> Result<Key, FormatError> {
    let wrong = || FormatError::Key {
        bytes: bytes.to_vec(),
    };
    let (kind, rest) = bytes.split_first().ok_or_else(wrong)?;
    let long = || rest.try_into().map(u64::from_be_bytes).map_err(|_| wrong());
    match *kind {
        CLUSTER if rest.is_empty() => Ok(Key::Cluster),
        NODE => {
            let id = rest.try_into().map_err(|_| wrong())?;
            Ok(Key::Node(NodeId::new(u16::from_be_bytes(id))))
        }
        REGION => Ok(Key::Region(RegionId::new(long()?))),
        EXTENTS => {
            let (id, chunk) = rest.split_first_chunk::<8>().ok_or_else(wrong)?;
            let chunk = chunk.try_into().map_err(|_| wrong())?;
            let id = RegionId::new(u64::from_be_bytes(*id));
            Ok(Key::Extents(id, u32::from_be_bytes(chunk)))
        }
        RESERVATION => Ok(Key::Reservation(ReservationId::new(long()?))),
        _ => Err(wrong()),
    }
}

fn kind_of(key: Key) -> u16 {
    u16::from(match key {
        Key::Cluster => CLUSTER,
        Key::Node(_) => NODE,
        Key::Region(_) => REGION,
        Key::Extents(..) => EXTENTS,
        Key::Reservation(_) => RESERVATION,
    })
}

/// A record's bytes.
pub(super) fn encode(key: Key, record: &Record) -> Vec<u8> {
    let body = match record {
        Record::Cluster(record) => json(record),
        Record::Node(record) => json(record),
        Record::Region(record) => json(record),
        Record::Extents(chunk) => pack(chunk),
        Record::Reservation(record) => json(record),
    };
    let none = Epoch::new(0);
    let header = Header::seal(Magic::Record, FORMAT_VERSION, kind_of(key), none, &body)
        .expect("a record is bounded by the lengths of its names and lists");
    let mut bytes = header.encode(Magic::Record).to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

/// The record of bytes.
pub(super) fn decode(key: Key, bytes: &[u8]) -> Result<Record, FormatError> {
    let malformed = |source| FormatError::Body { key, source };
    let frame = |source| FormatError::Frame { key, source };
    let (head, body) = bytes
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or_else(|| malformed(Malformed::Length))?;
    let header = Header::decode(head, Magic::Record, FORMAT_VERSION, MAX_BYTES).map_err(frame)?;
    if header.length as usize != body.len() {
        return Err(malformed(Malformed::Length));
    }
    header.verify(Magic::Record, body).map_err(frame)?;
    if header.kind != kind_of(key) {
        return Err(malformed(Malformed::Kind { kind: header.kind }));
    }
    match key {
        Key::Cluster => parse(key, body).map(Record::Cluster),
        Key::Node(_) => parse(key, body).map(Record::Node),
        Key::Region(_) => parse(key, body).map(Record::Region),
        Key::Extents(..) => unpack(body).map(Record::Extents).map_err(malformed),
        Key::Reservation(_) => parse(key, body).map(Record::Reservation),
    }
}

fn json<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have no maps, and are written to memory")
}

fn parse<T: DeserializeOwned>(key: Key, body: &[u8]) -> Result<T, FormatError> {
    serde_json::from_slice(body).map_err(|source| FormatError::Json { key, source })
}

fn pack(chunk: &Chunk) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(chunk.extents.len() * 5);
    for homes in &chunk.extents {
        let count = homes.replicas.len().min(MAX_RECORDED_REPLICAS);
        let head = u8::try_from(count).unwrap_or(COUNT_MASK);
        bytes.push(head | if homes.lost { LOST } else { 0 });
        for replica in &homes.replicas[..count] {
            let (state, order) = match replica.state {
                ReplicaState::Live => (0, None),
                ReplicaState::Copying { order } => (1, Some(order)),
                ReplicaState::Stale => (2, None),
                ReplicaState::Dropping => (3u16, None),
            };
            let packed = (replica.node.get() & NODE_MASK) | (state << STATE_SHIFT);
            bytes.extend_from_slice(&packed.to_le_bytes());
            if let Some(order) = order {
                bytes.extend_from_slice(&order.get().to_le_bytes());
            }
        }
    }
    bytes
}

fn unpack(mut body: &[u8]) -> Result<Chunk, Malformed> {
    let mut chunk = Chunk::default();
    while let Some((head, rest)) = body.split_first() {
        body = rest;
        if head & !(COUNT_MASK | LOST) != 0 {
            return Err(Malformed::Reserved);
        }
        if chunk.extents.len() == CHUNK_EXTENTS as usize {
            return Err(Malformed::TooMany);
        }
        let count = usize::from(head & COUNT_MASK);
        let mut homes = Homes {
            replicas: Vec::with_capacity(count),
            lost: head & LOST != 0,
        };
        for _ in 0..count {
            let packed = u16::from_le_bytes(take(&mut body)?);
            let state = match packed >> STATE_SHIFT {
                0 => ReplicaState::Live,
                1 => ReplicaState::Copying {
                    order: OrderId::new(u64::from_le_bytes(take(&mut body)?)),
                },
                2 => ReplicaState::Stale,
                _ => ReplicaState::Dropping,
            };
            let node = NodeId::new(packed & NODE_MASK);
            if homes.on(node).is_some() {
                return Err(Malformed::Twice);
            }
            homes.replicas.push(Replica { node, state });
        }
        chunk.extents.push(homes);
    }
    Ok(chunk)
}

fn take<const N: usize>(body: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (taken, rest) = body.split_first_chunk::<N>().ok_or(Malformed::Length)?;
    *body = rest;
    Ok(*taken)
}

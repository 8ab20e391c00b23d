//! What stands in etcd, and under which keys.
//!
//! ```text
//!   PREFIX/leader              where the leader is reached; goes with its lease. Its create revision is the guard
//!   PREFIX/process/LEASE       where a process is reached; goes with its lease
//!   PREFIX/record/KEY          records, as in every other store
//!   PREFIX/state               revision u64 | guard i64 | attempt u64 | parts u32     (little-endian)
//!   PREFIX/part/GUARD,ATTEMPT,NUMBER    changes of a batch that does not fit in one transaction
//! ```
//!
//! Guard and attempt make each state unlike every other, so that who does not know whether his own commit was
//! done can tell it from everybody else's. `parts` other than 0: the changes in those parts are committed; not
//! all may stand in the records yet.

use std::collections::BTreeMap;

use mycoram_fabric::units::Epoch;
use mycoram_fabric::wire::{HEADER_BYTES, Header, Magic};

use crate::store::format::{FORMAT_VERSION, FormatError};

const STATE: u16 = 0x100;
const PART: u16 = 0x101;
/// A part is closed when it has so many bytes. With the largest record behind it, it is still less than etcd's
/// limit of a request, 1.5 MiB.
const PART_BYTES: usize = 384 << 10;
/// Longest part that is read.
const MAX_PART_BYTES: u32 = 1_500 << 10;

/// A key and its new value; `None`: it is removed.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);

/// How often the records were written, and by whom the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) revision: u64,
    pub(super) guard: i64,
    pub(super) attempt: u64,
    pub(super) parts: u32,
}

/// Names keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: Vec<u8>,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: format!("{prefix}/").into_bytes(),
        }
    }

    fn name(&self, rest: &[u8]) -> Vec<u8> {
        [&self.prefix, rest].concat()
    }

    pub(super) fn all(&self) -> Vec<u8> {
        self.prefix.clone()
    }

    pub(super) fn leader(&self) -> Vec<u8> {
        self.name(b"leader")
    }

    pub(super) fn processes(&self) -> Vec<u8> {
        self.name(b"process/")
    }

    pub(super) fn process(&self, lease: i64) -> Vec<u8> {
        self.name(format!("process/{lease:016x}").as_bytes())
    }

    pub(super) fn state(&self) -> Vec<u8> {
        self.name(b"state")
    }

    pub(super) fn records(&self) -> Vec<u8> {
        self.name(b"record/")
    }

    pub(super) fn record(&self, key: &[u8]) -> Vec<u8> {
        [&self.records(), key].concat()
    }

    pub(super) fn parts(&self) -> Vec<u8> {
        self.name(b"part/")
    }

    pub(super) fn part(&self, state: State, number: u32) -> Vec<u8> {
        let mut key = self.parts();
        key.extend_from_slice(&state.guard.to_be_bytes());
        key.extend_from_slice(&state.attempt.to_be_bytes());
        key.extend_from_slice(&number.to_be_bytes());
        key
    }
}

/// The end of the range of all keys that begin with `prefix`, whose last byte is not 255.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn seal(kind: u16, body: &[u8]) -> Vec<u8> {
    let header = Header::seal(Magic::Record, FORMAT_VERSION, kind, Epoch::new(0), body)
        .expect("a part is bounded");
    [&header.encode(Magic::Record)[..], body].concat()
}

fn open(kind: u16, bytes: &[u8]) -> Option<&[u8]> {
    let (head, body) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let header = Header::decode(head, Magic::Record, FORMAT_VERSION, MAX_PART_BYTES).ok()?;
    header.verify(Magic::Record, body).ok()?;
    (header.kind == kind && header.length as usize == body.len()).then_some(body)
}

impl State {
    pub(super) fn encode(self) -> Vec<u8> {
        let body = [
            &self.revision.to_le_bytes()[..],
            &self.guard.to_le_bytes(),
            &self.attempt.to_le_bytes(),
            &self.parts.to_le_bytes(),
        ];
        seal(STATE, &body.concat())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let read = || {
            let mut body = open(STATE, bytes)?;
            let state = Self {
                revision: u64::from_le_bytes(take(&mut body)?),
                guard: i64::from_le_bytes(take(&mut body)?),
                attempt: u64::from_le_bytes(take(&mut body)?),
                parts: u32::from_le_bytes(take(&mut body)?),
            };
            body.is_empty().then_some(state)
        };
        read().ok_or(FormatError::Note { which: "state" })
    }
}

/// Changes as parts, each of them less than a request may have.
pub(super) fn pack(changes: &[Change]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut body = Vec::new();
    for (key, value) in changes {
        body.extend_from_slice(&length(key).to_le_bytes());
        body.extend_from_slice(key);
        body.push(u8::from(value.is_some()));
        if let Some(value) = value {
            body.extend_from_slice(&length(value).to_le_bytes());
            body.extend_from_slice(value);
        }
        if body.len() >= PART_BYTES {
            parts.push(seal(PART, &std::mem::take(&mut body)));
        }
    }
    if !body.is_empty() {
        parts.push(seal(PART, &body));
    }
    parts
}

/// The changes of a part.
pub(super) fn unpack(bytes: &[u8]) -> Result<Vec<Change>, FormatError> {
    let read = || {
        let mut body = open(PART, bytes)?;
        let mut changes = Vec::new();
        while !body.is_empty() {
            let key = run(&mut body)?.to_vec();
            let value = match take::<1>(&mut body)? {
                [0] => None,
                [1] => Some(run(&mut body)?.to_vec()),
                _ => return None,
            };
            changes.push((key, value));
        }
        Some(changes)
    };
    read().ok_or(FormatError::Note { which: "part" })
}

/// Does changes to values.
pub(super) fn overlay(values: &mut BTreeMap<Vec<u8>, Vec<u8>>, changes: Vec<Change>) {
    for (key, value) in changes {
        match value {
            Some(value) => values.insert(key, value),
            None => values.remove(&key),
        };
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("keys and records are bounded")
}

fn take<const N: usize>(body: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = body.split_first_chunk::<N>()?;
    *body = rest;
    Some(*taken)
}

fn run<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_le_bytes(take(body)?) as usize;
    let (run, rest) = body.split_at_checked(length)?;
    *body = rest;
    Some(run)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change() -> impl Strategy<Value = Change> {
        let bytes = |most| proptest::collection::vec(any::<u8>(), 0..most);
        (bytes(20), proptest::option::of(bytes(90_000)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn changes_are_read_as_they_were_packed(changes in proptest::collection::vec(change(), 0..30)) {
            let parts = pack(&changes);
            prop_assert!(parts.iter().all(|part| part.len() < PART_BYTES + 100_000));
            let mut read = Vec::new();
            for part in parts {
                read.extend(unpack(&part).expect("its own"));
            }
            prop_assert_eq!(read, changes);
        }

        #[test]
        fn damage_is_noticed(at: prop::sample::Index, bit in 0..8u8) {
            let state = State { revision: 7, guard: -3, attempt: 9, parts: 2 };
            prop_assert_eq!(State::decode(&state.encode()).expect("its own"), state);
            let mut bytes = state.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(State::decode(&bytes).is_err());
        }
    }

    #[test]
    fn keys_of_a_kind_are_in_their_range() {
        let keys = Keys::new("c");
        let state = State::default();
        for (of, key) in [
            (keys.records(), keys.record(&[2, 0, 1])),
            (keys.records(), keys.record(&[255; 12])),
            (keys.parts(), keys.part(state, u32::MAX)),
            (keys.processes(), keys.process(-1)),
            (keys.all(), keys.state()),
            (keys.all(), keys.leader()),
        ] {
            assert!(of < key && key < end_of(&of), "{of:?} {key:?}");
        }
        assert!(keys.leader() > end_of(&Keys::new("b").all()));
    }
}

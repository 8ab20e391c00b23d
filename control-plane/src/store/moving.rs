//! Moving a cluster from one store to another, while no control plane works with either.
//!
//! ```text
//!   former store --lead, load--> all records --one commit--> new store, empty --load--> the same?
//! ```
//!
//! The one commit is all or nothing, so whoever is killed in the middle does it again: a new store that holds the
//! same already is as good as an empty one. That the former store is not used again is the caller's to see to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::format::{encode, encode_key};
use super::{Lead, Loaded, Store, StoreError};
use crate::cluster::Batch;

const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Who leads meanwhile, as others are told.
const NAME: &str = "a move to another store";

/// Why nothing was moved. The former store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// A control plane serves from it.
    #[error("a control plane at {leader} works with the {which} store")]
    Served {
        /// `former` or `new`.
        which: &'static str,
        /// Where it is reached.
        leader: String,
    },
    /// There is nothing in the former store.
    #[error("the former store holds no cluster")]
    Nothing,
    /// There is something else in the new store.
    #[error("the new store holds {records} records of another cluster, or of another time")]
    Taken {
        /// How many.
        records: usize,
    },
    /// What was written is not what is read.
    #[error("the new store does not give back what was written to it")]
    Differs,
    /// A store failed.
    #[error("the {which} store cannot be used")]
    Store {
        /// `former` or `new`.
        which: &'static str,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// Copies all records; how many. Afterwards the new store is to be used, and the former one is not. `patience`: how
/// long another may lead yet, longer than the lease of one that was killed.
pub fn copy_all(
    former: &mut dyn Store,
    new: &mut dyn Store,
    patience: Duration,
) -> Result<usize, MoveError> {
    let (of_former, of_new) = (failed("former"), failed("new"));
    take(former, "former", patience)?;
    let all = former.load().map_err(of_former)?;
    if all.records.is_empty() {
        return Err(MoveError::Nothing);
    }
    take(new, "new", patience)?;
    let there = new.load().map_err(of_new)?;
    if bytes_of(&there) == bytes_of(&all) {
        return Ok(all.records.len());
    }
    if !there.records.is_empty() {
        let records = there.records.len();
        return Err(MoveError::Taken { records });
    }
    let changes = all.records.iter().cloned();
    let batch = Batch {
        changes: changes.map(|(key, record)| (key, Some(record))).collect(),
    };
    let at = new.commit(there.revision, &batch).map_err(of_new)?;
    new.confirm(at).map_err(of_new)?;
    let written = new.load().map_err(of_new)?;
    if bytes_of(&written) != bytes_of(&all) {
        return Err(MoveError::Differs);
    }
    // Nobody wrote to it meanwhile.
    former.confirm(all.revision).map_err(of_former)?;
    Ok(all.records.len())
}

fn failed(which: &'static str) -> impl Fn(StoreError) -> MoveError + Copy {
    move |source| MoveError::Store { which, source }
}

/// Leads, so that no control plane does.
fn take(store: &mut dyn Store, which: &'static str, patience: Duration) -> Result<(), MoveError> {
    let until = Instant::now() + patience;
    loop {
        let answer = match store.lead(NAME) {
            Ok(Lead::Ours { .. }) => return Ok(()),
            Ok(Lead::Theirs(leader)) => MoveError::Served { which, leader },
            Ok(Lead::Nobodys) => MoveError::Served {
                which,
                leader: "an address that it has not told".to_owned(),
            },
            Err(error) => failed(which)(error),
        };
        if Instant::now() > until {
            return Err(answer);
        }
        std::thread::sleep(ASK_AGAIN);
    }
}

/// As it is stored: the same bytes in every store.
fn bytes_of(loaded: &Loaded) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let records = loaded.records.iter();
    records
        .map(|(key, record)| (encode_key(*key), encode(*key, record)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{some_records, sorted};
    use super::super::{Disk, Fault, MemoryStore, Revision};
    use super::*;

    fn filled() -> MemoryStore {
        let mut store = MemoryStore::new(Disk::default());
        let changes = some_records().into_iter();
        let batch = Batch {
            changes: changes.map(|(key, record)| (key, Some(record))).collect(),
        };
        store.commit(Revision::default(), &batch).expect("room");
        store
    }

    #[test]
    fn a_move_that_was_broken_off_is_done_again() {
        for fault in [Fault::None, Fault::Full, Fault::LoseNext, Fault::KeepNext] {
            let mut former = filled();
            let disk = Disk::default();
            disk.set_fault(fault);
            let first = copy_all(
                &mut former,
                &mut MemoryStore::shared(disk.clone()),
                Duration::ZERO,
            );
            assert_eq!(first.is_ok(), fault == Fault::None, "{fault:?}: {first:?}");
            disk.set_fault(Fault::None);
            // The lease of the first try is over.
            disk.set_time(60_000);
            let mut new = MemoryStore::shared(disk.clone());
            let moved = copy_all(&mut former, &mut new, Duration::ZERO);
            assert_eq!(moved.expect("moved"), some_records().len());
            let there = sorted(disk.read().expect("readable"));
            assert_eq!(there, sorted(former.load().expect("readable")));
        }
    }

    #[test]
    fn nothing_is_moved_from_an_empty_store_or_onto_another_cluster_or_beside_a_control_plane() {
        let empty = &mut MemoryStore::new(Disk::default());
        let moved = copy_all(empty, &mut filled(), Duration::ZERO);
        assert!(matches!(moved, Err(MoveError::Nothing)), "{moved:?}");

        let mut other = filled();
        let (key, _) = some_records()[1];
        let batch = Batch {
            changes: vec![(key, None)],
        };
        other.commit(Revision::new(1), &batch).expect("room");
        let moved = copy_all(&mut filled(), &mut other, Duration::ZERO);
        assert!(
            matches!(moved, Err(MoveError::Taken { records }) if records + 1 == some_records().len()),
            "{moved:?}"
        );

        let disk = Disk::default();
        let mut serving = MemoryStore::shared(disk.clone());
        serving.lead("here").expect("reachable");
        let new = &mut MemoryStore::shared(disk);
        let moved = copy_all(&mut filled(), new, Duration::ZERO);
        assert!(
            matches!(&moved, Err(MoveError::Served { which: "new", leader }) if leader == "here"),
            "{moved:?}"
        );
    }
}

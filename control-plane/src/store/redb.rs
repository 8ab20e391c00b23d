//! The embedded store: one file, written by one control plane.
//!
//! A commit is durable when it returns. After a failure of the disk the file is opened again by the next
//! [`Store::load`]: what is in it then is what was durable.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::format::{decode, decode_key, encode, encode_key};
use super::{Alone, Loaded, Probe, Revision, Store, StoreError};
use crate::cluster::Batch;

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("mycoram.control.records");
const REVISION: TableDefinition<'_, (), u64> = TableDefinition::new("mycoram.control.revision");
/// Memory for pages of the file. All records are in memory anyway.
const CACHE_BYTES: usize = 8 << 20;

/// See the module.
#[derive(Debug)]
pub struct RedbStore {
    path: PathBuf,
    /// `None` after a failure.
    database: Option<Database>,
}

impl RedbStore {
    /// Opens the file, or makes it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut store = Self {
            path: path.to_owned(),
            database: None,
        };
        store.database()?;
        Ok(store)
    }

    fn database(&mut self) -> Result<&Database, StoreError> {
        if self.database.is_none() {
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES);
            let opened = builder.create(&self.path).map_err(|error| match error {
                DatabaseError::DatabaseAlreadyOpen => StoreError::InUse,
                other => failed(other.into()),
            });
            self.database = Some(opened?);
        }
        Ok(self.database.as_ref().expect("it was just opened"))
    }

    fn read(&mut self) -> Result<Loaded, StoreError> {
        let database = self.database()?;
        let read = database
            .begin_read()
            .map_err(|error| failed(error.into()))?;
        let mut loaded = Loaded::default();
        let revisions = match read.open_table(REVISION) {
            Ok(table) => table,
            // Nothing was ever written.
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(loaded),
            Err(error) => return Err(failed(error.into())),
        };
        let revision = revisions.get(()).map_err(|error| failed(error.into()))?;
        loaded.revision = Revision(revision.map_or(0, |revision| revision.value()));
        let records = read
            .open_table(RECORDS)
            .map_err(|error| failed(error.into()))?;
        for entry in records.iter().map_err(|error| failed(error.into()))? {
            let (key, value) = entry.map_err(|error| failed(error.into()))?;
            let key = decode_key(key.value())?;
            loaded.records.push((key, decode(key, value.value())?));
        }
        Ok(loaded)
    }

    fn write(&mut self, at: Revision, batch: &Batch) -> Result<Revision, StoreError> {
        let next = Revision(at.0 + 1);
        let database = self.database()?;
        let write = database
            .begin_write()
            .map_err(|error| failed(error.into()))?;
        {
            let mut revisions = write
                .open_table(REVISION)
                .map_err(|error| failed(error.into()))?;
            let current = revisions.get(()).map_err(|error| failed(error.into()))?;
            let current = Revision(current.map_or(0, |revision| revision.value()));
            if current != at {
                return Err(StoreError::Overtaken {
                    expected: at,
                    current,
                });
            }
            revisions
                .insert((), next.0)
                .map_err(|error| failed(error.into()))?;
            let mut records = write
                .open_table(RECORDS)
                .map_err(|error| failed(error.into()))?;
            for (key, record) in &batch.changes {
                let name = encode_key(*key);
                let done = match record {
                    Some(record) => {
                        let value = encode(*key, record);
                        records.insert(name.as_slice(), value.as_slice()).map(drop)
                    }
                    None => records.remove(name.as_slice()).map(drop),
                };
                done.map_err(|error| failed(error.into()))?;
            }
        }
        write.commit().map_err(|error| failed(error.into()))?;
        Ok(next)
    }
}

impl Store for RedbStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let loaded = self.read();
        self.close_if_failed(&loaded);
        loaded
    }

    fn commit(&mut self, at: Revision, batch: &Batch) -> Result<Revision, StoreError> {
        let committed = self.write(at, batch);
        self.close_if_failed(&committed);
        committed
    }

    fn probe(&self) -> Arc<dyn Probe> {
        Arc::new(Alone("redb"))
    }
}

impl RedbStore {
    /// The database takes nothing more after a failure of the disk.
    fn close_if_failed<T>(&mut self, outcome: &Result<T, StoreError>) {
        if matches!(outcome, Err(StoreError::Failed(_) | StoreError::Full(_))) {
            self.database = None;
        }
    }
}

fn failed(error: redb::Error) -> StoreError {
    match error {
        redb::Error::Io(source) if source.kind() == io::ErrorKind::StorageFull => {
            StoreError::Full(Box::new(source))
        }
        other => StoreError::Failed(Box::new(other)),
    }
}

//! A process's hold of the store, which notes what became durable by it and what it said.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mycoram_control::cluster::Batch;
use mycoram_control::store::{Disk, Lead, Loaded, MemoryStore, Probe, Revision, Store, StoreError};

use crate::world::Planted;

/// What happened at the store.
#[derive(Debug)]
pub(crate) enum Note {
    /// This is durable now, also where the answer was that it failed.
    Wrote(Batch),
    /// A commit was answered, or what is remembered was confirmed: a decision.
    Decided,
    /// A commit failed.
    Failed,
    /// There was no room for one.
    Full,
    /// Who is cut off wanted to lead.
    OutOfReach,
}

#[derive(Debug)]
struct Inside {
    store: MemoryStore,
    notes: Vec<Note>,
    cut_off: bool,
}

/// See the module. Its clones are the same hold.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    inside: Arc<Mutex<Inside>>,
    disk: Disk,
    shared: bool,
    planted: Option<Planted>,
}

impl Hold {
    pub(crate) fn new(disk: &Disk, shared: bool, planted: Option<Planted>) -> Self {
        let store = if shared {
            MemoryStore::shared(disk.clone())
        } else {
            MemoryStore::new(disk.clone())
        };
        Self {
            inside: Arc::new(Mutex::new(Inside {
                store,
                notes: Vec::new(),
                cut_off: false,
            })),
            disk: disk.clone(),
            shared,
            planted,
        }
    }

    /// That of the process that follows: no lead is left, and who was cut off still is.
    pub(crate) fn again(&self, disk: &Disk, shared: bool) -> Self {
        let next = Self::new(disk, shared, self.planted);
        next.set_cut_off(self.inside().cut_off);
        next
    }

    pub(crate) fn set_cut_off(&self, cut_off: bool) {
        let mut inside = self.inside();
        inside.cut_off = cut_off;
        inside.store.set_cut_off(cut_off);
    }

    /// What happened since it was asked last.
    pub(crate) fn take_notes(&self) -> Vec<Note> {
        std::mem::take(&mut self.inside().notes)
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Hold {
    fn is_shared(&self) -> bool {
        self.shared
    }

    fn lead(&mut self, address: &str) -> Result<Lead, StoreError> {
        let mut inside = self.inside();
        if inside.cut_off {
            inside.notes.push(Note::OutOfReach);
        }
        inside.store.lead(address)
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.inside().store.load()
    }

    fn confirm(&mut self, at: Revision) -> Result<(), StoreError> {
        let mut inside = self.inside();
        if self.planted != Some(Planted::FromMemory) {
            inside.store.confirm(at)?;
        }
        inside.notes.push(Note::Decided);
        Ok(())
    }

    fn commit(&mut self, at: Revision, batch: &Batch) -> Result<Revision, StoreError> {
        let before = self.disk.revision();
        let mut inside = self.inside();
        let done = inside.store.commit(at, batch);
        if self.disk.revision() != before {
            inside.notes.push(Note::Wrote(batch.clone()));
        }
        let note = match &done {
            Ok(_) => Note::Decided,
            Err(StoreError::Full(_)) => Note::Full,
            Err(_) => Note::Failed,
        };
        inside.notes.push(note);
        done
    }

    fn probe(&self) -> Arc<dyn Probe> {
        self.inside().store.probe()
    }
}

//! Which handles and mappings C holds. A handle is a number in a pointer's clothes: never an address,
//! never used twice, so one that was closed, or never was one, is found out without touching it.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use crate::far::FarMemory;
use crate::map::FarMap;

/// Opened far memory. Not an address: only this library knows what it stands for.
pub struct Handle {
    _opaque: [u8; 0],
}

/// Most handles that a process may have open at a time.
pub(super) const MAX_HANDLES: usize = 1024;
/// Handles count up in steps that keep them apart from addresses a program may pass by mistake.
const FIRST_HANDLE: usize = 0x4d79_0001;

/// A mapping as C has it. Whoever uses it holds it for reading; unmapping waits for them.
pub(super) struct Entry(RwLock<Option<FarMap>>);

impl Entry {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Option<FarMap>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the mapping out, once nobody uses it any more; `None` if somebody else already has.
    pub(super) fn take(&self) -> Option<FarMap> {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

struct Table {
    next: usize,
    handles: BTreeMap<usize, Arc<FarMemory>>,
    /// At most [`crate::MAX_MAPPINGS`], so they are looked through: a mapping's address may change.
    maps: Vec<Arc<Entry>>,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    next: FIRST_HANDLE,
    handles: BTreeMap::new(),
    maps: Vec::new(),
});

fn table() -> MutexGuard<'static, Table> {
    // Every change to the table is a single insertion or removal, so it is whole even after a panic.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps `far`; `None` if [`MAX_HANDLES`] are open.
pub(super) fn insert(far: FarMemory) -> Option<*mut Handle> {
    let mut table = table();
    if table.handles.len() >= MAX_HANDLES {
        return None;
    }
    let handle = table.next;
    table.next += 2;
    table.handles.insert(handle, Arc::new(far));
    Some(std::ptr::without_provenance_mut(handle))
}

/// What `handle` stands for, if it is open.
pub(super) fn get(handle: *const Handle) -> Option<Arc<FarMemory>> {
    table().handles.get(&handle.addr()).cloned()
}

/// Closes `handle`; `None` if it is not open.
pub(super) fn remove(handle: *const Handle) -> Option<Arc<FarMemory>> {
    table().handles.remove(&handle.addr())
}

/// Keeps `map` and gives its address.
pub(super) fn insert_map(map: FarMap) -> *mut c_void {
    let start = map.as_ptr().cast();
    table().maps.push(Arc::new(Entry(RwLock::new(Some(map)))));
    start
}

/// The mapping that holds `addr`, with the distance from its start.
pub(super) fn find_map(addr: *const c_void) -> Option<(Arc<Entry>, usize)> {
    let maps = table().maps.clone();
    maps.into_iter().find_map(|entry| {
        let offset = entry.read().as_ref()?.offset_of(addr.addr())?;
        Some((entry, offset))
    })
}

/// Forgets `entry`; false if somebody else already has.
pub(super) fn remove_map(entry: &Arc<Entry>) -> bool {
    let mut table = table();
    let before = table.maps.len();
    table.maps.retain(|other| !Arc::ptr_eq(other, entry));
    table.maps.len() < before
}

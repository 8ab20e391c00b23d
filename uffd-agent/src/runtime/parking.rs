//! Where pages wait while they leave, as evictors and fault workers see it: a pipe, or a part of the rooms.
//!
//! ```text
//!   Pipe    the target's; read out late into frames, and from there by whoever wants a page back
//!   Rooms   this process's; the pages themselves, at an address, from the moment on that they left
//! ```

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::PAGE_BYTES;

use crate::kernel::{ParkingPipe, ParkingRooms};
use crate::target::SLOTS_PER_PIPE;

/// See the module.
#[derive(Debug)]
pub(crate) enum Parking {
    Pipe(PipeParking),
    Rooms(RoomParking),
}

impl Parking {
    /// Where the bytes of `slot` lie; `None` while they are in a pipe only. Good as long as the caller is
    /// a reader of this place.
    pub(crate) fn bytes_of(&self, slot: u8) -> Option<*const u8> {
        match self {
            Self::Pipe(pipe) => pipe.bytes_of(slot),
            Self::Rooms(rooms) => rooms.bytes_of(slot),
        }
    }
}

/// A pipe.
#[derive(Debug)]
pub(crate) struct PipeParking {
    pub(crate) pipe: ParkingPipe,
    /// First frame of the pipe's content + 1, once an evictor has copied it out; 0 before.
    frames: AtomicU32,
    /// The frames of the evictor that owns the pipe.
    mapping: OnceLock<Arc<Mapping>>,
}

impl PipeParking {
    pub(crate) fn new(pipe: ParkingPipe) -> Self {
        Self {
            pipe,
            frames: AtomicU32::new(0),
            mapping: OnceLock::new(),
        }
    }

    /// The evictor's frames, told once at its start.
    pub(crate) fn owned_by(&self, mapping: Arc<Mapping>) {
        let _ = self.mapping.set(mapping);
    }

    /// The pipe's pages are in these frames, until [`Self::unpublish`].
    pub(crate) fn publish(&self, first_frame: u32) {
        self.frames.store(first_frame + 1, Ordering::SeqCst);
    }

    /// Only when no page of the pipe is leaving and nobody reads.
    pub(crate) fn unpublish(&self) {
        self.frames.store(0, Ordering::SeqCst);
    }

    fn bytes_of(&self, slot: u8) -> Option<*const u8> {
        let frame = self.frames.load(Ordering::SeqCst).checked_sub(1)?;
        let mapping = self.mapping.get()?;
        let offset = (frame as usize + usize::from(slot)) * PAGE_BYTES;
        mapping.check(offset, PAGE_BYTES).ok()?;
        // SAFETY: checked to lie inside of the mapping, which `self` keeps alive.
        Some(unsafe { mapping.as_ptr().add(offset) }.cast_const())
    }
}

/// As many slots of the rooms as a pipe has.
#[derive(Debug)]
pub(crate) struct RoomParking {
    rooms: Arc<ParkingRooms>,
    first: u32,
}

impl RoomParking {
    /// The rooms, in parts; those of halls first.
    pub(crate) fn all_of(rooms: &Arc<ParkingRooms>) -> Vec<Self> {
        (0..rooms.slots().get() / u32::from(SLOTS_PER_PIPE))
            .map(|part| Self {
                rooms: Arc::clone(rooms),
                first: part * u32::from(SLOTS_PER_PIPE),
            })
            .collect()
    }

    pub(crate) fn rooms(&self) -> &ParkingRooms {
        &self.rooms
    }

    /// The slot, as the rooms count it.
    pub(crate) fn slot(&self, slot: usize) -> u32 {
        self.first + slot as u32
    }

    fn bytes_of(&self, slot: u8) -> Option<*const u8> {
        self.rooms.page(self.slot(slot.into()))
    }
}

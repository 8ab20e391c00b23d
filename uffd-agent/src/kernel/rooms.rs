//! Private memory into which a process's own pages are moved while they leave.
//!
//! ```text
//!   region, private --UFFDIO_MOVE--> [ page | page | hole | ... ] --> checksum, WRITE --> MADV_DONTNEED
//!                                      the very pages: nobody else can reach them any more
//! ```
//!
//! The rooms have a userfaultfd of their own, because a move goes into registered memory only, and because
//! giving pages of them back must not be told to a region's fault workers. Nobody reads that descriptor:
//! a slot is touched only after a page was moved there. A page that is pinned does not move, so nothing
//! that is still being written (by direct IO, a device, a ring) ever leaves.
//!
//! The first slots are halls, [`HUGE_PAGES`] each: a huge page that is moved into a hall as a whole moves by one
//! entry of the kernel's page tables, and goes back to the kernel as one.

use std::sync::Arc;

use mycoram_fabric::pages::HUGE_PAGES;
use mycoram_fabric::transport::{Mapping, MappingError};
use mycoram_fabric::units::{PAGE_BYTES, PageCount};
use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, madvise};

use super::opening::OpenUserfaultError;
use super::{
    Feature, FeatureSet, HandshakeError, Moved, RegisterError, TargetAddr, TargetRange, Userfault,
    Watch,
};

/// Why there are no rooms.
#[derive(Debug, thiserror::Error)]
pub enum RoomsError {
    /// A kernel before 6.8.
    #[error("this kernel cannot move pages: Linux 6.8 or newer does")]
    Unsupported,
    /// The second userfaultfd.
    #[error("a userfaultfd for pages that leave could not be made")]
    Userfault(#[from] OpenUserfaultError),
    /// Its handshake.
    #[error("the userfaultfd for pages that leave could not be set up")]
    Handshake(#[source] HandshakeError),
    /// The memory.
    #[error("memory for pages that leave could not be had")]
    Memory(#[from] MappingError),
    /// Its advice.
    #[error("memory for pages that leave could not be set up")]
    Advice(#[source] Errno),
    /// Its registration.
    #[error("memory for pages that leave cannot be watched")]
    Register(#[from] RegisterError),
}

/// Slots of a page each, all holes at first.
#[derive(Debug)]
pub struct ParkingRooms {
    userfault: Userfault,
    memory: Arc<Mapping>,
    slots: PageCount,
    halls: u32,
}

impl ParkingRooms {
    /// Rooms with `halls` times [`HUGE_PAGES`] slots and `slots` more, for pages of the calling process. They take
    /// memory only while pages are in them.
    pub fn new(halls: u32, slots: PageCount) -> Result<Self, RoomsError> {
        let slots = PageCount::new(halls * HUGE_PAGES + slots.get());
        let userfault = Userfault::new_in_this_process()?;
        match userfault.handshake(FeatureSet::of(&[Feature::Move])) {
            Ok(_) => {}
            Err(HandshakeError::Unsupported { .. }) => return Err(RoomsError::Unsupported),
            Err(error) => return Err(RoomsError::Handshake(error)),
        }
        let align = HUGE_PAGES as usize * PAGE_BYTES;
        let memory = Mapping::reserved_at(align, slots.bytes().as_usize())?;
        for advice in [
            MmapAdvise::MADV_NOHUGEPAGE,
            MmapAdvise::MADV_DONTFORK,
            MmapAdvise::MADV_DONTDUMP,
        ] {
            let start = std::ptr::NonNull::new(memory.as_ptr().cast())
                .unwrap_or(std::ptr::NonNull::dangling());
            // SAFETY: the mapping is ours alone; none of them changes what it holds.
            match unsafe { madvise(start, memory.len(), advice) } {
                // A kernel without huge pages refuses to speak of them.
                Err(Errno::EINVAL) if advice == MmapAdvise::MADV_NOHUGEPAGE => {}
                other => other.map_err(RoomsError::Advice)?,
            }
        }
        let rooms = Self {
            userfault,
            memory: Arc::new(memory),
            slots,
            halls,
        };
        if let Some(all) = rooms.range(0, slots.get()) {
            rooms.userfault.register(all, Watch::Missing)?;
        }
        Ok(rooms)
    }

    /// How many huge pages the first slots have room for.
    #[must_use]
    pub fn halls(&self) -> u32 {
        self.halls
    }

    /// How many slots there are, those of halls included.
    #[must_use]
    pub fn slots(&self) -> PageCount {
        self.slots
    }

    fn range(&self, slot: u32, count: u32) -> Option<TargetRange> {
        let inside = slot.checked_add(count)? <= self.slots.get();
        let start = self.memory.as_ptr() as u64 + u64::from(slot) * PAGE_BYTES as u64;
        inside
            .then(|| TargetRange::new(TargetAddr::new(start), PageCount::new(count).bytes().get()))?
            .ok()
    }

    /// Moves the pages of `from` into the slots from `slot` on, which are holes.
    ///
    /// # Safety
    /// As [`Userfault::move_pages`].
    pub unsafe fn take(&self, from: TargetRange, slot: u32) -> Moved {
        match self.range(slot, from.pages().get()) {
            // SAFETY: the caller's promise is the same.
            Some(into) => unsafe { self.userfault.move_pages(from, into.start()) },
            None => Moved::Some {
                pages: PageCount::new(0),
                why: Errno::ERANGE,
            },
        }
    }

    /// Where the page in a slot lies. To be read only while a page is in.
    #[must_use]
    pub fn page(&self, slot: u32) -> Option<*const u8> {
        let at = slot as usize * PAGE_BYTES;
        self.memory.check(at, PAGE_BYTES).ok()?;
        // SAFETY: checked to lie inside of the mapping.
        Some(unsafe { self.memory.as_ptr().add(at) }.cast_const())
    }

    /// Makes `count` slots from `slot` on holes again; their pages are freed as soon as nobody refers to
    /// them, a pipe or a socket, say.
    pub fn empty(&self, slot: u32, count: u32) -> Result<(), Errno> {
        let at = slot as usize * PAGE_BYTES;
        let bytes = count as usize * PAGE_BYTES;
        if self.memory.check(at, bytes).is_err() || bytes == 0 {
            return Ok(());
        }
        // SAFETY: inside of the mapping, as checked.
        let start = unsafe { std::ptr::NonNull::new_unchecked(self.memory.as_ptr().add(at)) };
        // SAFETY: the slots are ours; whoever read their pages is done, says the caller's protocol.
        unsafe { madvise(start.cast(), bytes, MmapAdvise::MADV_DONTNEED) }
    }
}

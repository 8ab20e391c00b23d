//! Frames of lanes, used again: a registration lives as long as its transport, so a process that opens
//! and closes many lanes must not register new memory for each.
//!
//! A set of frames goes back to its pool when nobody can touch it any more: when its lane and every
//! queue pair that may still have work in it (see `redial`) are gone.

use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::mman::{MmapAdvise, madvise};

use crate::pages::{HUGE_PAGES, LaneError};
use crate::transport::{LocalMemory, Mapping, MappingError, Transport, TransportKind};
use crate::units::PAGE_BYTES;

/// What a lane needs, in frames.
///
/// ```text
///   | frames | - | stage | stage | .. | landings |      a stage starts where a huge page can
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Frames that stay.
    pub(super) frames: u32,
    /// Huge pages of frames that may be moved away.
    pub(super) stages: u32,
    /// Frames behind all others.
    pub(super) landings: u32,
}

/// Frames that no lane uses now. There are as many as lanes were open at a time, at most.
#[derive(Debug, Default)]
pub(super) struct FramePool {
    idle: Mutex<Vec<FrameSet>>,
}

impl Layout {
    /// The first frame of a stage.
    pub(super) fn stage(&self, number: u32) -> Option<u32> {
        let first = self.frames.next_multiple_of(HUGE_PAGES);
        (number < self.stages).then(|| first + number * HUGE_PAGES)
    }

    /// All that requests may name.
    pub(super) fn usable(&self) -> u32 {
        match self.stages.checked_sub(1).and_then(|last| self.stage(last)) {
            Some(last) => last + HUGE_PAGES,
            None => self.frames,
        }
    }

    fn bytes(&self) -> usize {
        (self.usable() + self.landings) as usize * PAGE_BYTES
    }

    fn map(&self) -> Result<Mapping, LaneError> {
        let Some(first) = self.stage(0) else {
            return Ok(Mapping::anonymous(self.bytes())?);
        };
        let huge = HUGE_PAGES as usize * PAGE_BYTES;
        let memory = Mapping::reserved_at(huge, self.bytes())?;
        // What stays is populated now; of the stages the kernel is only told what they are for. One without huge
        // pages refuses, and gives small ones.
        for (frame, count, advice) in [
            (0, self.frames, MmapAdvise::MADV_POPULATE_WRITE),
            (
                self.usable(),
                self.landings,
                MmapAdvise::MADV_POPULATE_WRITE,
            ),
            (first, self.usable() - first, MmapAdvise::MADV_HUGEPAGE),
        ] {
            let (at, bytes) = (frame as usize * PAGE_BYTES, count as usize * PAGE_BYTES);
            if bytes == 0 {
                continue;
            }
            // SAFETY: all of it lies within the mapping, by `bytes`.
            let start = unsafe { std::ptr::NonNull::new_unchecked(memory.as_ptr().add(at)) };
            // SAFETY: the mapping is new and nobody else's; neither advice changes what it holds.
            match unsafe { madvise(start.cast(), bytes, advice) } {
                Err(source) if advice == MmapAdvise::MADV_POPULATE_WRITE => {
                    return Err(MappingError::Kernel { bytes, source }.into());
                }
                _ => {}
            }
        }
        Ok(memory)
    }
}

/// Memory, and its registration with each transport that it was used with.
#[derive(Debug)]
struct FrameSet {
    layout: Layout,
    mapping: Arc<Mapping>,
    registered: Mutex<Vec<(TransportKind, LocalMemory)>>,
}

/// A set of frames in use. Goes back to its pool when dropped.
#[derive(Debug)]
pub(super) struct Frames {
    set: FrameSet,
    home: Arc<FramePool>,
}

impl FramePool {
    /// Memory of this layout: what is idle, else new.
    pub(super) fn take(self: &Arc<Self>, layout: Layout) -> Result<Frames, LaneError> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let found = idle.iter().position(|set| set.layout == layout);
        let set = found.map(|at| idle.swap_remove(at));
        drop(idle);
        let set = match set {
            Some(set) => set,
            None => FrameSet {
                layout,
                mapping: Arc::new(layout.map()?),
                registered: Mutex::default(),
            },
        };
        Ok(Frames {
            set,
            home: Arc::clone(self),
        })
    }
}

impl Frames {
    pub(super) fn layout(&self) -> &Layout {
        &self.set.layout
    }

    /// The bytes.
    pub(super) fn mapping(&self) -> &Arc<Mapping> {
        &self.set.mapping
    }

    /// The registration with `transport`. The transports of one pool are one of a kind.
    pub(super) fn registered(&self, transport: &dyn Transport) -> Result<LocalMemory, LaneError> {
        let kind = transport.kind();
        let registered = self.set.registered.lock();
        let mut registered = registered.unwrap_or_else(PoisonError::into_inner);
        if let Some((_, memory)) = registered.iter().find(|(known, _)| *known == kind) {
            return Ok(memory.clone());
        }
        let memory = transport.register(Arc::clone(&self.set.mapping))?;
        registered.push((kind, memory.clone()));
        Ok(memory)
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        let set = FrameSet {
            layout: self.set.layout,
            mapping: Arc::clone(&self.set.mapping),
            registered: std::mem::take(&mut self.set.registered),
        };
        let mut idle = self
            .home
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        idle.push(set);
    }
}

#[cfg(test)]
mod tests {
    use super::Layout;
    use crate::pages::HUGE_PAGES;
    use crate::units::PAGE_BYTES;

    #[test]
    fn stages_start_where_huge_pages_can_and_landings_are_behind_all() {
        let none = Layout {
            frames: 100,
            stages: 0,
            landings: 7,
        };
        assert_eq!((none.stage(0), none.usable()), (None, 100));
        let some = Layout { stages: 2, ..none };
        assert_eq!(some.stage(0), Some(HUGE_PAGES));
        assert_eq!(some.stage(1), Some(2 * HUGE_PAGES));
        assert_eq!((some.stage(2), some.usable()), (None, 3 * HUGE_PAGES));
        let memory = some.map().expect("memory");
        assert_eq!(memory.len(), (3 * HUGE_PAGES + 7) as usize * PAGE_BYTES);
        let huge = HUGE_PAGES as usize * PAGE_BYTES;
        assert_eq!(memory.as_ptr().align_offset(huge), 0);
        // All of it is there to be written to.
        for at in (0..memory.len()).step_by(PAGE_BYTES) {
            memory.copy_in(at, &[7; 8]).expect("inside");
        }
    }
}

//! Frames of lanes, used again: a registration lives as long as its transport, so a process that opens
//! and closes many lanes must not register new memory for each.
//!
//! A set of frames goes back to its pool when nobody can touch it any more: when its lane and every
//! queue pair that may still have work in it (see `redial`) are gone.

use std::sync::{Arc, Mutex, PoisonError};

use crate::pages::LaneError;
use crate::transport::{LocalMemory, Mapping, Transport, TransportKind};

/// Frames that no lane uses now. There are as many as lanes were open at a time, at most.
#[derive(Debug, Default)]
pub(super) struct FramePool {
    idle: Mutex<Vec<FrameSet>>,
}

/// Memory, and its registration with each transport that it was used with.
#[derive(Debug)]
struct FrameSet {
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
    /// Memory of `bytes`: what is idle, else new.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Result<Frames, LaneError> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let found = idle.iter().position(|set| set.mapping.len() == bytes);
        let set = found.map(|at| idle.swap_remove(at));
        drop(idle);
        let set = match set {
            Some(set) => set,
            None => FrameSet {
                mapping: Arc::new(Mapping::anonymous(bytes)?),
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

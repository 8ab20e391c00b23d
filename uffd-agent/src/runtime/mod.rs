//! The IO around the engine: threads, descriptors, clocks.
//!
//! ```text
//!   region      the owner's handle          attach, take_over   from descriptors to threads (set_up)
//!   fault_worker, evictor, keeper           the threads of a region
//!   flush, orders (bringing home)           on the owner's thread
//!   check       comparing replicas          on a thread of its own, while it is made
//!   failure     what becomes of a region whose thread panics
//!   shared      what all of them share      address, memory, parking, frames, victim_desk, bell
//!   snapshot    its figures
//! ```

mod address;
mod attach;
mod bell;
mod check;
mod direct_io;
mod evictor;
mod failure;
mod fault_worker;
mod flush;
mod frames;
mod keeper;
mod memory;
mod orders;
mod parking;
mod region;
mod set_up;
mod shared;
mod snapshot;
mod take_over;
mod victim_desk;

pub use failure::ThreadPanic;
pub(crate) use frames::FramePool;
pub use region::{
    AttachError, EventHandler, Figures, LostPage, Owner, Places, Region, RegionError, RegionEvent,
    TakeOverError,
};
pub use set_up::SetUpError;
pub use take_over::SavedRegion;

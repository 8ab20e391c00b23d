//! The IO around the engine: threads, descriptors, clocks.

mod region;

pub use region::{
    AttachError, EventHandler, LostPage, Owner, Region, RegionError, RegionEvent, SavedRegion,
    TakeOverError,
};

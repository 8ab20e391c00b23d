//! A member of a group, as it is handed in and as it is doing.

use std::sync::Arc;

use crate::transfer::Endpoint;
use crate::transport::RemoteSlice;

/// A memory node with room for all pages of the group.
#[derive(Clone)]
pub struct Member {
    /// Its name, as the authority knows it; unique in the group.
    pub name: String,
    /// The way there.
    pub endpoint: Arc<dyn Endpoint>,
    /// Where each extent of the region starts there, in the region's order.
    pub extents: Vec<RemoteSlice>,
}

/// Whether a member counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It is being filled, and does not count yet.
    Joining,
    /// It has every page that was ever replicated.
    Live,
    /// It missed pages, and that is not durable yet: nothing counts as replicated until it is.
    Failed,
}

/// A member and how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its name.
    pub name: String,
    /// Whether it counts.
    pub state: MemberState,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member")
            .field("name", &self.name)
            .field("extents", &self.extents.len())
            .finish_non_exhaustive()
    }
}

//! Where the daemon gets its clients' remote pages from: somebody above it who knows memory nodes.

use std::sync::Arc;

use mycoram_fabric::pages::RemoteRegion;
use mycoram_fabric::units::ByteCount;

use crate::Owner;

/// Why there are no remote pages. Whoever implements [`RemoteSource`] knows more than this house.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Opens regions on memory nodes. Called from several threads; may block for seconds.
pub trait RemoteSource: Send + Sync {
    /// A new region of `bytes` bytes, in extents of `extent_bytes`.
    fn create(
        &self,
        bytes: ByteCount,
        extent_bytes: ByteCount,
    ) -> Result<(Arc<dyn RemoteRegion>, Owner), SourceError>;

    /// The region of an agent that died, with a higher epoch than `saved.epoch`.
    fn reopen(&self, saved: &Owner) -> Result<(Arc<dyn RemoteRegion>, Owner), SourceError>;
}

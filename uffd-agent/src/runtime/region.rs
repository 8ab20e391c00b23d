//! A region that an agent serves: the handle through which its owner speaks to it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mycoram_fabric::pages::{LaneError, PageError, RemoteRegion};
use mycoram_fabric::units::{ByteCount, Epoch, PageCount, PageIndex, RegionId};

use crate::config::{Advice, ConfigError, RegionConfig};
use crate::stats::RegionStats;
use crate::target::Target;

/// Whose region it is, as the remote side knows it. Kept in the state file for a successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The region's identity.
    pub region: RegionId,
    /// The epoch under which `remote` was opened. A successor opens with a higher one.
    pub epoch: Epoch,
    /// Whatever the remote side needs to open the same pages again; at most 1 MiB. Opaque here.
    pub directory: Vec<u8>,
}

/// Why a region could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The configuration cannot be.
    #[error("the region's configuration cannot be")]
    Config(#[from] ConfigError),
    /// Remote side and target differ in size.
    #[error("the region has {remote} at the memory nodes and {target} in the target")]
    SizeMismatch {
        /// At the memory nodes.
        remote: PageCount,
        /// In the target.
        target: PageCount,
    },
    /// A lane could not be opened.
    #[error("a lane to the memory nodes could not be opened")]
    Lane(#[from] LaneError),
    /// Not there yet.
    #[error("this agent cannot attach yet")]
    NotYet,
}

/// Why a region could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// Another agent serves the region.
    #[error("another agent serves this region: {path} is locked by it")]
    InUse {
        /// The state file.
        path: PathBuf,
    },
    /// Not there yet.
    #[error("this agent cannot take over yet")]
    NotYet,
}

/// Why an order to a region was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The target has exited, or the region was ended.
    #[error("the region has ended")]
    Ended,
    /// Not a budget.
    #[error("the new budget cannot be")]
    Config(#[from] ConfigError),
    /// Outside of the region.
    #[error("pages {start} to {end} are not inside of a region of {pages}")]
    OutOfRange {
        /// First page.
        start: u32,
        /// Behind the last page.
        end: u32,
        /// Of the region.
        pages: PageCount,
    },
    /// Pages could not be written to, or fetched from, their memory node.
    #[error("{failed} pages could not be moved; the first for this reason")]
    Pages {
        /// How many.
        failed: u64,
        /// Why the first one.
        #[source]
        source: PageError,
    },
}

/// A page that is gone for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostPage {
    /// Which.
    pub page: PageIndex,
    /// The memory node that held it; `None` for one whose content came back wrong twice.
    pub node: Option<String>,
}

/// What a region tells its owner without being asked. Told on a thread of the region's own, never on the
/// fault path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegionEvent {
    /// Pages were lost. At most one event a second; `total` counts all, `pages` holds up to 64 new ones.
    Lost {
        /// Some of the new ones.
        pages: Vec<LostPage>,
        /// All since the start.
        total: u64,
    },
    /// The target has exited or closed its userfaultfd: the region is over.
    TargetExited,
    /// Another owner with a higher epoch has the region: this one serves nothing more.
    Fenced,
}

/// Called with what happens to the region.
pub type EventHandler = Box<dyn FnMut(RegionEvent) + Send>;

/// What a dead agent left behind: its locked state file.
#[derive(Debug)]
pub struct SavedRegion {}

impl SavedRegion {
    /// Locks and reads the state file of region `name`. The lock is held from here on.
    pub fn open(_state_dir: &Path, _name: &crate::RegionName) -> Result<Self, TakeOverError> {
        Err(TakeOverError::NotYet)
    }

    /// Its owner, as it was. Open the remote pages again with the directory and a higher epoch.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner {
            region: RegionId::new(0),
            epoch: Epoch::new(0),
            directory: Vec::new(),
        }
    }

    /// The target, its descriptors fetched anew from the process that holds them.
    pub fn target(&self) -> Result<Target, TakeOverError> {
        Err(TakeOverError::NotYet)
    }
}

/// A region that is being served. Dropping it stops serving and leaves everything for a successor, as a
/// killed agent would: the target waits at its next fault.
pub struct Region {}

impl Region {
    /// Starts serving `target` from `remote`. Pages that the file has already are resident; they may
    /// exceed the budget for as long as it takes to evict them.
    pub fn attach(
        _target: Target,
        _remote: Arc<dyn RemoteRegion>,
        _owner: Owner,
        _config: RegionConfig,
        _events: EventHandler,
    ) -> Result<Self, AttachError> {
        Err(AttachError::NotYet)
    }

    /// Goes on where the agent that wrote `saved` stopped. `remote` must have been opened with a higher epoch
    /// than `saved.owner().epoch`, so that nothing that agent sent can arrive any more.
    pub fn take_over(
        _saved: SavedRegion,
        _target: Target,
        _remote: Arc<dyn RemoteRegion>,
        _owner: Owner,
        _config: RegionConfig,
        _events: EventHandler,
    ) -> Result<Self, TakeOverError> {
        Err(TakeOverError::NotYet)
    }

    /// Figures as of now.
    #[must_use]
    pub fn stats(&self) -> RegionStats {
        RegionStats::default()
    }

    /// Tells the policies about coming accesses.
    pub fn advise(&self, _pages: Range<u32>, _advice: Advice) -> Result<(), RegionError> {
        Err(RegionError::Ended)
    }

    /// Writes every page that differs from its remote copy. What was written to memory before this call
    /// is on the memory nodes when it returns. Resident pages stay.
    pub fn flush(&self) -> Result<(), RegionError> {
        Err(RegionError::Ended)
    }

    /// Changes the local budget. Returns at once; a smaller one is reached by eviction.
    pub fn set_budget(&self, _budget: ByteCount) -> Result<(), RegionError> {
        Err(RegionError::Ended)
    }

    /// Brings every page home, unregisters the mapping and removes the state file: from then on the
    /// memory is ordinary memory of the target. Remote memory is released.
    pub fn detach(self) -> Result<(), RegionError> {
        Err(RegionError::Ended)
    }

    /// The target has no more use for the region: stops serving, releases remote memory, removes the state
    /// file. Pages that are not resident are gone.
    pub fn end(self) {}

    /// The directory of extents, kept for a successor, has changed.
    pub fn set_directory(&self, _directory: &[u8]) -> Result<(), RegionError> {
        Err(RegionError::Ended)
    }

    /// Whether the target has exited, or the region was fenced.
    #[must_use]
    pub fn is_over(&self) -> bool {
        true
    }
}

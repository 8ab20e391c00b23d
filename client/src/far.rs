//! [`FarMemory`]: an opened configuration, from which mappings are made.

use std::net::SocketAddr;
use std::sync::Arc;

use mycoram_fabric::units::{ByteCount, PAGE_BYTES};

use crate::backend::Backend;
use crate::config::Config;
use crate::error::{MAX_MAPPING_BYTES, MapError, OpenError};
use crate::fork;
use crate::map::{FarMap, Permit};
use crate::signals::Blocked;

/// Far memory that is there for the taking. Dropping it leaves the mappings made with it as they are.
pub struct FarMemory {
    config: Config,
    backend: Arc<dyn Backend>,
}

impl std::fmt::Debug for FarMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FarMemory({})", self.config)
    }
}

impl FarMemory {
    /// Opens what `place` says: a `myco:` or `myco+agent:` URI, or the path of a configuration file.
    /// Asks every memory node, or the daemon, whether it is there. Blocks for a few seconds at most.
    pub fn open(place: &str) -> Result<Self, OpenError> {
        Self::with_config(Config::parse(place)?)
    }

    /// Opens a configuration.
    pub fn with_config(config: Config) -> Result<Self, OpenError> {
        fork::check()?;
        config.check()?;
        let _blocked = Blocked::all();
        let backend = crate::backend::open(&config)?;
        Ok(Self { config, backend })
    }

    /// What was opened.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where monitors read the figures of the mappings; `None` where the configuration names no address.
    #[must_use]
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.backend.metrics()
    }

    /// Maps `bytes` bytes, rounded up to whole pages, all zero. The room is taken on the memory nodes
    /// at once; local memory is taken as pages are touched, up to the budget.
    ///
    /// ```no_run
    /// let far = mycoram::FarMemory::open("myco://10.0.0.7:7700?local=128MiB")?;
    /// let mut memory = far.map(1 << 30)?;
    /// memory[123_456_789] = 42;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map(&self, bytes: usize) -> Result<FarMap, MapError> {
        fork::check()?;
        if bytes == 0 {
            return Err(MapError::Empty);
        }
        let whole = (bytes as u64).checked_next_multiple_of(PAGE_BYTES as u64);
        let whole = ByteCount::new(whole.unwrap_or(u64::MAX));
        if whole.get() > MAX_MAPPING_BYTES {
            return Err(MapError::TooLarge { asked: whole });
        }
        let permit = Permit::take().ok_or(MapError::TooMany)?;
        let _blocked = Blocked::all();
        let backing = self.backend.map(whole)?;
        Ok(FarMap::new(backing, whole, permit))
    }
}

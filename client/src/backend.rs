//! What the API asks of whoever runs the agent: the engine in this process, or the daemon.
//!
//! ```text
//!   FarMemory --map--> Backend  : in_process (the engine's threads are here)
//!   FarMap    ------->  Backing :  daemon     (they are there; this process holds the mapping)
//! ```

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use mycoram_fabric::units::{ByteCount, PageIndex};

use crate::config::{Config, Source};
use crate::daemon::Daemon;
use crate::error::{AdviseError, FlushError, MapError, OpenError, StatsError, UnmapError};
use crate::in_process::InProcess;
use crate::pages::Pages;
use crate::{Advice, Stats};

/// Makes mappings.
pub(crate) trait Backend: Send + Sync {
    /// Maps `bytes`, whole pages and not none.
    fn map(&self, bytes: ByteCount) -> Result<Box<dyn Backing>, MapError>;
    /// Where the figures of its mappings are served.
    fn metrics(&self) -> Option<SocketAddr> {
        None
    }
}

/// One mapping.
pub(crate) trait Backing: Send + Sync {
    /// Its pages in this process.
    fn pages(&self) -> &Arc<Pages>;
    /// Advice on pages, inside of the mapping.
    fn advise(&self, pages: Range<PageIndex>, advice: Advice) -> Result<(), AdviseError>;
    /// Returns when every page that was dirty at the call has a copy on its memory node.
    fn flush(&self) -> Result<(), FlushError>;
    /// Figures.
    fn stats(&self) -> Result<Stats, StatsError>;
    /// Stops serving, unmaps, and gives the remote memory back.
    fn unmap(self: Box<Self>) -> Result<(), UnmapError>;
}

/// Opens what `config` says.
pub(crate) fn open(config: &Config) -> Result<Arc<dyn Backend>, OpenError> {
    match &config.source {
        Source::Nodes { .. } | Source::NodesFile(_) | Source::Control(_) => {
            Ok(Arc::new(InProcess::open(config)?))
        }
        Source::Agent(socket) => Ok(Arc::new(Daemon::open(socket, config)?)),
    }
}

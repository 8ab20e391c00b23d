//! The agent in the daemon: the program's memory, the daemon's threads.
//!
//! ```text
//!   map:    memfd, mmap, DONTFORK -> a connection of its own; the daemon lends /dev/userfaultfd if need be
//!             -> userfaultfd, pipes and memfd go over the socket
//!   unmap:  the daemon ends the region -> munmap
//! ```
//!
//! If the daemon is killed, the program waits at its next fault until there is a daemon again.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mycoram_agent::daemon::client::{AttachRequest, Attached, Connection, ProgramNotice};
use mycoram_fabric::units::{ByteCount, PageCount, PageIndex};

use crate::backend::{Backend, Backing};
use crate::config::Config;
use crate::error::{AdviseError, FlushError, MapError, OpenError, StatsError, UnmapError};
use crate::notice;
use crate::pages::Pages;
use crate::{Advice, Stats};

/// A daemon that answered.
pub(crate) struct Daemon {
    socket: PathBuf,
    local: ByteCount,
    extent: ByteCount,
}

impl Daemon {
    pub(crate) fn open(socket: &Path, config: &Config) -> Result<Self, OpenError> {
        // To find out whether it is there; every mapping has a connection of its own.
        Connection::open(socket)?;
        Ok(Self {
            socket: socket.to_owned(),
            local: config.local,
            extent: config.extent,
        })
    }
}

impl Backend for Daemon {
    fn map(&self, bytes: ByteCount) -> Result<Box<dyn Backing>, MapError> {
        let connection = Connection::open(&self.socket)?;
        let pages = Arc::new(Pages::of_file(bytes)?);
        let attached = pages.file().and_then(|memory| {
            let request = AttachRequest {
                memory,
                base: pages.start().as_ptr() as u64,
                bytes,
                file_offset: 0,
                local_budget: self.local,
                extent_bytes: self.extent,
                fault_workers: 0,
            };
            Ok(connection.attach(request, tell)?)
        });
        match attached {
            Ok(attached) => Ok(Box::new(Mapped { attached, pages })),
            Err(error) => {
                pages.unmap();
                Err(error)
            }
        }
    }
}

fn tell(event: ProgramNotice) {
    match event {
        ProgramNotice::Lost { total } => notice::lost(total, None),
        ProgramNotice::Unknown => notice::unknown(),
        ProgramNotice::Fenced => notice::fenced(),
        ProgramNotice::Away => notice::daemon_away(true),
        ProgramNotice::Back => notice::daemon_away(false),
    }
}

struct Mapped {
    attached: Attached,
    pages: Arc<Pages>,
}

impl Backing for Mapped {
    fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }

    fn advise(&self, pages: Range<PageIndex>, advice: Advice) -> Result<(), AdviseError> {
        let count = PageCount::new(pages.end.get().saturating_sub(pages.start.get()));
        Ok(self
            .attached
            .advise(pages.start, count, advice.for_agent())?)
    }

    fn flush(&self) -> Result<(), FlushError> {
        Ok(self.attached.flush()?)
    }

    fn stats(&self) -> Result<Stats, StatsError> {
        Ok(Stats::of_region(&self.attached.stats()?))
    }

    fn unmap(self: Box<Self>) -> Result<(), UnmapError> {
        let ended = self.attached.end();
        self.pages.unmap();
        Ok(ended?)
    }
}

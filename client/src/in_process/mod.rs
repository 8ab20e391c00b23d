//! The agent inside this process: the program's memory, the engine's threads.
//!
//! ```text
//!   map:    mmap, DONTFORK -> userfaultfd, rooms -> remote room -> Region::attach_private
//!           (a kernel that cannot move pages, or memory=file:  memfd, pipes ... Region::attach)
//!   unmap:  Region::end (threads joined, remote room given back) -> munmap
//! ```
//!
//! Nobody can take such a region over: when the process ends, the memory it belongs to is gone too.

mod figures;
mod nodes;
mod target;

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mycoram_agent::kernel::ParkingRooms;
use mycoram_agent::{PrivateTarget, Region, RegionConfig, RegionEvent, RegionName, Target};
use mycoram_fabric::units::{ByteCount, PageIndex};

use crate::backend::{Backend, Backing};
use crate::config::{Config, Memory};
use crate::error::{AdviseError, FlushError, MapError, OpenError, StatsError, UnmapError};
use crate::notice;
use crate::pages::Pages;
use crate::{Advice, Stats};

use figures::ServedFigures;
use nodes::Nodes;

/// How long a page that was evicted is kept while the program has a file open for direct IO, ms: longer than
/// a direct read takes on a disk that is busy. It bounds eviction to a thousand pages a second meanwhile.
const DIRECT_SETTLE_MS: u32 = 1000;

/// Tells the mappings of this process apart.
static MAPPED: AtomicU64 = AtomicU64::new(0);

/// Memory nodes, and how to make mappings on them.
pub(crate) struct InProcess {
    nodes: Nodes,
    local: ByteCount,
    workers: u16,
    memory: Memory,
    seal_key: Option<PathBuf>,
    figures: Option<Arc<ServedFigures>>,
}

impl InProcess {
    pub(crate) fn open(config: &Config) -> Result<Self, OpenError> {
        let nodes = Nodes::open(config)?;
        let figures = config.metrics.map(ServedFigures::start).transpose()?;
        Ok(Self {
            nodes,
            local: config.local,
            workers: config.workers,
            memory: config.memory,
            seal_key: config.seal_key.clone(),
            figures: figures.map(Arc::new),
        })
    }

    fn region_config(&self) -> Result<RegionConfig, MapError> {
        let number = MAPPED.fetch_add(1, Ordering::Relaxed);
        let name = format!("program-{}-{number}", std::process::id());
        let name: RegionName = name.parse().map_err(mycoram_agent::AttachError::Config)?;
        let mut config = RegionConfig::new(name, self.local);
        config.state_dir = state_dir();
        config.has_successor = false;
        config.direct_settle_ms = DIRECT_SETTLE_MS;
        config.seal_key.clone_from(&self.seal_key);
        if let Some(workers) = u8::try_from(self.workers)
            .ok()
            .filter(|&workers| workers > 0)
        {
            config.fault_workers = workers;
        }
        Ok(config)
    }
}

impl InProcess {
    /// Has the engine serve `pages`, which are private if there are rooms for them.
    fn attach(&self, pages: &Pages, rooms: Option<ParkingRooms>) -> Result<Region, MapError> {
        let config = self.region_config()?;
        let served = match rooms {
            Some(rooms) => Served::Private(target::private(pages, rooms)?),
            None => Served::File(target::of_file(pages)?),
        };
        let (remote, owner) = self.nodes.region(pages.bytes())?;
        let room = Arc::clone(&remote);
        let attached = match served {
            Served::Private(target) => {
                Region::attach_private(target, remote, owner, config, Box::new(tell))
            }
            Served::File(target) => Region::attach(target, remote, owner, config, Box::new(tell)),
        };
        attached.map_err(|error| {
            room.release();
            MapError::Attach(error)
        })
    }
}

enum Served {
    Private(PrivateTarget),
    File(Target),
}

/// A directory of the user's own, on tmpfs.
fn state_dir() -> PathBuf {
    format!("/dev/shm/mycoram-program-{}", nix::unistd::geteuid()).into()
}

impl Backend for InProcess {
    fn metrics(&self) -> Option<SocketAddr> {
        self.figures.as_ref().map(|figures| figures.address())
    }

    fn map(&self, bytes: ByteCount) -> Result<Box<dyn Backing>, MapError> {
        let rooms = match self.memory {
            Memory::Private => target::rooms()?,
            Memory::File => None,
        };
        let pages = Arc::new(match rooms {
            Some(_) => Pages::private(bytes)?,
            None => Pages::of_file(bytes)?,
        });
        let attached = self.attach(&pages, rooms);
        // Nobody succeeds a program, so its state file is gone by now: the directory is left, which a
        // program that is just attaching makes again.
        let _ = std::fs::remove_dir(state_dir());
        match attached {
            Ok(region) => {
                pages.known_to(region.places());
                if let Some(figures) = &self.figures {
                    figures.also_of(region.figures());
                }
                Ok(Box::new(Mapped {
                    region,
                    pages,
                    _figures: self.figures.clone(),
                }))
            }
            Err(error) => {
                pages.unmap();
                Err(error)
            }
        }
    }
}

fn tell(event: RegionEvent) {
    match event {
        RegionEvent::Lost { pages, total } => {
            let node = pages.first().and_then(|page| page.node.as_deref());
            notice::lost(total, node);
        }
        RegionEvent::Fenced => notice::fenced(),
        RegionEvent::Failed(panic) => notice::failed(&panic),
        RegionEvent::TargetExited => {}
    }
}

struct Mapped {
    region: Region,
    pages: Arc<Pages>,
    /// They are served as long as there is something to tell.
    _figures: Option<Arc<ServedFigures>>,
}

impl Backing for Mapped {
    fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }

    fn advise(&self, pages: Range<PageIndex>, advice: Advice) -> Result<(), AdviseError> {
        let pages = pages.start.get()..pages.end.get();
        Ok(self.region.advise(pages, advice.for_agent())?)
    }

    fn flush(&self) -> Result<(), FlushError> {
        Ok(self.region.flush()?)
    }

    fn stats(&self) -> Result<Stats, StatsError> {
        Ok(Stats::of_region(&self.region.stats()))
    }

    fn unmap(self: Box<Self>) -> Result<(), UnmapError> {
        self.region.end();
        self.pages.unmap();
        Ok(())
    }
}

//! Remote pages in files, which outlive every process: what a daemon is tested with where no memory node
//! is needed. One file a region; releasing the region removes it. A lane panics where a [`Trap`] is laid.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mycoram_agent::Owner;
use mycoram_agent::daemon::{RemoteSource, SourceError};
use mycoram_fabric::pages::{
    Direction, LaneConfig, LaneError, LaneFull, PageDone, PageError, PageLane, PageRequest,
    RemoteRegion, RemoteStats,
};
use mycoram_fabric::transport::{Armed, Mapping};
use mycoram_fabric::units::{ByteCount, Epoch, PAGE_BYTES, PageCount, RegionId};

/// A file that says how often lanes of a region are to panic still.
pub(crate) struct Trap(PathBuf);

impl Trap {
    /// Of the region whose pages are in this file.
    pub(crate) fn of(pages: &Path) -> Self {
        let name = pages.file_name().expect("a file").to_owned();
        let place = pages.ancestors().nth(2).expect("two directories");
        Self(place.join(name).with_extension("trap"))
    }

    /// Whole or not at all.
    pub(crate) fn lay(&self, times: u64) {
        let half = self.0.with_extension("half");
        std::fs::write(&half, times.to_string()).expect("written");
        std::fs::rename(&half, &self.0).expect("renamed");
    }

    fn spring(&self) {
        let Ok(text) = std::fs::read_to_string(&self.0) else {
            return;
        };
        let times: u64 = text.parse().expect("a number");
        match times - 1 {
            0 => std::fs::remove_file(&self.0).expect("there"),
            left => self.lay(left),
        }
        panic!("a trap");
    }
}

pub(crate) struct FileSource {
    dir: PathBuf,
}

impl FileSource {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    fn path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:016x}.pages"))
    }
}

impl RemoteSource for FileSource {
    fn create(
        &self,
        bytes: ByteCount,
        _extent_bytes: ByteCount,
    ) -> Result<(Arc<dyn RemoteRegion>, Owner), SourceError> {
        let id = mycoram_fabric::random::System::open()?.number();
        let file = File::create_new(self.path(id))?;
        file.set_len(bytes.get())?;
        drop(file);
        self.reopen(&Owner {
            region: RegionId::new(id),
            epoch: Epoch::new(0),
            directory: id.to_le_bytes().to_vec(),
        })
    }

    fn reopen(&self, saved: &Owner) -> Result<(Arc<dyn RemoteRegion>, Owner), SourceError> {
        let id = saved.region.get();
        if saved.directory != id.to_le_bytes() {
            return Err("the directory is not what was given".into());
        }
        let path = self.path(id);
        let file = File::options().read(true).write(true).open(&path)?;
        let pages = PageCount::holding(ByteCount::new(file.metadata()?.len())).expect("small");
        let owner = Owner {
            epoch: saved.epoch.next().expect("few epochs"),
            ..saved.clone()
        };
        let region = FileRegion {
            file: Arc::new(file),
            path,
            pages,
            moved: Arc::new([const { AtomicU64::new(0) }; 2]),
        };
        Ok((Arc::new(region), owner))
    }
}

struct FileRegion {
    file: Arc<File>,
    path: PathBuf,
    pages: PageCount,
    moved: Arc<[AtomicU64; 2]>,
}

impl RemoteRegion for FileRegion {
    fn pages(&self) -> PageCount {
        self.pages
    }

    fn open_lane(&self, config: &LaneConfig) -> Result<Box<dyn PageLane>, LaneError> {
        Ok(Box::new(FileLane {
            file: Arc::clone(&self.file),
            frames: Arc::new(Mapping::anonymous(config.frames as usize * PAGE_BYTES)?),
            trap: Trap::of(&self.path),
            queued: Vec::with_capacity(config.depth as usize),
            done: Vec::with_capacity(config.depth as usize),
            moved: Arc::clone(&self.moved),
        }))
    }

    fn stats(&self) -> RemoteStats {
        RemoteStats {
            bytes_read: self.moved[0].load(Ordering::Relaxed),
            bytes_written: self.moved[1].load(Ordering::Relaxed),
            ..RemoteStats::default()
        }
    }

    fn node_name(&self, _node: u16) -> String {
        "file".into()
    }

    fn release(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

struct FileLane {
    file: Arc<File>,
    frames: Arc<Mapping>,
    trap: Trap,
    queued: Vec<PageRequest>,
    done: Vec<PageDone>,
    moved: Arc<[AtomicU64; 2]>,
}

impl FileLane {
    fn carry_out(&self, request: &PageRequest) -> Result<(), PageError> {
        self.trap.spring();
        let bytes = usize::from(request.run) * PAGE_BYTES;
        let frame = request.frame.0 as usize * PAGE_BYTES;
        self.frames.check(frame, bytes).expect("frames of the lane");
        let offset = request.page.offset().get() as i64;
        // SAFETY: checked to be inside of the frames, which live as long as the lane; whoever asked
        // leaves them alone meanwhile.
        let moved = unsafe {
            let at = self.frames.as_ptr().add(frame).cast();
            match request.direction {
                Direction::Read => libc::pread(self.file.as_raw_fd(), at, bytes, offset),
                Direction::Write => libc::pwrite(self.file.as_raw_fd(), at, bytes, offset),
            }
        };
        let way = usize::from(request.direction == Direction::Write);
        self.moved[way].fetch_add(bytes as u64, Ordering::Relaxed);
        if moved == bytes as isize {
            Ok(())
        } else {
            Err(PageError::Lost { node: 0 })
        }
    }
}

impl PageLane for FileLane {
    fn frames(&self) -> &Arc<Mapping> {
        &self.frames
    }

    fn free_slots(&self) -> usize {
        self.queued.capacity() - self.queued.len() - self.done.len()
    }

    fn queue(&mut self, request: PageRequest) -> Result<(), LaneFull> {
        if self.free_slots() == 0 {
            return Err(LaneFull);
        }
        self.queued.push(request);
        Ok(())
    }

    fn ring(&mut self) {
        for at in 0..self.queued.len() {
            let request = self.queued[at];
            let result = self.carry_out(&request);
            self.done.push(PageDone {
                tag: request.tag,
                direction: request.direction,
                page: request.page,
                run: request.run,
                frame: request.frame,
                result,
                node: None,
                wrong: 0,
            });
        }
        self.queued.clear();
    }

    fn poll(&mut self, into: &mut Vec<PageDone>) -> usize {
        let room = (into.capacity() - into.len()).min(self.done.len());
        into.extend(self.done.drain(..room));
        room
    }

    fn arm(&mut self) -> Armed {
        if self.done.is_empty() {
            Armed::Waiting
        } else {
            Armed::Ready
        }
    }

    fn readiness<'a>(&'a self, _each: &mut dyn FnMut(BorrowedFd<'a>)) {}
}

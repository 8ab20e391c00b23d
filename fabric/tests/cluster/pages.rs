//! Pages with known contents, over a lane.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mycoram_fabric::pages::{
    Direction, FrameIndex, LaneConfig, PageDone, PageError, PageLane, PageRequest, RemoteRegion,
    Which, await_answers,
};
use mycoram_fabric::transport::Armed;
use mycoram_fabric::units::{PAGE_BYTES, PageIndex};

use super::HANG;

/// Longest sleep before a lane is looked at again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A lane, and what was written over it.
pub(crate) struct Pages {
    lane: Box<dyn PageLane>,
    versions: HashMap<u32, u64>,
    next_version: u64,
    started: usize,
    done: Vec<PageDone>,
    /// Where the last answer came from.
    pub(crate) node: Option<u16>,
}

impl Pages {
    pub(crate) fn open(remote: &dyn RemoteRegion, config: &LaneConfig) -> Self {
        Self {
            lane: remote.open_lane(config).expect("a lane"),
            versions: HashMap::new(),
            next_version: 1,
            started: 0,
            done: Vec::with_capacity(64),
            node: None,
        }
    }

    /// Knows what another lane has written.
    pub(crate) fn adopt(&mut self, other: &Self) {
        self.versions.clone_from(&other.versions);
        self.next_version = other.next_version;
    }

    fn contents(page: u32, version: u64) -> Vec<u8> {
        let word = (u64::from(page) << 32 | version).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.to_le_bytes().repeat(PAGE_BYTES / 8)
    }

    /// Starts a request from or into the frames from 0 on, whose contents nobody looks at.
    pub(crate) fn start(&mut self, direction: Direction, page: u32, run: u16) {
        self.start_at(direction, Which::Live, page, run);
    }

    fn start_at(&mut self, direction: Direction, which: Which, page: u32, run: u16) {
        let request = PageRequest {
            tag: u64::from(page),
            direction,
            page: PageIndex::new(page),
            run,
            frame: FrameIndex(0),
            which,
        };
        self.lane.queue(request).expect("room in the lane");
        self.lane.ring();
        self.started += 1;
    }

    /// Waits for all that was started, as an agent does: by its descriptors.
    pub(crate) fn finish(&mut self) -> Vec<(u64, Result<(), PageError>)> {
        let until = Instant::now() + HANG;
        let mut answers = Vec::new();
        while answers.len() < self.started {
            assert!(Instant::now() < until, "a request was never answered");
            self.done.clear();
            if self.lane.poll(&mut self.done) == 0 {
                await_answers(&mut *self.lane, LONGEST_WAIT);
            }
            answers.extend(self.done.iter().map(|done| (done.tag, done.result)));
            self.node = self.done.last().map_or(self.node, |done| done.node);
        }
        self.started = 0;
        answers
    }

    fn one(&mut self, direction: Direction, page: u32, run: u16) -> Result<(), PageError> {
        self.one_at(direction, Which::Live, page, run)
    }

    /// One request from or into the frames from 0 on.
    pub(crate) fn one_at(
        &mut self,
        direction: Direction,
        which: Which,
        page: u32,
        run: u16,
    ) -> Result<(), PageError> {
        assert_eq!(self.started, 0, "others are under way");
        self.start_at(direction, which, page, run);
        let answers = self.finish();
        assert_eq!(answers.len(), 1);
        answers[0].1
    }

    /// Writes new contents to a run of pages.
    pub(crate) fn write(&mut self, page: u32, run: u16) -> Result<(), PageError> {
        let version = self.next_version;
        self.next_version += 1;
        for nth in 0..u32::from(run) {
            let bytes = Self::contents(page + nth, version);
            let frames = self.lane.frames();
            frames
                .copy_in(nth as usize * PAGE_BYTES, &bytes)
                .expect("frames");
        }
        self.one(Direction::Write, page, run)?;
        for nth in 0..u32::from(run) {
            self.versions.insert(page + nth, version);
        }
        Ok(())
    }

    /// Fills the frames from 0 on.
    pub(crate) fn fill(&mut self, bytes: &[u8]) {
        self.lane.frames().copy_in(0, bytes).expect("frames");
    }

    /// The bytes in the frames from 0 on.
    pub(crate) fn copy_out(&self, bytes: &mut [u8]) {
        self.lane.frames().copy_out(0, bytes).expect("frames");
    }

    /// Nobody waits for places any more.
    pub(crate) fn give_up_unplaced(&mut self) {
        self.lane.give_up_unplaced();
    }

    /// Lets the lane do what it has to.
    pub(crate) fn poll(&mut self) {
        assert_eq!(self.started, 0, "others are under way");
        self.lane.poll(&mut self.done);
    }

    /// Whether a thread that waits for the lane would sleep.
    pub(crate) fn would_sleep(&mut self) -> bool {
        self.poll();
        if self.lane.arm() == Armed::Ready {
            return false;
        }
        let mut fds = Vec::new();
        self.lane.readiness(&mut |fd| {
            fds.push(nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN));
        });
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO) == Ok(0)
    }

    /// What a page was last written with.
    pub(crate) fn expected(&self, page: u32) -> Vec<u8> {
        match self.versions.get(&page) {
            Some(version) => Self::contents(page, *version),
            None => vec![0; PAGE_BYTES],
        }
    }

    pub(crate) fn read_raw(&mut self, page: u32, run: u16) -> Result<Vec<u8>, PageError> {
        let mut bytes = vec![0xee; usize::from(run) * PAGE_BYTES];
        self.lane.frames().copy_in(0, &bytes).expect("frames");
        self.one(Direction::Read, page, run)?;
        self.lane.frames().copy_out(0, &mut bytes).expect("frames");
        Ok(bytes)
    }

    /// Reads a run of pages, and sees that each is as it was last written.
    pub(crate) fn read_back(&mut self, page: u32, run: u16) -> Result<(), PageError> {
        let bytes = self.read_raw(page, run)?;
        for (nth, found) in bytes.chunks_exact(PAGE_BYTES).enumerate() {
            let page = page + nth as u32;
            assert!(
                found == self.expected(page),
                "page {page} is not as it was written"
            );
        }
        Ok(())
    }
}

//! A remote region and its lanes, with every page sealed on its way out and opened on its way in.
//!
//! A lane has twice the frames that its owner asked for. The owner's stay as they are, since others may read
//! them while they are written; what goes out is copied to one of the lane's own and sealed there. Nothing is
//! allocated after a lane is made.
//!
//! A repair (`Which::Only`) has to bring back what the other replicas hold: the same version, the same bytes. It
//! is sealed as the version that is kept, and goes out only if that gives the tag that is kept. So no
//! version is ever seen with two contents, whatever the owner asks for.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use mycoram_fabric::authority::AuthorityError;
use mycoram_fabric::check::{CheckOrder, CheckReport};
use mycoram_fabric::pages::{
    Direction, FrameIndex, KeepDirectory, KeepError, LaneConfig, LaneError, LaneFull, NodeSet,
    PageDone, PageError, PageLane, PageRequest, RemoteRegion, RemoteStats, Which,
};
use mycoram_fabric::transport::{Armed, Mapping};
use mycoram_fabric::units::{PAGE_BYTES, PageCount, PageIndex};

use super::cipher::Cipher;
use crate::page_table::SealTable;
use crate::runtime::FramePool;

/// Key and versions of a region.
#[derive(Debug)]
struct Seals {
    cipher: Cipher,
    table: SealTable,
}

impl Seals {
    /// Seals a new version of a page.
    fn seal(&self, page: PageIndex, bytes: &mut [u8]) -> bool {
        let version = self.table.next_version(page);
        match self.cipher.seal(page, version, bytes) {
            Some(tag) => {
                self.table.set_tag(page, tag);
                true
            }
            None => false,
        }
    }

    /// Seals the version that is kept again. False: it is another content.
    fn seal_again(&self, page: PageIndex, bytes: &mut [u8]) -> bool {
        let sealed = self.cipher.seal(page, self.table.version(page), bytes);
        sealed == Some(self.table.tag(page))
    }

    fn open(&self, page: PageIndex, bytes: &mut [u8]) -> bool {
        let (version, tag) = (self.table.version(page), self.table.tag(page));
        self.cipher.open(page, version, tag, bytes)
    }
}

/// See the module.
pub(crate) struct SealedRegion {
    inner: Arc<dyn RemoteRegion>,
    seals: Arc<Seals>,
}

impl SealedRegion {
    pub(crate) fn over(inner: Arc<dyn RemoteRegion>, cipher: Cipher, table: SealTable) -> Self {
        Self {
            inner,
            seals: Arc::new(Seals { cipher, table }),
        }
    }
}

impl RemoteRegion for SealedRegion {
    fn pages(&self) -> PageCount {
        self.inner.pages()
    }

    fn open_lane(&self, config: &LaneConfig) -> Result<Box<dyn PageLane>, LaneError> {
        let inner = self.inner.open_lane(&LaneConfig {
            frames: 2 * config.frames,
            // Pages are opened into other frames than they are read into.
            stages: 0,
            ..*config
        })?;
        let frames = config.frames as usize;
        Ok(Box::new(SealedLane {
            inner,
            seals: Arc::clone(&self.seals),
            first: config.frames,
            pool: FramePool::new(config.frames),
            owners: vec![FrameIndex(0); frames],
            refused: Vec::with_capacity(frames),
        }))
    }

    fn stats(&self) -> RemoteStats {
        self.inner.stats()
    }

    fn node_name(&self, node: u16) -> String {
        self.inner.node_name(node)
    }

    fn keep_directory(&self, keep: KeepDirectory) -> Result<(), KeepError> {
        self.inner.keep_directory(keep)
    }

    fn expect(&self, page: PageIndex) {
        self.inner.expect(page);
    }

    fn is_placed(&self, page: PageIndex) -> bool {
        self.inner.is_placed(page)
    }

    fn inherits(&self, page: PageIndex) -> bool {
        self.inner.inherits(page)
    }

    fn has_room(&self) -> bool {
        self.inner.has_room()
    }

    fn replicas_of(&self, page: PageIndex) -> NodeSet {
        self.inner.replicas_of(page)
    }

    fn check_wanted(&self) -> Option<CheckOrder> {
        self.inner.check_wanted()
    }

    fn check_told(&self, report: &CheckReport) -> Result<(), AuthorityError> {
        self.inner.check_told(report)
    }

    fn release(&self) {
        self.inner.release();
    }
}

/// See the module.
struct SealedLane {
    inner: Box<dyn PageLane>,
    seals: Arc<Seals>,
    /// First of the lane's own frames; as many are the owner's, before it.
    first: u32,
    /// The lane's own, counted from `first`.
    pool: FramePool,
    /// For the first of the own frames of a WRITE: the owner's frame.
    owners: Vec<FrameIndex>,
    /// Repairs that did not go out.
    refused: Vec<PageDone>,
}

impl SealedLane {
    /// Where a frame's bytes are, if it is one.
    fn bytes(&self, frame: FrameIndex) -> Option<*mut u8> {
        let frames = self.inner.frames();
        let at = frame.0 as usize * PAGE_BYTES;
        frames.check(at, PAGE_BYTES).ok()?;
        // SAFETY: checked to lie inside of the mapping, which the lane keeps.
        Some(unsafe { frames.as_ptr().add(at) })
    }

    /// Copies the request's pages to the frames from `out` on and seals them.
    fn seal(&self, request: &PageRequest, out: FrameIndex) -> bool {
        (0..u32::from(request.run)).all(|at| {
            let page = PageIndex::new(request.page.get() + at);
            let from = (request.frame.0 + at) as usize * PAGE_BYTES;
            let to = (out.0 + at) as usize * PAGE_BYTES;
            let copied = self.inner.frames().copy_within(from, to, PAGE_BYTES);
            let (Ok(()), Some(bytes)) = (copied, self.bytes(FrameIndex(out.0 + at))) else {
                return false;
            };
            // SAFETY: a whole frame, taken from the pool just now and not queued yet: nobody else uses it.
            let bytes = unsafe { std::slice::from_raw_parts_mut(bytes, PAGE_BYTES) };
            match request.which {
                Which::Only(_) => self.seals.seal_again(page, bytes),
                Which::Live | Which::Except(_) => self.seals.seal(page, bytes),
            }
        })
    }

    fn give_back(&mut self, out: FrameIndex, run: u16) {
        self.pool
            .give(FrameIndex(out.0 - self.first), u32::from(run));
    }

    /// Opens what was read, or gives frames back that were written from.
    fn done(&mut self, done: &mut PageDone) {
        match done.direction {
            Direction::Write => {
                let own = done.frame;
                done.frame = self.owners[(own.0 - self.first) as usize];
                self.give_back(own, done.run);
            }
            Direction::Read if done.result.is_ok() => {
                for at in 0..done.run {
                    let page = PageIndex::new(done.page.get() + u32::from(at));
                    let frame = FrameIndex(done.frame.0 + u32::from(at));
                    let opened = self.bytes(frame).is_some_and(|bytes| {
                        // SAFETY: a whole frame; the READ is done, and the owner, whose frame it is, has not
                        // heard of it yet: nobody else uses it.
                        let bytes = unsafe { std::slice::from_raw_parts_mut(bytes, PAGE_BYTES) };
                        self.seals.open(page, bytes)
                    });
                    done.wrong |= u16::from(!opened) << at;
                }
            }
            Direction::Read => {}
        }
    }
}

impl PageLane for SealedLane {
    fn frames(&self) -> &Arc<Mapping> {
        self.inner.frames()
    }

    fn free_slots(&self) -> usize {
        self.inner.free_slots()
    }

    fn queue(&mut self, request: PageRequest) -> Result<(), LaneFull> {
        if request.direction == Direction::Read {
            return self.inner.queue(request);
        }
        if self.inner.free_slots() == 0 || self.refused.len() == self.refused.capacity() {
            return Err(LaneFull);
        }
        let own = self.pool.take(u32::from(request.run)).ok_or(LaneFull)?;
        let out = FrameIndex(own.0 + self.first);
        if !self.seal(&request, out) {
            self.give_back(out, request.run);
            self.refused.push(PageDone {
                tag: request.tag,
                direction: request.direction,
                page: request.page,
                run: request.run,
                frame: request.frame,
                result: Err(PageError::Lost {
                    node: match request.which {
                        Which::Only(node) => node,
                        Which::Live | Which::Except(_) => 0,
                    },
                }),
                node: None,
                wrong: 0,
            });
            return Ok(());
        }
        self.owners[own.0 as usize] = request.frame;
        let sealed = PageRequest {
            frame: out,
            ..request
        };
        self.inner
            .queue(sealed)
            .inspect_err(|LaneFull| self.give_back(out, request.run))
    }

    fn ring(&mut self) {
        self.inner.ring();
    }

    fn poll(&mut self, into: &mut Vec<PageDone>) -> usize {
        let before = into.len();
        while into.len() < into.capacity()
            && let Some(done) = self.refused.pop()
        {
            into.push(done);
        }
        let first = into.len();
        self.inner.poll(into);
        for done in &mut into[first..] {
            self.done(done);
        }
        into.len() - before
    }

    fn give_up_unplaced(&mut self) {
        self.inner.give_up_unplaced();
    }

    fn arm(&mut self) -> Armed {
        if self.refused.is_empty() {
            self.inner.arm()
        } else {
            Armed::Ready
        }
    }

    fn readiness<'a>(&'a self, each: &mut dyn FnMut(BorrowedFd<'a>)) {
        self.inner.readiness(each);
    }
}

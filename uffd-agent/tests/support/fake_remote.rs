//! A remote region in this process's memory, whose nodes die, whose bytes rot, whose owner is fenced and whose
//! extents are placed when a test says so.

use std::collections::{HashSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use mycoram_fabric::pages::{
    Direction, FrameIndex, HUGE_PAGES, LaneConfig, LaneError, LaneFull, PageDone, PageError,
    PageLane, PageRequest, RemoteRegion, RemoteStats, Which,
};
use mycoram_fabric::transport::{Armed, Mapping};
use mycoram_fabric::units::{PAGE_BYTES, PageCount, PageIndex};

/// Pages that lie on one node, before the next one takes over.
pub const STRIPE: u32 = 256;

/// There is no second replica.
const NO_NODE: u32 = u32::MAX;

/// Shared by the fake and its lanes.
pub struct Store {
    memory: Arc<Mapping>,
    pages: u32,
    pub nodes: u32,
    /// Bit set: this node is dead.
    pub dead: AtomicU32,
    pub fenced: AtomicBool,
    /// Pages whose next READ comes back changed.
    pub rot: Mutex<HashSet<u32>>,
    /// The node that pages have a second replica on, if they do, and pages that are wrong on the first one
    /// until that is written again.
    pub second: AtomicU32,
    pub rotten: Mutex<HashSet<u32>>,
    pub repairs: AtomicU64,
    pub released: AtomicBool,
    /// The lane that is asked for this panics.
    pub trap: Mutex<Option<(Direction, u32)>>,
    /// Pages from this one on have no place: writes to them wait.
    pub placed: AtomicU32,
    /// Nobody has room for them.
    pub full: AtomicBool,
    /// Pages that were said to be written soon.
    pub expected: Mutex<HashSet<u32>>,
    /// Polls that a request waits before it is done: a stand-in for latency.
    pub polls: AtomicU32,
    pub bytes_read: AtomicU64,
    pub bytes_written: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    /// What every lane is to know.
    news: AtomicU64,
    /// What the open lanes know, and how many were opened.
    lanes: Mutex<(Vec<Weak<AtomicU64>>, usize)>,
}

pub struct FakeRemote {
    pub store: Arc<Store>,
}

impl FakeRemote {
    pub fn new(pages: u32, nodes: u32) -> Arc<Self> {
        let memory = Mapping::anonymous(pages as usize * PAGE_BYTES).expect("memory");
        Self::over(Arc::new(memory), pages, nodes)
    }

    /// Over memory that outlives this process's agent: a mapping of a file, say.
    pub fn over(memory: Arc<Mapping>, pages: u32, nodes: u32) -> Arc<Self> {
        Arc::new(Self {
            store: Arc::new(Store {
                memory,
                pages,
                nodes,
                dead: AtomicU32::new(0),
                fenced: AtomicBool::new(false),
                rot: Mutex::new(HashSet::new()),
                second: AtomicU32::new(NO_NODE),
                rotten: Mutex::new(HashSet::new()),
                repairs: AtomicU64::new(0),
                released: AtomicBool::new(false),
                trap: Mutex::new(None),
                placed: AtomicU32::new(u32::MAX),
                full: AtomicBool::new(false),
                expected: Mutex::new(HashSet::new()),
                polls: AtomicU32::new(0),
                bytes_read: AtomicU64::new(0),
                bytes_written: AtomicU64::new(0),
                reads: AtomicU64::new(0),
                writes: AtomicU64::new(0),
                news: AtomicU64::new(0),
                lanes: Mutex::default(),
            }),
        })
    }

    pub fn kill_node(&self, node: u32) {
        self.store.dead.fetch_or(1 << node, Ordering::SeqCst);
    }

    /// There is something that every lane is to know, as when an extent is copied.
    pub fn tell(&self) {
        self.store.news.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether every open lane knows it.
    pub fn is_known(&self) -> bool {
        let news = self.store.news.load(Ordering::SeqCst);
        let lanes = self.store.lanes.lock().expect("no panic");
        let mut open = lanes.0.iter().filter_map(Weak::upgrade);
        open.all(|known| known.load(Ordering::SeqCst) == news)
    }

    /// Lanes that are open, and that were opened so far.
    pub fn lanes(&self) -> (usize, usize) {
        let lanes = self.store.lanes.lock().expect("no panic");
        let open = lanes.0.iter().filter(|lane| lane.strong_count() > 0);
        (open.count(), lanes.1)
    }

    /// What the memory node holds of a page.
    pub fn read(&self, page: u32, offset: usize, into: &mut [u8]) {
        let at = page as usize * PAGE_BYTES + offset;
        self.store.memory.copy_out(at, into).expect("inside");
    }

    pub fn node_of(&self, page: u32) -> u32 {
        page / STRIPE % self.store.nodes
    }
}

impl RemoteRegion for FakeRemote {
    fn pages(&self) -> PageCount {
        PageCount::new(self.store.pages)
    }

    fn open_lane(&self, config: &LaneConfig) -> Result<Box<dyn PageLane>, LaneError> {
        let stages = config.frames.next_multiple_of(HUGE_PAGES);
        let frames = match config.stages {
            0 => Mapping::anonymous(config.frames as usize * PAGE_BYTES),
            some => Mapping::reserved_at(
                HUGE_PAGES as usize * PAGE_BYTES,
                (stages + some * HUGE_PAGES) as usize * PAGE_BYTES,
            ),
        };
        let knows = Arc::new(AtomicU64::new(self.store.news.load(Ordering::SeqCst)));
        let mut lanes = self.store.lanes.lock().expect("no panic");
        lanes.0.push(Arc::downgrade(&knows));
        lanes.1 += 1;
        drop(lanes);
        Ok(Box::new(FakeLane {
            store: Arc::clone(&self.store),
            knows,
            frames: Arc::new(frames?),
            stages: (0..config.stages)
                .map(|stage| FrameIndex(stages + stage * HUGE_PAGES))
                .collect(),
            depth: config.depth as usize,
            queued: Vec::with_capacity(config.depth as usize),
            flying: VecDeque::with_capacity(config.depth as usize),
            waiting: Vec::with_capacity(config.depth as usize),
            given_up: false,
        }))
    }

    fn stats(&self) -> RemoteStats {
        RemoteStats {
            bytes_read: self.store.bytes_read.load(Ordering::Relaxed),
            bytes_written: self.store.bytes_written.load(Ordering::Relaxed),
            reads: self.store.reads.load(Ordering::Relaxed),
            writes: self.store.writes.load(Ordering::Relaxed),
            nodes_lost: self.store.dead.load(Ordering::Relaxed).count_ones().into(),
            ..RemoteStats::default()
        }
    }

    fn node_name(&self, node: u16) -> String {
        format!("node-{node}")
    }

    fn expect(&self, page: PageIndex) {
        let mut expected = self.store.expected.lock().expect("no panic");
        expected.insert(page.get());
    }

    fn is_placed(&self, page: PageIndex) -> bool {
        page.get() < self.store.placed.load(Ordering::SeqCst)
    }

    fn has_room(&self) -> bool {
        !self.store.full.load(Ordering::SeqCst)
    }

    fn release(&self) {
        self.store.released.store(true, Ordering::SeqCst);
    }
}

struct FakeLane {
    store: Arc<Store>,
    knows: Arc<AtomicU64>,
    frames: Arc<Mapping>,
    stages: Vec<FrameIndex>,
    depth: usize,
    queued: Vec<PageRequest>,
    flying: VecDeque<(u32, PageRequest)>,
    /// Writes without a place.
    waiting: Vec<PageRequest>,
    given_up: bool,
}

impl FakeLane {
    fn has_place(&self, request: &PageRequest) -> bool {
        let end = request.page.get() + u32::from(request.run);
        request.direction == Direction::Read || end <= self.store.placed.load(Ordering::SeqCst)
    }

    /// Which node answers a request.
    fn chosen(&self, request: &PageRequest) -> Result<u32, PageError> {
        let first = request.page.get() / STRIPE % self.store.nodes;
        let second = self.store.second.load(Ordering::SeqCst);
        let dead = self.store.dead.load(Ordering::SeqCst);
        let serves = |node: &u32| {
            *node != NO_NODE
                && dead & (1 << *node) == 0
                && match request.which {
                    Which::Live => true,
                    Which::Except(nodes) => !nodes.contains(*node as u16),
                    Which::Only(only) => u32::from(only) == *node,
                }
        };
        let chosen = [first, second].into_iter().find(serves);
        chosen.ok_or(PageError::Lost { node: first as u16 })
    }

    fn carry_out(
        &self,
        request: PageRequest,
        node: Result<u32, PageError>,
    ) -> Result<(), PageError> {
        let store = &self.store;
        let trap = *store.trap.lock().expect("not held in a panic");
        let pages = request.page.get()..request.page.get() + u32::from(request.run);
        if let Some((_, page)) =
            trap.filter(|(way, page)| *way == request.direction && pages.contains(page))
        {
            panic!("page {page} is a trap");
        }
        if store.fenced.load(Ordering::SeqCst) {
            return Err(PageError::Fenced);
        }
        let node = node?;
        let is_first = node == request.page.get() / STRIPE % store.nodes;
        let mut bytes = [0; PAGE_BYTES];
        for at in 0..u32::from(request.run) {
            let page = request.page.get() + at;
            let there = page as usize * PAGE_BYTES;
            let here = (request.frame.0 + at) as usize * PAGE_BYTES;
            match request.direction {
                Direction::Read => {
                    store.memory.copy_out(there, &mut bytes).expect("inside");
                    let rotten = store.rotten.lock().expect("no panic").contains(&page);
                    if store.rot.lock().expect("no panic").remove(&page) || (rotten && is_first) {
                        bytes[7] ^= 0x10;
                    }
                    self.frames.copy_in(here, &bytes).expect("inside");
                    store
                        .bytes_read
                        .fetch_add(PAGE_BYTES as u64, Ordering::Relaxed);
                }
                Direction::Write => {
                    self.frames.copy_out(here, &mut bytes).expect("inside");
                    store.memory.copy_in(there, &bytes).expect("inside");
                    if is_first {
                        store.rotten.lock().expect("no panic").remove(&page);
                    }
                    if matches!(request.which, Which::Only(_)) {
                        store.repairs.fetch_add(1, Ordering::SeqCst);
                    }
                    store
                        .bytes_written
                        .fetch_add(PAGE_BYTES as u64, Ordering::Relaxed);
                }
            }
        }
        match request.direction {
            Direction::Read => store.reads.fetch_add(1, Ordering::Relaxed),
            Direction::Write => store.writes.fetch_add(1, Ordering::Relaxed),
        };
        Ok(())
    }
}

impl PageLane for FakeLane {
    fn frames(&self) -> &Arc<Mapping> {
        &self.frames
    }

    fn stage(&self, number: u32) -> Option<FrameIndex> {
        self.stages.get(number as usize).copied()
    }

    fn free_slots(&self) -> usize {
        self.depth - self.queued.len() - self.flying.len() - self.waiting.len()
    }

    fn queue(&mut self, request: PageRequest) -> Result<(), LaneFull> {
        assert!((1..=16).contains(&request.run), "a run of {}", request.run);
        assert!(request.page.get() + u32::from(request.run) <= self.store.pages);
        if self.free_slots() == 0 {
            return Err(LaneFull);
        }
        self.queued.push(request);
        Ok(())
    }

    fn ring(&mut self) {
        let polls = self.store.polls.load(Ordering::Relaxed);
        self.flying
            .extend(self.queued.drain(..).map(|request| (polls, request)));
    }

    fn poll(&mut self, into: &mut Vec<PageDone>) -> usize {
        let news = self.store.news.load(Ordering::SeqCst);
        self.knows.store(news, Ordering::SeqCst);
        let mut done = 0;
        while self.given_up && into.len() < into.capacity() {
            let Some(request) = self.waiting.pop() else {
                self.given_up = false;
                break;
            };
            into.push(PageDone {
                tag: request.tag,
                direction: request.direction,
                page: request.page,
                run: request.run,
                frame: request.frame,
                result: Err(PageError::Unplaced),
                node: None,
                wrong: 0,
            });
            done += 1;
        }
        for at in (0..self.waiting.len()).rev() {
            if self.has_place(&self.waiting[at]) {
                let request = self.waiting.swap_remove(at);
                self.flying.push_back((0, request));
            }
        }
        while into.len() < into.capacity() {
            match self.flying.front_mut() {
                Some((polls, _)) if *polls > 0 => {
                    *polls -= 1;
                    break;
                }
                None => break,
                Some(_) => {}
            }
            let Some((_, request)) = self.flying.pop_front() else {
                break;
            };
            if !self.has_place(&request) {
                self.waiting.push(request);
                continue;
            }
            let node = self.chosen(&request);
            let replicated = self.store.second.load(Ordering::SeqCst) != NO_NODE;
            into.push(PageDone {
                tag: request.tag,
                direction: request.direction,
                page: request.page,
                run: request.run,
                frame: request.frame,
                result: self.carry_out(request, node),
                node: node.ok().filter(|_| replicated).map(|node| node as u16),
                wrong: 0,
            });
            done += 1;
        }
        done
    }

    fn give_up_unplaced(&mut self) {
        self.given_up = true;
    }

    fn arm(&mut self) -> Armed {
        // Nothing rings when there is a place, or something to know.
        let knows = self.knows.load(Ordering::SeqCst) == self.store.news.load(Ordering::SeqCst);
        if self.flying.is_empty() && self.waiting.is_empty() && knows {
            Armed::Waiting
        } else {
            Armed::Ready
        }
    }

    fn readiness<'a>(&'a self, _each: &mut dyn FnMut(BorrowedFd<'a>)) {}
}

//! Over all pages of a region: read from every live replica, judged, and written again where that is ordered.

use std::time::Duration;

use super::verdict::{MOST, Verdict, judge};
use crate::check::{MAX_NAMED, WrongReplica};
use crate::pages::{
    Direction, FrameIndex, LaneConfig, LaneError, MAX_RUN_PAGES, NodeSet, PageDone, PageError,
    PageLane, PageRequest, RemoteRegion, Which, await_answers,
};
use crate::units::{PAGE_BYTES, PageIndex};

/// Longest wait for an answer before the lane is looked at again.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// Frames of a run.
const RUN: usize = MAX_RUN_PAGES as usize;

/// What was found, so far or in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Pages of the region.
    pub pages: u64,
    /// Pages that were looked at; in the end all.
    pub looked_at: u64,
    /// Replicas of pages that were read and compared with another one.
    pub compared: u64,
    /// Pages of which one replica could be read, and no other is live: there is nothing to compare it with.
    pub single: u64,
    /// Live replicas of pages that could not be read.
    pub unreadable: u64,
    /// Replicas of pages that differ from what most of the others hold.
    pub wrong: u64,
    /// Of those, written again.
    pub repaired: u64,
    /// Pages whose replicas differ, where nothing tells which is right. They were left as they are.
    pub undecided: u64,
    /// Wrong replicas by name, up to [`MAX_NAMED`].
    pub named: Vec<WrongReplica>,
    /// Undecided pages, up to [`MAX_NAMED`].
    pub undecided_pages: Vec<PageIndex>,
}

/// Why a comparison was not brought to its end.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The way to the nodes.
    #[error("the memory nodes cannot be asked for the region's pages")]
    Lane(#[from] LaneError),
    /// Somebody owns the region by now.
    #[error("the region has an owner by now: what its replicas should hold is that one's to say")]
    Fenced,
}

/// Compares the live replicas of each page, and with `repair` writes those again that most others contradict. Tells
/// how far it is after each run of pages.
pub fn compare(
    region: &dyn RemoteRegion,
    repair: bool,
    told: &mut dyn FnMut(&Comparison),
) -> Result<Comparison, CompareError> {
    let config = LaneConfig {
        frames: (MOST * RUN) as u32,
        ..LaneConfig::default()
    };
    let lane = match region.open_lane(&config) {
        Ok(lane) => lane,
        Err(LaneError::Fenced) => return Err(CompareError::Fenced),
        Err(error) => return Err(error.into()),
    };
    let mut walk = Walk {
        region,
        lane,
        repair,
        found: Comparison {
            pages: region.pages().get().into(),
            ..Comparison::default()
        },
        done: Vec::with_capacity(MOST),
        contents: vec![0; MOST * RUN * PAGE_BYTES],
    };
    let all = region.pages().get();
    let mut next = 0;
    while next < all {
        let first = PageIndex::new(next);
        let nodes = region.replicas_of(first);
        let mut run = 1;
        while run < u32::from(MAX_RUN_PAGES)
            && next + run < all
            && region.replicas_of(PageIndex::new(next + run)) == nodes
        {
            run += 1;
        }
        walk.run(first, run as u16, nodes)?;
        next += run;
        walk.found.looked_at += u64::from(run);
        told(&walk.found);
    }
    Ok(walk.found)
}

struct Walk<'a> {
    region: &'a dyn RemoteRegion,
    lane: Box<dyn PageLane>,
    repair: bool,
    found: Comparison,
    done: Vec<PageDone>,
    /// What was read, in the order of the frames.
    contents: Vec<u8>,
}

fn frame(replica: usize, page: usize) -> FrameIndex {
    FrameIndex((replica * RUN + page) as u32)
}

impl Walk<'_> {
    /// Neighbouring pages with replicas on the same nodes.
    fn run(&mut self, first: PageIndex, run: u16, mut set: NodeSet) -> Result<(), CompareError> {
        let mut nodes = Vec::with_capacity(MOST);
        while let Some(node) = set.take_one() {
            nodes.push(node);
        }
        let read = |(replica, node): (usize, &u16)| PageRequest {
            tag: replica as u64,
            direction: Direction::Read,
            page: first,
            run,
            frame: frame(replica, 0),
            which: Which::Only(*node),
        };
        let asked: Vec<PageRequest> = nodes.iter().enumerate().map(read).collect();
        // By page, then by replica.
        let mut readable = [[true; MOST]; RUN];
        for failed in self.carry(&asked)? {
            for (page, readable) in (0..run).zip(&mut readable) {
                let alone = PageRequest {
                    page: PageIndex::new(first.get() + u32::from(page)),
                    run: 1,
                    frame: frame(failed, usize::from(page)),
                    ..asked[failed]
                };
                readable[failed] = self.carry(&[alone])?.is_empty();
            }
        }
        for replica in 0..nodes.len() {
            self.copy_out(frame(replica, 0), usize::from(run));
        }
        for (page, readable) in readable.iter().take(run.into()).enumerate() {
            let mut contents = [None; MOST];
            for (replica, content) in contents[..nodes.len()].iter_mut().enumerate() {
                *content = readable[replica].then(|| self.content(frame(replica, page)));
            }
            let there = contents.iter().flatten().count();
            let verdict = judge(&contents[..nodes.len()]);
            self.found.unreadable += (nodes.len() - there) as u64;
            match there {
                0 => {}
                1 => self.found.single += u64::from(nodes.len() == 1),
                _ => self.found.compared += there as u64,
            }
            let index = PageIndex::new(first.get() + page as u32);
            match verdict {
                Verdict::Same => {}
                Verdict::Undecided => {
                    self.found.undecided += 1;
                    if self.found.undecided_pages.len() < MAX_NAMED {
                        self.found.undecided_pages.push(index);
                    }
                }
                Verdict::Majority { right, wrong } => {
                    let wrong = (0..nodes.len()).filter(|replica| wrong >> replica & 1 == 1);
                    for replica in wrong {
                        let frames = (frame(right, page), frame(replica, page));
                        self.wrong(index, nodes[replica], frames)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A replica of a page on a node is wrong: it holds what is in the second frame, and should what is in the first.
    fn wrong(
        &mut self,
        page: PageIndex,
        node: u16,
        (right, wrong): (FrameIndex, FrameIndex),
    ) -> Result<(), CompareError> {
        let repaired = self.repair && self.write_again(page, node, right, wrong)?;
        self.found.wrong += 1;
        self.found.repaired += u64::from(repaired);
        if self.found.named.len() < MAX_NAMED {
            self.found.named.push(WrongReplica {
                page,
                node: self.region.node_name(node),
                repaired,
            });
        }
        Ok(())
    }

    /// Whether it could be written, and was read back right.
    fn write_again(
        &mut self,
        page: PageIndex,
        node: u16,
        right: FrameIndex,
        wrong: FrameIndex,
    ) -> Result<bool, CompareError> {
        let write = PageRequest {
            tag: 0,
            direction: Direction::Write,
            page,
            run: 1,
            frame: right,
            which: Which::Only(node),
        };
        let back = PageRequest {
            direction: Direction::Read,
            frame: wrong,
            ..write
        };
        if !self.carry(&[write])?.is_empty() || !self.carry(&[back])?.is_empty() {
            return Ok(false);
        }
        self.copy_out(wrong, 1);
        Ok(self.content(right) == self.content(wrong))
    }

    fn content(&self, frame: FrameIndex) -> &[u8] {
        &self.contents[frame.0 as usize * PAGE_BYTES..][..PAGE_BYTES]
    }

    /// From the lane's frames, where a late answer may still land when a request has failed.
    fn copy_out(&mut self, first: FrameIndex, frames: usize) {
        let at = first.0 as usize * PAGE_BYTES;
        let into = &mut self.contents[at..at + frames * PAGE_BYTES];
        let copied = self.lane.frames().copy_out(at, into);
        debug_assert!(copied.is_ok(), "the lane has all these frames");
    }

    /// Carries requests out, as many as there are replicas at most, and waits for all. Gives the places of those
    /// that failed.
    fn carry(&mut self, requests: &[PageRequest]) -> Result<Vec<usize>, CompareError> {
        let mut failed = Vec::new();
        let (mut queued, mut answered) = (0, 0);
        while answered < requests.len() {
            while queued < requests.len() {
                let request = PageRequest {
                    tag: queued as u64,
                    ..requests[queued]
                };
                if self.lane.queue(request).is_err() {
                    break;
                }
                queued += 1;
            }
            self.lane.ring();
            self.done.clear();
            if self.lane.poll(&mut self.done) == 0 {
                await_answers(&mut *self.lane, LONGEST_WAIT);
                continue;
            }
            answered += self.done.len();
            for done in &self.done {
                match done.result {
                    Ok(()) => {}
                    Err(PageError::Fenced) => return Err(CompareError::Fenced),
                    Err(PageError::Lost { .. } | PageError::Unplaced) => {
                        failed.push(done.tag as usize);
                    }
                }
            }
        }
        Ok(failed)
    }
}

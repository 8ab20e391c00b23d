//! Copies one extent to one more node, step by step, and then drops another of its replicas.

use std::sync::Arc;

use mycoram_fabric::pages::{Direction, FrameIndex, PageDone, PageLane, PageRequest, Which};
use mycoram_fabric::placement::NodeEntry;
use mycoram_fabric::remote::{ChangeError, CopyRun, CopyStep, ExtentCopy, Remote, ReplicaState};
use mycoram_fabric::units::ExtentIndex;

use super::index_of;

/// Pages of a run.
const RUN: u16 = 2;

pub(crate) struct Copier {
    copy: ExtentCopy,
    lane: Box<dyn PageLane>,
    to: usize,
    /// Of its node, when it was begun.
    life: u64,
    run: Option<CopyRun>,
    live: bool,
}

impl Copier {
    /// Nothing, if it cannot be begun now.
    pub(crate) fn begin(
        remote: &Arc<Remote>,
        lane: Box<dyn PageLane>,
        extent: ExtentIndex,
        to: &NodeEntry,
        life: u64,
    ) -> Option<Self> {
        let copy = remote.begin_copy(extent, to).ok()?;
        Some(Self {
            copy,
            lane,
            to: index_of(&to.name),
            life,
            run: None,
            live: false,
        })
    }

    /// The replica that was made, if it was, and the life of its node.
    pub(crate) fn finished(&self) -> Option<(ExtentIndex, usize, u64)> {
        self.live
            .then_some((self.copy.extent(), self.to, self.life))
    }

    fn ask(&mut self, direction: Direction, which: Which, run: &CopyRun) {
        let request = PageRequest {
            tag: 0,
            direction,
            page: run.page,
            run: run.run,
            frame: FrameIndex(0),
            which,
        };
        self.lane.queue(request).expect("it is the only one");
        self.lane.ring();
    }

    /// One step. True: it is over.
    pub(crate) fn go_on(&mut self, remote: &Arc<Remote>) -> bool {
        let mut done: Vec<PageDone> = Vec::with_capacity(1);
        self.lane.poll(&mut done);
        if let (Some(run), Some(done)) = (self.run, done.first()) {
            match (done.direction, done.result) {
                (Direction::Read, Ok(())) => {
                    let node = self.copy.node();
                    self.ask(Direction::Write, Which::Only(node), &run);
                }
                (_, result) => {
                    self.run = None;
                    self.copy.settled(&run, result.is_ok());
                    if result.is_err() {
                        // Its node is gone, or this owner is.
                        return true;
                    }
                }
            }
        }
        if self.run.is_some() {
            return false;
        }
        match self.copy.next(RUN) {
            CopyStep::Copy(run) => {
                self.run = Some(run);
                self.ask(Direction::Read, Which::Live, &run);
                false
            }
            CopyStep::Wait => {
                // Its node may be lost; then there is nothing to wait for.
                let replicas = remote.replicas(self.copy.extent());
                !replicas.iter().any(|replica| {
                    replica.node == self.copy.node() && replica.state == ReplicaState::Copying
                })
            }
            CopyStep::Done => self.finish(remote),
        }
    }

    fn finish(&mut self, remote: &Arc<Remote>) -> bool {
        if !self.live {
            match remote.finish_copy(&self.copy) {
                Ok(()) => self.live = true,
                Err(ChangeError::Authority(_)) => return false,
                Err(_) => return true,
            }
        }
        let extent = self.copy.extent();
        let replicas = remote.replicas(extent);
        let least = usize::from(remote.entry().replicas);
        let live = replicas
            .iter()
            .filter(|replica| replica.state == ReplicaState::Live && !replica.lost);
        let surplus = (live.clone().count() > least).then(|| live.clone().next());
        let stale = replicas
            .iter()
            .find(|replica| replica.state == ReplicaState::Stale);
        match stale.or(surplus.flatten()) {
            Some(replica) => !matches!(
                remote.drop_replica(extent, &replica.name),
                Err(ChangeError::Busy | ChangeError::Authority(_)) | Ok(())
            ),
            None => true,
        }
    }
}

//! Orders, copies and bytes put to work, one step at a time.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;

use super::extent::{Copying, Next, Spot};
use super::pace::{Pace, Pacer};
use super::plan::Plan;
use crate::authority::{AuthorityError, Order};
use crate::pages::MAX_RUN_PAGES;
use crate::remote::{ChangeError, Remote};
use crate::transfer::{EndpointIndex, OpenTransferError, Transfer, TransferConfig};
use crate::units::{ByteCount, ExtentIndex, PAGE_BYTES};

/// How soon a node whose rails could not be connected is tried again, ms.
const CONNECT_AGAIN_MS: u64 = 500;
/// How soon a replica whose copying was given up is tried to be dropped again, and a complete one to be
/// counted, ms.
const AGAIN_MS: u64 = 200;
/// How soon a replica is looked at again that lanes still use, ms: they were woken to let go of it.
const BUSY_MS: u64 = 2;

/// How a region's replicas are rebuilt.
#[derive(Clone)]
pub struct RebuildConfig {
    /// Extents that are copied at a time. Default 2: the next one begins while the last pages of the other
    /// are written by their owner.
    pub extents: usize,
    /// Runs of pages (64 KiB) under way, over all extents. Default 32.
    pub runs: usize,
    /// How often the authority is asked for orders, ms. Default 500.
    pub orders_every_ms: u64,
    /// How fast. Default: half of the bandwidth.
    pub pace: Pace,
    /// The rails. Default: 2 to each node. `chunk_bytes`, `frames` and `pieces` follow from `runs`, `rate`
    /// from `pace`.
    pub transfer: TransferConfig,
}

impl Default for RebuildConfig {
    fn default() -> Self {
        Self {
            extents: 2,
            runs: 32,
            orders_every_ms: 500,
            pace: Pace::default(),
            transfer: TransferConfig::default(),
        }
    }
}

/// How far a rebuild is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebuildProgress {
    /// Orders that wait.
    pub waiting: usize,
    /// Replicas that are being copied.
    pub copying: usize,
    /// Pages of them that are not right yet.
    pub pages_left: u64,
    /// Replicas that were copied and count.
    pub copied: u64,
    /// Replicas that were dropped.
    pub dropped: u64,
    /// Orders that failed and are tried again, each time.
    pub failures: u64,
    /// Bytes that were moved to new replicas; more than they hold where writes came across.
    pub bytes: u64,
}

/// A replica whose copying was given up: it is to be dropped.
#[derive(Debug)]
struct GivenUp {
    extent: ExtentIndex,
    node: String,
    again_ms: u64,
}

/// See the [module](super). [`super::Rebuilder`] is its thread; simulations call [`Self::step`] themselves.
pub struct Rebuild {
    remote: Weak<Remote>,
    config: RebuildConfig,
    transfer: Transfer,
    plan: Plan,
    pacer: Pacer,
    active: Vec<Copying>,
    given_up: Vec<GivenUp>,
    /// By the node's place in the region's list.
    ends: BTreeMap<u16, End>,
    next_orders_ms: u64,
    next_finish_ms: u64,
    next_tag: u64,
    done: RebuildProgress,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Connected(EndpointIndex),
    NotBefore(u64),
}

impl Rebuild {
    /// For the region of `remote`, which is not kept alive by this.
    pub fn new(remote: Weak<Remote>, config: RebuildConfig) -> Result<Self, OpenTransferError> {
        let runs = config.runs.max(1);
        let run_bytes = usize::from(MAX_RUN_PAGES) * PAGE_BYTES;
        let bound = u32::try_from(runs).unwrap_or(u32::MAX);
        let transfer = Transfer::open(TransferConfig {
            chunk_bytes: ByteCount::new(run_bytes as u64),
            frames: bound,
            pieces: bound,
            ..config.transfer.clone()
        })?;
        Ok(Self {
            remote,
            transfer,
            plan: Plan::default(),
            pacer: Pacer::new(config.pace),
            config: RebuildConfig { runs, ..config },
            active: Vec::new(),
            given_up: Vec::new(),
            ends: BTreeMap::new(),
            next_orders_ms: 0,
            next_finish_ms: 0,
            next_tag: 0,
            done: RebuildProgress::default(),
        })
    }

    /// Changes how fast replicas are copied.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pacer.set(pace);
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> RebuildProgress {
        let left = self.active.iter().map(|c| u64::from(c.copy.left().get()));
        RebuildProgress {
            waiting: self.plan.waiting(),
            copying: self.active.len(),
            pages_left: left.sum(),
            bytes: self.transfer.progress().bytes_done,
            ..self.done
        }
    }

    /// Whether it copies anything now.
    #[must_use]
    pub fn is_copying(&self) -> bool {
        !self.active.is_empty()
    }

    /// When there may be something to do if nothing else happens, ms of the clock.
    pub(super) fn wake_ms(&self) -> u64 {
        let dropping = self.given_up.iter().map(|given_up| given_up.again_ms);
        let next = dropping.chain(self.plan.wake_ms()).min();
        next.map_or(self.next_orders_ms, |next| next.min(self.next_orders_ms))
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.config.transfer.clock.now_ms()
    }

    /// Waits until something that was sent is answered, at most `timeout`.
    pub(super) fn wait(&mut self, timeout: Duration) {
        self.transfer.wait(timeout);
    }

    /// Does what can be done now. Blocks while the authority or a node is asked for something, not for
    /// pages. False: the region is gone, or is not this owner's any more.
    pub fn step(&mut self) -> bool {
        let Some(remote) = self.remote.upgrade() else {
            return false;
        };
        let now = self.now_ms();
        let free = self.active.len() < self.config.extents.max(1);
        if free && now >= self.next_orders_ms {
            match remote.authority().orders() {
                Ok(orders) => self.plan.ordered(orders),
                Err(AuthorityError::EpochTooLow { .. }) => return false,
                Err(error) => tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the control plane gives no orders now"
                ),
            }
            self.next_orders_ms = self.now_ms() + self.config.orders_every_ms;
        }
        let begun = self.begin(&remote) && self.drop_given_up(&remote);
        let bytes = self.transfer.progress().bytes_done;
        let now = self.now_ms();
        if let Some(rate) = self.pacer.rate(now, bytes, self.is_copying()) {
            self.transfer.set_rate(rate);
        }
        self.transfer.drive();
        self.settle();
        let going = self.go_on(&remote);
        self.transfer.drive();
        self.end_doomed();
        begun && going
    }

    /// Begins orders as far as there is room. False: not the owner any more.
    fn begin(&mut self, remote: &Remote) -> bool {
        // Ends: each order is active or later afterwards.
        loop {
            let copies = self.active.len() < self.config.extents.max(1);
            let live = |extent| remote.sources(extent).len();
            let now = self.now_ms();
            let Some(order) = self.plan.next(now, copies, live) else {
                return true;
            };
            let begun = match &order {
                Order::Drop { extent, node } => match remote.drop_replica(*extent, node) {
                    Ok(()) | Err(ChangeError::NoSuchReplica) => {
                        self.done.dropped += 1;
                        self.plan.done(&order);
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                Order::Copy { .. } => self.begin_copy(remote, &order),
            };
            match begun {
                Ok(()) => {}
                Err(ChangeError::NotOwner) => return false,
                Err(ChangeError::Busy) => {
                    let again = self.now_ms() + BUSY_MS;
                    self.plan.busy(&order, again);
                }
                Err(error) => {
                    tracing::debug!(
                        ?order,
                        error = &error as &dyn std::error::Error,
                        "an order of the control plane cannot be carried out now"
                    );
                    self.fail(&order);
                }
            }
        }
    }

    fn fail(&mut self, order: &Order) {
        self.done.failures += 1;
        let now = self.now_ms();
        self.plan.failed(order, now);
    }

    fn begin_copy(&mut self, remote: &Remote, order: &Order) -> Result<(), ChangeError> {
        let Order::Copy { extent, to } = order else {
            return Ok(());
        };
        let live = remote.sources(*extent);
        if live
            .iter()
            .any(|replica| remote.node_entry(replica.node).as_ref() == Some(to))
        {
            // The authority did not hear of it the last time.
            remote.authority().copied(*extent, &to.name)?;
            self.plan.done(order);
            return Ok(());
        }
        let copy = match remote.begin_copy(*extent, to) {
            Err(ChangeError::AlreadyThere) => {
                // One whose copying was given up.
                remote.drop_replica(*extent, &to.name)?;
                remote.begin_copy(*extent, to)?
            }
            begun => begun?,
        };
        let node = copy.node();
        let spot = remote.replica_on(*extent, node).zip(self.end(remote, node));
        let Some((at, endpoint)) = spot else {
            self.give_up(*extent, to.name.clone());
            return Err(ChangeError::NodeGone);
        };
        let extent_bytes = remote.entry().extent_bytes.get();
        let target = Spot { endpoint, at };
        let copying = Copying::new(order.clone(), copy, target, extent_bytes);
        self.active.push(copying);
        Ok(())
    }

    /// The rails to a node of the region.
    fn end(&mut self, remote: &Remote, node: u16) -> Option<EndpointIndex> {
        let now = self.now_ms();
        match self.ends.get(&node) {
            Some(End::Connected(end)) if self.transfer.has_endpoint(*end) => return Some(*end),
            Some(End::Connected(end)) => self.transfer.remove_endpoint(*end),
            Some(End::NotBefore(then)) if now < *then => return None,
            _ => {}
        }
        let endpoint = remote.endpoint(node)?;
        let end = match self.transfer.add_endpoint(endpoint) {
            Ok(end) => End::Connected(end),
            Err(error) => {
                tracing::debug!(
                    node = %crate::pages::RemoteRegion::node_name(remote, node),
                    error = &error as &dyn std::error::Error,
                    "a memory node cannot be connected for a rebuild"
                );
                End::NotBefore(now + CONNECT_AGAIN_MS)
            }
        };
        self.ends.insert(node, end);
        match end {
            End::Connected(end) => Some(end),
            End::NotBefore(_) => None,
        }
    }

    /// Takes what has been moved.
    fn settle(&mut self) {
        while let Some(finished) = self.transfer.take_finished() {
            let arrived = finished.result.is_ok();
            let tag = finished.piece.tag;
            for copying in &mut self.active {
                if copying.settled(tag, arrived) {
                    if let Err(not) = finished.result {
                        copying.doomed |= not.endpoint == copying.target.endpoint;
                    }
                    break;
                }
            }
        }
    }

    /// Hands in runs, and counts what is complete. False: not the owner any more.
    fn go_on(&mut self, remote: &Remote) -> bool {
        let mut at = 0;
        while at < self.active.len() {
            match self.go_on_with(remote, at) {
                Ok(true) => {
                    let copying = self.active.remove(at);
                    self.done.copied += 1;
                    self.plan.done(&copying.order);
                    // Perhaps there is more to do now.
                    self.next_orders_ms = 0;
                }
                Ok(false) => at += 1,
                Err(ChangeError::NotOwner) => return false,
                Err(ChangeError::Authority(error @ AuthorityError::Away(_))) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "a complete replica does not count yet"
                    );
                    self.next_finish_ms = self.now_ms() + AGAIN_MS;
                    at += 1;
                }
                Err(error) => {
                    tracing::debug!(
                        order = ?self.active[at].order,
                        error = &error as &dyn std::error::Error,
                        "a replica is not copied any further"
                    );
                    self.active[at].doomed = true;
                    at += 1;
                }
            }
        }
        true
    }

    /// `Ok(true)`: it is complete and counts.
    fn go_on_with(&mut self, remote: &Remote, at: usize) -> Result<bool, ChangeError> {
        let extent = self.active[at].copy.extent();
        let mut sources = Vec::new();
        for replica in remote.sources(extent) {
            if let Some(endpoint) = self.end(remote, replica.node) {
                let at = replica.at;
                sources.push(Spot { endpoint, at });
            }
        }
        let room = self.config.runs;
        loop {
            let under_way: usize = self.active.iter().map(Copying::runs).sum();
            if under_way >= room {
                return Ok(false);
            }
            let copying = &mut self.active[at];
            if sources.is_empty() && copying.runs() == 0 {
                return Err(ChangeError::NodeGone);
            }
            match copying.next(&sources, MAX_RUN_PAGES, self.next_tag) {
                Next::Wait => return Ok(false),
                Next::Complete => {
                    if self.config.transfer.clock.now_ms() < self.next_finish_ms {
                        return Ok(false);
                    }
                    return remote.finish_copy(&copying.copy).map(|()| true);
                }
                Next::Move(piece) => {
                    self.next_tag += 1;
                    // Not taken: its endpoint was just removed, or there is no room; both pass.
                    if self.transfer.queue(&[piece]) != Ok(1) {
                        copying.settled(piece.tag, false);
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Lets go of copies that are given up, when nothing of theirs is under way.
    fn end_doomed(&mut self) {
        let mut at = 0;
        while at < self.active.len() {
            if self.active[at].doomed && self.active[at].runs() == 0 {
                let copying = self.active.remove(at);
                self.fail(&copying.order);
                if let Order::Copy { extent, to } = copying.order {
                    self.give_up(extent, to.name);
                }
            } else {
                at += 1;
            }
        }
    }

    fn give_up(&mut self, extent: ExtentIndex, node: String) {
        self.given_up.push(GivenUp {
            extent,
            node,
            again_ms: 0,
        });
    }

    /// Drops the replicas whose copying was given up. False: not the owner any more.
    fn drop_given_up(&mut self, remote: &Remote) -> bool {
        let now = self.now_ms();
        for nth in (0..self.given_up.len()).rev() {
            let GivenUp {
                extent,
                node,
                again_ms,
            } = &mut self.given_up[nth];
            if now < *again_ms {
                continue;
            }
            // It may have been begun again meanwhile.
            let again = self.active.iter().any(|copying| {
                copying.copy.extent() == *extent
                    && matches!(&copying.order, Order::Copy { to, .. } if to.name == *node)
            });
            let dropped = if again {
                Ok(())
            } else {
                remote.drop_replica(*extent, node)
            };
            match dropped {
                Ok(()) | Err(ChangeError::NoSuchReplica | ChangeError::LastReplica) => {
                    self.given_up.swap_remove(nth);
                }
                Err(ChangeError::NotOwner) => return false,
                Err(_) => *again_ms = now + AGAIN_MS,
            }
        }
        true
    }
}

impl std::fmt::Debug for Rebuild {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rebuild")
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}

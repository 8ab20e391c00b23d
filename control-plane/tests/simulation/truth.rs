//! What really is, and whether the promises hold. It looks after each step at all that the step touched.
//!
//! 1. A live replica, on the life of the node it was made on, has the last write that was acknowledged.
//! 2. While fewer than R of an extent's copies failed since it last had R, there is a live one.
//!    Epochs only grow, and no leader of the control plane decides or says anything after another began.
//! 3. After a new owner was told to go on, no node that was fenced takes anything of the former one.

use std::collections::{BTreeMap, BTreeSet};

use mycoram_control::cluster::{Batch, Homes, Key, NodeId, Record, ReplicaState};
use mycoram_fabric::units::{Epoch, ExtentIndex, RegionId};

use crate::control::{region_id, replicas_of};
use crate::memory_node::MemoryNode;
use crate::message::{Request, Version};
use crate::world::{EXTENTS, Figures, NODES, REGIONS};

#[derive(Default)]
struct Page {
    acknowledged: Option<Version>,
    /// Later ones that were begun, and never acknowledged.
    attempts: Vec<Version>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Node {
    index: usize,
    life: u64,
    counts: bool,
}

#[derive(Default)]
struct GoneOn {
    epoch: Option<Epoch>,
    unfenced: Vec<NodeId>,
}

#[derive(Default)]
pub(crate) struct Truth {
    pub(crate) broken: Option<String>,
    pub(crate) figures: Figures,
    pages: BTreeMap<(RegionId, ExtentIndex, u8), Page>,
    /// What is durable.
    homes: BTreeMap<(RegionId, ExtentIndex), Homes>,
    nodes: BTreeMap<NodeId, Node>,
    lives: Vec<Option<u64>>,
    /// Copies that failed since the extent had all: node and life.
    failed: BTreeMap<(RegionId, ExtentIndex), BTreeSet<(usize, u64)>>,
    touched: BTreeSet<(RegionId, ExtentIndex)>,
    gone_on: BTreeMap<RegionId, GoneOn>,
    /// Of the last leader of the control plane.
    term: u64,
    epochs: BTreeMap<RegionId, Epoch>,
}

impl Truth {
    pub(crate) fn new() -> Self {
        Self {
            lives: vec![None; NODES],
            ..Self::default()
        }
    }

    /// A leader of the control plane begins.
    pub(crate) fn begins(&mut self, term: u64) {
        self.figures.terms += 1;
        if term <= self.term {
            self.break_with(format!("promise 3: term {term} begins after {}", self.term));
        }
        self.term = self.term.max(term);
    }

    /// The leader of a term decides something, or says what holds.
    pub(crate) fn decides(&mut self, term: u64) {
        if term < self.term {
            self.break_with(format!(
                "promise 3: the leader of term {term} decides while that of {} leads",
                self.term
            ));
        }
    }

    pub(crate) fn break_with(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub(crate) fn touched(&mut self, region: RegionId, extent: ExtentIndex) {
        self.touched.insert((region, extent));
    }

    fn touch_all(&mut self) {
        for region in 0..REGIONS {
            for extent in 0..EXTENTS {
                self.touched
                    .insert((region_id(region), ExtentIndex::new(extent)));
            }
        }
    }

    /// A node's process; `None`: there is none.
    pub(crate) fn set_life(&mut self, node: usize, life: Option<u64>) {
        self.lives[node] = life;
        self.touch_all();
    }

    pub(crate) fn attempt(
        &mut self,
        region: usize,
        extent: ExtentIndex,
        page: u8,
        version: Version,
    ) {
        let page = self
            .pages
            .entry((region_id(region), extent, page))
            .or_default();
        page.attempts.push(version);
    }

    pub(crate) fn acknowledged(
        &mut self,
        region: usize,
        extent: ExtentIndex,
        page: u8,
        version: Version,
    ) {
        self.figures.writes += 1;
        let page = self
            .pages
            .entry((region_id(region), extent, page))
            .or_default();
        if page.acknowledged.is_some_and(|last| last > version) {
            // A former owner hears late that all replicas had it, before it was fenced on any of them: what
            // its successor wrote came after it. A write that was taken after the fence is found elsewhere.
            return;
        }
        page.acknowledged = Some(version);
        page.attempts.retain(|attempt| *attempt > version);
        self.touched.insert((region_id(region), extent));
    }

    /// The last write that was acknowledged.
    pub(crate) fn last(&self, region: usize, extent: ExtentIndex, page: u8) -> Option<Version> {
        self.pages
            .get(&(region_id(region), extent, page))?
            .acknowledged
    }

    /// An owner read a page from a node; `since`: the last write when it began to.
    pub(crate) fn was_read(
        &mut self,
        (region, epoch): (usize, Epoch),
        node: usize,
        (extent, page): (ExtentIndex, u8),
        since: Option<Version>,
        version: Option<Version>,
    ) {
        self.figures.reads += 1;
        // What was lost meanwhile cannot be read.
        let last = self.last(region, extent, page);
        if version < since.min(last) && !self.is_left_behind(region_id(region), epoch, node) {
            self.break_with(format!(
                "promise 1: region {region} {extent} page {page} is read as {version:?}, the last write was {since:?}"
            ));
        }
    }

    /// A node took a request of an owner.
    pub(crate) fn accepted(&mut self, node: usize, request: &Request) {
        self.touched.insert((request.region, request.extent));
        let Some(gone_on) = self.gone_on.get(&request.region) else {
            return;
        };
        let former = gone_on.epoch.is_some_and(|epoch| request.epoch < epoch);
        if former && !self.is_left_behind(request.region, request.epoch, node) {
            let epoch = gone_on.epoch;
            self.break_with(format!(
                "promise 3: node {node} takes a write of {:?} after the owner of {epoch:?} was told to go on",
                request.epoch
            ));
        }
    }

    /// A former owner and a node that was down when it was followed: they have each other, and nothing of it
    /// counts. The node is fenced before it counts again.
    fn is_left_behind(&self, region: RegionId, epoch: Epoch, node: usize) -> bool {
        let is_node = |id: &NodeId| self.nodes.get(id).is_some_and(|known| known.index == node);
        self.gone_on.get(&region).is_some_and(|gone_on| {
            gone_on.epoch.is_some_and(|last| epoch < last) && gone_on.unfenced.iter().any(is_node)
        })
    }

    pub(crate) fn go_on(&mut self, owner: usize, epoch: Epoch, unfenced: &[NodeId]) {
        let gone_on = self.gone_on.entry(region_id(owner % REGIONS)).or_default();
        if gone_on.epoch.is_none_or(|last| last < epoch) {
            gone_on.epoch = Some(epoch);
            gone_on.unfenced = unfenced.to_vec();
        }
    }

    /// This is durable now.
    pub(crate) fn see_batch(&mut self, batch: &Batch) {
        for (key, record) in &batch.changes {
            match (key, record) {
                (Key::Node(id), Some(Record::Node(node))) => {
                    let known = Node {
                        index: node.name[1..]
                            .parse()
                            .expect("nodes are called n0, n1 and so on"),
                        life: node.incarnation.get(),
                        counts: node.state.counts(),
                    };
                    if self.nodes.insert(*id, known) != Some(known) {
                        self.touch_all();
                    }
                }
                (Key::Extents(region, 0), Some(Record::Extents(chunk))) => {
                    for (extent, homes) in (0..).zip(&chunk.extents) {
                        self.see_homes(*region, ExtentIndex::new(extent), homes);
                    }
                }
                (Key::Region(id), Some(Record::Region(region))) => {
                    let epoch = region.lease.epoch();
                    let before = self.epochs.insert(*id, epoch);
                    if before.is_some_and(|before| before > epoch) {
                        self.break_with(format!("promise 3: {id} is at {epoch} after {before:?}"));
                    }
                }
                _ => {}
            }
        }
    }

    fn see_homes(&mut self, region: RegionId, extent: ExtentIndex, homes: &Homes) {
        let key = (region, extent);
        let before = self.homes.get(&key);
        if before == Some(homes) {
            return;
        }
        let failed = self.failed.entry(key).or_default();
        for id in before.into_iter().flat_map(Homes::live) {
            let stale = homes
                .on(id)
                .is_some_and(|replica| replica.state == ReplicaState::Stale);
            if let Some(node) = self.nodes.get(&id).filter(|_| stale) {
                failed.insert((node.index, node.life));
            }
        }
        if before.is_none_or(|before| before.live().next().is_none()) {
            // Placed on fewer than there should be, because there were no more.
            let wanted = usize::from(replicas_of(region.get() as usize - 1));
            for missing in homes.live().count()..wanted {
                failed.insert((NODES + missing, 0));
            }
        }
        self.homes.insert(key, homes.clone());
        self.touched.insert(key);
    }

    /// Looks at what was touched.
    pub(crate) fn look(&mut self, nodes: &[MemoryNode]) {
        self.figures.steps += 1;
        while let Some((region, extent)) = self.touched.pop_first() {
            self.look_at(region, extent, nodes);
        }
    }

    fn look_at(&mut self, region: RegionId, extent: ExtentIndex, nodes: &[MemoryNode]) {
        let Some(homes) = self.homes.get(&(region, extent)) else {
            return;
        };
        let wanted = usize::from(replicas_of(region.get() as usize - 1));
        let failed = self.failed.entry((region, extent)).or_default();
        let mut whole = 0;
        for id in homes.live() {
            let Some(node) = self.nodes.get(&id) else {
                continue;
            };
            if self.lives[node.index] != Some(node.life) {
                failed.insert((node.index, node.life));
                continue;
            }
            whole += 1;
            let memory = nodes[node.index].memory.get(&(region, extent));
            let first = (region, extent, 0);
            for ((_, _, page), truth) in self.pages.range(first..=(region, extent, u8::MAX)) {
                let there = memory.and_then(|pages| pages[usize::from(*page)]);
                if there < truth.acknowledged {
                    self.broken.get_or_insert(format!(
                        "promise 1: {region} {extent} page {page} on node {} is {there:?}, the last write was {:?}",
                        node.index, truth.acknowledged
                    ));
                }
            }
        }
        if whole >= wanted {
            failed.clear();
        }
        if whole > 0 {
            return;
        }
        let pages = self
            .pages
            .range_mut((region, extent, 0)..=(region, extent, u8::MAX));
        let mut lost = false;
        for (_, page) in pages {
            lost |= page.acknowledged.take().is_some();
        }
        if lost && failed.len() < wanted {
            let failed = failed.clone();
            self.broken.get_or_insert(format!(
                "promise 2: {region} {extent} is lost, of {wanted} copies only these failed: {failed:?}"
            ));
        }
        self.figures.lost_extents += u64::from(lost);
    }

    /// What is not as it should be when all faults are over.
    pub(crate) fn ill(&self, nodes: &[MemoryNode]) -> Option<String> {
        for ((region, extent), homes) in &self.homes {
            let wanted = usize::from(replicas_of(region.get() as usize - 1));
            let counting = homes
                .live()
                .filter_map(|id| self.nodes.get(&id))
                .filter(|node| node.counts && self.lives[node.index] == Some(node.life));
            let counting = counting.count();
            let lost = homes.live().next().is_none();
            if (lost && !homes.replicas.is_empty())
                || (!lost && (counting != wanted || homes.replicas.len() != wanted))
            {
                return Some(format!(
                    "{region} {extent} has {homes:?}, {counting} of them count"
                ));
            }
        }
        let kept: usize = nodes.iter().map(|node| node.memory.len()).sum();
        let placed: usize = self.homes.values().map(|homes| homes.replicas.len()).sum();
        (kept > placed).then(|| format!("nodes keep {kept} extents, {placed} are placed"))
    }
}

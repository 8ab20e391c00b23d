//! Which node gets an extent. Weighted rendezvous hashing over failure domains, under limits.
//!
//! ```text
//!   nodes that are up, within the region's locality
//!     - those that do not differ enough from the extent's other replicas
//!     - those without room under the ceiling
//!     = may have it
//!   of these, first those that are not too busy,
//!   of these, first those that differ as widely as the locality likes,
//!   of these, first those that have no more than their share: the highest draw wins
//!   (when all have their share: the emptiest wins)
//! ```
//!
//! A node's weight is its capacity. The bound on the share keeps the fullest node within 5% of the
//! mean where draws alone would be 10% off; the result is stored, so nothing has to be drawn again.

use std::collections::BTreeMap;

use mycoram_fabric::placement::FailureDomain;
use mycoram_fabric::units::{ByteCount, ExtentIndex, RegionId};

use super::identity::{Level, Locality, NodeId};
use super::nodes::NodeState;
use super::state::Cluster;
use crate::rendezvous::{NodeSeed, Weight, score};

/// A node may have so much more than its share before others are taken: 2.5%.
const OVER_SHARE: f64 = 1.025;

/// Parts of a failure domain, each numbered within the whole path to it.
type Path = [u32; 4];
/// A name that is empty: shared with nobody.
const UNKNOWN: u32 = 0;

/// A node that may be given extents.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) id: NodeId,
    seed: NodeSeed,
    weight: Weight,
    path: Path,
    pub(super) capacity: u64,
    pub(super) used: u64,
    busy: bool,
}

/// Nodes and how full they are, while extents are given out.
#[derive(Clone, Debug)]
pub(super) struct Board {
    pub(super) sites: Vec<Site>,
    paths: BTreeMap<NodeId, Path>,
    used: u64,
    capacity: u64,
}

/// What a place is wanted for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) region: RegionId,
    /// Bytes of an extent.
    pub(super) bytes: u64,
    pub(super) locality: &'a Locality,
    pub(super) ceiling_percent: u8,
}

/// Who gives extents for balance. Each is tried when the one before finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eagerness {
    /// The fullest nodes, where draws agree.
    Fullest,
    /// Those with more than they would be given.
    Overfull,
    /// Those with more than their share, where draws agree.
    ByDraw,
    /// Those with more than their share.
    Any,
}

impl Eagerness {
    pub(super) const ORDER: [Self; 4] = [Self::Fullest, Self::Overfull, Self::ByDraw, Self::Any];
}

/// As full as the fullest: within 1%.
const FULLEST: f64 = 0.99;

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// No node that is up differs enough from the other replicas.
    NoDomain,
    /// Those that do are full.
    Full,
}

impl Board {
    /// The nodes that are up, as far as `locality` allows them.
    pub(super) fn new(cluster: &Cluster, locality: &Locality) -> Self {
        Self::of(cluster, locality, |state| state == NodeState::Up)
    }

    /// Also those that may be up in a moment.
    pub(super) fn hoped_for(cluster: &Cluster, locality: &Locality) -> Self {
        Self::of(cluster, locality, |state| {
            matches!(
                state,
                NodeState::Up | NodeState::Joining | NodeState::Suspect
            )
        })
    }

    fn of(cluster: &Cluster, locality: &Locality, takes: fn(NodeState) -> bool) -> Self {
        let mut numbers = Numbers::default();
        let mut board = Self {
            sites: Vec::new(),
            paths: BTreeMap::new(),
            used: 0,
            capacity: 0,
        };
        for node in cluster.nodes.values() {
            let path = numbers.path(&node.domain);
            board.paths.insert(node.id, path);
            if !takes(node.state) || !locality.allows(&node.domain) {
                continue;
            }
            let load = cluster
                .heard
                .get(&node.id)
                .map_or(0, |heard| heard.load_percent);
            let capacity = node.capacity.get();
            let used = cluster.placed_on(node.id);
            board.used += used;
            board.capacity += capacity;
            board.sites.push(Site {
                id: node.id,
                seed: NodeSeed::of(&node.name),
                weight: weight(node.capacity),
                path,
                capacity,
                used,
                busy: load > cluster.limits.load_percent,
            });
        }
        board
    }

    /// As if the node were not there.
    pub(super) fn without(mut self, node: NodeId) -> Self {
        if let Some(at) = self.sites.iter().position(|site| site.id == node) {
            let site = self.sites.swap_remove(at);
            self.used -= site.used;
            self.capacity -= site.capacity;
        }
        self
    }

    /// The node for another replica of `extent`, apart from those on `others`, and none of `not`.
    pub(super) fn choose(
        &self,
        ask: &Ask<'_>,
        extent: ExtentIndex,
        others: &[NodeId],
        not: &[NodeId],
    ) -> Result<usize, NoPlace> {
        let mut outcome = NoPlace::NoDomain;
        let mut best: Option<(Rank, usize)> = None;
        for (at, site) in self.sites.iter().enumerate() {
            let apart = match self.takes(site, ask, others, not) {
                Ok(apart) => apart,
                Err(NoPlace::NoDomain) => continue,
                Err(NoPlace::Full) => {
                    outcome = NoPlace::Full;
                    continue;
                }
            };
            let rank = Rank {
                idle: !site.busy,
                spread: apart.min(ask.locality.spread),
                within_share: self.within_share(site, ask.bytes),
                draw: 0.0,
            };
            // Draws are dear: only for those that could win.
            let may_win = best
                .as_ref()
                .is_none_or(|(best, _)| rank.class() >= best.class());
            if may_win {
                let draw = if rank.within_share {
                    score(site.seed, site.weight, ask.region, extent)
                } else {
                    1.0 - site.fullness()
                };
                let rank = Rank { draw, ..rank };
                if best.as_ref().is_none_or(|(best, _)| rank.beats(best)) {
                    best = Some((rank, at));
                }
            }
        }
        best.map(|(_, at)| at).ok_or(outcome)
    }

    /// Whether any node could be given an extent, as [`Self::choose`] would choose it.
    pub(super) fn has_place(
        &self,
        ask: &Ask<'_>,
        others: &[NodeId],
        not: &[NodeId],
    ) -> Result<(), NoPlace> {
        let mut outcome = Err(NoPlace::NoDomain);
        for site in &self.sites {
            match self.takes(site, ask, others, not) {
                Ok(_) => return Ok(()),
                Err(NoPlace::Full) => outcome = Err(NoPlace::Full),
                Err(NoPlace::NoDomain) => {}
            }
        }
        outcome
    }

    /// How far a node is from the others, if it may be given an extent.
    fn takes(
        &self,
        site: &Site,
        ask: &Ask<'_>,
        others: &[NodeId],
        not: &[NodeId],
    ) -> Result<Level, NoPlace> {
        if others.contains(&site.id) || not.contains(&site.id) {
            return Err(NoPlace::NoDomain);
        }
        let apart = self.apart_from(site, others).ok_or(NoPlace::NoDomain)?;
        if apart < ask.locality.apart {
            return Err(NoPlace::NoDomain);
        }
        match site.has_room(ask) {
            true => Ok(apart),
            false => Err(NoPlace::Full),
        }
    }

    /// Adds nodes for an extent to those it has, none of `not`, until there are `count`, or as many as there
    /// are failure domains. Only full nodes make it fail.
    pub(super) fn place(
        &mut self,
        ask: &Ask<'_>,
        extent: ExtentIndex,
        count: usize,
        not: &[NodeId],
        into: &mut Vec<NodeId>,
    ) -> Result<(), NoPlace> {
        while into.len() < count {
            match self.choose(ask, extent, into, not) {
                Ok(at) => {
                    self.take(at, ask.bytes);
                    into.push(self.sites[at].id);
                }
                Err(NoPlace::NoDomain) if !into.is_empty() => break,
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }

    /// Counts `bytes` on a site.
    pub(super) fn take(&mut self, at: usize, bytes: u64) {
        self.sites[at].used += bytes;
        self.used += bytes;
    }

    /// Counts them no more.
    pub(super) fn give_back(&mut self, at: usize, bytes: u64) {
        let site = &mut self.sites[at];
        site.used = site.used.saturating_sub(bytes);
        self.used = self.used.saturating_sub(bytes);
    }

    /// The site of a node, if it may be given extents.
    pub(super) fn site_of(&self, node: NodeId) -> Option<usize> {
        self.sites.iter().position(|site| site.id == node)
    }

    /// What a node would have if all were equally full, bytes.
    pub(super) fn share(&self, site: &Site) -> f64 {
        if self.capacity == 0 {
            return 0.0;
        }
        self.used as f64 * (site.capacity as f64 / self.capacity as f64)
    }

    /// Whether `node` is at least `level` apart from all `others`.
    pub(super) fn is_apart(&self, node: NodeId, others: &[NodeId], level: Level) -> bool {
        let Some(path) = self.paths.get(&node) else {
            return false;
        };
        self.narrowest(path, others)
            .is_some_and(|apart| apart >= level)
    }

    /// How far apart a node is from the nearest of `others`; `None`: the same machine.
    pub(super) fn distance(&self, node: NodeId, others: &[NodeId]) -> Option<Level> {
        self.narrowest(self.paths.get(&node)?, others)
    }

    /// Of live replicas that are too many, the one whose loss costs least: nearest to another, then on the
    /// fullest node.
    pub(super) fn least_wanted(&self, live: &[NodeId]) -> Option<NodeId> {
        let cost = |node: &NodeId| {
            let others: Vec<_> = live.iter().copied().filter(|other| other != node).collect();
            let fullness = self
                .site_of(*node)
                .map_or(1.0, |at| self.sites[at].fullness());
            (self.distance(*node, &others), -fullness)
        };
        live.iter().copied().min_by(|a, b| {
            let ((near_a, free_a), (near_b, free_b)) = (cost(a), cost(b));
            near_a.cmp(&near_b).then(free_a.total_cmp(&free_b))
        })
    }

    /// Whether an extent should move: to a node that stays emptier than the other becomes, is no nearer to
    /// the `others`, and that has the higher draw where that is asked for.
    pub(super) fn improves(
        &self,
        ask: &Ask<'_>,
        extent: ExtentIndex,
        from: NodeId,
        to: NodeId,
        others: &[NodeId],
        eagerness: Eagerness,
    ) -> bool {
        let (Some(from_at), Some(to_at)) = (self.site_of(from), self.site_of(to)) else {
            return false;
        };
        let (donor, taker) = (&self.sites[from_at], &self.sites[to_at]);
        let after = (taker.used + ask.bytes) as f64 / taker.capacity as f64;
        let left = donor.used.saturating_sub(ask.bytes) as f64 / donor.capacity as f64;
        let draw = |site: &Site| score(site.seed, site.weight, ask.region, extent);
        let most = || self.sites.iter().map(Site::fullness).fold(0.0, f64::max);
        let (used, share) = (donor.used as f64, self.share(donor));
        let gives = || match eagerness {
            Eagerness::Fullest => draw(taker) > draw(donor) && donor.fullness() >= most() * FULLEST,
            Eagerness::Overfull => used > share * OVER_SHARE,
            Eagerness::ByDraw => draw(taker) > draw(donor),
            Eagerness::Any => true,
        };
        used > share
            && left >= after
            && !taker.busy
            && taker.has_room(ask)
            && (taker.used + ask.bytes) as f64 <= self.share(taker)
            && self.is_apart(to, others, ask.locality.apart)
            && self.distance(to, others) >= self.distance(from, others)
            && gives()
    }

    fn apart_from(&self, site: &Site, others: &[NodeId]) -> Option<Level> {
        self.narrowest(&site.path, others)
    }

    fn narrowest(&self, path: &Path, others: &[NodeId]) -> Option<Level> {
        let mut narrowest = Level::Region;
        for other in others {
            if let Some(other) = self.paths.get(other) {
                narrowest = narrowest.min(apart(path, other)?);
            }
        }
        Some(narrowest)
    }

    fn within_share(&self, site: &Site, bytes: u64) -> bool {
        let after = (self.used + bytes) as f64;
        let share = after * (site.capacity as f64 / self.capacity as f64) * OVER_SHARE;
        let extents = (share / bytes as f64).ceil();
        (site.used + bytes) as f64 <= extents * bytes as f64
    }
}

impl Site {
    /// Used of its capacity, 0 to 1.
    pub(super) fn fullness(&self) -> f64 {
        self.used as f64 / self.capacity as f64
    }

    /// Whether an extent fits under the ceiling.
    pub(super) fn has_room(&self, ask: &Ask<'_>) -> bool {
        let ceiling = u128::from(self.capacity) * u128::from(ask.ceiling_percent) / 100;
        u128::from(self.used) + u128::from(ask.bytes) <= ceiling
    }
}

/// What decides between two sites.
struct Rank {
    /// With load to spare. When all are busy, it is better to wait for bytes than for a place.
    idle: bool,
    spread: Level,
    within_share: bool,
    draw: f64,
}

impl Rank {
    fn class(&self) -> (bool, Level, bool) {
        (self.idle, self.spread, self.within_share)
    }

    fn beats(&self, other: &Self) -> bool {
        self.class() > other.class() || (self.class() == other.class() && self.draw > other.draw)
    }
}

/// As [`Level::between`], of paths.
fn apart(a: &Path, b: &Path) -> Option<Level> {
    // By the level that is shared: nothing, the region, the zone, the rack; on the same host none is.
    let mut apart = Some(Level::Region);
    let below = [
        Some(Level::Zone),
        Some(Level::Rack),
        Some(Level::Host),
        None,
    ];
    for ((a, b), below) in a.iter().zip(b).zip(below) {
        if a != b {
            break;
        }
        if *a != UNKNOWN {
            apart = below;
        }
    }
    apart
}

/// More capacity, more extents. Counted in MiB, within what a weight can be.
fn weight(capacity: ByteCount) -> Weight {
    let mib = capacity.get() as f64 / (1u64 << 20) as f64;
    Weight::new(mib.clamp(1e-3, Weight::MAX)).unwrap_or(Weight::ONE)
}

/// Numbers for names, so that paths compare fast.
#[derive(Default)]
struct Numbers<'a> {
    known: BTreeMap<&'a str, u32>,
}

impl<'a> Numbers<'a> {
    fn path(&mut self, domain: &'a FailureDomain) -> Path {
        [&domain.region, &domain.zone, &domain.rack, &domain.host].map(|name| self.number(name))
    }

    fn number(&mut self, name: &'a str) -> u32 {
        if name.is_empty() {
            return UNKNOWN;
        }
        let next = u32::try_from(self.known.len() + 1).unwrap_or(u32::MAX);
        *self.known.entry(name).or_insert(next)
    }
}

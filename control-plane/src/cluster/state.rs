//! The state machine: records in memory, what follows from them, and what is only known while it runs.
//!
//! ```text
//!   now_ms, command --apply--> Ok(Step { answer, changes })      Err(refusal): nothing was changed
//!                                          |
//!                        store.commit(changes.batch())  -- fails -->  undo(changes), no answer is given
//!                                          |
//!                                     answer is given
//! ```
//!
//! An answer may be given only when its changes are durable. Several steps may share one commit;
//! they are undone in reverse order. What is only known while it runs are leases and loads: after a
//! restart everybody has a whole lease of time to be heard.

use std::collections::{BTreeMap, BTreeSet};

use mycoram_fabric::units::{Epoch, ExtentIndex, RegionId};

use super::identity::{NodeId, ReservationId};
use super::limits::Limits;
use super::records::{
    Batch, Chunk, ClusterRecord, Homes, Key, NodeRecord, Record, RegionRecord, ReplicaState,
    ReservationRecord, chunk_of,
};
use super::time::{Steady, SteadyTime};

/// Something the control plane is asked to do.
pub trait Command {
    /// What comes of it.
    type Answer;
    /// Why it is not done.
    type Refusal: std::error::Error;
    /// Does it. On `Err` all it did to the records is undone.
    fn run(&self, turn: &mut Turn<'_>) -> Result<Self::Answer, Self::Refusal>;
}

/// What came of a command.
#[derive(Debug)]
#[must_use = "the changes are to be committed before the answer is given"]
pub struct Step<A> {
    /// To be given when the changes are durable.
    pub answer: A,
    /// To be committed, or undone.
    pub changes: Changes,
}

/// What a command changed, and what was before.
#[derive(Debug, Default)]
pub struct Changes {
    batch: Batch,
    before: Vec<(Key, Option<Record>)>,
}

impl Changes {
    /// What is to be made durable.
    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }
}

/// What is known of a node only while the control plane runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    /// Not heard until then: down.
    pub(super) lease: Steady,
    /// Suspect until then.
    pub(super) suspect: Steady,
    /// Watched until then before it counts.
    pub(super) watched: Steady,
    /// Since when it is up.
    pub(super) up_since: Steady,
    /// How busy it says it is, percent.
    pub(super) load_percent: u8,
}

/// What follows from the records.
#[derive(Debug, Default)]
pub(super) struct Derived {
    /// Bytes of all replicas on a node.
    pub(super) placed: BTreeMap<NodeId, u64>,
    /// Bytes of all replicas of a region.
    pub(super) region_bytes: BTreeMap<RegionId, u64>,
    /// Replicas in the making, by region.
    pub(super) copying_of: BTreeMap<RegionId, u32>,
    /// Replicas in the making, by node.
    pub(super) copying_to: BTreeMap<NodeId, u32>,
    /// Extents with something for their owner to do.
    pub(super) orders: BTreeSet<(RegionId, ExtentIndex)>,
    /// Chunks that healing has to look at.
    pub(super) unsettled: BTreeSet<(RegionId, u32)>,
    /// Something changed since balance was last looked for in vain.
    pub(super) stirred: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    pub(super) limits: Limits,
    pub(super) cluster: ClusterRecord,
    pub(super) nodes: BTreeMap<NodeId, NodeRecord>,
    pub(super) regions: BTreeMap<RegionId, RegionRecord>,
    pub(super) chunks: BTreeMap<(RegionId, u32), Chunk>,
    pub(super) reservations: BTreeMap<ReservationId, ReservationRecord>,
    pub(super) derived: Derived,
    pub(super) heard: BTreeMap<NodeId, Heard>,
    pub(super) owners: BTreeMap<RegionId, Steady>,
    /// The last request for places of a region's owner.
    pub(super) rounds: BTreeMap<RegionId, (Epoch, u64)>,
    time: SteadyTime,
}

/// A record that belongs to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store holds {key:?} twice, or without what it belongs to")]
pub struct LoadError {
    /// Under which key it stands.
    pub key: Key,
}

impl Cluster {
    /// A cluster out of the records of its store, in any order; without any, a new one.
    pub fn load(
        limits: Limits,
        records: impl IntoIterator<Item = (Key, Record)>,
    ) -> Result<Self, LoadError> {
        let mut cluster = Self {
            limits,
            cluster: ClusterRecord::default(),
            nodes: BTreeMap::new(),
            regions: BTreeMap::new(),
            chunks: BTreeMap::new(),
            reservations: BTreeMap::new(),
            derived: Derived::default(),
            heard: BTreeMap::new(),
            owners: BTreeMap::new(),
            rounds: BTreeMap::new(),
            time: SteadyTime::default(),
        };
        let mut later = Vec::new();
        for (key, record) in records {
            if let (Key::Extents(..), Record::Extents(_)) = (key, &record) {
                later.push((key, record));
            } else if !fits(key, &record) || cluster.replace(key, Some(record)).is_some() {
                return Err(LoadError { key });
            }
        }
        for (key, record) in later {
            let known =
                matches!(key, Key::Extents(region, _) if cluster.regions.contains_key(&region));
            if !known || cluster.replace(key, Some(record)).is_some() {
                return Err(LoadError { key });
            }
        }
        // Everybody has a whole lease to be heard in.
        let now = cluster.time.now();
        for id in cluster.nodes.keys() {
            cluster.heard.insert(*id, Heard::from_now(now, &limits));
        }
        for id in cluster.regions.keys() {
            cluster.owners.insert(*id, now.after(limits.owner_lease_ms));
        }
        Ok(cluster)
    }

    /// Does `command` at `now_ms` (any clock; it may jump). On `Err` no record was changed.
    pub fn apply<C: Command>(
        &mut self,
        now_ms: u64,
        command: &C,
    ) -> Result<Step<C::Answer>, C::Refusal> {
        let now = self.time.advance(now_ms);
        let mut turn = Turn {
            cluster: self,
            now,
            before: BTreeMap::new(),
        };
        let outcome = command.run(&mut turn);
        let before: Vec<_> = turn.before.into_iter().collect();
        match outcome {
            Ok(answer) => {
                let changes = before
                    .iter()
                    .map(|(key, _)| (*key, self.record(*key)))
                    .collect();
                let batch = Batch { changes };
                let changes = Changes { batch, before };
                Ok(Step { answer, changes })
            }
            Err(refusal) => {
                self.restore(before);
                Err(refusal)
            }
        }
    }

    /// As if the step had not been: its changes could not be made durable. Of several, the last first.
    pub fn undo(&mut self, changes: Changes) {
        self.restore(changes.before);
    }

    /// Every record, as a store should hold it.
    #[must_use]
    pub fn records(&self) -> Vec<(Key, Record)> {
        let nodes = self.nodes.keys().map(|id| Key::Node(*id));
        let regions = self.regions.keys().map(|id| Key::Region(*id));
        let chunks = self
            .chunks
            .keys()
            .map(|(id, chunk)| Key::Extents(*id, *chunk));
        let reservations = self.reservations.keys().map(|id| Key::Reservation(*id));
        std::iter::once(Key::Cluster)
            .chain(nodes)
            .chain(regions)
            .chain(chunks)
            .chain(reservations)
            .filter_map(|key| Some((key, self.record(key)?)))
            .collect()
    }

    /// The numbers it works by.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn record(&self, key: Key) -> Option<Record> {
        match key {
            Key::Cluster => Some(Record::Cluster(self.cluster.clone())),
            Key::Node(id) => self.nodes.get(&id).cloned().map(Record::Node),
            Key::Region(id) => self.regions.get(&id).cloned().map(Record::Region),
            Key::Extents(id, chunk) => self.chunks.get(&(id, chunk)).cloned().map(Record::Extents),
            Key::Reservation(id) => self.reservations.get(&id).cloned().map(Record::Reservation),
        }
    }

    fn restore(&mut self, before: Vec<(Key, Option<Record>)>) {
        // A chunk is counted by its region's extent size, so its region must be there: regions that come
        // back come first, those that go go last.
        let (extents, others): (Vec<_>, Vec<_>) = before
            .into_iter()
            .partition(|(key, _)| matches!(key, Key::Extents(..)));
        let (gone, back): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|(_, record)| record.is_none());
        for (key, record) in back.into_iter().chain(extents).chain(gone) {
            self.replace(key, record);
        }
    }

    /// Puts or removes a record; gives what was there.
    fn replace(&mut self, key: Key, record: Option<Record>) -> Option<Record> {
        match (key, record) {
            (Key::Cluster, record) => {
                if let Some(Record::Cluster(record)) = record {
                    self.cluster = record;
                }
                None
            }
            (Key::Node(id), record) => {
                let was = match record {
                    Some(Record::Node(node)) => self.nodes.insert(id, node),
                    _ => self.nodes.remove(&id),
                };
                // What is to be done for an extent depends on the states of its nodes.
                self.derived.unsettled.extend(self.chunks.keys().copied());
                self.derived.stirred = true;
                was.map(Record::Node)
            }
            (Key::Region(id), record) => {
                let was = match record {
                    Some(Record::Region(region)) => self.regions.insert(id, region),
                    _ => self.regions.remove(&id),
                };
                was.map(Record::Region)
            }
            (Key::Extents(id, chunk), record) => {
                let was = self.chunks.remove(&(id, chunk));
                for (at, homes) in was.iter().flat_map(|was| was.extents.iter().enumerate()) {
                    self.count(id, index_of(chunk, at), homes, false);
                }
                if let Some(Record::Extents(now)) = record {
                    for (at, homes) in now.extents.iter().enumerate() {
                        self.count(id, index_of(chunk, at), homes, true);
                    }
                    self.chunks.insert((id, chunk), now);
                    self.derived.unsettled.insert((id, chunk));
                } else {
                    self.derived.unsettled.remove(&(id, chunk));
                }
                was.map(Record::Extents)
            }
            (Key::Reservation(id), record) => {
                let was = match record {
                    Some(Record::Reservation(record)) => self.reservations.insert(id, record),
                    _ => self.reservations.remove(&id),
                };
                was.map(Record::Reservation)
            }
        }
    }

    /// Adds or takes away what follows from an extent's homes.
    fn count(&mut self, region: RegionId, extent: ExtentIndex, homes: &Homes, add: bool) {
        let bytes = self
            .regions
            .get(&region)
            .map_or(0, |r| r.extent_bytes.get());
        let derived = &mut self.derived;
        derived.stirred = true;
        let mut orders = false;
        for replica in &homes.replicas {
            shift(derived.placed.entry(replica.node).or_default(), bytes, add);
            shift(derived.region_bytes.entry(region).or_default(), bytes, add);
            match replica.state {
                ReplicaState::Copying { .. } => {
                    orders = true;
                    shift(derived.copying_of.entry(region).or_default(), 1, add);
                    shift(derived.copying_to.entry(replica.node).or_default(), 1, add);
                }
                ReplicaState::Dropping => orders = true,
                ReplicaState::Live | ReplicaState::Stale => {}
            }
        }
        if orders && add {
            derived.orders.insert((region, extent));
        } else if orders {
            derived.orders.remove(&(region, extent));
        }
    }

    /// Where an extent is; `None`: nowhere yet.
    #[must_use]
    pub fn homes(&self, region: RegionId, extent: ExtentIndex) -> Option<&Homes> {
        let (chunk, at) = chunk_of(extent);
        self.chunks.get(&(region, chunk))?.extents.get(at)
    }

    /// The node of a name.
    #[must_use]
    pub fn node_named(&self, name: &str) -> Option<&NodeRecord> {
        self.nodes.values().find(|node| node.name == name)
    }

    /// The region of a name.
    #[must_use]
    pub fn region_named(&self, name: &str) -> Option<&RegionRecord> {
        self.regions.values().find(|region| region.name == name)
    }

    /// A region.
    #[must_use]
    pub fn region(&self, region: RegionId) -> Option<&RegionRecord> {
        self.regions.get(&region)
    }

    /// A node.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&NodeRecord> {
        self.nodes.get(&node)
    }
}

impl Heard {
    /// As if it had just been heard, and were watched no longer.
    pub(super) fn from_now(now: Steady, limits: &Limits) -> Self {
        Self {
            lease: now.after(limits.node_lease_ms),
            suspect: now.after(limits.suspect_hold_ms),
            watched: now,
            up_since: now,
            load_percent: 0,
        }
    }
}

/// A control plane begins to lead. It is told the number of its term.
///
/// Made durable before anything else: whoever led before notices at its next commit.
#[derive(Clone, Copy, Debug)]
pub struct BeginTerm;

impl Command for BeginTerm {
    type Answer = u64;
    type Refusal = std::convert::Infallible;

    fn run(&self, turn: &mut Turn<'_>) -> Result<u64, std::convert::Infallible> {
        let mut record = turn.cluster.cluster.clone();
        record.terms = record.terms.saturating_add(1);
        let term = record.terms;
        turn.put_cluster(record);
        Ok(term)
    }
}

/// One command at work: it reads the cluster, and changes records through this.
#[derive(Debug)]
pub struct Turn<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) now: Steady,
    before: BTreeMap<Key, Option<Record>>,
}

impl Turn<'_> {
    pub(super) fn put_cluster(&mut self, record: ClusterRecord) {
        self.set(Key::Cluster, Some(Record::Cluster(record)));
    }

    pub(super) fn put_node(&mut self, node: NodeRecord) {
        self.set(Key::Node(node.id), Some(Record::Node(node)));
    }

    pub(super) fn put_region(&mut self, region: RegionRecord) {
        self.set(Key::Region(region.id), Some(Record::Region(region)));
    }

    pub(super) fn put_reservation(&mut self, reservation: ReservationRecord) {
        let key = Key::Reservation(reservation.id);
        self.set(key, Some(Record::Reservation(reservation)));
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.set(key, None);
    }

    fn set(&mut self, key: Key, record: Option<Record>) {
        self.remember(key);
        self.cluster.replace(key, record);
    }

    fn remember(&mut self, key: Key) {
        let cluster = &*self.cluster;
        self.before
            .entry(key)
            .or_insert_with(|| cluster.record(key));
    }

    /// Changes where an extent is.
    pub(super) fn set_homes(&mut self, region: RegionId, extent: ExtentIndex, homes: Homes) {
        let (chunk, at) = chunk_of(extent);
        self.remember(Key::Extents(region, chunk));
        let list = &mut self
            .cluster
            .chunks
            .entry((region, chunk))
            .or_default()
            .extents;
        if list.len() <= at {
            list.resize_with(at + 1, Homes::default);
        }
        let was = std::mem::replace(&mut list[at], homes.clone());
        self.cluster.count(region, extent, &was, false);
        self.cluster.count(region, extent, &homes, true);
        self.cluster.derived.unsettled.insert((region, chunk));
    }
}

fn fits(key: Key, record: &Record) -> bool {
    match (key, record) {
        (Key::Cluster, Record::Cluster(_)) => true,
        (Key::Node(id), Record::Node(node)) => node.id == id && !node.addresses.is_empty(),
        (Key::Region(id), Record::Region(region)) => {
            region.id == id && region.extent_bytes.get() > 0
        }
        (Key::Reservation(id), Record::Reservation(reservation)) => reservation.id == id,
        _ => false,
    }
}

/// The extent at a place of a chunk.
pub(super) fn index_of(chunk: u32, at: usize) -> ExtentIndex {
    let at = u32::try_from(at).unwrap_or(u32::MAX);
    ExtentIndex::new(
        chunk
            .saturating_mul(super::records::CHUNK_EXTENTS)
            .saturating_add(at),
    )
}

/// Counts up or down. Down below nothing is a bug.
fn shift<N: Count>(count: &mut N, by: N, up: bool) {
    let shifted = if up { count.plus(by) } else { count.minus(by) };
    *count = shifted.expect("what is taken away was added before");
}

trait Count: Copy {
    fn plus(self, by: Self) -> Option<Self>;
    fn minus(self, by: Self) -> Option<Self>;
}

macro_rules! counts {
    ($($number:ty),*) => {$(
        impl Count for $number {
            fn plus(self, by: Self) -> Option<Self> {
                self.checked_add(by)
            }
            fn minus(self, by: Self) -> Option<Self> {
                self.checked_sub(by)
            }
        }
    )*};
}
counts!(u32, u64);

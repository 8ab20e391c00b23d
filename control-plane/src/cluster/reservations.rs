//! Memory that is promised ahead, and who is refused first when it gets scarce.
//!
//! ```text
//!   of the capacity that is there:
//!   0%                                75%         85%        95%      100%
//!   | placed | promised, not yet placed | free      |          |        |
//!                                    low ends,  normal,     high     what replaces lost replicas
//! ```
//!
//! A reservation is of the whole pool, not of a node: extents of its regions are counted on it as
//! they are placed. It keeps others out; the ceiling of its class on each node holds for it too.

use mycoram_fabric::units::{ByteCount, TenantId};

use super::identity::{PriorityClass, ReservationId};
use super::limits::MAX_RESERVATIONS;
use super::records::{Key, ReservationRecord};
use super::state::{Cluster, Command, Turn};

/// Why memory is not promised or not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReservationRefusal {
    /// Not enough under the ceiling of the class.
    #[error(transparent)]
    Pressure(#[from] Pressure),
    /// Nothing was asked for.
    #[error("a reservation of nothing")]
    Nothing,
    /// A bound is reached.
    #[error("the cluster has {limit} reservations already")]
    TooMany {
        /// The bound.
        limit: usize,
    },
    /// Its number was drawn before.
    #[error("{0} is there already, and is another one")]
    Taken(ReservationId),
    /// There is none.
    #[error("there is no {0}")]
    Unknown(ReservationId),
    /// Somebody else's.
    #[error("{0} belongs to another tenant")]
    Foreign(ReservationId),
    /// Regions are counted on it.
    #[error("{id} is used by {regions} regions: delete them first")]
    InUse {
        /// Which one.
        id: ReservationId,
        /// How many.
        regions: usize,
    },
}

/// There is not enough memory for this class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{asked} asked, {free} free for class {class:?} ({placed} placed and {promised} promised of {capacity}, ceiling {ceiling_percent}%)"
)]
pub struct Pressure {
    /// As which class.
    pub class: PriorityClass,
    /// What was asked for, all replicas together.
    pub asked: ByteCount,
    /// What this class could still have.
    pub free: ByteCount,
    /// What is placed.
    pub placed: ByteCount,
    /// What is promised to others and not yet placed.
    pub promised: ByteCount,
    /// What the nodes that are there lend.
    pub capacity: ByteCount,
    /// What part of it the class may use.
    pub ceiling_percent: u8,
}

/// Memory is promised.
#[derive(Clone, Copy, Debug)]
pub struct Reserve {
    /// Random; the same one again asks the same again.
    pub id: ReservationId,
    /// For whom.
    pub tenant: TenantId,
    /// How much, all replicas together.
    pub bytes: ByteCount,
    /// As which class.
    pub class: PriorityClass,
}

impl Command for Reserve {
    type Answer = ();
    type Refusal = ReservationRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<(), ReservationRefusal> {
        let record = ReservationRecord {
            id: self.id,
            tenant: self.tenant,
            bytes: self.bytes,
            class: self.class,
        };
        match turn.cluster.reservations.get(&self.id) {
            Some(known) if *known == record => return Ok(()),
            Some(_) => return Err(ReservationRefusal::Taken(self.id)),
            None => {}
        }
        if self.bytes.get() == 0 {
            return Err(ReservationRefusal::Nothing);
        }
        if turn.cluster.reservations.len() >= MAX_RESERVATIONS {
            return Err(ReservationRefusal::TooMany {
                limit: MAX_RESERVATIONS,
            });
        }
        turn.cluster
            .check_room(self.class, None, self.bytes.get())?;
        turn.put_reservation(record);
        Ok(())
    }
}

/// Memory is promised no longer.
#[derive(Clone, Copy, Debug)]
pub struct Unreserve {
    /// Which reservation.
    pub id: ReservationId,
    /// Whose.
    pub tenant: TenantId,
}

impl Command for Unreserve {
    type Answer = ();
    type Refusal = ReservationRefusal;

    fn run(&self, turn: &mut Turn<'_>) -> Result<(), ReservationRefusal> {
        let known = turn.cluster.reservations.get(&self.id);
        let known = known.ok_or(ReservationRefusal::Unknown(self.id))?;
        if known.tenant != self.tenant {
            return Err(ReservationRefusal::Foreign(self.id));
        }
        let uses = |region: &&super::records::RegionRecord| region.reservation == Some(self.id);
        let regions = turn.cluster.regions.values().filter(uses).count();
        if regions > 0 {
            return Err(ReservationRefusal::InUse {
                id: self.id,
                regions,
            });
        }
        turn.remove(Key::Reservation(self.id));
        Ok(())
    }
}

impl Cluster {
    /// Whether `asked` more bytes may be placed, counted on the reservation `on` first.
    pub(super) fn check_room(
        &self,
        class: PriorityClass,
        on: Option<ReservationId>,
        asked: u64,
    ) -> Result<(), Pressure> {
        let covered = on.map_or(0, |id| self.promised_of(id));
        let Some(rest) = asked.checked_sub(covered).filter(|rest| *rest > 0) else {
            return Ok(());
        };
        let there = self.nodes.values().filter(|node| node.state.counts());
        let (mut capacity, mut placed) = (0u64, 0u64);
        for node in there {
            capacity = capacity.saturating_add(node.capacity.get());
            placed = placed.saturating_add(self.placed_on(node.id));
        }
        // What is covered is promised too: only the rest has to be found.
        let promised = self
            .reservations
            .keys()
            .map(|id| self.promised_of(*id))
            .fold(0u64, u64::saturating_add);
        let ceiling_percent = self.limits.ceilings.percent(class);
        let usable = u128::from(capacity) * u128::from(ceiling_percent) / 100;
        let taken = u128::from(placed) + u128::from(promised);
        let free = u64::try_from(usable.saturating_sub(taken)).unwrap_or(u64::MAX);
        if rest <= free {
            return Ok(());
        }
        Err(Pressure {
            class,
            asked: ByteCount::new(asked),
            free: ByteCount::new(free),
            placed: ByteCount::new(placed),
            promised: ByteCount::new(promised),
            capacity: ByteCount::new(capacity),
            ceiling_percent,
        })
    }

    /// What is promised by a reservation and not yet placed.
    fn promised_of(&self, id: ReservationId) -> u64 {
        let Some(reservation) = self.reservations.get(&id) else {
            return 0;
        };
        let placed = self
            .regions
            .values()
            .filter(|region| region.reservation == Some(id))
            .filter_map(|region| self.derived.region_bytes.get(&region.id))
            .fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
        reservation.bytes.get().saturating_sub(placed)
    }
}

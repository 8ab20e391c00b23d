//! Who has what on a memory node: tenants, regions, their owners and extents. Pure: it is told what
//! happens and when, and says what is to be done; it touches no memory, no socket and no clock.
//!
//! ```text
//!   unknown --open(create)--> owned --connection lost--> orphaned --ttl--> unknown (memory freed)
//!                              |  ^                          |
//!                              |  '--open, same owner--------'
//!                              |  '--open, higher epoch: the former owner is fenced first
//!                              '--release--> unknown
//! ```
//!
//! Extents belong to (tenant, region), not to a connection: they survive the death of their owner's
//! process until they are released or until nobody has come for them in `orphan_ttl_ms`. Freed bytes
//! are remembered as not yet zeroed; an allocation names those that it must have zeroed first.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::floors::{Floor, Floors};
use super::runs::{Run, Runs};
use crate::transport::{Export, Ticket};
use crate::units::{ByteCount, Epoch, ExtentIndex, PAGE_BYTES, RegionId, TenantId};
use crate::wire::Refusal;
use crate::wire::control::{Open, Opened, Token};

/// What a node takes at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Regions, owned and orphaned. Default 4096.
    pub regions: u32,
    /// Extents of all regions: what they cost the node in memory and its device in registrations.
    /// Default 2^20.
    pub extents: u32,
    /// Tickets, so queue pairs, of one region. Default 1024.
    pub tickets: u32,
    /// Bytes that one tenant may have; `None`: as many as there are.
    pub tenant_bytes: Option<ByteCount>,
    /// How long a region without an owner is kept, ms. Default 10 minutes.
    pub orphan_ttl_ms: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            regions: 4096,
            extents: 1 << 20,
            tickets: 1024,
            tenant_bytes: None,
            orphan_ttl_ms: 600_000,
        }
    }
}

/// A control connection, as the ledger knows it. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

#[derive(Debug)]
struct Held {
    run: Run,
    export: Option<Export>,
}

#[derive(Debug)]
struct Region {
    tenant: TenantId,
    token: Token,
    epoch: Epoch,
    /// The process that has, or last had, the region at this epoch; `None`: it was fenced, nobody yet.
    owner: Option<u64>,
    /// Its control connection, while there is one.
    session: Option<SessionId>,
    orphaned_at_ms: u64,
    extent_bytes: u64,
    extents: BTreeMap<ExtentIndex, Held>,
    tickets: Vec<Ticket>,
}

/// What becomes of an [`Open`] that is granted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Admission {
    /// For the new owner.
    pub(super) opened: Opened,
    /// Whether tickets of lower epochs must be fenced before the answer is sent.
    pub(super) fence: bool,
}

/// One extent of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// Which extent of the region.
    pub(super) index: ExtentIndex,
    /// Where in the pool.
    pub(super) run: Run,
    /// How it is reached, if it was here before.
    pub(super) export: Option<Export>,
}

/// Something that is no longer anybody's: to be revoked before it is [`Ledger::give_back`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Freed {
    /// Whose it was.
    pub(super) tenant: TenantId,
    /// Where in the pool.
    pub(super) run: Run,
    /// How it was reached.
    pub(super) export: Option<Export>,
}

/// A region that is no longer here: tickets to dismiss, then extents to revoke.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Gone {
    /// To be dismissed first.
    pub(super) tickets: Vec<Ticket>,
    /// To be revoked then.
    pub(super) freed: Vec<Freed>,
}

/// Counts for the status report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Bytes nobody has.
    pub(super) free: u64,
    /// Those of them that are still to be zeroed.
    pub(super) unzeroed: u64,
    /// Extents.
    pub(super) extents: u64,
    /// Tenants with a region.
    pub(super) tenants: u32,
    /// Regions.
    pub(super) regions: u32,
    /// Regions without an owner.
    pub(super) orphans: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger {
    capacity: u64,
    bounds: Bounds,
    draining: bool,
    free: Runs,
    unzeroed: Runs,
    regions: HashMap<RegionId, Region>,
    sessions: HashMap<SessionId, (RegionId, Epoch)>,
    floors: Floors,
}

impl Ledger {
    /// A pool of `capacity` zero bytes.
    #[must_use]
    pub(super) fn new(capacity: ByteCount, bounds: Bounds) -> Self {
        Self {
            capacity: capacity.get(),
            bounds,
            draining: false,
            free: Runs::whole(capacity.get()),
            unzeroed: Runs::default(),
            regions: HashMap::new(),
            sessions: HashMap::new(),
            floors: Floors::default(),
        }
    }

    /// From now on nobody new is let in, and nothing more is lent.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether [`Self::drain`] was called.
    #[must_use]
    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    /// An owner comes. An owner that is fenced by it notices at its next request.
    pub(super) fn open(
        &mut self,
        session: SessionId,
        epoch: Epoch,
        open: &Open,
    ) -> Result<Admission, Refusal> {
        if self.sessions.contains_key(&session) {
            return Err(Refusal::AlreadyOpen {});
        }
        let known = u32::try_from(self.regions.len()).unwrap_or(u32::MAX);
        let Some(region) = self.regions.get_mut(&open.region) else {
            if self.draining {
                return Err(Refusal::Draining {});
            }
            if !open.create {
                return Err(Refusal::UnknownRegion {});
            }
            match self.floors.check(open.region, epoch) {
                Floor::Served => {}
                Floor::TooLow(current) => {
                    return Err(Refusal::EpochTooLow {
                        requested: epoch,
                        current,
                    });
                }
                Floor::Gone => return Err(Refusal::UnknownRegion {}),
            }
            if known >= self.bounds.regions {
                return Err(Refusal::TooManyRegions {
                    limit: self.bounds.regions,
                });
            }
            self.regions.insert(
                open.region,
                Region {
                    tenant: open.tenant,
                    token: open.token,
                    epoch,
                    owner: Some(open.owner),
                    session: Some(session),
                    orphaned_at_ms: 0,
                    extent_bytes: 0,
                    extents: BTreeMap::new(),
                    tickets: Vec::new(),
                },
            );
            self.sessions.insert(session, (open.region, epoch));
            return Ok(Admission {
                opened: Opened {
                    extents: 0,
                    extent_bytes: ByteCount::new(0),
                },
                fence: false,
            });
        };
        if !region.token.matches(&open.token) || region.tenant != open.tenant {
            return Err(Refusal::WrongToken {});
        }
        if epoch < region.epoch {
            return Err(Refusal::EpochTooLow {
                requested: epoch,
                current: region.epoch,
            });
        }
        let fence = epoch > region.epoch;
        if !fence && region.owner.is_some_and(|owner| owner != open.owner) {
            return Err(Refusal::Owned { epoch });
        }
        if fence {
            if self.draining {
                return Err(Refusal::Draining {});
            }
            region.tickets.clear();
        }
        region.epoch = epoch;
        region.owner = Some(open.owner);
        region.session = Some(session);
        self.sessions.insert(session, (open.region, epoch));
        Ok(Admission {
            opened: Opened {
                extents: u32::try_from(region.extents.len()).unwrap_or(u32::MAX),
                extent_bytes: ByteCount::new(region.extent_bytes),
            },
            fence,
        })
    }

    /// The region that `session` owns, or why it owns none any more.
    fn owned(&mut self, session: SessionId) -> Result<(RegionId, &mut Region), Refusal> {
        let &(id, requested) = self.sessions.get(&session).ok_or(Refusal::NoSession {})?;
        let region = self.regions.get_mut(&id).ok_or(Refusal::UnknownRegion {})?;
        if requested < region.epoch {
            return Err(Refusal::EpochTooLow {
                requested,
                current: region.epoch,
            });
        }
        if region.session != Some(session) {
            return Err(Refusal::NoSession {});
        }
        Ok((id, region))
    }

    /// Whether `session` is, still, a region's owner.
    pub(super) fn check(&mut self, session: SessionId) -> Result<(), Refusal> {
        self.owned(session).map(|_| ())
    }

    /// Notes `ticket` for a queue pair, in the place of `replaces`. What is replaced must be dismissed,
    /// `ticket` admitted for what is returned; if that fails, [`Self::forget_ticket`].
    pub(super) fn ticket(
        &mut self,
        session: SessionId,
        ticket: Ticket,
        replaces: Option<&Ticket>,
    ) -> Result<(TenantId, RegionId, Epoch), Refusal> {
        let limit = self.bounds.tickets;
        let (id, region) = self.owned(session)?;
        if let Some(old) = replaces {
            region.tickets.retain(|known| known != old);
        }
        if region.tickets.len() >= limit as usize {
            return Err(Refusal::TooManyTickets { limit });
        }
        region.tickets.push(ticket);
        Ok((region.tenant, id, region.epoch))
    }

    /// The ticket was not admitted, or its queue pair is no longer wanted.
    pub(super) fn forget_ticket(&mut self, session: SessionId, ticket: &Ticket) {
        if let Ok((_, region)) = self.owned(session) {
            region.tickets.retain(|known| known != ticket);
        }
    }

    /// Whether `ticket` is one of `session`'s region.
    pub(super) fn has_ticket(&mut self, session: SessionId, ticket: &Ticket) -> bool {
        self.owned(session)
            .is_ok_and(|(_, region)| region.tickets.contains(ticket))
    }

    /// Places extents, all or none. Extents that the region has here are given again. For each new one
    /// the caller zeroes what [`Self::take_unzeroed`] says, exports it and calls [`Self::exported`];
    /// when that fails, it calls [`Self::free`] for the indexes of the new ones.
    pub(super) fn allocate(
        &mut self,
        session: SessionId,
        extent_bytes: ByteCount,
        indexes: &[ExtentIndex],
    ) -> Result<Vec<Placed>, Refusal> {
        let (capacity, bounds, draining) = (self.capacity, self.bounds, self.draining);
        let (id, region) = self.owned(session)?;
        let bytes = extent_bytes.get();
        let unusable = bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES as u64);
        if unusable || (!region.extents.is_empty() && region.extent_bytes != bytes) {
            return Err(Refusal::ExtentSize {
                asked: extent_bytes,
            });
        }
        let new: BTreeSet<ExtentIndex> = indexes
            .iter()
            .copied()
            .filter(|index| !region.extents.contains_key(index))
            .collect();
        if draining && !new.is_empty() {
            return Err(Refusal::Draining {});
        }
        let mut once = BTreeSet::new();
        if let Some(&extent) = indexes.iter().find(|index| !once.insert(**index)) {
            return Err(Refusal::AskedTwice { extent });
        }
        let tenant = region.tenant;
        let known: usize = self
            .regions
            .values()
            .map(|region| region.extents.len())
            .sum();
        if known + new.len() > bounds.extents as usize {
            return Err(Refusal::TooManyExtents {
                limit: bounds.extents,
            });
        }
        let available = self.free.available(bytes);
        // What no pool has is more than this one has.
        let asked = bytes.saturating_mul(new.len() as u64);
        if let Some(quota) = bounds.tenant_bytes {
            let held = self.held_by(tenant);
            if held.saturating_add(asked) > quota.get() {
                return Err(Refusal::Quota {
                    asked: ByteCount::new(asked),
                    held: ByteCount::new(held),
                    quota,
                });
            }
        }
        if asked > available {
            return Err(Refusal::Full {
                asked: ByteCount::new(asked),
                free: ByteCount::new(available),
                capacity: ByteCount::new(capacity),
            });
        }
        let region = self.regions.get_mut(&id).ok_or(Refusal::UnknownRegion {})?;
        region.extent_bytes = bytes;
        for index in new {
            // First fit takes whole pieces only, so what is available in pieces can be taken.
            let Some(run) = self.free.take(bytes) else {
                unreachable!("{available} bytes were available in pieces of {bytes}")
            };
            region.extents.insert(index, Held { run, export: None });
        }
        Ok(indexes
            .iter()
            .filter_map(|&index| {
                let held = region.extents.get(&index)?;
                Some(Placed {
                    index,
                    run: held.run,
                    export: held.export,
                })
            })
            .collect())
    }

    fn held_by(&self, tenant: TenantId) -> u64 {
        self.regions
            .values()
            .filter(|region| region.tenant == tenant)
            .map(|region| region.extent_bytes * region.extents.len() as u64)
            .sum()
    }

    /// A part of `run` that is to be zeroed before `run` is lent; call again until there is none.
    pub(super) fn take_unzeroed(&mut self, run: Run) -> Option<Run> {
        self.unzeroed.take_within(run)
    }

    /// Up to `most` free bytes that may be zeroed now, because there is time.
    pub(super) fn take_idle_unzeroed(&mut self, most: u64) -> Option<Run> {
        self.unzeroed.take_some(most)
    }

    /// How an extent of `session`'s region is reached from now on.
    pub(super) fn exported(&mut self, session: SessionId, index: ExtentIndex, export: Export) {
        if let Ok((_, region)) = self.owned(session)
            && let Some(held) = region.extents.get_mut(&index)
        {
            held.export = Some(export);
        }
    }

    /// Whose extents `session` allocates.
    pub(super) fn tenant(&mut self, session: SessionId) -> Result<TenantId, Refusal> {
        self.owned(session).map(|(_, region)| region.tenant)
    }

    /// Up to `most` extents of the region from `from` on, in order.
    pub(super) fn list(
        &mut self,
        session: SessionId,
        from: ExtentIndex,
        most: usize,
    ) -> Result<Vec<(ExtentIndex, Export)>, Refusal> {
        let (_, region) = self.owned(session)?;
        Ok(region
            .extents
            .range(from..)
            .filter_map(|(index, held)| Some((*index, held.export?)))
            .take(most)
            .collect())
    }

    /// The region gives extents up. Those that it does not have are passed over.
    pub(super) fn free(
        &mut self,
        session: SessionId,
        indexes: &[ExtentIndex],
    ) -> Result<Vec<Freed>, Refusal> {
        let (_, region) = self.owned(session)?;
        let tenant = region.tenant;
        Ok(indexes
            .iter()
            .filter_map(|index| region.extents.remove(index))
            .map(|held| Freed {
                tenant,
                run: held.run,
                export: held.export,
            })
            .collect())
    }

    /// The region gives everything up, itself included.
    pub(super) fn release(&mut self, session: SessionId) -> Result<Gone, Refusal> {
        let (id, _) = self.owned(session)?;
        self.sessions.remove(&session);
        Ok(self.remove(id))
    }

    /// Nobody with a lower epoch is served from now on, also if the region is not here. True: tickets of
    /// lower epochs must be fenced before this is confirmed.
    pub(super) fn fence_below(&mut self, now_ms: u64, id: RegionId, epoch: Epoch) -> bool {
        self.floors.raise(id, epoch);
        let Some(region) = self.regions.get_mut(&id).filter(|r| r.epoch < epoch) else {
            return false;
        };
        if region.session.take().is_some() {
            region.orphaned_at_ms = now_ms;
        }
        region.epoch = epoch;
        region.owner = None;
        region.tickets.clear();
        true
    }

    /// The region is no more, and never comes back.
    pub(super) fn end(&mut self, id: RegionId) -> Gone {
        let gone = self.remove(id);
        self.floors.close(id);
        gone
    }

    fn remove(&mut self, id: RegionId) -> Gone {
        let Some(region) = self.regions.remove(&id) else {
            return Gone::default();
        };
        self.floors.raise(id, region.epoch);
        let tenant = region.tenant;
        Gone {
            tickets: region.tickets,
            freed: region
                .extents
                .into_values()
                .map(|held| Freed {
                    tenant,
                    run: held.run,
                    export: held.export,
                })
                .collect(),
        }
    }

    /// Nobody can reach `run` any more: it is free, and to be zeroed.
    pub(super) fn give_back(&mut self, run: Run) {
        self.unzeroed.insert(run);
        self.free.insert(run);
    }

    /// The control connection is gone. The region stays.
    pub(super) fn disconnected(&mut self, now_ms: u64, session: SessionId) {
        if let Some((id, _)) = self.sessions.remove(&session)
            && let Some(region) = self.regions.get_mut(&id)
            && region.session == Some(session)
        {
            region.session = None;
            region.orphaned_at_ms = now_ms;
        }
    }

    /// Regions for which nobody came in time.
    pub(super) fn expire(&mut self, now_ms: u64) -> Vec<(RegionId, Gone)> {
        let ttl = self.bounds.orphan_ttl_ms;
        let expired: Vec<RegionId> = self
            .regions
            .iter()
            .filter(|(_, region)| {
                region.session.is_none() && now_ms.saturating_sub(region.orphaned_at_ms) >= ttl
            })
            .map(|(id, _)| *id)
            .collect();
        expired
            .into_iter()
            .map(|id| (id, self.remove(id)))
            .collect()
    }

    /// For the status report.
    #[must_use]
    pub(super) fn counts(&self) -> Counts {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let tenants: BTreeSet<_> = self.regions.values().map(|region| region.tenant).collect();
        let orphans = self
            .regions
            .values()
            .filter(|region| region.session.is_none());
        Counts {
            free: self.free.bytes(),
            unzeroed: self.unzeroed.bytes(),
            extents: self
                .regions
                .values()
                .map(|region| region.extents.len() as u64)
                .sum(),
            tenants: number(tenants.len()),
            regions: number(self.regions.len()),
            orphans: number(orphans.count()),
        }
    }
}

#[cfg(test)]
mod tests;

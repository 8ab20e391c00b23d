//! The node itself: answers requests by asking the ledger and doing to the data server and the pool
//! what it says, in the order that keeps one tenant's bytes from another. One thread owns it.
//!
//! ```text
//!   fencing     fence the old tickets  -> answer the new owner
//!   freeing     revoke the export      -> the bytes are free, not yet zero
//!   lending     zero what is not zero  -> export -> answer
//! ```
//!
//! It has no clock and no socket: `now_ms` comes in, so the simulation runs this very code.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gate::GrantCheck;
use super::ledger::{Bounds, Freed, Gone, Ledger, SessionId};
use super::pool::Pool;
use crate::transport::{DataServer, TICKET_BYTES, Ticket};
use crate::units::{ByteCount, Epoch, Incarnation, RegionId};
use crate::wire::Refusal;
use crate::wire::control::{
    Alive, Allocate, Grant, MAX_BATCH_EXTENTS, Request, Response, StatusReport, TicketRequest,
    Welcome,
};

/// How much is zeroed at a time when there is nothing else to do. 1 MiB takes some 0.2 ms, and that is
/// how long a request may wait for it.
const IDLE_ZERO_BYTES: u64 = 1 << 20;

/// Draws a ticket's secret.
pub type Entropy = Box<dyn FnMut() -> [u8; TICKET_BYTES] + Send>;

/// Tells the time of day: ms since 1970 (UTC). Grants end by it, and nothing else knows it.
pub type WallClock = Box<dyn FnMut() -> u64 + Send>;

/// See the module.
pub struct NodeCore {
    ledger: Ledger,
    pool: Pool,
    data: Arc<dyn DataServer>,
    entropy: Entropy,
    gate: Option<(GrantCheck, WallClock)>,
    incarnation: Incarnation,
    refusals: BTreeMap<&'static str, u64>,
    started_ms: u64,
    drain_until_ms: Option<u64>,
}

impl NodeCore {
    /// A node that lends `pool` through `data`, which was made over it.
    #[must_use]
    pub fn new(
        pool: Pool,
        data: Arc<dyn DataServer>,
        bounds: Bounds,
        incarnation: Incarnation,
        now_ms: u64,
        entropy: Entropy,
    ) -> Self {
        Self {
            ledger: Ledger::new(pool.bytes(), bounds),
            pool,
            data,
            entropy,
            gate: None,
            incarnation,
            refusals: Refusal::KINDS.iter().map(|kind| (*kind, 0)).collect(),
            started_ms: now_ms,
            drain_until_ms: None,
        }
    }

    /// From now on nobody opens a region without a grant.
    #[must_use]
    pub fn guarded(self, check: GrantCheck, clock: WallClock) -> Self {
        Self {
            gate: Some((check, clock)),
            ..self
        }
    }

    /// Answers one request of one control connection. `epoch` is that of its header.
    pub fn handle(
        &mut self,
        now_ms: u64,
        session: SessionId,
        epoch: Epoch,
        request: Request,
    ) -> Response {
        self.answer(now_ms, session, epoch, request)
            .unwrap_or_else(|refusal| {
                *self.refusals.entry(refusal.kind()).or_default() += 1;
                Response::Refused(refusal)
            })
    }

    fn answer(
        &mut self,
        now_ms: u64,
        session: SessionId,
        epoch: Epoch,
        request: Request,
    ) -> Result<Response, Refusal> {
        match request {
            Request::Hello => Ok(Response::Welcome(Welcome {
                incarnation: self.incarnation,
                transport: self.data.kind(),
                data: self.data.address(),
                capacity: self.pool.bytes(),
            })),
            Request::Status => Ok(Response::StatusReport(self.status(now_ms))),
            Request::Open(open) => {
                if let Some((check, clock)) = &mut self.gate {
                    check.check(clock(), self.incarnation, epoch, &open)?;
                }
                let admission = self.ledger.open(session, epoch, &open)?;
                if admission.fence {
                    self.data.fence(open.region, epoch);
                    tracing::info!(region = %open.region, %epoch, "a region has a new owner, the former one is fenced");
                }
                tracing::debug!(
                    owner = %format_args!("{:016x}", open.owner),
                    region = %open.region,
                    %epoch,
                    "a session is open"
                );
                Ok(Response::Opened(admission.opened))
            }
            Request::Ticket(request) => self.ticket(session, &request),
            Request::Dismiss(ticket) => {
                self.ledger.check(session)?;
                if self.ledger.has_ticket(session, &ticket) {
                    self.data.dismiss(&ticket);
                    self.ledger.forget_ticket(session, &ticket);
                }
                Ok(Response::Dismissed)
            }
            Request::Allocate(allocate) => self.allocate(session, &allocate),
            Request::List { from } => {
                let listed = self.ledger.list(session, from, MAX_BATCH_EXTENTS)?;
                let grant = |(index, export): (_, crate::transport::Export)| Grant {
                    index,
                    addr: export.addr,
                    rkey: export.rkey,
                };
                Ok(Response::Granted(listed.into_iter().map(grant).collect()))
            }
            Request::Free { indexes } => {
                let freed = self.ledger.free(session, &indexes)?;
                let extents = u32::try_from(freed.len()).unwrap_or(u32::MAX);
                self.revoke(freed);
                Ok(Response::Freed { extents })
            }
            Request::Release => {
                let gone = self.ledger.release(session)?;
                let extents = u32::try_from(gone.freed.len()).unwrap_or(u32::MAX);
                self.dismiss(gone);
                Ok(Response::Released { extents })
            }
            Request::KeepAlive => {
                self.ledger.check(session)?;
                let left = |until: u64| u32::try_from(until.saturating_sub(now_ms));
                Ok(Response::Alive(Alive {
                    drain_ms: self
                        .drain_until_ms
                        .map(|until| left(until).unwrap_or(u32::MAX)),
                }))
            }
        }
    }

    fn ticket(&mut self, session: SessionId, request: &TicketRequest) -> Result<Response, Refusal> {
        let replaces = request.replaces.as_ref();
        if let Some(old) = replaces
            && self.ledger.has_ticket(session, old)
        {
            self.data.dismiss(old);
        }
        let ticket = Ticket {
            secret: (self.entropy)(),
        };
        let (tenant, region, epoch) = self.ledger.ticket(session, ticket, replaces)?;
        if let Err(error) = self.data.admit(ticket, tenant, region, epoch) {
            self.ledger.forget_ticket(session, &ticket);
            let crate::transport::AdmitError::TooManySessions { limit } = error;
            return Err(Refusal::TooManyTickets {
                limit: u32::try_from(limit).unwrap_or(u32::MAX),
            });
        }
        Ok(Response::TicketGiven(ticket))
    }

    fn allocate(&mut self, session: SessionId, allocate: &Allocate) -> Result<Response, Refusal> {
        let tenant = self.ledger.tenant(session)?;
        let placed = self
            .ledger
            .allocate(session, allocate.extent_bytes, &allocate.indexes)?;
        let mut grants = Vec::with_capacity(placed.len());
        for extent in &placed {
            let export = match extent.export {
                Some(export) => export,
                None => {
                    while let Some(run) = self.ledger.take_unzeroed(extent.run) {
                        self.pool.zero(run);
                    }
                    match self
                        .data
                        .export(tenant, extent.run.offset, extent.run.bytes)
                    {
                        Ok(export) => {
                            self.ledger.exported(session, extent.index, export);
                            export
                        }
                        Err(error) => {
                            tracing::error!(
                                error = &error as &dyn std::error::Error,
                                "an extent could not be registered"
                            );
                            // None of them, then: what was new goes back, exported or not.
                            let new = placed.iter().filter(|extent| extent.export.is_none());
                            let indexes: Vec<_> = new.map(|extent| extent.index).collect();
                            let freed = self.ledger.free(session, &indexes)?;
                            self.revoke(freed);
                            return Err(Refusal::Device {});
                        }
                    }
                }
            };
            grants.push(Grant {
                index: extent.index,
                addr: export.addr,
                rkey: export.rkey,
            });
        }
        Ok(Response::Granted(grants))
    }

    /// Makes extents unreachable, then free.
    fn revoke(&mut self, freed: Vec<Freed>) {
        for extent in freed {
            if let Some(export) = extent.export {
                self.data.revoke(extent.tenant, export.rkey);
            }
            self.ledger.give_back(extent.run);
        }
    }

    fn dismiss(&mut self, gone: Gone) {
        for ticket in &gone.tickets {
            self.data.dismiss(ticket);
        }
        self.revoke(gone.freed);
    }

    /// The control plane says that `epoch` is the lowest that is served of a region from now on. When this
    /// returns, nothing of a lower one reaches memory any more.
    pub fn fence_below(&mut self, now_ms: u64, region: RegionId, epoch: Epoch) {
        if self.ledger.fence_below(now_ms, region, epoch) {
            self.data.fence(region, epoch);
            tracing::info!(%region, %epoch, "a region has a new owner, the former one is fenced");
        }
    }

    /// The control plane says that a region is no more: its memory is freed. Gives how many extents it had.
    pub fn end_region(&mut self, region: RegionId) -> usize {
        let gone = self.ledger.end(region);
        let extents = gone.freed.len();
        self.dismiss(gone);
        extents
    }

    /// A control connection is gone.
    pub fn disconnected(&mut self, now_ms: u64, session: SessionId) {
        self.ledger.disconnected(now_ms, session);
    }

    /// Time has passed: frees the regions for which nobody came.
    pub fn tick(&mut self, now_ms: u64) {
        for (region, gone) in self.ledger.expire(now_ms) {
            tracing::warn!(%region, extents = gone.freed.len(), "a region had no owner for too long, its memory is taken back");
            self.dismiss(gone);
        }
    }

    /// Zeroes some freed memory, so that a later allocation need not. False if there is none.
    pub fn zero_some(&mut self) -> bool {
        match self.ledger.take_idle_unzeroed(IDLE_ZERO_BYTES) {
            Some(run) => {
                self.pool.zero(run);
                true
            }
            None => false,
        }
    }

    /// From now on nothing new is taken, and owners are told that the node ends at `until_ms`.
    pub fn drain(&mut self, until_ms: u64) {
        self.ledger.drain();
        self.drain_until_ms = Some(until_ms);
    }

    /// Whether no owner is connected.
    #[must_use]
    pub fn is_left_alone(&self) -> bool {
        let counts = self.ledger.counts();
        counts.regions == counts.orphans
    }

    /// What the node says of itself. Connections are counted by whoever has them.
    #[must_use]
    pub fn status(&self, now_ms: u64) -> StatusReport {
        let counts = self.ledger.counts();
        let capacity = self.pool.bytes();
        StatusReport {
            incarnation: self.incarnation,
            transport: self.data.kind(),
            data: self.data.address(),
            uptime_ms: now_ms.saturating_sub(self.started_ms),
            draining: self.ledger.is_draining(),
            hugepages: self.pool.hugepages(),
            capacity,
            lent: ByteCount::new(capacity.get() - counts.free),
            free: ByteCount::new(counts.free),
            unzeroed: ByteCount::new(counts.unzeroed),
            extents: counts.extents,
            tenants: counts.tenants,
            regions: counts.regions,
            orphans: counts.orphans,
            sessions: counts.regions - counts.orphans,
            control_connections: 0,
            data_connections: u32::try_from(self.data.connections()).unwrap_or(u32::MAX),
        }
    }

    /// How often the node refused, by kind.
    #[must_use]
    pub fn refusals(&self) -> Vec<(&'static str, u64)> {
        let counts = self.refusals.iter();
        counts.map(|(kind, count)| (*kind, *count)).collect()
    }

    /// Breaks all queue pairs. The last thing that is asked of a node.
    pub fn shutdown(&self) {
        self.data.shutdown();
    }
}

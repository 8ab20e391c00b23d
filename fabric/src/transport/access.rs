//! Who may touch what, where no device keeps account of it: exports by key, sessions by ticket.
//!
//! Shared by the providers without a device, tcp and sim. No socket and no thread in here: a check
//! says what holds at its moment; whoever takes a right away must also see to what was checked before
//! and is still under way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::{AdmitError, Export, ExportError, TICKET_BYTES, Ticket, TransportKind};
use crate::units::{Epoch, RegionId, RemoteAddr, Rkey, TenantId};

/// Random keys that are tried before the generator is taken to be broken. A try fails once in 2^32
/// for each export that there is.
const KEY_TRIES: usize = 1000;

/// Identity of a session on this server, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionNumber(u64);

/// An admitted ticket.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) number: SessionNumber,
    pub(crate) tenant: TenantId,
    pub(crate) epoch: Epoch,
    region: RegionId,
    ticket: Ticket,
    /// Connections that were opened with it and are up.
    pub(crate) connections: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Debug)]
struct Exported {
    tenant: TenantId,
    offset: u64,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Sessions {
    admitted: Vec<Session>,
    next: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Access {
    pool_bytes: u64,
    max_sessions: usize,
    exports: RwLock<HashMap<Rkey, Exported>>,
    sessions: RwLock<Sessions>,
}

/// A view of the exports, for checking requests.
pub(crate) struct Keys<'a>(RwLockReadGuard<'a, HashMap<Rkey, Exported>>);

impl Keys<'_> {
    /// Where in the pool `len` bytes at `addr` are, if `tenant` may reach them with `rkey`.
    pub(crate) fn resolve(
        &self,
        tenant: TenantId,
        rkey: Rkey,
        addr: RemoteAddr,
        len: usize,
    ) -> Option<usize> {
        let export = self.0.get(&rkey).filter(|export| export.tenant == tenant)?;
        let inside = addr.get().checked_sub(export.offset)?;
        let end = inside.checked_add(len as u64)?;
        (end <= export.bytes).then_some(addr.get() as usize)
    }
}

impl Access {
    /// For a pool of `pool_bytes`, with at most `max_sessions` tickets admitted at a time.
    pub(crate) fn new(pool_bytes: u64, max_sessions: usize) -> Self {
        Self {
            pool_bytes,
            max_sessions,
            exports: RwLock::default(),
            sessions: RwLock::default(),
        }
    }

    /// A view for checking one request or a batch of them.
    pub(crate) fn keys(&self) -> Keys<'_> {
        Keys(self.exports.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Exports a part of the pool under a key from `random`, the provider's generator.
    pub(crate) fn export(
        &self,
        transport: TransportKind,
        tenant: TenantId,
        offset: u64,
        bytes: u64,
        mut random: impl FnMut() -> std::io::Result<u32>,
    ) -> Result<Export, ExportError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.pool_bytes => {}
            _ => return Err(ExportError::OutsidePool { offset, bytes }),
        }
        let device = |source| ExportError::Device { transport, source };
        let mut exports = self.exports.write().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..KEY_TRIES {
            let rkey = Rkey::new(random().map_err(device)?);
            if let std::collections::hash_map::Entry::Vacant(entry) = exports.entry(rkey) {
                entry.insert(Exported {
                    tenant,
                    offset,
                    bytes,
                });
                let addr = RemoteAddr::new(offset);
                return Ok(Export { addr, rkey, bytes });
            }
        }
        Err(device(std::io::Error::from(
            std::io::ErrorKind::AlreadyExists,
        )))
    }

    /// False if the tenant has no such export. In-flight work is the workers' to end.
    pub(crate) fn revoke(&self, tenant: TenantId, rkey: Rkey) -> bool {
        let mut exports = self.exports.write().unwrap_or_else(PoisonError::into_inner);
        let theirs = exports
            .get(&rkey)
            .is_some_and(|export| export.tenant == tenant);
        theirs && exports.remove(&rkey).is_some()
    }

    /// From now on the ticket opens connections.
    pub(crate) fn admit(
        &self,
        ticket: Ticket,
        tenant: TenantId,
        region: RegionId,
        epoch: Epoch,
    ) -> Result<(), AdmitError> {
        let mut sessions = self
            .sessions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if sessions.admitted.len() >= self.max_sessions {
            let limit = self.max_sessions;
            return Err(AdmitError::TooManySessions { limit });
        }
        let number = SessionNumber(sessions.next);
        sessions.next += 1;
        sessions.admitted.push(Session {
            number,
            tenant,
            epoch,
            region,
            ticket,
            connections: Arc::default(),
        });
        Ok(())
    }

    /// Removes the sessions that `ends` says, and returns their numbers.
    fn end(&self, mut ends: impl FnMut(&Session) -> bool) -> Vec<SessionNumber> {
        let mut ended = Vec::new();
        self.sessions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .admitted
            .retain(|session| {
                let end = ends(session);
                if end {
                    ended.push(session.number);
                }
                !end
            });
        ended
    }

    /// The ticket opens nothing any more; says whose connections are to end.
    pub(crate) fn dismiss(&self, ticket: &Ticket) -> Vec<SessionNumber> {
        self.end(|session| same(&session.ticket.secret, &ticket.secret))
    }

    /// As [`Self::dismiss`], for what is below `current` in `region`.
    pub(crate) fn fence(&self, region: RegionId, current: Epoch) -> Vec<SessionNumber> {
        self.end(|session| session.region == region && session.epoch < current)
    }

    /// The session of a ticket, counted as one connection of it unless it has `most` already. Takes the
    /// same time for every ticket that admits nobody.
    pub(crate) fn open(&self, secret: &[u8; TICKET_BYTES], most: usize) -> Option<Session> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for session in &sessions.admitted {
            if same(&session.ticket.secret, secret) {
                found = Some(session);
            }
        }
        let session = found?;
        let counted = |now: usize| (now < most).then_some(now + 1);
        session
            .connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted)
            .ok()?;
        Some(session.clone())
    }
}

/// Compares without ending early, so that time tells nothing about how much of a guess was right.
fn same(a: &[u8; TICKET_BYTES], b: &[u8; TICKET_BYTES]) -> bool {
    let difference = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantId = TenantId::new(1);

    fn access() -> Access {
        Access::new(1 << 20, 3)
    }

    #[test]
    fn keys_hold_for_their_tenant_and_bounds_only() {
        let access = access();
        let mut keys = [5, 5, 6].into_iter();
        let mut random = || Ok(keys.next().expect("three"));
        let first = access
            .export(TransportKind::Sim, TENANT, 4096, 4096, &mut random)
            .expect("in");
        let second = access
            .export(TransportKind::Sim, TENANT, 8192, 4096, &mut random)
            .expect("in");
        assert_ne!(first.rkey, second.rkey, "a key in use is not drawn again");
        let resolve = |tenant, rkey, addr, len| {
            access
                .keys()
                .resolve(TenantId::new(tenant), rkey, RemoteAddr::new(addr), len)
        };
        assert_eq!(resolve(1, first.rkey, 4096, 4096), Some(4096));
        assert_eq!(resolve(1, first.rkey, 8191, 1), Some(8191));
        assert_eq!(resolve(1, first.rkey, 8191, 2), None);
        assert_eq!(resolve(1, first.rkey, 4095, 1), None);
        assert_eq!(resolve(1, first.rkey, u64::MAX, 1), None);
        assert_eq!(resolve(1, first.rkey, u64::MAX, usize::MAX), None);
        assert_eq!(resolve(2, first.rkey, 4096, 1), None);
        assert!(!access.revoke(TenantId::new(2), first.rkey));
        assert!(access.revoke(TENANT, first.rkey));
        assert_eq!(resolve(1, first.rkey, 4096, 1), None);
    }

    #[test]
    fn sessions_are_bounded_and_end_by_epoch() {
        let access = access();
        let ticket = |n| Ticket { secret: [n; 16] };
        for n in 1..=3 {
            let epoch = Epoch::new(n.into());
            assert_eq!(
                access.admit(ticket(n), TENANT, RegionId::new(1), epoch),
                Ok(())
            );
        }
        assert_eq!(
            access.admit(ticket(4), TENANT, RegionId::new(1), Epoch::new(4)),
            Err(AdmitError::TooManySessions { limit: 3 })
        );
        assert!(access.fence(RegionId::new(2), Epoch::new(9)).is_empty());
        assert_eq!(access.fence(RegionId::new(1), Epoch::new(3)).len(), 2);
        assert!(access.open(&[2; 16], 8).is_none());
        assert!(access.open(&[3; 16], 1).is_some());
        assert!(access.open(&[3; 16], 1).is_none(), "one connection each");
        assert_eq!(access.dismiss(&ticket(3)).len(), 1);
    }
}

//! One memory node of a region, as all lanes share it: its session, and whether it still counts.
//!
//! ```text
//!   Live --no process at its address, or another life of it, or the region is gone there--> Lost
//!     |  --did not answer within a lane's deadline----------------------------------------> Lost
//!     '--the region has an owner with a higher epoch--------------------------------------> Fenced
//! ```
//!
//! Both ends are final for this region's owner. All calls here block, with deadlines: they are made by
//! the node's watch thread and by whoever opens a lane, never on the path of a page.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::changes::Losses;
use super::directory::NodeRecord;
use crate::authority::{
    AuthorityError, OpenError, RegionAuthority, is_for_former_life, open_session,
};
use crate::session::{Dial, Identity, Session, SessionError};
use crate::transport::{ConnectError, QueuePair, QueuePairConfig, Ticket, Transport};
use crate::units::{ByteCount, ExtentIndex};
use crate::wire::Refusal;
use crate::wire::control::{Alive, Grant};

/// How often at most the authority hears that a node gave wrong pages.
const TELL_WRONG_EACH_MS: u64 = 1000;
/// Not lost; else it is a [`Death`].
const LIVE: u8 = 0;

/// Why a node's pages are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Death {
    NobodyListens = 1,
    StartedAgain,
    RegionGone,
    NoAnswer,
    Refuses,
    Released,
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NobodyListens => "nothing listens at its address any more",
            Self::StartedAgain => "it was started again, and its memory is new",
            Self::RegionGone => "it no longer holds the region",
            Self::NoAnswer => "it did not answer in time",
            Self::Refuses => "it does not do what is asked",
            Self::Released => "the region was released",
        })
    }
}

/// Why something could not be done with a node.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Perhaps later.
    Again(Cause),
    /// Never.
    Dead(Death),
    /// Never, for this owner.
    Fenced,
}

/// What stands behind [`Trouble::Again`].
#[derive(Debug)]
pub(super) enum Cause {
    Session(SessionError),
    Connect(ConnectError),
    Grant(AuthorityError),
}

/// What a link is made of.
pub(super) struct LinkParts {
    /// Its place among the region's nodes.
    pub(super) index: u16,
    pub(super) record: NodeRecord,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) dial: Arc<dyn Dial>,
    pub(super) identity: Identity,
    pub(super) authority: Arc<dyn RegionAuthority>,
    /// Or why the node is lost already.
    pub(super) session: Result<Session, Death>,
    /// Shared by all nodes of the region.
    pub(super) fenced: Arc<AtomicBool>,
    /// Told when the node is lost.
    pub(super) losses: Arc<Losses>,
}

/// See the module.
pub(super) struct NodeLink {
    pub(super) index: u16,
    pub(super) record: NodeRecord,
    pub(super) transport: Arc<dyn Transport>,
    identity: Identity,
    authority: Arc<dyn RegionAuthority>,
    dial: Arc<dyn Dial>,
    session: Mutex<Option<Session>>,
    state: AtomicU8,
    fenced: Arc<AtomicBool>,
    losses: Arc<Losses>,
    /// It gave a wrong page that nobody was told of.
    wrong: AtomicBool,
    /// When the authority was told so last, ms; 0: never.
    wrong_told_ms: AtomicU64,
}

/// Whether the authority is to hear that a node gave wrong pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    /// It gave none since.
    Nothing,
    /// Yes.
    Now,
    /// It heard of it just now.
    Later,
}

impl NodeLink {
    pub(super) fn new(parts: LinkParts) -> Self {
        let state = match &parts.session {
            Ok(_) => LIVE,
            Err(death) => *death as u8,
        };
        Self {
            index: parts.index,
            record: parts.record,
            transport: parts.transport,
            identity: parts.identity,
            authority: parts.authority,
            dial: parts.dial,
            session: Mutex::new(parts.session.ok()),
            state: AtomicU8::new(state),
            fenced: parts.fenced,
            losses: parts.losses,
            wrong: AtomicBool::new(false),
            wrong_told_ms: AtomicU64::new(0),
        }
    }

    /// It gave a page that is not as it was written.
    pub(super) fn gave_wrong_page(&self) {
        if !self.wrong.swap(true, Ordering::AcqRel) {
            self.losses.wrong_page();
        }
    }

    /// Asked by one at a time.
    pub(super) fn tell_wrong(&self, now_ms: u64) -> Tell {
        if !self.wrong.load(Ordering::Acquire) {
            return Tell::Nothing;
        }
        let told_ms = self.wrong_told_ms.load(Ordering::Relaxed);
        if told_ms > 0 && now_ms < told_ms + TELL_WRONG_EACH_MS {
            return Tell::Later;
        }
        self.wrong_told_ms.store(now_ms.max(1), Ordering::Relaxed);
        self.wrong.store(false, Ordering::Release);
        Tell::Now
    }

    pub(super) fn is_lost(&self) -> bool {
        self.state.load(Ordering::Acquire) != LIVE
    }

    /// Why it is lost.
    pub(super) fn death(&self) -> Option<Death> {
        let state = self.state.load(Ordering::Acquire);
        let mut deaths = [
            Death::NobodyListens,
            Death::StartedAgain,
            Death::RegionGone,
            Death::NoAnswer,
            Death::Refuses,
            Death::Released,
        ]
        .into_iter();
        deaths.find(|death| *death as u8 == state)
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Gives the node up, and says so once.
    pub(super) fn give_up(&self, death: Death) {
        let given_up =
            self.state
                .compare_exchange(LIVE, death as u8, Ordering::AcqRel, Ordering::Acquire);
        if given_up.is_ok() && death != Death::Released {
            tracing::error!(
                node = %self.record.entry.name,
                region = %self.identity.region,
                reason = %death,
                "a memory node is lost, and with it all replicas that it held"
            );
            self.losses.one_more();
        }
    }

    /// The region has a new owner.
    pub(super) fn fence(&self) {
        if !self.fenced.swap(true, Ordering::AcqRel) {
            tracing::error!(
                region = %self.identity.region,
                epoch = %self.identity.epoch,
                "this owner was fenced: the region has a new one"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Session>> {
        // A session is replaced whole or not at all, so a panic elsewhere leaves it usable.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A descriptor that becomes readable when the session's connection ends.
    pub(super) fn ending(&self) -> Option<OwnedFd> {
        let session = self.lock();
        session.as_ref()?.ending()?.try_clone_to_owned().ok()
    }

    /// Calls `each` with the session, opening it again first if its connection broke.
    fn with_session<T>(
        &self,
        mut each: impl FnMut(&mut Session) -> Result<T, SessionError>,
    ) -> Result<T, Trouble> {
        let mut kept = self.lock();
        // The second time the connection is new: if it breaks too, the caller waits before it tries again.
        let mut opened = false;
        loop {
            let session = match &mut *kept {
                Some(session) => session,
                none => {
                    opened = true;
                    none.insert(self.open()?)
                }
            };
            let error = match each(session) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            match error.refusal() {
                Some(Refusal::NoSession {}) | None => *kept = None,
                Some(_) => return Err(judge(error)),
            }
            if opened {
                return Err(judge(error));
            }
        }
    }

    fn open(&self) -> Result<Session, Trouble> {
        let (authority, entry) = (Some(&*self.authority), &self.record.entry);
        let opened = open_session(authority, &*self.dial, entry, self.identity, false);
        let session = opened.map_err(|error| match error {
            OpenError::Grant(AuthorityError::EpochTooLow { .. }) => Trouble::Fenced,
            OpenError::Grant(error) => Trouble::Again(Cause::Grant(error)),
            // The grant that the first session was opened with was for the life that is recorded.
            OpenError::Session(error) if is_for_former_life(&error) => {
                Trouble::Dead(Death::StartedAgain)
            }
            OpenError::Session(error) => judge(error),
        })?;
        if session.welcome().incarnation == self.record.incarnation {
            Ok(session)
        } else {
            Err(Trouble::Dead(Death::StartedAgain))
        }
    }

    /// Says that the owner lives.
    pub(super) fn keep_alive(&self) -> Result<Alive, Trouble> {
        self.with_session(Session::keep_alive)
    }

    /// Connects a queue pair. `ticket` is that of the one that broke, and becomes that of the new one;
    /// also after a failure, so that the next try replaces what this one left behind.
    pub(super) fn connect(
        &self,
        ticket: &mut Option<Ticket>,
        config: &QueuePairConfig,
    ) -> Result<Box<dyn QueuePair>, Trouble> {
        let given = self.ticket(*ticket)?;
        *ticket = Some(given);
        self.connect_with(&given, config)
    }

    /// The right to connect a queue pair, in the place of one that broke.
    pub(super) fn ticket(&self, replaces: Option<Ticket>) -> Result<Ticket, Trouble> {
        if self.is_fenced() {
            return Err(Trouble::Fenced);
        }
        if self.is_lost() {
            return Err(Trouble::Dead(Death::NoAnswer));
        }
        self.with_session(|session| session.ticket(replaces))
    }

    /// Connects a queue pair with a ticket that was not used yet.
    pub(super) fn connect_with(
        &self,
        ticket: &Ticket,
        config: &QueuePairConfig,
    ) -> Result<Box<dyn QueuePair>, Trouble> {
        let data = self.with_session(|session| Ok(session.welcome().data))?;
        self.transport
            .connect(data, ticket, config)
            .map_err(|error| Trouble::Again(Cause::Connect(error)))
    }

    /// Tells the node that a queue pair is gone for good.
    pub(super) fn dismiss(&self, ticket: Ticket) {
        if !self.is_lost() && !self.is_fenced() {
            // If the node cannot be told now, its ticket goes with the region.
            let _ = self.with_session(|session| session.dismiss(ticket));
        }
    }

    /// Memory for these extents, in their order; all of them or none. Asked for again, it is the same.
    pub(super) fn allocate(
        &self,
        extent_bytes: ByteCount,
        extents: &[ExtentIndex],
    ) -> Result<Vec<Grant>, Trouble> {
        self.with_session(|session| session.allocate(extent_bytes, extents))
            .inspect_err(|trouble| {
                if let Trouble::Dead(death) = trouble {
                    self.give_up(*death);
                }
            })
    }

    /// Gives the memory of extents back, if the node still has it.
    pub(super) fn free(&self, extents: &[ExtentIndex]) {
        let has = matches!(self.death(), None | Some(Death::NoAnswer | Death::Refuses));
        if has && !self.is_fenced() {
            // What cannot be given back now goes with the region.
            let _ = self.with_session(|session| session.free(extents));
        }
    }

    /// Gives the region back on this node, if it can be reached.
    pub(super) fn release(&self) {
        if self.is_lost() || self.is_fenced() {
            return;
        }
        let session = self.lock().take();
        self.give_up(Death::Released);
        let session = session.map_or_else(|| self.open(), Ok);
        let released = session.map(Session::release);
        if !matches!(released, Ok(Ok(_))) {
            tracing::warn!(
                node = %self.record.entry.name,
                region = %self.identity.region,
                "the memory could not be given back; the node frees it when the region has had no owner for its time"
            );
        }
    }
}

/// What an error says about the node.
fn judge(error: SessionError) -> Trouble {
    match error.refusal() {
        Some(Refusal::EpochTooLow { .. } | Refusal::Owned { .. } | Refusal::WrongToken {}) => {
            Trouble::Fenced
        }
        Some(Refusal::UnknownRegion {}) => Trouble::Dead(Death::RegionGone),
        _ if error.says_dead() => Trouble::Dead(Death::NobodyListens),
        _ => Trouble::Again(Cause::Session(error)),
    }
}

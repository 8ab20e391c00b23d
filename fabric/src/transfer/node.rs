//! An endpoint that is a region on a memory node: a session that is kept alive, and opened again when
//! its connection breaks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::endpoint::{Endpoint, EndpointError};
use crate::authority::{OpenError, RegionAuthority, open_session};
use crate::placement::NodeEntry;
use crate::session::{Dial, Identity, Session, SessionError, TcpDial};
use crate::transport::{QueuePair, QueuePairConfig, Ticket, Transport};
use crate::units::{ByteCount, ExtentIndex};
use crate::wire::Refusal;
use crate::wire::control::{Grant, Welcome};

/// How often the node hears that the owner lives. Far below the node's idle limit.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// How the sessions of one owner are opened.
#[derive(Clone)]
pub struct NodeAccess {
    /// How nodes are reached on their control channels.
    pub dial: Arc<dyn Dial>,
    /// Who the owner is.
    pub identity: Identity,
    /// Who gives the grants that nodes ask for. `None`: the nodes ask for none.
    pub authority: Option<Arc<dyn RegionAuthority>>,
    /// Whether a thread keeps each session alive. Without it that is the caller's part: for simulated time.
    pub keep_alive: bool,
}

impl NodeAccess {
    /// Over TCP, to nodes that ask for no grant, with threads.
    #[must_use]
    pub fn tcp(identity: Identity) -> Self {
        Self {
            dial: Arc::new(TcpDial::default()),
            identity,
            authority: None,
            keep_alive: true,
        }
    }

    fn session(&self, node: &NodeEntry, create: bool) -> Result<Session, EndpointError> {
        let authority = self.authority.as_deref();
        open_session(authority, &*self.dial, node, self.identity, create).map_err(|error| {
            match error {
                OpenError::Grant(error) => error.into(),
                OpenError::Session(error) => judge(error),
            }
        })
    }
}

/// See the module. Dropping it ends the session and leaves the memory with the node;
/// [`NodeEndpoint::release`] gives it back.
pub struct NodeEndpoint {
    owner: Arc<Owner>,
    keeper: Option<Keeper>,
}

struct Owner {
    node: NodeEntry,
    access: NodeAccess,
    transport: Arc<dyn Transport>,
    welcome: Welcome,
    session: Mutex<Option<Session>>,
}

struct Keeper {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl NodeEndpoint {
    /// Becomes the owner of the region on `node`, which may be new there if `create` says so.
    pub fn open(
        node: &NodeEntry,
        transport: Arc<dyn Transport>,
        access: &NodeAccess,
        create: bool,
    ) -> Result<Self, EndpointError> {
        let session = access.session(node, create)?;
        let owner = Arc::new(Owner {
            node: node.clone(),
            access: access.clone(),
            transport,
            welcome: session.welcome().clone(),
            session: Mutex::new(Some(session)),
        });
        let keeper = if access.keep_alive {
            Some(Keeper::start(&owner)?)
        } else {
            None
        };
        Ok(Self { owner, keeper })
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &NodeEntry {
        &self.owner.node
    }

    /// Who the node said it is.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        &self.owner.welcome
    }

    /// Extents for the given places of the region, as [`Session::allocate`].
    pub fn allocate(
        &self,
        extent_bytes: ByteCount,
        indexes: &[ExtentIndex],
    ) -> Result<Vec<Grant>, EndpointError> {
        self.owner
            .with_session(|session| session.allocate(extent_bytes, indexes))
    }

    /// Gives extents back, as [`Session::free`].
    pub fn free(&self, indexes: &[ExtentIndex]) -> Result<u32, EndpointError> {
        self.owner.with_session(|session| session.free(indexes))
    }

    /// All extents of the region on the node, as [`Session::list`].
    pub fn list(&self) -> Result<Vec<Grant>, EndpointError> {
        self.owner.with_session(Session::list)
    }

    /// Says that the owner lives.
    pub fn keep_alive(&self) -> Result<(), EndpointError> {
        self.owner
            .with_session(|session| session.keep_alive().map(|_| ()))
    }

    /// Gives the region's memory on the node back. The endpoint is of no use afterwards.
    pub fn release(&self) -> Result<(), EndpointError> {
        let session = self.owner.lock().take();
        let session = match session {
            Some(session) => session,
            None => self.owner.open()?,
        };
        session.release()?;
        Ok(())
    }
}

impl Owner {
    fn lock(&self) -> MutexGuard<'_, Option<Session>> {
        // A session is replaced whole or not at all, so a panic elsewhere leaves it usable.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<Session, EndpointError> {
        let session = self.access.session(&self.node, false)?;
        if session.welcome().incarnation == self.welcome.incarnation {
            Ok(session)
        } else {
            Err(EndpointError::Lost)
        }
    }

    /// Calls `each` with the session, opening it again first, once, if its connection broke.
    fn with_session<T>(
        &self,
        mut each: impl FnMut(&mut Session) -> Result<T, SessionError>,
    ) -> Result<T, EndpointError> {
        let mut kept = self.lock();
        let fresh = kept.is_none();
        if kept.is_none() {
            *kept = Some(self.open()?);
        }
        let Some(session) = &mut *kept else {
            return Err(EndpointError::Lost);
        };
        let error = match each(session) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if !matches!(error.refusal(), Some(Refusal::NoSession {}) | None) {
            return Err(judge(error));
        }
        *kept = None;
        if fresh {
            return Err(judge(error));
        }
        let mut session = self.open()?;
        let value = each(&mut session).map_err(judge)?;
        *kept = Some(session);
        Ok(value)
    }
}

/// What an error of the control channel says about the endpoint.
fn judge(error: SessionError) -> EndpointError {
    match error.refusal() {
        Some(Refusal::EpochTooLow { .. } | Refusal::Owned { .. } | Refusal::WrongToken {}) => {
            EndpointError::Fenced
        }
        Some(Refusal::UnknownRegion {}) => EndpointError::Lost,
        _ if error.says_dead() => EndpointError::Lost,
        _ => EndpointError::Session(error),
    }
}

impl Keeper {
    fn start(owner: &Arc<Owner>) -> Result<Self, EndpointError> {
        let (stop, stopped) = bounded(0);
        let owner = Arc::clone(owner);
        let name = format!("myco-keep-{}", owner.node.name);
        let node = owner.node.control;
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                while stopped.recv_timeout(KEEP_ALIVE) == Err(RecvTimeoutError::Timeout) {
                    if let Err(error) =
                        owner.with_session(|session| session.keep_alive().map(|_| ()))
                    {
                        tracing::debug!(
                            node = %owner.node.name,
                            error = &error as &dyn std::error::Error,
                            "a memory node gave no sign of life"
                        );
                        if matches!(error, EndpointError::Lost | EndpointError::Fenced) {
                            return;
                        }
                    }
                }
            })
            .map_err(|source| SessionError::Unreachable { node, source })?;
        Ok(Self { stop, thread })
    }
}

impl Drop for NodeEndpoint {
    fn drop(&mut self) {
        if let Some(Keeper { stop, thread }) = self.keeper.take() {
            drop(stop);
            if thread.join().is_err() {
                tracing::error!("the thread that keeps a session alive panicked");
            }
        }
    }
}

impl Endpoint for NodeEndpoint {
    fn transport(&self) -> &Arc<dyn Transport> {
        &self.owner.transport
    }

    fn ticket(&self, replaces: Option<Ticket>) -> Result<Ticket, EndpointError> {
        self.owner.with_session(|session| session.ticket(replaces))
    }

    fn connect(
        &self,
        ticket: &Ticket,
        config: &QueuePairConfig,
    ) -> Result<Box<dyn QueuePair>, EndpointError> {
        let data = self.owner.welcome.data;
        Ok(self.owner.transport.connect(data, ticket, config)?)
    }

    fn dismiss(&self, ticket: Ticket) {
        // If the node cannot be told now, its ticket goes with the region.
        let _ = self.owner.with_session(|session| session.dismiss(ticket));
    }
}

impl std::fmt::Debug for NodeEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeEndpoint")
            .field("node", &self.owner.node)
            .field("identity", &self.owner.access.identity)
            .finish_non_exhaustive()
    }
}

//! A session: a control connection that is the owner's of one region on one memory node.

use std::os::fd::BorrowedFd;

use super::channel::{Channel, SessionError};
use crate::transport::Ticket;
use crate::units::{ByteCount, Epoch, ExtentIndex, RegionId, TenantId};
use crate::wire::control::{
    Alive, Allocate, Grant, MAX_BATCH_EXTENTS, Open, Opened, Request, Response, TicketRequest,
    Token, Welcome,
};
use crate::wire::grant::SignedGrant;

/// Who an owner is to a memory node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Whose region it is.
    pub tenant: TenantId,
    /// Which.
    pub region: RegionId,
    /// The owner's lease.
    pub epoch: Epoch,
    /// The region's secret.
    pub token: Token,
    /// Drawn by each owner process.
    pub owner: u64,
}

/// See the module.
pub struct Session {
    channel: Box<dyn Channel>,
    identity: Identity,
    welcome: Welcome,
    opened: Opened,
}

impl Session {
    /// Becomes the owner of the region on the channel's node, which asks for no grant. With `create` the
    /// region may be new there.
    pub fn open(
        channel: Box<dyn Channel>,
        identity: Identity,
        create: bool,
    ) -> Result<Self, SessionError> {
        Self::open_granted(channel, identity, create, None)
    }

    /// As [`Self::open`], with what the control plane allows.
    pub fn open_granted(
        mut channel: Box<dyn Channel>,
        identity: Identity,
        create: bool,
        grant: Option<SignedGrant>,
    ) -> Result<Self, SessionError> {
        let welcome = channel.hello()?;
        let request = Request::Open(Open {
            tenant: identity.tenant,
            region: identity.region,
            token: identity.token,
            owner: identity.owner,
            create,
            grant,
        });
        match channel.call(identity.epoch, &request)? {
            Response::Opened(opened) => {
                tracing::debug!(
                    owner = %format_args!("{:016x}", identity.owner),
                    region = %identity.region,
                    epoch = %identity.epoch,
                    node = %channel.node(),
                    "a session is open"
                );
                Ok(Self {
                    channel,
                    identity,
                    welcome,
                    opened,
                })
            }
            _ => Err(SessionError::Unexpected {
                node: channel.node(),
            }),
        }
    }

    /// Who the node is.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// What the region had on the node when the session was opened.
    #[must_use]
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// A descriptor that becomes readable when the connection ends.
    #[must_use]
    pub fn ending(&self) -> Option<BorrowedFd<'_>> {
        self.channel.ending()
    }

    fn call(&mut self, request: &Request) -> Result<Response, SessionError> {
        self.channel.call(self.identity.epoch, request)
    }

    fn unexpected<T>(&self) -> Result<T, SessionError> {
        Err(SessionError::Unexpected {
            node: self.channel.node(),
        })
    }

    /// The right to connect one queue pair, in the place of one that broke. When this returns, nothing
    /// that was sent over the old one can touch memory any more.
    pub fn ticket(&mut self, replaces: Option<Ticket>) -> Result<Ticket, SessionError> {
        match self.call(&Request::Ticket(TicketRequest { replaces }))? {
            Response::TicketGiven(ticket) => Ok(ticket),
            _ => self.unexpected(),
        }
    }

    /// The queue pair of `ticket` is not needed any more.
    pub fn dismiss(&mut self, ticket: Ticket) -> Result<(), SessionError> {
        match self.call(&Request::Dismiss(ticket))? {
            Response::Dismissed => Ok(()),
            _ => self.unexpected(),
        }
    }

    /// Extents for the given places of the region, all or none; at most [`MAX_BATCH_EXTENTS`].
    pub fn allocate(
        &mut self,
        extent_bytes: ByteCount,
        indexes: &[ExtentIndex],
    ) -> Result<Vec<Grant>, SessionError> {
        let request = Request::Allocate(Allocate {
            extent_bytes,
            indexes: indexes.to_vec(),
        });
        match self.call(&request)? {
            Response::Granted(grants)
                if grants.iter().map(|grant| &grant.index).eq(indexes.iter()) =>
            {
                Ok(grants)
            }
            _ => self.unexpected(),
        }
    }

    /// All extents of the region on this node, in order.
    pub fn list(&mut self) -> Result<Vec<Grant>, SessionError> {
        let mut all: Vec<Grant> = Vec::new();
        let mut from = ExtentIndex::new(0);
        loop {
            let Response::Granted(grants) = self.call(&Request::List { from })? else {
                return self.unexpected();
            };
            // In order and from `from` on, or this would not end.
            let ordered = grants.is_sorted_by(|a, b| a.index < b.index);
            if !ordered || grants.first().is_some_and(|first| first.index < from) {
                return self.unexpected();
            }
            let last = grants.last().map(|grant| grant.index);
            let full = grants.len() == MAX_BATCH_EXTENTS;
            all.extend(grants);
            match last.and_then(|last| last.get().checked_add(1)) {
                Some(next) if full => from = ExtentIndex::new(next),
                _ => return Ok(all),
            }
        }
    }

    /// Gives extents back; returns how many the region had of them.
    pub fn free(&mut self, indexes: &[ExtentIndex]) -> Result<u32, SessionError> {
        let mut freed = 0;
        for batch in indexes.chunks(MAX_BATCH_EXTENTS) {
            let indexes = batch.to_vec();
            match self.call(&Request::Free { indexes })? {
                Response::Freed { extents } => freed += extents,
                _ => return self.unexpected(),
            }
        }
        Ok(freed)
    }

    /// Gives the whole region back, and ends the session.
    pub fn release(mut self) -> Result<u32, SessionError> {
        match self.call(&Request::Release)? {
            Response::Released { extents } => Ok(extents),
            _ => self.unexpected(),
        }
    }

    /// Says that the owner lives, and hears whether the node is about to leave.
    pub fn keep_alive(&mut self) -> Result<Alive, SessionError> {
        match self.call(&Request::KeepAlive)? {
            Response::Alive(alive) => Ok(alive),
            _ => self.unexpected(),
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("node", &self.channel.node())
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

//! How a session gets its rails: the trait that stands for one memory node and one owner's right to it.

use std::sync::Arc;

use crate::authority::AuthorityError;
use crate::session::SessionError;
use crate::transport::{ConnectError, QueuePair, QueuePairConfig, Ticket, Transport};
use crate::wire::grant::GrantError;

/// Why an endpoint gave no rail.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Its control channel did not do what it was asked. May be tried again.
    #[error("the endpoint could not be asked for a ticket")]
    Session(#[from] SessionError),
    /// The queue pair did not come to be. May be tried again.
    #[error("a queue pair to the endpoint could not be connected")]
    Connect(#[from] ConnectError),
    /// The authority gave no grant to show to the node. May be tried again.
    #[error("there is no grant for the endpoint")]
    NoGrant(#[from] AuthorityError),
    /// What the authority gave is no grant.
    #[error("what was given as a grant for the endpoint is none")]
    Grant(#[from] GrantError),
    /// What it held is gone: it will never do.
    #[error("the endpoint is gone, and what it held with it")]
    Lost,
    /// The region that the session works for has a new owner.
    #[error("the endpoint has a new owner with a higher epoch")]
    Fenced,
}

/// One memory node, as an owner with a session on it reaches it. Its calls block, within deadlines of
/// its own; they are never made on the path of a chunk.
pub trait Endpoint: Send + Sync {
    /// What its queue pairs are made of.
    fn transport(&self) -> &Arc<dyn Transport>;

    /// The right to connect a rail, in the place of one that broke. When this returns, nothing that was
    /// sent over the rail of `replaces` can land any more.
    fn ticket(&self, replaces: Option<Ticket>) -> Result<Ticket, EndpointError>;

    /// Connects a rail with a ticket that was not used yet.
    fn connect(
        &self,
        ticket: &Ticket,
        config: &QueuePairConfig,
    ) -> Result<Box<dyn QueuePair>, EndpointError>;

    /// The rail of `ticket` is gone for good. When the node cannot be told, the ticket goes with the
    /// region.
    fn dismiss(&self, ticket: Ticket);
}

//! A memory node in a cluster: a thread that registers it, keeps it heard and does what it is told.
//!
//! ```text
//!   register -- heartbeat ... heartbeat -- orders: fence, release --> the node's keeper --> confirm
//!      ^             |
//!      '-------------'  the control plane does not know this process (any more)
//! ```
//!
//! The control plane may be away for as long as it likes: the node goes on serving.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mycoram_fabric::node::{NodeEnded, NodeHandle};
use mycoram_fabric::placement::FailureDomain;
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::units::{ByteCount, Incarnation};

use super::call::ControlClient;
use super::error::ClientError;
use super::load::LoadMeter;
use crate::cluster::{NodeAddress, NodeOrder};
use crate::proto;
use crate::proto::refusal::Kind;
use crate::words::BadField;

/// Shortest time between two heartbeats, whatever the control plane says.
const SHORTEST_HEARTBEAT_MS: u64 = 50;
/// Between two questions how far a drain is.
const ASK_DRAIN: Duration = Duration::from_millis(200);

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Where it is reached, the best transport first.
    pub addresses: Vec<NodeAddress>,
    /// What fails with it.
    pub domain: FailureDomain,
    /// What it lends.
    pub capacity: ByteCount,
    /// This life of its process.
    pub incarnation: Incarnation,
}

/// Why a node is no member.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The control plane.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// An address that others cannot use.
    #[error(transparent)]
    Address(#[from] BadField),
    /// The thread.
    #[error("the thread that keeps the node a member could not be started")]
    Thread(#[source] std::io::Error),
}

/// See the module. Dropping it ends the heartbeats; [`Self::leave`] is the polite way.
#[derive(Debug)]
pub struct Membership {
    client: Arc<ControlClient>,
    name: String,
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Membership {
    /// Registers the node, and keeps it a member from then on.
    pub fn start(
        client: Arc<ControlClient>,
        member: &Member,
        node: NodeHandle,
    ) -> Result<Self, MembershipError> {
        let request = proto::RegisterNodeRequest {
            name: member.name.clone(),
            addresses: member
                .addresses
                .iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            domain: Some((&member.domain).into()),
            capacity_bytes: member.capacity.get(),
            incarnation: member.incarnation.get(),
        };
        let registered = client.register_node(request.clone())?;
        let (stop, stopped) = sync_channel::<()>(1);
        let mut heart = Heart {
            client: Arc::clone(&client),
            request,
            node,
            registered,
            load: LoadMeter::new(
                member
                    .addresses
                    .first()
                    .map_or(TransportKind::Tcp, |address| address.transport),
            ),
        };
        let thread = std::thread::Builder::new()
            .name("myco-member".to_owned())
            .spawn(move || {
                while stopped.recv_timeout(heart.pause()) == Err(RecvTimeoutError::Timeout) {
                    if heart.beat() == Err(NodeEnded) {
                        return;
                    }
                }
            })
            .map_err(MembershipError::Thread)?;
        Ok(Self {
            client,
            name: member.name.clone(),
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Has everything moved off the node, for `bound` at most. Gives the bytes that are still on it: 0 when
    /// it may go.
    pub fn leave(&self, bound: Duration) -> Result<u64, ClientError> {
        let until = Instant::now() + bound;
        loop {
            let reply = self.client.drain_node(proto::NodeNameRequest {
                node: self.name.clone(),
            })?;
            let left = reply.state() == proto::NodeState::Left;
            if left || Instant::now() >= until {
                return Ok(if left { 0 } else { reply.left_bytes });
            }
            std::thread::sleep(ASK_DRAIN.min(until.saturating_duration_since(Instant::now())));
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps a node a member panicked");
        }
    }
}

/// The thread's own.
struct Heart {
    client: Arc<ControlClient>,
    request: proto::RegisterNodeRequest,
    node: NodeHandle,
    registered: proto::RegisterNodeReply,
    load: LoadMeter,
}

impl Heart {
    fn pause(&self) -> Duration {
        Duration::from_millis(self.registered.heartbeat_ms.max(SHORTEST_HEARTBEAT_MS))
    }

    /// One heartbeat, and what it brings.
    fn beat(&mut self) -> Result<(), NodeEnded> {
        let reply = self.client.heartbeat(proto::HeartbeatRequest {
            node: self.registered.node,
            incarnation: self.request.incarnation,
            load_percent: self.load.percent(),
        });
        let orders = match reply {
            Ok(reply) => reply.orders,
            Err(error) => {
                let kind = error.refused().and_then(|refused| refused.kind.clone());
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the control plane does not hear this node"
                );
                if matches!(kind, Some(Kind::RegisterAgain(_))) {
                    self.register();
                }
                return Ok(());
            }
        };
        for order in orders {
            match NodeOrder::try_from(&order) {
                Ok(NodeOrder::Fence { region, epoch, .. }) => {
                    self.node.fence_below(region, epoch)?;
                }
                Ok(NodeOrder::Release { region, .. }) => self.node.end_region(region)?,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "an order makes no sense to this version"
                    );
                    continue;
                }
            }
            let confirmed = self
                .client
                .confirm_node_order(proto::ConfirmNodeOrderRequest {
                    node: self.registered.node,
                    incarnation: self.request.incarnation,
                    order: Some(order),
                });
            if let Err(error) = confirmed {
                // It is told again.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "what was done could not be confirmed"
                );
                return Ok(());
            }
        }
        Ok(())
    }

    fn register(&mut self) {
        match self.client.register_node(self.request.clone()) {
            Ok(registered) => self.registered = registered,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the node could not register again"
                );
            }
        }
    }
}

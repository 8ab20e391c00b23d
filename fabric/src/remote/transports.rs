//! The transports that a region's nodes are reached over.

use std::fmt;
use std::sync::Arc;

use super::frames::FramePool;
use crate::placement::NodeEntry;
use crate::transport::tcp::{RingError, TcpTransport};
#[cfg(any(feature = "verbs", feature = "rdma-sys"))]
use crate::transport::verbs::{OpenError, VerbsTransport};
use crate::transport::{Transport, TransportKind};

/// The transports that regions may use, one of a kind. Make it once and keep it: with it goes the memory
/// that was registered for lanes.
#[derive(Clone, Default)]
pub struct Transports {
    known: Vec<Arc<dyn Transport>>,
    /// Shared by all clones, and with it the frames of the lanes of all their regions.
    frames: Arc<FramePool>,
}

impl Transports {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Those that `nodes` need.
    pub fn for_nodes(nodes: &[NodeEntry]) -> Result<Self, TransportError> {
        let mut transports = Self::new();
        for node in nodes {
            if transports.get(node).is_ok() {
                continue;
            }
            transports = transports.with(match node.transport {
                TransportKind::Tcp => Arc::new(TcpTransport::new()?),
                #[cfg(any(feature = "verbs", feature = "rdma-sys"))]
                TransportKind::Verbs => Arc::new(VerbsTransport::open()?),
                transport => {
                    return Err(TransportError::Missing(TransportMissing {
                        node: node.name.clone(),
                        transport,
                    }));
                }
            });
        }
        Ok(transports)
    }

    /// And this one.
    #[must_use]
    pub fn with(mut self, transport: Arc<dyn Transport>) -> Self {
        self.known.push(transport);
        self
    }

    pub(super) fn frames(&self) -> Arc<FramePool> {
        Arc::clone(&self.frames)
    }

    /// The one that `node` is reached over.
    pub fn get(&self, node: &NodeEntry) -> Result<Arc<dyn Transport>, TransportMissing> {
        self.known
            .iter()
            .find(|transport| transport.kind() == node.transport)
            .cloned()
            .ok_or_else(|| TransportMissing {
                node: node.name.clone(),
                transport: node.transport,
            })
    }
}

impl fmt::Debug for Transports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.known.iter().map(|t| t.kind()))
            .finish()
    }
}

/// No transport for a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("memory node {node} is reached over {transport:?}, which is not available here")]
pub struct TransportMissing {
    /// Its name.
    pub node: String,
    /// What it needs.
    pub transport: TransportKind,
}

/// Why a transport could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// TCP.
    #[error(transparent)]
    Tcp(#[from] RingError),
    /// RDMA.
    #[cfg(any(feature = "verbs", feature = "rdma-sys"))]
    #[error(transparent)]
    Verbs(#[from] OpenError),
    /// Left out of this build, or for simulations only.
    #[error(transparent)]
    Missing(#[from] TransportMissing),
}

//! The benches: what is measured, in which order, and which figures come of it.

pub(crate) mod fault;
pub(crate) mod idle;
pub(crate) mod peers;
pub(crate) mod replicas;
pub(crate) mod resident;
pub(crate) mod scan;

use std::net::SocketAddr;

use mycoram_fabric::transport::TransportKind;
use serde::Serialize;

use crate::cpu_time::ThreadTime;
use crate::node::NodeError;
use crate::placement::Placement;
use crate::program::ProgramError;
use crate::report::Metric;

/// Why a bench broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("a memory node is missing")]
    Node(#[from] NodeError),
    #[error("the program under test failed")]
    Program(#[from] ProgramError),
    #[error("a floor could not be measured")]
    Floor(#[from] crate::floor::ServerError),
    #[error("the kernel's own far memory could not be set up")]
    Peer(#[from] crate::peer::PeerError),
    #[error("a file could not be read or written")]
    Io(#[from] std::io::Error),
}

/// What a bench found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) metrics: Vec<Metric>,
    /// Where the time went, where a bench asks.
    pub(crate) breakdown: Vec<Breakdown>,
}

impl From<Vec<Metric>> for Findings {
    fn from(metrics: Vec<Metric>) -> Self {
        Self {
            metrics,
            breakdown: Vec::new(),
        }
    }
}

/// Processor time of one round, by thread.
#[derive(Debug, Serialize)]
pub(crate) struct Breakdown {
    pub(crate) seconds: f64,
    pub(crate) program_threads: Vec<ThreadTime>,
    pub(crate) node_threads: Vec<ThreadTime>,
}

/// What all benches are asked.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Setting {
    pub(crate) transport: TransportKind,
    pub(crate) placement: Placement,
    /// Size of the region, bytes.
    pub(crate) region_bytes: usize,
    /// Of it, how much may be local, bytes.
    pub(crate) local_bytes: usize,
    /// Rounds; figures are medians over them, ratios are taken inside of each.
    pub(crate) rounds: u32,
}

impl Setting {
    /// The URI of far memory on these nodes, with `local` bytes of budget.
    pub(crate) fn place(&self, nodes: &[SocketAddr], local: usize) -> String {
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        let transport = match self.transport {
            TransportKind::Verbs => "verbs",
            TransportKind::Tcp | TransportKind::Sim => "tcp",
        };
        format!(
            "myco://{}?local={local}&transport={transport}",
            nodes.join(",")
        )
    }

    /// Capacity for a region of twice the size, or this one and what the bandwidth is taken with.
    pub(crate) fn capacity(&self) -> u64 {
        (self.region_bytes as u64 * 2).next_multiple_of(64 << 20) + (64 << 20)
    }
}

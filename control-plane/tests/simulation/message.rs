//! What nodes, owners and the control plane say to each other.

use mycoram_control::cluster::{Confirm, Heartbeat, NodeId, NodeOrder, OrderId, Register};
use mycoram_fabric::units::{Epoch, ExtentIndex, RegionId};

use crate::world::NODES;

/// Who. Nodes and owners by their place in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Actor {
    Control(usize),
    Node(usize),
    Owner(usize),
}

impl Actor {
    /// Its place among those who ask the control plane.
    pub(crate) fn asks_as(self) -> usize {
        match self {
            Self::Node(node) => node,
            Self::Owner(owner) => NODES + owner,
            Self::Control(_) => unreachable!("the control plane does not ask itself"),
        }
    }
}

/// The content of a page: who wrote it, and the how manieth write it was. Later is greater.
pub(crate) type Version = (Epoch, u64);

/// A replica as an owner gets to know it: on which life of the node it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) id: NodeId,
    pub(crate) node: usize,
    pub(crate) life: u64,
}

/// What an owner asks the control plane.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ask {
    Acquire {
        waiting_for: Option<Epoch>,
    },
    Directory,
    Place {
        extents: Vec<ExtentIndex>,
    },
    MarkStale {
        replicas: Vec<(ExtentIndex, NodeId)>,
        task: u64,
    },
    Report {
        node: usize,
    },
    Orders,
    Renew,
    Copied {
        extent: ExtentIndex,
        to: Place,
        order: OrderId,
    },
    Dropped {
        extent: ExtentIndex,
        node: NodeId,
    },
}

/// What it is answered.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Wait {
        epoch: Option<Epoch>,
    },
    GoOn {
        epoch: Epoch,
    },
    Homes {
        homes: Vec<(ExtentIndex, Vec<Place>)>,
    },
    Orders {
        copies: Vec<(ExtentIndex, Place, OrderId)>,
        drops: Vec<(ExtentIndex, Place)>,
    },
    Done,
    Refused,
    Fenced,
}

/// What is asked of a node's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verb {
    Write { page: u8, version: Version },
    Read { page: u8 },
    Drop,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    Page(Option<Version>),
    EpochTooLow,
    /// The connection is at an end, or nothing came in time.
    Failed,
}

/// A request of an owner to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) owner: usize,
    pub(crate) task: u64,
    pub(crate) session: u64,
    pub(crate) region: RegionId,
    pub(crate) epoch: Epoch,
    /// The life of the node that is meant.
    pub(crate) life: u64,
    pub(crate) extent: ExtentIndex,
    pub(crate) verb: Verb,
}

#[derive(Clone, Debug)]
pub(crate) enum Message {
    Register(Register),
    Heartbeat(Heartbeat),
    Confirm(Confirm),
    Registered(NodeId),
    RegisterAgain,
    NodeOrders(Vec<NodeOrder>),
    Ask {
        owner: usize,
        life: u64,
        number: u64,
        epoch: Epoch,
        ask: Ask,
    },
    Reply {
        number: u64,
        reply: Reply,
    },
    Request(Request),
    Outcome {
        task: u64,
        node: usize,
        session: u64,
        outcome: Outcome,
    },
}

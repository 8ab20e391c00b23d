//! Memory nodes in simulated time: the node's own core on machines that can be cut off and die, and the
//! control channels to them.

#![allow(dead_code, reason = "each test file uses its part of this")]

pub(crate) mod authority;
pub(crate) mod copier;
pub(crate) mod fate;
pub(crate) mod region;

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mycoram_fabric::node::{Bounds, HugePages, NodeCore, Pool, SessionId};
use mycoram_fabric::remote::Clock;
use mycoram_fabric::session::{Channel, Dial, SessionError};
use mycoram_fabric::transport::DataServer;
use mycoram_fabric::transport::sim::SimNetwork;
use mycoram_fabric::units::{ByteCount, Epoch, Incarnation};
use mycoram_fabric::wire::control::{Request, Response};

pub(crate) const NODES: usize = 4;
/// Bytes that each lends.
pub(crate) const NODE_BYTES: u64 = 1 << 20;

/// SplitMix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// A machine with a memory node, as its control channel sees it.
pub(crate) struct Machine {
    pub(crate) core: Option<NodeCore>,
    pub(crate) incarnation: u64,
    pub(crate) cut_since: Option<Duration>,
    pub(crate) cut_for: Duration,
    pub(crate) left_alone_until: Duration,
    pub(crate) machine_died: bool,
    pub(crate) data: SocketAddr,
    pub(crate) next_session: u64,
}

pub(crate) type Machines = Arc<Vec<Mutex<Machine>>>;

pub(crate) fn core(
    network: &SimNetwork,
    data: Option<SocketAddr>,
    incarnation: u64,
) -> (NodeCore, SocketAddr) {
    let pool = Pool::reserve(ByteCount::new(NODE_BYTES), HugePages::Off).expect("memory");
    let mapping = Arc::clone(pool.mapping());
    let server: Arc<dyn DataServer> = Arc::new(match data {
        None => network.start_node(mapping),
        Some(address) => network.restart_node(address, mapping),
    });
    let address = server.address();
    let mut tickets = Dice(incarnation);
    let entropy = move || {
        let mut secret = [0; 16];
        secret[..8].copy_from_slice(&tickets.roll(u64::MAX).to_le_bytes());
        secret[8..].copy_from_slice(&tickets.roll(u64::MAX).to_le_bytes());
        secret
    };
    let now = millis(network);
    let incarnation = Incarnation::new(incarnation);
    let bounds = Bounds::default();
    let core = NodeCore::new(pool, server, bounds, incarnation, now, Box::new(entropy));
    (core, address)
}

pub(crate) fn millis(network: &SimNetwork) -> u64 {
    u64::try_from(network.now().as_millis()).expect("not that long")
}

pub(crate) struct SimClock(pub(crate) SimNetwork);

impl Clock for SimClock {
    fn now_us(&self) -> u64 {
        u64::try_from(self.0.now().as_micros()).expect("not that long")
    }
}

/// Control channels of the simulation: no message of theirs is lost, but a machine that is cut off or
/// dead does not answer, and a process that is dead refuses.
pub(crate) struct SimDial {
    pub(crate) network: SimNetwork,
    pub(crate) machines: Machines,
}

pub(crate) struct SimChannel {
    pub(crate) network: SimNetwork,
    pub(crate) machines: Machines,
    index: usize,
    pub(crate) incarnation: u64,
    session: SessionId,
}

/// Of a node's name.
pub(crate) fn index_of(name: &str) -> usize {
    name[1..].parse().expect("a number behind a letter")
}

pub(crate) fn control(index: usize) -> SocketAddr {
    SocketAddr::from(([10, 9, 0, 1], 7000 + index as u16))
}

impl Dial for SimDial {
    fn dial(&self, node: SocketAddr) -> Result<Box<dyn Channel>, SessionError> {
        let index = usize::from(node.port() - 7000);
        let mut machine = self.machines[index].lock().expect("no panic");
        let refused = if machine.cut_since.is_some() || machine.machine_died {
            Some(io::ErrorKind::TimedOut)
        } else if machine.core.is_none() {
            Some(io::ErrorKind::ConnectionRefused)
        } else {
            None
        };
        if let Some(kind) = refused {
            let source = kind.into();
            return Err(SessionError::Unreachable { node, source });
        }
        machine.next_session += 1;
        Ok(Box::new(SimChannel {
            network: self.network.clone(),
            machines: Arc::clone(&self.machines),
            index,
            incarnation: machine.incarnation,
            session: SessionId(machine.next_session),
        }))
    }
}

impl Channel for SimChannel {
    fn node(&self) -> SocketAddr {
        control(self.index)
    }

    fn call(&mut self, epoch: Epoch, request: &Request) -> Result<Response, SessionError> {
        let node = self.node();
        let mut machine = self.machines[self.index].lock().expect("no panic");
        let reachable = machine.cut_since.is_none() && machine.incarnation == self.incarnation;
        match &mut machine.core {
            Some(core) if reachable => {
                let now = millis(&self.network);
                match core.handle(now, self.session, epoch, request.clone()) {
                    Response::Refused(refusal) => Err(SessionError::Refused { node, refusal }),
                    response => Ok(response),
                }
            }
            _ => {
                let source = io::ErrorKind::ConnectionReset.into();
                Err(SessionError::Broke { node, source })
            }
        }
    }

    fn ending(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimChannel {
    fn drop(&mut self) {
        let now = millis(&self.network);
        let mut machine = self.machines[self.index].lock().expect("no panic");
        if machine.incarnation == self.incarnation
            && let Some(core) = &mut machine.core
        {
            core.disconnected(now, self.session);
        }
    }
}

pub(crate) fn machines(network: &SimNetwork) -> Machines {
    let machine = |index| {
        let incarnation = 100 * (index as u64 + 1);
        let (core, data) = core(network, None, incarnation);
        Mutex::new(Machine {
            core: Some(core),
            incarnation,
            cut_since: None,
            cut_for: Duration::ZERO,
            left_alone_until: Duration::ZERO,
            machine_died: false,
            data,
            next_session: 0,
        })
    };
    Arc::new((0..NODES).map(machine).collect())
}

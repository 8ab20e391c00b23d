//! The compute side of a simulated network.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::network::SimNetwork;
use super::world::{Connected, ConnectionNumber};
use crate::transport::registry::{Registry, RegistryView};
use crate::transport::{
    Armed, Completion, ConnectError, ErrorKind, LocalMemory, MAX_QUEUE_DEPTH, Mapping, Opcode,
    PostError, QueuePair, QueuePairConfig, RegisterError, Ticket, Transport, TransportKind,
    WorkError, WorkRequest,
};

/// The compute side of a simulated network.
pub struct SimTransport {
    network: SimNetwork,
    registry: Arc<Registry>,
}

impl SimTransport {
    pub(super) fn new(network: SimNetwork) -> Self {
        Self {
            network,
            registry: Arc::default(),
        }
    }
}

impl Transport for SimTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Sim
    }

    fn register(&self, memory: Arc<Mapping>) -> Result<LocalMemory, RegisterError> {
        Ok(self.registry.register(memory))
    }

    /// Takes a round trip of virtual time, or `connect_timeout_ms` where nobody answers.
    fn connect(
        &self,
        peer: SocketAddr,
        ticket: &Ticket,
        config: &QueuePairConfig,
    ) -> Result<Box<dyn QueuePair>, ConnectError> {
        let transport = TransportKind::Sim;
        let unreachable = |kind: io::ErrorKind| ConnectError::Unreachable {
            peer,
            transport,
            source: kind.into(),
        };
        if config.depth == 0 || config.depth > MAX_QUEUE_DEPTH {
            let source = io::ErrorKind::InvalidInput.into();
            return Err(ConnectError::Local { transport, source });
        }
        let patience = Duration::from_millis(config.connect_timeout_ms.into());
        let response = Duration::from_millis(config.response_timeout_ms.into());
        let connected = self
            .network
            .world()
            .connect(peer, ticket, patience, response);
        let connection = match connected {
            Connected::Yes(connection) => connection,
            Connected::Refused => return Err(ConnectError::Refused { peer }),
            Connected::NobodyThere => return Err(unreachable(io::ErrorKind::ConnectionRefused)),
            Connected::Silence => return Err(unreachable(io::ErrorKind::TimedOut)),
        };
        Ok(Box::new(SimQueuePair {
            network: self.network.clone(),
            connection,
            peer,
            depth: config.depth as usize,
            view: RegistryView::new(Arc::clone(&self.registry)),
            slots: VecDeque::with_capacity(config.depth as usize),
            scanned: 0,
            answered: 0,
            broken: None,
        }))
    }
}

/// A queue pair of a simulated network. Virtual time passes in `wait` only.
pub struct SimQueuePair {
    network: SimNetwork,
    connection: ConnectionNumber,
    peer: SocketAddr,
    depth: usize,
    view: RegistryView,
    /// Not given back: the first `scanned` are silent ones, the first `answered` are done.
    slots: VecDeque<WorkRequest>,
    scanned: usize,
    answered: usize,
    broken: Option<WorkError>,
}

impl SimQueuePair {
    /// Takes over what has happened.
    fn look(&mut self) {
        let mut world = self.network.world();
        self.answered += world.take_answered(self.connection);
        if self.broken.is_none()
            && let Some(kind) = world.broken(self.connection)
        {
            let first = self.slots.get(self.answered);
            self.broken = Some(WorkError {
                peer: self.peer,
                opcode: first.map_or(Opcode::Read, WorkRequest::opcode),
                kind,
            });
        }
    }

    fn has_reportable(&self) -> bool {
        let silent = |slot: &WorkRequest| !slot.signaled;
        !self.slots.range(self.scanned..self.answered).all(silent)
            || (self.broken.is_some() && !self.slots.is_empty())
    }
}

impl QueuePair for SimQueuePair {
    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn free_slots(&self) -> usize {
        self.depth - self.slots.len()
    }

    fn post(&mut self, chain: &[WorkRequest]) -> Result<(), PostError> {
        self.look();
        if let Some(error) = self.broken {
            let peer = self.peer;
            return Err(PostError::Broken { peer, error });
        }
        for request in chain {
            let id = request.id;
            let invalid = |reason| PostError::Invalid { id, reason };
            request.check().map_err(invalid)?;
            if !self.view.holds(request.local()) {
                return Err(invalid(
                    "its local memory is not registered with this transport",
                ));
            }
        }
        let (asked, free) = (chain.len(), self.free_slots());
        if asked > free {
            return Err(PostError::Full { asked, free });
        }
        let mut world = self.network.world();
        for request in chain {
            world.post(self.connection, *request);
            self.slots.push_back(*request);
        }
        Ok(())
    }

    fn poll(&mut self, into: &mut Vec<Completion>) -> usize {
        self.look();
        let before = into.len();
        while into.len() < into.capacity() && self.scanned < self.slots.len() {
            let slot = self.slots[self.scanned];
            let result = if self.scanned < self.answered {
                if !slot.signaled {
                    self.scanned += 1;
                    continue;
                }
                Ok(())
            } else if let Some(error) = self.broken {
                let kind = if self.scanned == self.answered {
                    error.kind
                } else {
                    ErrorKind::Flushed
                };
                let opcode = slot.opcode();
                Err(WorkError {
                    opcode,
                    kind,
                    ..error
                })
            } else {
                break;
            };
            into.push(Completion {
                id: slot.id,
                opcode: slot.opcode(),
                result,
            });
            if result.is_ok() {
                // It frees its slot and those of the silent ones before it.
                self.slots.drain(..=self.scanned);
                self.answered -= self.scanned + 1;
                self.scanned = 0;
            } else {
                self.scanned += 1;
            }
        }
        if self.broken.is_some() && self.scanned == self.slots.len() {
            self.slots.clear();
            (self.scanned, self.answered) = (0, 0);
        }
        into.len() - before
    }

    fn arm(&mut self) -> Armed {
        self.look();
        if self.has_reportable() || self.broken.is_some() {
            Armed::Ready
        } else {
            Armed::Waiting
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn broken(&self) -> Option<WorkError> {
        self.broken
    }

    /// Lets virtual time pass, at most `timeout`.
    fn wait(&mut self, timeout: Duration) -> bool {
        let until = self.network.now() + timeout;
        loop {
            if self.arm() == Armed::Ready {
                return true;
            }
            let mut world = self.network.world();
            // Another thread may have let this happen between the two looks.
            if world.has_news(self.connection) {
                continue;
            }
            match world.next_due() {
                Some(at) if at <= until => {
                    world.step();
                }
                _ => {
                    world.run_until(until);
                    return false;
                }
            }
        }
    }
}

impl Drop for SimQueuePair {
    fn drop(&mut self) {
        self.network.world().disconnect(self.connection);
    }
}

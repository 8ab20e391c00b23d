//! The handle of a simulated network: its clock, and the faults that can be asked for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::node::SimServer;
use super::queue_pair::SimTransport;
use super::world::World;
use crate::transport::Mapping;

/// What a simulated network is like.
#[derive(Clone, Copy, Debug)]
pub struct SimConfig {
    /// Every delay, loss, key and flipped bit follows from it.
    pub seed: u64,
    /// Shortest time a message is under way, us. Default 2.
    pub min_delay_us: u32,
    /// Longest time a message is under way, us. Default 50: far enough apart for much reordering.
    pub max_delay_us: u32,
    /// How many of a million messages are lost at each try. Default 0.
    pub loss_per_million: u32,
    /// When a lost message is sent again, us. Default 1000.
    pub retransmit_us: u32,
}

impl SimConfig {
    /// The defaults, with this seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self {
            seed,
            min_delay_us: 2,
            max_delay_us: 50,
            loss_per_million: 0,
            retransmit_us: 1000,
        }
    }
}

/// A simulated network with its memory nodes. Cheap to clone; all clones are the same network.
#[derive(Clone)]
pub struct SimNetwork {
    world: Arc<Mutex<World>>,
}

impl SimNetwork {
    /// An empty network at time 0.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        Self {
            world: Arc::new(Mutex::new(World::new(config))),
        }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The compute side of this network.
    #[must_use]
    pub fn transport(&self) -> SimTransport {
        SimTransport::new(self.clone())
    }

    /// A memory node that serves `pool`, at an address of its own.
    #[must_use]
    pub fn start_node(&self, pool: Arc<Mapping>) -> SimServer {
        let address = self.world().start_node(None, pool);
        SimServer::new(self.clone(), address)
    }

    /// A new process on a machine whose process or power was killed: it knows no export and no ticket.
    #[must_use]
    pub fn restart_node(&self, address: SocketAddr, pool: Arc<Mapping>) -> SimServer {
        let address = self.world().start_node(Some(address), pool);
        SimServer::new(self.clone(), address)
    }

    /// Virtual time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.world().now()
    }

    /// Lets the next event happen. False if there is none.
    pub fn step(&self) -> bool {
        self.world().step()
    }

    /// Lets `time` pass, with everything that happens in it.
    pub fn advance(&self, time: Duration) {
        let mut world = self.world();
        let until = world.now() + time;
        world.run_until(until);
    }

    /// Cuts a node off from everybody. What is under way waits for [`Self::heal`].
    pub fn cut(&self, address: SocketAddr) {
        self.world().set_cut(address, true);
    }

    /// Ends [`Self::cut`].
    pub fn heal(&self, address: SocketAddr) {
        self.world().set_cut(address, false);
    }

    /// The node's process dies: its peers see their connections close.
    pub fn kill_process(&self, address: SocketAddr) {
        self.world().kill(address, true);
    }

    /// The node's machine dies: its peers see nothing any more.
    pub fn kill_machine(&self, address: SocketAddr) {
        self.world().kill(address, false);
    }

    /// Flips one bit in the data of each of the next `count` READs that this node answers.
    pub fn corrupt_reads(&self, address: SocketAddr, count: u32) {
        self.world().corrupt_reads(address, count);
    }

    /// Flips one bit of the byte at `offset` of a node's pool. False if there is no such byte.
    pub fn corrupt_memory(&self, address: SocketAddr, offset: usize) -> bool {
        self.world().corrupt_memory(address, offset)
    }

    /// A hash over all that has happened: equal for two runs that were the same.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.world().digest()
    }
}

//! A compute side for checks: one queue pair, one registered buffer, and calls that wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mycoram_fabric::transport::{
    Completion, ConnectError, ErrorKind, Export, LocalMemory, LocalSlice, Mapping, Operation,
    QueuePair, RemoteSlice, Ticket, Transport, WorkId, WorkRequest,
};
use mycoram_fabric::units::{Epoch, RegionId, TenantId};

use super::{Fabric, Node};

/// A READ of `into`'s length, signaled.
pub(crate) fn read(id: u64, into: LocalSlice, from: RemoteSlice) -> WorkRequest {
    request(id, Operation::Read { into, from })
}

/// A WRITE of `from`'s length, signaled.
pub(crate) fn write(id: u64, from: LocalSlice, into: RemoteSlice) -> WorkRequest {
    request(id, Operation::Write { from, into })
}

/// Any operation, signaled.
pub(crate) fn request(id: u64, operation: Operation) -> WorkRequest {
    WorkRequest {
        id: WorkId(id),
        operation,
        signaled: true,
    }
}

/// A ticket whose secret is `n`, for checks only.
pub(crate) fn ticket(n: u64) -> Ticket {
    let mut secret = [0x5a; 16];
    secret[..8].copy_from_slice(&n.to_le_bytes());
    Ticket { secret }
}

/// A tenant of a node: one ticket for one region and epoch.
pub(crate) fn admit(node: &impl Node, name: u64, region: u64, epoch: u64) -> (TenantId, Ticket) {
    let tenant = TenantId::new(name);
    let ticket = ticket(name << 32 | region << 16 | epoch);
    node.server()
        .admit(ticket, tenant, RegionId::new(region), Epoch::new(epoch))
        .expect("the node takes a session");
    (tenant, ticket)
}

/// A queue pair with a registered buffer.
pub(crate) struct Client {
    pub(crate) pair: Box<dyn QueuePair>,
    pub(crate) memory: LocalMemory,
    patience: Duration,
    // Behind the queue pair: registrations live as long as the transport.
    _transport: Arc<dyn Transport>,
}

impl Client {
    /// Connects at `depth` with `local_bytes` of registered memory.
    pub(crate) fn connect<F: Fabric>(
        fabric: &F,
        transport: &Arc<dyn Transport>,
        peer: std::net::SocketAddr,
        ticket: &Ticket,
        depth: u32,
        local_bytes: usize,
    ) -> Result<Self, ConnectError> {
        let memory = transport
            .register(Arc::new(Mapping::anonymous(local_bytes).expect("memory")))
            .expect("registered memory");
        Ok(Self {
            pair: transport.connect(peer, ticket, &fabric.config(depth))?,
            memory,
            patience: fabric.patience(),
            _transport: Arc::clone(transport),
        })
    }

    /// A node with one tenant that may reach all of the pool, and a client of it.
    pub(crate) fn with_node<F: Fabric>(
        fabric: &F,
        pool_bytes: usize,
        depth: u32,
        local_bytes: usize,
    ) -> (F::Node, Export, Self) {
        let node = fabric.start_node(pool_bytes);
        let (tenant, ticket) = admit(&node, 1, 1, 1);
        let export = node
            .server()
            .export(tenant, 0, pool_bytes as u64)
            .expect("the pool can be exported");
        let address = node.server().address();
        let client = Self::connect(
            fabric,
            &fabric.transport(),
            address,
            &ticket,
            depth,
            local_bytes,
        )
        .expect("an admitted ticket connects");
        (node, export, client)
    }

    /// A part of the buffer.
    pub(crate) fn slice(&self, offset: usize, len: usize) -> LocalSlice {
        self.memory.slice(offset, len).expect("inside the buffer")
    }

    /// Bytes of the buffer.
    pub(crate) fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .mapping()
            .copy_out(offset, &mut bytes)
            .expect("inside the buffer");
        bytes
    }

    /// Puts bytes into the buffer.
    pub(crate) fn fill(&self, offset: usize, bytes: &[u8]) {
        self.memory
            .mapping()
            .copy_in(offset, bytes)
            .expect("inside the buffer");
    }

    /// The native-endian word at `offset` of the buffer.
    pub(crate) fn word(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.bytes(offset, 8).try_into().expect("8 bytes"))
    }

    /// Waits for exactly `count` completions.
    pub(crate) fn complete(&mut self, count: usize) -> Vec<Completion> {
        let mut completions = Vec::with_capacity(count);
        let begun = Instant::now();
        while completions.len() < count {
            if self.pair.poll(&mut completions) == 0 {
                self.pair.wait(Duration::from_millis(500));
                assert!(
                    begun.elapsed() < self.patience,
                    "{} of {count} completions after {:?}",
                    completions.len(),
                    self.patience
                );
            }
        }
        completions
    }

    /// Waits until the queue pair is broken, and returns the completions that came with it.
    pub(crate) fn complete_until_broken(&mut self) -> Vec<Completion> {
        let mut all = Vec::new();
        let begun = Instant::now();
        loop {
            let mut batch = Vec::with_capacity(64);
            if self.pair.poll(&mut batch) == 0 {
                if self.pair.broken().is_some() {
                    return all;
                }
                self.pair.wait(Duration::from_millis(500));
                assert!(
                    begun.elapsed() < self.patience,
                    "the queue pair is still up after {:?}",
                    self.patience
                );
            }
            all.append(&mut batch);
        }
    }

    /// Posts one operation and waits for it.
    pub(crate) fn perform(&mut self, operation: Operation) -> Result<(), ErrorKind> {
        self.pair
            .post(&[request(u64::MAX, operation)])
            .expect("an idle queue pair takes work");
        let completion = self.complete(1)[0];
        assert_eq!(completion.id, WorkId(u64::MAX));
        completion.result.map_err(|error| {
            assert_eq!(error.peer, self.pair.peer(), "an error says who");
            assert_eq!(error.opcode, completion.opcode, "an error says what");
            error.kind
        })
    }

    /// READs `len` bytes to `offset` of the buffer.
    pub(crate) fn read(
        &mut self,
        offset: usize,
        len: usize,
        from: RemoteSlice,
    ) -> Result<(), ErrorKind> {
        let into = self.slice(offset, len);
        self.perform(Operation::Read { into, from })
    }

    /// WRITEs `len` bytes from `offset` of the buffer.
    pub(crate) fn write(
        &mut self,
        offset: usize,
        len: usize,
        into: RemoteSlice,
    ) -> Result<(), ErrorKind> {
        let from = self.slice(offset, len);
        self.perform(Operation::Write { from, into })
    }

    /// COMPARE_SWAP; the former value.
    pub(crate) fn compare_swap(
        &mut self,
        at: RemoteSlice,
        expected: u64,
        desired: u64,
    ) -> Result<u64, ErrorKind> {
        let old = self.slice(0, 8);
        self.perform(Operation::CompareSwap {
            old,
            at,
            expected,
            desired,
        })?;
        Ok(self.word(0))
    }

    /// FETCH_ADD; the former value.
    pub(crate) fn fetch_add(&mut self, at: RemoteSlice, add: u64) -> Result<u64, ErrorKind> {
        let old = self.slice(0, 8);
        self.perform(Operation::FetchAdd { old, at, add })?;
        Ok(self.word(0))
    }
}

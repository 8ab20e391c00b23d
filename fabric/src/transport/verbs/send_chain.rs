//! Work requests in the shape that the device takes: a linked list, built in memory of its own.

use std::io;

use super::ffi;
use super::in_flight::InFlight;
use super::queue_pair::RcQueuePair;
use super::transport::Rail;
use crate::transport::{Opcode, Operation, WorkId, WorkRequest};

/// The longest chain there can be, allocated once.
pub(super) struct SendChain {
    requests: Box<[ffi::ibv_send_wr]>,
    slices: Box<[ffi::ibv_sge]>,
}

// SAFETY: the pointers in the requests lead into `slices` and `requests` of the same chain only, and are
// set anew for every post.
unsafe impl Send for SendChain {}

impl SendChain {
    pub(super) fn new(depth: usize) -> Self {
        Self {
            requests: (0..depth).map(|_| empty()).collect(),
            slices: (0..depth)
                .map(|_| ffi::ibv_sge {
                    addr: 0,
                    length: 0,
                    lkey: 0,
                })
                .collect(),
        }
    }

    /// Checks and translates `chain`, which is to follow what is in flight. Nothing is posted yet; an
    /// error names the request and what is wrong with it.
    ///
    /// Ordering: a READ or atomic may be carried out once more by the peer when its answer is lost, so
    /// a WRITE behind it must not start before it is done, or the READ could see it. That is what a fence is
    /// for. Queue pairs that only read, or only write, never need one.
    pub(super) fn build(
        &mut self,
        chain: &[WorkRequest],
        rail: &Rail,
        in_flight: &InFlight,
    ) -> Result<(), (WorkId, &'static str)> {
        let mut reads = in_flight.reads() > 0;
        let mut atomics = in_flight.atomics() > 0;
        let sequences = in_flight.next_sequence()..;
        for ((request, sequence), (raw, slice)) in chain
            .iter()
            .zip(sequences)
            .zip(self.requests.iter_mut().zip(self.slices.iter_mut()))
        {
            let refuse = |reason| (request.id, reason);
            request.check().map_err(refuse)?;
            let local = request.local();
            let remote = request.remote();
            slice.addr = local.addr();
            // At most MAX_TRANSFER_BYTES.
            slice.length = local.len() as u32;
            slice.lkey = rail
                .lkey(local.lkey())
                .ok_or_else(|| refuse("its local memory is not registered with this transport"))?;
            *raw = empty();
            raw.wr_id = sequence;
            // A slice of no bytes means 2 GiB to some devices: no slice at all means none.
            raw.num_sge = i32::from(!local.is_empty());
            let (address, rkey) = (remote.addr.get(), remote.rkey.get());
            let mut flags = 0;
            if request.signaled {
                flags |= ffi::ibv_send_flags::IBV_SEND_SIGNALED.0;
            }
            let fenced = match request.operation {
                Operation::Read { .. } => {
                    raw.opcode = ffi::ibv_wr_opcode::IBV_WR_RDMA_READ;
                    raw.wr.rdma = ffi::rdma_t {
                        remote_addr: address,
                        rkey,
                    };
                    false
                }
                Operation::Write { .. } => {
                    raw.opcode = ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
                    raw.wr.rdma = ffi::rdma_t {
                        remote_addr: address,
                        rkey,
                    };
                    reads || atomics
                }
                Operation::CompareSwap {
                    expected, desired, ..
                } => {
                    raw.opcode = ffi::ibv_wr_opcode::IBV_WR_ATOMIC_CMP_AND_SWP;
                    raw.wr.atomic = ffi::atomic_t {
                        remote_addr: address,
                        compare_add: expected,
                        swap: desired,
                        rkey,
                    };
                    reads
                }
                Operation::FetchAdd { add, .. } => {
                    raw.opcode = ffi::ibv_wr_opcode::IBV_WR_ATOMIC_FETCH_AND_ADD;
                    raw.wr.atomic = ffi::atomic_t {
                        remote_addr: address,
                        compare_add: add,
                        swap: 0,
                        rkey,
                    };
                    reads
                }
            };
            if fenced {
                flags |= ffi::ibv_send_flags::IBV_SEND_FENCE.0;
                reads = false;
                atomics &= request.opcode() != Opcode::Write;
            }
            match request.opcode() {
                Opcode::Read => reads = true,
                Opcode::CompareSwap | Opcode::FetchAdd => {
                    if !rail.device().limits().atomics {
                        return Err(refuse("this RDMA device has no atomics"));
                    }
                    atomics = true;
                }
                Opcode::Write => {}
            }
            raw.send_flags = flags as _;
        }
        Ok(())
    }

    /// Posts the first `count` requests that `build` made.
    pub(super) fn post(&mut self, pair: &RcQueuePair, count: usize) -> io::Result<()> {
        let first = self.requests.as_mut_ptr();
        let slices = self.slices.as_mut_ptr();
        for index in 0..count.min(self.requests.len()) {
            // SAFETY: `index` is inside of both, which are equally long; the pointers lead to
            // neighbours in the same boxes, which do not move.
            unsafe {
                let request = first.add(index);
                (*request).sg_list = slices.add(index);
                (*request).next = if index + 1 < count {
                    first.add(index + 1)
                } else {
                    std::ptr::null_mut()
                };
            }
        }
        // SAFETY: a list of `count` requests that ends in null; the local memory in it is registered
        // with the rail, which lives as long as the queue pair.
        unsafe { pair.post(first) }
    }

    /// Posts a request that does nothing behind all others, for the sake of its entry when it is flushed.
    pub(super) fn post_marker(&mut self, pair: &RcQueuePair, name: u64) -> io::Result<()> {
        let mut marker = empty();
        marker.wr_id = name;
        marker.opcode = ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
        marker.send_flags = ffi::ibv_send_flags::IBV_SEND_SIGNALED.0 as _;
        // SAFETY: a list of one request without local memory.
        unsafe { pair.post(&mut marker) }
    }
}

fn empty() -> ffi::ibv_send_wr {
    // SAFETY: null pointers, integers, and unions of integers: zero is a value of each.
    unsafe { std::mem::zeroed() }
}

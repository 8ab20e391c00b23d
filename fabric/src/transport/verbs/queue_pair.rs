//! A reliable connected queue pair of the device: its states, its limits, posting to it.
//!
//! ```text
//!   new: RESET --initialize--> INIT --receive_ready--> RTR --send_ready--> RTS
//!                                            any state --fail--> ERR: everything in flight is flushed
//! ```
//!
//! Attributes of a path (GID, MTU, numbers) come from rdma_cm; what we set on purpose is set here:
//! access, depths, timeout, retries. Whoever destroys one with work in flight has failed it and polled
//! its flushes first; `Drop` makes the state ERR in any case.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use super::completion_queue::CompletionQueue;
use super::connection_manager::CmId;
use super::ffi;
use super::protection_domain::ProtectionDomain;
use super::retry_policy::{MIN_RNR_TIMER, RNR_RETRIES, RetryPolicy};

/// What the other side may do through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerMay {
    /// Nothing: the compute side only asks.
    Nothing,
    /// READ, WRITE and atomics, in this queue pair's protection domain.
    ReachMemory,
}

pub(super) struct RcQueuePair {
    pair: NonNull<ffi::ibv_qp>,
    _completions: Arc<CompletionQueue>,
    _domain: Arc<ProtectionDomain>,
}

// SAFETY: libibverbs allows every call on a queue pair from every thread.
unsafe impl Send for RcQueuePair {}
// SAFETY: as above.
unsafe impl Sync for RcQueuePair {}

impl RcQueuePair {
    /// A queue pair in RESET that may have `depth` requests in flight.
    pub(super) fn new(
        domain: Arc<ProtectionDomain>,
        completions: Arc<CompletionQueue>,
        depth: u32,
    ) -> io::Result<Self> {
        // SAFETY: pointers and integers: zero is a value of each.
        let mut wanted: ffi::ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        wanted.send_cq = completions.as_ptr();
        wanted.recv_cq = completions.as_ptr();
        wanted.qp_type = ffi::ibv_qp_type::IBV_QPT_RC;
        wanted.sq_sig_all = 0;
        wanted.cap.max_send_wr = depth;
        wanted.cap.max_send_sge = 1;
        // Nothing is ever received, but not every device makes a queue pair without a receive queue.
        wanted.cap.max_recv_wr = 1;
        wanted.cap.max_recv_sge = 1;
        // SAFETY: domain and completion queue are alive, and outlive the queue pair.
        let pair = ffi::non_null(unsafe { ffi::ibv_create_qp(domain.as_ptr(), &mut wanted) })?;
        Ok(Self {
            pair,
            _completions: completions,
            _domain: domain,
        })
    }

    pub(super) fn number(&self) -> u32 {
        // SAFETY: the queue pair is alive.
        unsafe { self.pair.as_ref().qp_num }
    }

    pub(super) fn initialize(&self, id: &CmId, peer: PeerMay) -> io::Result<()> {
        let (mut attributes, mask) = id.attributes(ffi::ibv_qp_state::IBV_QPS_INIT)?;
        let access = match peer {
            PeerMay::Nothing => ffi::ibv_access_flags(0),
            PeerMay::ReachMemory => {
                ffi::ibv_access_flags::IBV_ACCESS_REMOTE_READ
                    | ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
                    | ffi::ibv_access_flags::IBV_ACCESS_REMOTE_ATOMIC
            }
        };
        attributes.qp_access_flags = access.0 as _;
        self.modify(
            &mut attributes,
            mask | bit(ffi::ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS),
        )
    }

    /// `serves` READs and atomics of the peer at a time.
    pub(super) fn receive_ready(&self, id: &CmId, serves: u8) -> io::Result<()> {
        let (mut attributes, mask) = id.attributes(ffi::ibv_qp_state::IBV_QPS_RTR)?;
        attributes.max_dest_rd_atomic = serves;
        attributes.min_rnr_timer = MIN_RNR_TIMER;
        let mask = mask
            | bit(ffi::ibv_qp_attr_mask::IBV_QP_MAX_DEST_RD_ATOMIC)
            | bit(ffi::ibv_qp_attr_mask::IBV_QP_MIN_RNR_TIMER);
        self.modify(&mut attributes, mask)
    }

    /// Has up to `asks` READs and atomics of its own at the peer.
    pub(super) fn send_ready(&self, id: &CmId, asks: u8, policy: RetryPolicy) -> io::Result<()> {
        let (mut attributes, mask) = id.attributes(ffi::ibv_qp_state::IBV_QPS_RTS)?;
        attributes.max_rd_atomic = asks;
        attributes.timeout = policy.ack_timeout_exponent;
        attributes.retry_cnt = policy.retries;
        attributes.rnr_retry = RNR_RETRIES;
        let mask = mask
            | bit(ffi::ibv_qp_attr_mask::IBV_QP_MAX_QP_RD_ATOMIC)
            | bit(ffi::ibv_qp_attr_mask::IBV_QP_TIMEOUT)
            | bit(ffi::ibv_qp_attr_mask::IBV_QP_RETRY_CNT)
            | bit(ffi::ibv_qp_attr_mask::IBV_QP_RNR_RETRY);
        self.modify(&mut attributes, mask)
    }

    /// Into ERR: nothing is sent or served any more, what is in flight is flushed.
    pub(super) fn fail(&self) -> io::Result<()> {
        // SAFETY: integers and nested integers: zero is a value of each.
        let mut attributes: ffi::ibv_qp_attr = unsafe { std::mem::zeroed() };
        attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_ERR;
        self.modify(&mut attributes, bit(ffi::ibv_qp_attr_mask::IBV_QP_STATE))
    }

    fn modify(&self, attributes: &mut ffi::ibv_qp_attr, mask: i32) -> io::Result<()> {
        // SAFETY: the queue pair is alive; the attributes that `mask` names are filled in.
        ffi::zero_or_errno(unsafe { ffi::ibv_modify_qp(self.pair.as_ptr(), attributes, mask) })
    }

    /// Posts a linked chain. On an error a part of the chain may have been taken.
    ///
    /// # Safety
    /// `first` starts a list whose `next` and `sg_list` pointers are null or valid during the call;
    /// the local memory it names stays registered until the requests are complete.
    pub(super) unsafe fn post(&self, first: *mut ffi::ibv_send_wr) -> io::Result<()> {
        let mut refused = std::ptr::null_mut();
        // SAFETY: the caller's promise; the queue pair is alive.
        ffi::zero_or_errno(unsafe { ffi::ibv_post_send(self.pair.as_ptr(), first, &mut refused) })
    }
}

impl Drop for RcQueuePair {
    fn drop(&mut self) {
        // Harmless where it is in ERR already. An error means that the device is gone.
        let _ = self.fail();
        // SAFETY: created once, destroyed once; asynchronous events about it are acknowledged as they
        // are read, so this does not wait for anybody.
        unsafe { ffi::ibv_destroy_qp(self.pair.as_ptr()) };
    }
}

fn bit(mask: ffi::ibv_qp_attr_mask) -> i32 {
    mask.0 as i32
}

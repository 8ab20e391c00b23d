//! A client's connection at the memory node: a queue pair that answers, in its tenant's domain.

use std::io;

use super::admission::Admission;
use crate::transport::Ticket;
use crate::transport::verbs::connection_manager::{CmEvent, CmId, ConnectionParameters};
use crate::transport::verbs::greeting;
use crate::transport::verbs::queue_pair::{PeerMay, RcQueuePair};
use crate::transport::verbs::retry_policy::{RNR_RETRIES, RetryPolicy};

/// The passive side sends nothing of its own; these only fill in what its transition asks for.
const IDLE_RESPONSE_TIMEOUT_MS: u32 = 1000;

pub(super) struct ServedConnection {
    pub(super) ticket: Ticket,
    pub(super) admission: Admission,
    pub(super) established: bool,
    // Dropped in this order: without its queue pair nothing of the client reaches memory any more.
    pair: RcQueuePair,
    id: CmId,
}

impl ServedConnection {
    /// Brings the queue pair up and answers the request. `serves` READs and atomics at a time.
    pub(super) fn accept(
        request: &CmEvent,
        id: CmId,
        pair: RcQueuePair,
        serves: u8,
        ticket: Ticket,
        admission: Admission,
    ) -> Result<Self, (CmId, io::Error)> {
        let serves = request.responder_resources.min(serves);
        let policy = RetryPolicy::within(IDLE_RESPONSE_TIMEOUT_MS);
        let accepted = pair
            .initialize(&id, PeerMay::ReachMemory)
            .and_then(|()| pair.receive_ready(&id, serves))
            .and_then(|()| pair.send_ready(&id, 0, policy))
            .and_then(|()| {
                id.accept(&ConnectionParameters {
                    queue_pair: pair.number(),
                    initiator_depth: 0,
                    responder_resources: serves,
                    retries: policy.retries,
                    rnr_retries: RNR_RETRIES,
                    private_data: &greeting::encode_acceptance(),
                })
            });
        match accepted {
            Ok(()) => Ok(Self {
                ticket,
                admission,
                established: false,
                pair,
                id,
            }),
            Err(error) => Err((id, error)),
        }
    }

    /// Ends it. When this returns the client cannot touch memory through it, and has been told.
    pub(super) fn close(self) {
        // First the access, then the news: an error means that the device is gone, and access with it.
        let _ = self.pair.fail();
        self.id.disconnect();
    }
}

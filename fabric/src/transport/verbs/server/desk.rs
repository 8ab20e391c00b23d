//! What the memory node's verbs server knows, and its two users: the control channel of the node, which
//! admits, fences and exports, and the event thread, which lets clients in and sees them leave.
//!
//! One lock. Letting in and throwing out happen under it, so that a fence that has returned cannot be
//! overtaken by a connection that was half-way in. Registering memory takes long and happens outside.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ServerLimits;
use super::admission::{Admission, Admissions, is_fenced, same};
use super::connection::ServedConnection;
use super::exports::Exports;
use crate::transport::verbs::completion_queue::CompletionQueue;
use crate::transport::verbs::connection_manager::{CmEvent, CmEventKind, CmId, EventChannel};
use crate::transport::verbs::device::{Device, DeviceEvent};
use crate::transport::verbs::greeting::{self, GreetingError, Rejection};
use crate::transport::verbs::queue_pair::RcQueuePair;
use crate::transport::{AdmitError, Ticket};
use crate::units::{Epoch, RegionId, TenantId};

pub(super) struct Book {
    pub(super) admissions: Admissions,
    pub(super) exports: Exports,
    connections: HashMap<u64, ServedConnection>,
    next_key: u64,
    closed: bool,
}

pub(super) struct Desk {
    pub(super) device: Arc<Device>,
    pub(super) channel: Arc<EventChannel>,
    /// The answering side polls nothing; a queue pair has to have one all the same.
    completions: Arc<CompletionQueue>,
    limits: ServerLimits,
    book: Mutex<Book>,
}

impl Desk {
    pub(super) fn new(
        device: Arc<Device>,
        channel: Arc<EventChannel>,
        completions: Arc<CompletionQueue>,
        limits: ServerLimits,
    ) -> Self {
        Self {
            device,
            channel,
            completions,
            book: Mutex::new(Book {
                admissions: Admissions::new(limits.sessions),
                exports: Exports::default(),
                connections: HashMap::new(),
                next_key: 1,
                closed: false,
            }),
            limits,
        }
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn admit(&self, ticket: Ticket, admission: Admission) -> Result<(), AdmitError> {
        self.book().admissions.admit(ticket, admission)
    }

    pub(super) fn dismiss(&self, ticket: &Ticket) {
        let mut book = self.book();
        book.admissions.dismiss(ticket);
        book.close_where(|connection| same(&connection.ticket, ticket));
    }

    pub(super) fn fence(&self, region: RegionId, current: Epoch) {
        let mut book = self.book();
        book.admissions.fence(region, current);
        book.close_where(|connection| is_fenced(&connection.admission, region, current));
    }

    pub(super) fn close_tenant(&self, tenant: TenantId) {
        let mut book = self.book();
        book.close_where(|connection| connection.admission.tenant == tenant);
        book.exports.abandon_domain(tenant);
    }

    pub(super) fn close_all(&self) {
        let mut book = self.book();
        book.closed = true;
        book.close_where(|_| true);
    }

    pub(super) fn connections(&self) -> usize {
        let book = self.book();
        book.connections
            .values()
            .filter(|connection| connection.established)
            .count()
    }

    /// Reads what rdma_cm has to say. False when the listener is beyond use.
    pub(super) fn read_connections(&self) -> bool {
        loop {
            let event = match self.channel.next() {
                Ok(Some(event)) => event,
                Ok(None) => return true,
                Err(error) => {
                    tracing::error!(%error, "connection requests cannot be read any more");
                    return false;
                }
            };
            match event.kind {
                CmEventKind::ConnectRequest => self.request(&event),
                CmEventKind::Established => {
                    if let Some(connection) = self.book().connections.get_mut(&event.key) {
                        connection.established = true;
                    }
                }
                CmEventKind::Disconnected
                | CmEventKind::Rejected
                | CmEventKind::Failed
                | CmEventKind::AddressChange => self.book().close(event.key),
                CmEventKind::DeviceRemoval => {
                    tracing::error!(device = %self.device.name(), "the RDMA device was removed: its connections are closed");
                    self.close_all();
                    return false;
                }
                _ => {}
            }
        }
    }

    /// Reads what the device has to say.
    pub(super) fn read_device(&self) {
        while let Some(event) = self.device.next_event() {
            match event {
                // A client showed a key that is not its own, or the like. Its queue pair reaches
                // nothing any more; the client is being told why by the device, and leaves by itself.
                // To disconnect it here would overtake that answer.
                DeviceEvent::QueuePairFailed { number } => {
                    tracing::debug!(number, "a client broke its queue pair");
                }
                DeviceEvent::PortDown { port } => {
                    // Clients notice by themselves; those that reconnect find their data.
                    tracing::warn!(device = %self.device.name(), port, "an RDMA port is down");
                }
                DeviceEvent::DeviceFailed => self.lose_device(),
                DeviceEvent::Other => {}
            }
        }
    }

    /// Nothing can be reached through the device any more.
    pub(super) fn lose_device(&self) {
        tracing::error!(device = %self.device.name(), "the RDMA device failed: its connections are closed");
        self.book().close_where(|_| true);
    }

    fn request(&self, event: &CmEvent) {
        let Some(id) = CmId::adopt(event, &self.channel) else {
            return;
        };
        let ticket = match greeting::decode_request(event.private_data()) {
            Ok(ticket) => ticket,
            Err(GreetingError::Version(_) | GreetingError::Foreign | GreetingError::Damaged) => {
                return reject(&id, Rejection::Version);
            }
        };
        if let Err((id, reason)) = self.let_in(event, id, ticket) {
            reject(&id, reason);
        }
    }

    fn let_in(&self, event: &CmEvent, id: CmId, ticket: Ticket) -> Result<(), (CmId, Rejection)> {
        if id
            .device()
            .is_none_or(|(device, _)| device != *self.device.name())
        {
            return Err((id, Rejection::WrongDevice));
        }
        let mut book = self.book();
        let Some(admission) = book.admissions.find(&ticket).filter(|_| !book.closed) else {
            return Err((id, Rejection::Ticket));
        };
        if book.connections.len() >= self.limits.connections {
            return Err((id, Rejection::Busy));
        }
        let pair = book
            .exports
            .domain(admission.tenant, &self.device)
            .and_then(|domain| RcQueuePair::new(domain, Arc::clone(&self.completions), 1));
        let pair = match pair {
            Ok(pair) => pair,
            Err(error) => {
                tracing::warn!(%error, "no queue pair for a client");
                return Err((id, Rejection::Busy));
            }
        };
        let key = book.next_key;
        book.next_key += 1;
        id.set_key(key);
        let serves = self.device.limits().responder_resources;
        match ServedConnection::accept(event, id, pair, serves, ticket, admission) {
            Ok(connection) => {
                book.connections.insert(key, connection);
                Ok(())
            }
            Err((id, error)) => {
                tracing::warn!(%error, "a client's connection could not be accepted");
                Err((id, Rejection::Busy))
            }
        }
    }
}

impl Book {
    fn close(&mut self, key: u64) {
        if let Some(connection) = self.connections.remove(&key) {
            connection.close();
            self.exports.forget_unused();
        }
    }

    fn close_where(&mut self, concerns: impl Fn(&ServedConnection) -> bool) {
        let leaving = self
            .connections
            .extract_if(|_, connection| concerns(connection));
        let mut left = false;
        for (_, connection) in leaving {
            connection.close();
            left = true;
        }
        if left {
            self.exports.forget_unused();
        }
    }
}

fn reject(id: &CmId, reason: Rejection) {
    if let Err(error) = id.reject(&greeting::encode_rejection(reason)) {
        tracing::debug!(%error, ?reason, "a client left before it could be turned away");
    }
}

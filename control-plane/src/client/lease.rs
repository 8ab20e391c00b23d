//! The right to write a region, held for as long as its owner lives.
//!
//! ```text
//!   acquire -- wait (the former owner is being fenced) -- go on -- renew, renew ... -- give back
//!                                                               \-- a newer owner: over for good
//! ```
//!
//! A lease that cannot be renewed because the control plane is away is kept: what ends an owner is a higher
//! epoch, at the memory nodes.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mycoram_fabric::placement::RegionEntry;
use mycoram_fabric::units::{ByteCount, Epoch, RegionId, TenantId};
use mycoram_fabric::wire::control::{TOKEN_BYTES, Token};

use super::authority::ControlAuthority;
use super::call::ControlClient;
use super::error::ClientError;
use crate::proto;
use crate::proto::refusal::Kind;

/// Between two questions whether the former owner is fenced.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Shortest time between two renewals, whatever the control plane says.
const SHORTEST_RENEWAL_MS: u64 = 100;

/// Why a region was not acquired.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The control plane.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The former owner was not fenced in time.
    #[error("the former owner is not fenced yet on {} memory nodes, after {waited:?}", nodes.len())]
    NotFenced {
        /// How long was waited.
        waited: Duration,
        /// The numbers of the nodes that have not confirmed.
        nodes: Vec<u32>,
    },
    /// The renewing thread.
    #[error("the thread that renews the lease could not be started")]
    Thread(#[source] std::io::Error),
}

/// Which region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegionKey {
    /// That of this name.
    Name(String),
    /// That of this number.
    Number(RegionId),
}

/// See the module. Dropping it gives the region back.
#[derive(Debug)]
pub struct RegionLease {
    client: Arc<ControlClient>,
    name: String,
    entry: RegionEntry,
    token: Token,
    copy_percent: u8,
    authority: Arc<ControlAuthority>,
    stop: Option<SyncSender<()>>,
    renewer: Option<JoinHandle<()>>,
}

impl RegionLease {
    /// Acquires the region for the process `owner`; waits for the former owner to be fenced, for
    /// `patience` at most. With `take_over` also from an owner whose lease runs.
    pub fn acquire(
        client: Arc<ControlClient>,
        region: &RegionKey,
        owner: u64,
        take_over: bool,
        patience: Duration,
    ) -> Result<Self, LeaseError> {
        let begun = Instant::now();
        let mut waiting_for = 0;
        let reply = loop {
            let reply = client.acquire_region(proto::AcquireRegionRequest {
                region: match region {
                    RegionKey::Name(name) => name.clone(),
                    RegionKey::Number(_) => String::new(),
                },
                owner,
                take_over,
                id: match region {
                    RegionKey::Name(_) => 0,
                    RegionKey::Number(id) => id.get(),
                },
                waiting_for,
            })?;
            if reply.go_on {
                break reply;
            }
            waiting_for = reply.epoch;
            let waited = begun.elapsed();
            if waited >= patience {
                return Err(LeaseError::NotFenced {
                    waited,
                    nodes: reply.waiting,
                });
            }
            std::thread::sleep(ASK_AGAIN);
        };
        let region = reply.region.ok_or_else(|| client.unexpected())?;
        let secret: [u8; TOKEN_BYTES] = reply.secret.try_into().map_err(|_| client.unexpected())?;
        let entry = RegionEntry {
            id: RegionId::new(region.id),
            tenant: TenantId::new(region.tenant),
            epoch: Epoch::new(reply.epoch),
            bytes: ByteCount::new(region.bytes),
            extent_bytes: ByteCount::new(region.extent_bytes),
            replicas: u8::try_from(region.replicas).map_err(|_| client.unexpected())?,
        };
        let copy_percent = u8::try_from(region.copy_percent).map_err(|_| client.unexpected())?;
        let authority = ControlAuthority::new(Arc::clone(&client), entry.id, entry.epoch);
        let (stop, stopped) = sync_channel::<()>(1);
        let every = Duration::from_millis(reply.renew_ms.max(SHORTEST_RENEWAL_MS));
        let asks = proto::OwnerRequest {
            region: entry.id.get(),
            epoch: entry.epoch.get(),
        };
        let renewing = Arc::clone(&client);
        let renewer = std::thread::Builder::new()
            .name("myco-lease".to_owned())
            .spawn(move || {
                while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                    if is_over(&renewing, asks) {
                        return;
                    }
                }
            })
            .map_err(LeaseError::Thread)?;
        Ok(Self {
            client,
            name: region.name,
            entry,
            token: Token(secret),
            copy_percent,
            authority: Arc::new(authority),
            stop: Some(stop),
            renewer: Some(renewer),
        })
    }

    /// The region, at this owner's epoch.
    #[must_use]
    pub fn entry(&self) -> &RegionEntry {
        &self.entry
    }

    /// The region's secret, as its memory nodes know it.
    #[must_use]
    pub fn token(&self) -> Token {
        self.token
    }

    /// The share of the bandwidth that copies of its replicas may take, percent.
    #[must_use]
    pub fn copy_percent(&self) -> u8 {
        self.copy_percent
    }

    /// What `fabric` asks about the region.
    #[must_use]
    pub fn authority(&self) -> Arc<ControlAuthority> {
        Arc::clone(&self.authority)
    }

    /// Deletes the region, which is not needed any more, and ends the lease. Refused if it has a newer owner.
    pub fn delete(mut self) -> Result<(), ClientError> {
        self.end();
        self.client.delete_region(proto::DeleteRegionRequest {
            region: self.name.clone(),
            force: true,
            epoch: self.entry.epoch.get(),
        })?;
        Ok(())
    }

    fn end(&mut self) -> bool {
        self.stop = None;
        let Some(renewer) = self.renewer.take() else {
            return false;
        };
        if renewer.join().is_err() {
            tracing::error!("the thread that renews a lease panicked");
        }
        true
    }
}

/// Renews; true if there is nothing to be renewed any more.
fn is_over(client: &ControlClient, asks: proto::OwnerRequest) -> bool {
    let Err(error) = client.renew_lease(asks) else {
        return false;
    };
    let kind = error.refused().and_then(|refused| refused.kind.clone());
    let over = matches!(kind, Some(Kind::EpochTooLow(_) | Kind::Unknown(_)));
    let error = &error as &dyn std::error::Error;
    if over {
        tracing::warn!(
            region = asks.region,
            error,
            "the region has a newer owner, or is gone"
        );
    } else {
        tracing::warn!(
            region = asks.region,
            error,
            "the lease was not renewed; pages keep flowing"
        );
    }
    over
}

impl Drop for RegionLease {
    fn drop(&mut self) {
        if self.end() {
            // If it cannot be told now, the lease runs out.
            let _ = self.client.give_back_region(proto::OwnerRequest {
                region: self.entry.id.get(),
                epoch: self.entry.epoch.get(),
            });
        }
    }
}

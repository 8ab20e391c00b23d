//! A lease in etcd, and the task that keeps it.
//!
//! Nothing that must be safe rests on it: whoever writes says under which guard, and etcd compares. The lease
//! only decides how soon a leader that is gone is followed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;
use tonic::codegen::tokio_stream;
use tonic::transport::Channel;

use super::api::lease_client::LeaseClient;
use super::api::{LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest};
use super::members::{InVain, Members};

/// Renewals within the time that a lease has.
const RENEWALS: u32 = 3;

/// See the module. Dropping it lets it run out.
pub(super) struct Lease {
    id: i64,
    ended: Arc<AtomicBool>,
    keeper: JoinHandle<()>,
}

impl Lease {
    /// A new one, kept from now on.
    pub(super) async fn grant(
        members: &Arc<Members>,
        ttl: Duration,
        patience: Duration,
    ) -> Result<Self, InVain> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let asked = Instant::now();
        let granted = members
            .ask(patience, |channel| async move {
                let request = LeaseGrantRequest {
                    ttl: seconds,
                    id: 0,
                };
                let reply = LeaseClient::new(channel).lease_grant(request).await?;
                Ok(reply.into_inner())
            })
            .await?;
        let ended = Arc::<AtomicBool>::default();
        let ttl = seconds_of(granted.ttl);
        let keeping = keep(
            Arc::clone(members),
            granted.id,
            ttl,
            asked + ttl,
            Arc::clone(&ended),
        );
        Ok(Self {
            id: granted.id,
            ended,
            keeper: tokio::spawn(keeping),
        })
    }

    pub(super) fn id(&self) -> i64 {
        self.id
    }

    /// It ran out, or could not be renewed for so long that it may have.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ends it now, if etcd can be told within `patience`.
    pub(super) async fn revoke(self, members: &Members, patience: Duration) -> Result<(), InVain> {
        self.keeper.abort();
        let id = self.id;
        members
            .ask(patience, |channel| async move {
                let request = LeaseRevokeRequest { id };
                LeaseClient::new(channel).lease_revoke(request).await
            })
            .await
            .map(drop)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

async fn keep(
    members: Arc<Members>,
    id: i64,
    ttl: Duration,
    mut until: Instant,
    ended: Arc<AtomicBool>,
) {
    let one = ttl / (RENEWALS + 1);
    loop {
        tokio::time::sleep(ttl / RENEWALS).await;
        let asked = Instant::now();
        let left = until.saturating_duration_since(asked);
        let renewed = members.ask_each(one, left, |channel| renew(channel, id));
        match renewed.await {
            Ok(Duration::ZERO) => break,
            Ok(left) => until = asked + left,
            Err(failed) => {
                tracing::warn!(
                    error = &failed.status as &dyn std::error::Error,
                    "the lease in etcd was not renewed"
                );
                if Instant::now() >= until {
                    break;
                }
            }
        }
    }
    ended.store(true, Ordering::Release);
}

/// How long it has again; 0: it has ended.
async fn renew(channel: Channel, id: i64) -> Result<Duration, Status> {
    let requests = tokio_stream::once(LeaseKeepAliveRequest { id });
    let mut client = LeaseClient::new(channel);
    let mut answers = client.lease_keep_alive(requests).await?.into_inner();
    match answers.message().await? {
        Some(answer) => Ok(seconds_of(answer.ttl)),
        None => Err(Status::unavailable("etcd closed the stream")),
    }
}

fn seconds_of(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

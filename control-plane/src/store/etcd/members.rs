//! The members of an etcd cluster, asked one after the other until one answers.
//!
//! One that is dead, stopped or cut off costs a bounded time; who answered last is asked first.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};
use tower::service_fn;

use super::address::{EtcdError, Tls};
use super::api::maintenance_client::MaintenanceClient;
use super::api::{StatusRequest, StatusResponse};
use super::connection::connect;
use crate::store::MemberHealth;

/// How long one member may take. Longer than a disk that is busy, shorter than who waits for the answer.
const TRY: Duration = Duration::from_millis(1_500);
/// How long a connection may take to come to be.
const CONNECT: Duration = Duration::from_millis(500);
/// How often a silent connection is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// How often a member is asked how it is.
const HEALTH_TRIES: u32 = 4;
/// After all were asked in vain.
const PAUSE: Duration = Duration::from_millis(100);

struct Member {
    address: String,
    channel: Channel,
}

/// See the module.
pub(super) struct Members {
    list: Vec<Member>,
    present: AtomicUsize,
}

/// Why none of them did it.
#[derive(Debug)]
pub(super) struct InVain {
    /// What was said last; that nothing was in time, only if nothing was said at all.
    pub(super) status: Status,
    /// A member may have done it, or may do it yet.
    pub(super) maybe_done: bool,
}

impl Members {
    /// Connects when something is first asked. On a runtime.
    pub(super) fn new(urls: &[String], files: &Tls) -> Result<Self, EtcdError> {
        let mut list = Vec::new();
        for url in urls {
            let endpoint = Endpoint::from_shared(url.clone());
            let wrong = |source| EtcdError::Member {
                url: url.clone(),
                source,
            };
            let mut endpoint = endpoint
                .map_err(wrong)?
                .connect_timeout(CONNECT)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE);
            if url.starts_with("https:") {
                let mut tls = ClientTlsConfig::new();
                if let Some(ca) = &files.ca {
                    tls = tls.ca_certificate(Certificate::from_pem(ca));
                }
                if let Some((certificate, key)) = &files.identity {
                    tls = tls.identity(Identity::from_pem(certificate, key));
                }
                endpoint = endpoint.tls_config(tls).map_err(wrong)?;
            }
            list.push(Member {
                address: url.clone(),
                channel: endpoint.connect_with_connector_lazy(service_fn(connect)),
            });
        }
        Ok(Self {
            list,
            present: AtomicUsize::new(0),
        })
    }

    /// Asks until one answers, for `patience` at most. What is asked must do no harm when it is done twice.
    pub(super) async fn ask<T, F, A>(&self, patience: Duration, each: F) -> Result<T, InVain>
    where
        F: Fn(Channel) -> A,
        A: Future<Output = Result<T, Status>>,
    {
        self.ask_each(TRY, patience, each).await
    }

    /// As [`Self::ask`], each at most for `one`.
    pub(super) async fn ask_each<T, F, A>(
        &self,
        one: Duration,
        patience: Duration,
        each: F,
    ) -> Result<T, InVain>
    where
        F: Fn(Channel) -> A,
        A: Future<Output = Result<T, Status>>,
    {
        let until = Instant::now() + patience;
        let mut maybe_done = false;
        let mut said = None;
        for tried in 1.. {
            let present = self.present.load(Ordering::Relaxed) % self.list.len();
            let left = until.saturating_duration_since(Instant::now());
            let answer = each(self.list[present].channel.clone());
            let passing = match tokio::time::timeout(one.min(left), answer).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => {
                    let passing = is_passing(&status);
                    // One that ends it is what the caller goes by.
                    let said_before = said.take().filter(|_| passing);
                    said = Some(more_telling(said_before, status));
                    passing
                }
                Err(_) => true,
            };
            maybe_done |= passing;
            self.present.store(present + 1, Ordering::Relaxed);
            let pause = if tried % self.list.len() == 0 {
                PAUSE
            } else {
                Duration::ZERO
            };
            if !passing || Instant::now() + pause >= until {
                let silent = || Status::deadline_exceeded("no etcd member answered in time");
                let status = said.unwrap_or_else(silent);
                return Err(InVain { status, maybe_done });
            }
            tokio::time::sleep(pause).await;
        }
        unreachable!("the loop has no end")
    }

    /// What each says of itself.
    pub(super) async fn health(&self) -> Vec<MemberHealth> {
        let mut asked = tokio::task::JoinSet::new();
        for (at, member) in self.list.iter().enumerate() {
            let (address, channel) = (member.address.clone(), member.channel.clone());
            asked.spawn(async move { (at, health_of(address, status_of(channel).await)) });
        }
        let mut seen = asked.join_all().await;
        seen.sort_by_key(|(at, _)| *at);
        seen.into_iter().map(|(_, health)| health).collect()
    }
}

async fn status_of(channel: Channel) -> Result<StatusResponse, Status> {
    let mut client = MaintenanceClient::new(channel);
    let until = Instant::now() + TRY;
    let mut said = None;
    for _ in 0..HEALTH_TRIES {
        match tokio::time::timeout_at(until, client.status(StatusRequest {})).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => said = Some(status),
            Err(_) => break,
        }
        // A connection to a process that has ended since is only noticed by its use.
        tokio::time::sleep(PAUSE).await;
    }
    Err(said.unwrap_or_else(|| Status::deadline_exceeded("it does not answer")))
}

/// The later one, unless only the earlier one, of another member, names certificates.
fn more_telling(said: Option<Status>, status: Status) -> Status {
    match said {
        Some(said) if is_of_certificates(&said) && !is_of_certificates(&status) => said,
        _ => status,
    }
}

/// Whether TLS failed, and not the connection below it.
fn is_of_certificates(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let kind = error.downcast_ref().map(std::io::Error::kind);
        if kind == Some(std::io::ErrorKind::InvalidData) {
            return true;
        }
        source = error.source();
    }
    false
}

/// What stands behind it all: of a connection that did not come to be, what the machine or the certificates said.
fn root_of(status: &Status) -> String {
    let mut said = None;
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        said = Some(error.to_string());
        source = error.source();
    }
    said.unwrap_or_else(|| status.message().to_owned())
}

fn health_of(address: String, status: Result<StatusResponse, Status>) -> MemberHealth {
    let status = match status {
        Ok(status) => status,
        Err(said) => {
            return MemberHealth {
                address,
                silent_because: Some(root_of(&said)),
                ..MemberHealth::default()
            };
        }
    };
    let id = status.header.map_or(0, |header| header.member_id);
    MemberHealth {
        address,
        up: true,
        silent_because: None,
        follows: status.leader != 0,
        leads: status.leader != 0 && status.leader == id,
        bytes: u64::try_from(status.db_size).unwrap_or(0),
        version: status.version,
        alarms: status.errors,
    }
}

/// Whether another member, or the same one later, may do it.
fn is_passing(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => true,
        // "too many requests"; a full disk is named otherwise.
        Code::ResourceExhausted => !is_full(status),
        // A connection that broke under a call, as tonic tells it.
        Code::Unknown | Code::Internal => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

/// Whether etcd's disk, or its quota, is full: it then takes no write, until somebody makes room and disarms it.
pub(super) fn is_full(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && status.message().contains("space")
}

//! One call at a time: a deadline for each try, and a bound on tries.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mycoram_fabric::random;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::error::{ClientError, Refused, is_passing};
use crate::identity::Credentials;
use crate::proto;
use crate::proto::control_plane_client::ControlPlaneClient;
use crate::proto::refusal::Kind;

/// How long one try may take.
const TRY: Duration = Duration::from_secs(3);
/// How long a connection may take to come to be.
const CONNECT: Duration = Duration::from_secs(1);
/// Between the first two tries; twice as long each further time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Most processes of one control plane.
const MAX_PROCESSES: usize = 16;
/// The name under which a call carries its number, in its metadata.
pub(crate) const REQUEST_ID: &str = "mycoram-request";
/// The port where none is named.
const DEFAULT_PORT: u16 = 7400;

/// Where a control plane is: `control://host:port[,host:port...]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ControlAddress {
    processes: Vec<String>,
}

/// A text is no address of a control plane.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no address of a control plane: give control://HOST:PORT")]
pub struct AddressError {
    text: String,
}

impl FromStr for ControlAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError {
            text: text.to_owned(),
        };
        let list = text.strip_prefix("control://").ok_or_else(error)?;
        let list = list.strip_suffix('/').unwrap_or(list);
        let process = |part: &str| {
            let with_port = match part.rsplit_once(':') {
                Some((host, port)) if port.parse::<u16>().is_ok() && !host.is_empty() => {
                    part.to_owned()
                }
                None if !part.is_empty() => format!("{part}:{DEFAULT_PORT}"),
                _ => return Err(error()),
            };
            Endpoint::from_shared(format!("http://{with_port}")).map_err(|_| error())?;
            Ok(with_port)
        };
        let processes: Vec<_> = list.split(',').map(process).collect::<Result<_, _>>()?;
        if processes.len() > MAX_PROCESSES {
            return Err(error());
        }
        Ok(Self { processes })
    }
}

impl TryFrom<String> for ControlAddress {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<ControlAddress> for String {
    fn from(address: ControlAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "control://{}", self.processes.join(","))
    }
}

/// How a control plane is reached.
#[derive(Clone, Debug)]
pub struct Access {
    /// Where it is.
    pub address: ControlAddress,
    /// What is shown to it; `None`: it was started with `--insecure`.
    pub credentials: Option<Credentials>,
    /// How long a call goes on while the control plane is away. Default 5 s. Shorter gives up during a
    /// restart.
    pub patience: Duration,
}

impl Access {
    /// With the default patience.
    #[must_use]
    pub fn new(address: ControlAddress, credentials: Option<Credentials>) -> Self {
        Self {
            address,
            credentials,
            patience: Duration::from_secs(5),
        }
    }
}

/// See the module. Connects when it is first called, and again when it has to.
pub struct ControlClient {
    runtime: Runtime,
    credentials: Option<Credentials>,
    processes: Mutex<Processes>,
    /// The number of the next request; the first is drawn.
    requests: AtomicU64,
    patience: Duration,
}

/// The processes that a client knows.
struct Processes {
    /// Those that it was given, and leaders that it was told of.
    list: Vec<(String, ControlPlaneClient<Channel>)>,
    /// Which one answered last.
    present: usize,
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Threads or descriptors.
    #[error("the threads that call the control plane could not be started")]
    Threads(#[from] std::io::Error),
    /// The certificates.
    #[error("the certificates in {} cannot be used", directory.display())]
    Certificates {
        /// Where they were read.
        directory: PathBuf,
        /// What is wrong.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Makes a method for each call.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident: $request:ident -> $reply:ident;)*) => {
        impl ControlClient {
            $($(#[$doc])*
            pub fn $name(&self, request: proto::$request) -> Result<proto::$reply, ClientError> {
                let id = self.next_request();
                tracing::debug!(request = id, call = stringify!($name), "the control plane is asked");
                let carried = AsciiMetadataValue::try_from(id).ok();
                self.call(async |mut to: ControlPlaneClient<Channel>| {
                    let mut asks = Request::new(request.clone());
                    if let Some(id) = &carried {
                        asks.metadata_mut().insert(REQUEST_ID, id.clone());
                    }
                    to.$name(asks).await
                })
            })*
        }
    };
}

calls! {
    /// `RegisterNode` of the proto file.
    register_node: RegisterNodeRequest -> RegisterNodeReply;
    /// `Heartbeat` of the proto file.
    heartbeat: HeartbeatRequest -> HeartbeatReply;
    /// `ConfirmNodeOrder` of the proto file.
    confirm_node_order: ConfirmNodeOrderRequest -> Nothing;
    /// `AcquireRegion` of the proto file.
    acquire_region: AcquireRegionRequest -> AcquireRegionReply;
    /// `RenewLease` of the proto file.
    renew_lease: OwnerRequest -> RenewLeaseReply;
    /// `GiveBackRegion` of the proto file.
    give_back_region: OwnerRequest -> Nothing;
    /// `PlaceExtents` of the proto file.
    place_extents: PlaceExtentsRequest -> PlaceExtentsReply;
    /// `MarkStale` of the proto file.
    mark_stale: MarkStaleRequest -> Nothing;
    /// `GetOrders` of the proto file.
    get_orders: OwnerRequest -> GetOrdersReply;
    /// `ReplicaCopied` of the proto file.
    replica_copied: ReplicaCopiedRequest -> Nothing;
    /// `ReplicaDropped` of the proto file.
    replica_dropped: ReplicaDroppedRequest -> Nothing;
    /// `GetDirectory` of the proto file.
    get_directory: GetDirectoryRequest -> GetDirectoryReply;
    /// `GetGrant` of the proto file.
    get_grant: GetGrantRequest -> GetGrantReply;
    /// `ReportCheck` of the proto file.
    report_check: ReportCheckRequest -> Nothing;
    /// `VerifyRegion` of the proto file.
    verify_region: VerifyRegionRequest -> VerifyRegionReply;
    /// `ReportNode` of the proto file.
    report_node: ReportNodeRequest -> Nothing;
    /// `GetCluster` of the proto file.
    get_cluster: Nothing -> GetClusterReply;
    /// `ListNodes` of the proto file.
    list_nodes: Nothing -> ListNodesReply;
    /// `ListRegions` of the proto file.
    list_regions: Nothing -> ListRegionsReply;
    /// `GetRegion` of the proto file.
    get_region: GetRegionRequest -> RegionStatus;
    /// `CreateRegion` of the proto file.
    create_region: CreateRegionRequest -> RegionStatus;
    /// `Reserve` of the proto file.
    reserve: Reservation -> Nothing;
    /// `Unreserve` of the proto file.
    unreserve: UnreserveRequest -> Nothing;
    /// `ListReservations` of the proto file.
    list_reservations: Nothing -> ListReservationsReply;
    /// `DeleteRegion` of the proto file.
    delete_region: DeleteRegionRequest -> DeleteRegionReply;
    /// `DrainNode` of the proto file.
    drain_node: NodeNameRequest -> DrainNodeReply;
    /// `EndDrain` of the proto file.
    end_drain: NodeNameRequest -> EndDrainReply;
    /// `RemoveNode` of the proto file.
    remove_node: RemoveNodeRequest -> Nothing;
}

impl ControlClient {
    /// A client; nothing is called yet.
    pub fn new(access: &Access) -> Result<Self, SetupError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("myco-control-io")
            .enable_all()
            .build()?;
        let first = random::System::open()?.number();
        let _inside = runtime.enter();
        let mut list = Vec::new();
        for process in &access.address.processes {
            // Checked when the address was read.
            list.extend(connect(process, access.credentials.as_ref())?);
        }
        drop(_inside);
        let present = 0;
        Ok(Self {
            runtime,
            credentials: access.credentials.clone(),
            processes: Mutex::new(Processes { list, present }),
            requests: AtomicU64::new(first),
            patience: access.patience,
        })
    }

    /// Unlike any other, so that the words of both sides about a call are found together.
    fn next_request(&self) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{number:016x}")
    }

    fn call<T, F>(&self, mut each: F) -> Result<T, ClientError>
    where
        F: AsyncFnMut(ControlPlaneClient<Channel>) -> Result<Response<T>, Status>,
    {
        let until = Instant::now() + self.patience;
        let mut pause = FIRST_PAUSE;
        let mut tries = 0;
        // Since the last pause. Two that name each other are not asked in turns without one.
        let mut followed = false;
        self.runtime.block_on(async {
            loop {
                let (address, client) = self.present();
                tries += 1;
                let status = match tokio::time::timeout(TRY, each(client)).await {
                    Ok(Ok(reply)) => return Ok(reply.into_inner()),
                    Ok(Err(status)) => status,
                    Err(_) => Status::deadline_exceeded("it did not answer in time"),
                };
                if !is_passing(&status) {
                    return Err(Refused::from(&status).into());
                }
                let led = self.turn(&address, &status);
                if led && Instant::now() < until && !std::mem::replace(&mut followed, true) {
                    continue;
                }
                if Instant::now() + pause >= until {
                    return Err(ClientError::Away {
                        address,
                        tries,
                        source: Box::new(status),
                    });
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                followed = false;
            }
        })
    }

    fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn present(&self) -> (String, ControlPlaneClient<Channel>) {
        let processes = self.processes();
        processes.list[processes.present % processes.list.len()].clone()
    }

    /// `address` did not do it. Turns to the leader if it named that, and says so; else to the next one, if
    /// no other call has turned already.
    fn turn(&self, address: &str, status: &Status) -> bool {
        let mut processes = self.processes();
        let leader = match Refused::from(status).kind {
            Some(Kind::NotLeader(not_leader)) => not_leader.leader,
            _ => String::new(),
        };
        if !leader.is_empty() && leader != address {
            if let Some(at) = processes
                .list
                .iter()
                .position(|(known, _)| *known == leader)
            {
                processes.present = at;
                return true;
            }
            // What is told may be anything: if it cannot be used, the others are asked.
            if processes.list.len() < MAX_PROCESSES
                && let Ok(Some(process)) = connect(&leader, self.credentials.as_ref())
            {
                processes.present = processes.list.len();
                processes.list.push(process);
                return true;
            }
        }
        let present = processes.present % processes.list.len();
        if processes.list[present].0 == address {
            processes.present = present + 1;
        }
        false
    }

    /// What was said makes no sense.
    pub(super) fn unexpected(&self) -> ClientError {
        ClientError::Unexpected {
            address: self.present().0,
        }
    }
}

/// A client of one process, not connected yet; `None`: that is no address. On a runtime.
fn connect(
    process: &str,
    credentials: Option<&Credentials>,
) -> Result<Option<(String, ControlPlaneClient<Channel>)>, SetupError> {
    let scheme = if credentials.is_some() {
        "https"
    } else {
        "http"
    };
    let Ok(endpoint) = Endpoint::from_shared(format!("{scheme}://{process}")) else {
        return Ok(None);
    };
    let mut endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true);
    if let Some(credentials) = credentials {
        endpoint = endpoint
            .tls_config(credentials.client())
            .map_err(|source| SetupError::Certificates {
                directory: credentials.directory().to_owned(),
                source,
            })?;
    }
    let client = ControlPlaneClient::new(endpoint.connect_lazy());
    Ok(Some((process.to_owned(), client)))
}

impl fmt::Debug for ControlClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let processes = self.processes();
        let names = processes.list.iter().map(|(process, _)| process);
        f.debug_list().entries(names).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let read = |text: &str| text.parse::<ControlAddress>();
        for text in [
            "control://h:1",
            "control://h:1,10.0.0.1:2",
            "control://[::1]:7400",
        ] {
            assert_eq!(read(text).expect("an address").to_string(), text);
        }
        assert_eq!(
            read("control://h").expect("an address").to_string(),
            "control://h:7400"
        );
        for text in [
            "h:1",
            "control://",
            "control://h:x",
            "control://,",
            "control://:1",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}

//! Regions whose homes, epochs and grants the control plane decides: what an agent runs on in place of a
//! list of nodes.
//!
//! ```text
//!   create   CreateRegion (or the one that is there) -> lease -> Remote::create by the lease's authority
//!   adopt    (of a name, with `take-over`) lease, taken over -> Remote::adopt: nothing of the former owner is needed
//!   reopen   lease, taken over: by then the former owner is fenced -> Remote::reopen at its epoch
//!   release  the nodes' memory is given back -> DeleteRegion
//! ```
//!
//! Regions are thin: a part is placed when they are made, the rest ahead of need while they are used.
//!
//! A region that is dropped without a release gives only its lease back: a successor goes on with it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mycoram_agent::Owner;
use mycoram_agent::daemon::{RemoteSource, SourceError};
use mycoram_fabric::authority::{AuthorityError, RegionAuthority};
use mycoram_fabric::check::{CheckOrder, CheckReport};
use mycoram_fabric::pages::{
    KeepDirectory, KeepError, LaneConfig, LaneError, NodeSet, PageLane, RemoteRegion, RemoteStats,
};
use mycoram_fabric::placement::NodeEntry;
use mycoram_fabric::random;
use mycoram_fabric::rebuild::Pace;
use mycoram_fabric::remote::{Ahead, Remote, RemoteOptions, TransportError, Transports};
use mycoram_fabric::session::TlsDial;
use mycoram_fabric::units::{ByteCount, PageCount, PageIndex};

use super::call::{Access, ControlClient, SetupError};
use super::error::ClientError;
use super::lease::{RegionKey, RegionLease};
use super::url::ControlUrl;
use crate::identity::{Credentials, CredentialsError, Role};
use crate::proto;
use crate::words::BadField;

/// How long a former owner may take to be fenced: longer than a node's lease, so that one that is dead is
/// down by then.
pub(super) const FENCE_PATIENCE: Duration = Duration::from_secs(30);

/// How long a call on a node's control channel may take.
const CONTROL_CALL: Duration = Duration::from_secs(2);

/// Why a control plane cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Certificates.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The client.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The control plane.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What it said of a node.
    #[error(transparent)]
    Field(#[from] BadField),
    /// It knows no memory node.
    #[error("the control plane at {address} knows no memory node yet")]
    NoNodes {
        /// Where it is.
        address: String,
    },
    /// A transport is not to be had here.
    #[error("the memory nodes cannot be reached from here")]
    Transport(#[from] TransportError),
}

/// A region that is there is not one that may be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamedRegionError {
    /// Its sizes.
    #[error("the region \"{name}\" has {bytes} in extents of {extent_bytes}, not {asked}")]
    Size {
        /// Its name.
        name: String,
        /// Its size.
        bytes: ByteCount,
        /// Its unit of placement.
        extent_bytes: ByteCount,
        /// What was asked for.
        asked: ByteCount,
    },
    /// Somebody's pages are in it.
    #[error("the region \"{name}\" is not empty: name another one, or delete it")]
    NotEmpty {
        /// Its name.
        name: String,
    },
}

/// See the module.
pub struct ControlRegions {
    client: Arc<ControlClient>,
    url: ControlUrl,
    transports: Transports,
    /// `None`: the nodes' control channels are not encrypted.
    dial: Option<TlsDial>,
    nodes: usize,
}

impl ControlRegions {
    /// Asks the control plane which nodes there are.
    pub fn open(url: &ControlUrl) -> Result<Self, OpenError> {
        let credentials = url
            .tls
            .as_ref()
            .map(|directory| Credentials::read(directory, Role::Agent))
            .transpose()?;
        let dial = credentials
            .as_ref()
            .map(|credentials| credentials.channel_client(CONTROL_CALL))
            .transpose()?;
        let client = ControlClient::new(&Access::new(url.address.clone(), credentials))?;
        let listed = client.list_nodes(proto::Nothing {})?.nodes;
        let entries = listed.into_iter().map(NodeEntry::try_from);
        let entries: Vec<NodeEntry> = entries.collect::<Result<_, _>>()?;
        if entries.is_empty() {
            return Err(OpenError::NoNodes {
                address: url.address.to_string(),
            });
        }
        Ok(Self {
            client: Arc::new(client),
            url: url.clone(),
            transports: Transports::for_nodes(&entries)?,
            dial,
            nodes: entries.len(),
        })
    }

    /// How many nodes there were.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    fn options(&self, lease: &RegionLease, owner: u64) -> std::io::Result<RemoteOptions> {
        let mut options = RemoteOptions::system()?;
        options.owner = owner;
        options.token = lease.token();
        options.domain = self.url.domain.clone();
        if let Some(rebuild) = &mut options.rebuild {
            rebuild.pace = Pace::Share(lease.copy_percent());
        }
        options.ahead = Some(self.url.ahead.map_or_else(Ahead::default, Ahead::up_to));
        if let Some(dial) = &self.dial {
            options.dial = Arc::new(dial.clone());
        }
        Ok(options)
    }

    /// Makes the region, if it is not there. Gives its name.
    fn make(&self, bytes: ByteCount, extent_bytes: ByteCount) -> Result<String, SourceError> {
        let mut random = random::System::open()?;
        let id = random.number();
        let name = match &self.url.region {
            Some(name) => name.clone(),
            None => format!("{id:016x}"),
        };
        let made = self.client.create_region(proto::CreateRegionRequest {
            id,
            name: name.clone(),
            tenant: self.url.tenant.unwrap_or_else(|| random.number()),
            bytes: bytes.get(),
            extent_bytes: extent_bytes.get(),
            replicas: self.url.replicas.into(),
            min_live: self.url.min_live.into(),
            // 0: the control plane's default.
            copy_percent: self.url.copy_percent.unwrap_or(0).into(),
            class: proto::PriorityClass::from(self.url.class).into(),
            locality: Some(proto::Locality {
                zone: self.url.zone.clone().unwrap_or_default(),
                ..proto::Locality::default()
            }),
            reservation: self.url.reservation.unwrap_or(0),
        });
        match made {
            Ok(_) => Ok(name),
            Err(error) if is_taken(&error) => {
                let status = self.client.get_region(proto::GetRegionRequest {
                    region: name.clone(),
                })?;
                check_usable(&status, bytes, extent_bytes)?;
                Ok(name)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl ControlRegions {
    /// Takes the region of the URL's name over, by what the control plane knows of it. Its former owner is fenced
    /// by then.
    fn adopt(&self, bytes: ByteCount) -> Result<(Arc<dyn RemoteRegion>, Owner), SourceError> {
        let name = self.url.region.clone().unwrap_or_default();
        let owner = random::System::open()?.number();
        let key = RegionKey::Name(name.clone());
        let client = Arc::clone(&self.client);
        let status = self.client.get_region(proto::GetRegionRequest {
            region: name.clone(),
        })?;
        let region = status.region.unwrap_or_default();
        if region.bytes != bytes.get() {
            return Err(NamedRegionError::Size {
                name,
                bytes: ByteCount::new(region.bytes),
                extent_bytes: ByteCount::new(region.extent_bytes),
                asked: bytes,
            }
            .into());
        }
        let lease = RegionLease::acquire(client, &key, owner, true, FENCE_PATIENCE)?;
        let authority: Arc<dyn RegionAuthority> = lease.authority();
        let options = self.options(&lease, owner)?;
        let remote = Remote::adopt(lease.entry(), authority, &self.transports, &options)?;
        tracing::info!(region = %lease.entry().id, epoch = %lease.entry().epoch, "a region is taken over by what the control plane knows of it");
        Ok(leased(remote, lease))
    }
}

fn is_taken(error: &ClientError) -> bool {
    error
        .refused()
        .is_some_and(|refused| refused.code == tonic::Code::AlreadyExists)
}

/// Whether a region of that name may be used as a new one.
fn check_usable(
    status: &proto::RegionStatus,
    bytes: ByteCount,
    extent_bytes: ByteCount,
) -> Result<(), NamedRegionError> {
    let region = status.region.clone().unwrap_or_default();
    if (region.bytes, region.extent_bytes) != (bytes.get(), extent_bytes.get()) {
        return Err(NamedRegionError::Size {
            name: region.name,
            bytes: ByteCount::new(region.bytes),
            extent_bytes: ByteCount::new(region.extent_bytes),
            asked: bytes,
        });
    }
    if status.placed_extents > 0 || status.deleting {
        return Err(NamedRegionError::NotEmpty { name: region.name });
    }
    Ok(())
}

fn leased(remote: Arc<Remote>, lease: RegionLease) -> (Arc<dyn RemoteRegion>, Owner) {
    let owner = Owner {
        region: remote.entry().id,
        epoch: remote.entry().epoch,
        directory: remote.directory(),
    };
    let region = Leased {
        remote,
        lease: Mutex::new(Some(lease)),
    };
    (Arc::new(region), owner)
}

impl RemoteSource for ControlRegions {
    fn create(
        &self,
        bytes: ByteCount,
        extent_bytes: ByteCount,
    ) -> Result<(Arc<dyn RemoteRegion>, Owner), SourceError> {
        if self.url.take_over {
            return self.adopt(bytes);
        }
        let name = self.make(bytes, extent_bytes)?;
        let owner = random::System::open()?.number();
        let client = Arc::clone(&self.client);
        let lease =
            RegionLease::acquire(client, &RegionKey::Name(name), owner, false, FENCE_PATIENCE)?;
        let authority: Arc<dyn RegionAuthority> = lease.authority();
        let options = self.options(&lease, owner)?;
        match Remote::create(authority, &self.transports, lease.entry(), &options) {
            Ok(remote) => Ok(leased(remote, lease)),
            Err(error) => {
                // What was placed is on no node: the region is of no use to anybody.
                if let Err(left) = lease.delete() {
                    tracing::warn!(
                        error = &left as &dyn std::error::Error,
                        "a region that was not made is left behind"
                    );
                }
                Err(error.into())
            }
        }
    }

    fn reopen(&self, saved: &Owner) -> Result<(Arc<dyn RemoteRegion>, Owner), SourceError> {
        let owner = random::System::open()?.number();
        let key = RegionKey::Number(saved.region);
        let client = Arc::clone(&self.client);
        let lease = RegionLease::acquire(client, &key, owner, true, FENCE_PATIENCE)?;
        let authority: Arc<dyn RegionAuthority> = lease.authority();
        let options = self.options(&lease, owner)?;
        let remote = Remote::reopen(&saved.directory, authority, &self.transports, &options)?;
        Ok(leased(remote, lease))
    }
}

/// A region and its lease.
struct Leased {
    remote: Arc<Remote>,
    lease: Mutex<Option<RegionLease>>,
}

impl RemoteRegion for Leased {
    fn pages(&self) -> PageCount {
        self.remote.pages()
    }

    fn open_lane(&self, config: &LaneConfig) -> Result<Box<dyn PageLane>, LaneError> {
        self.remote.open_lane(config)
    }

    fn stats(&self) -> RemoteStats {
        self.remote.stats()
    }

    fn node_name(&self, node: u16) -> String {
        self.remote.node_name(node)
    }

    fn keep_directory(&self, keep: KeepDirectory) -> Result<(), KeepError> {
        self.remote.keep_directory(keep)
    }

    fn expect(&self, page: PageIndex) {
        self.remote.expect(page);
    }

    fn is_placed(&self, page: PageIndex) -> bool {
        self.remote.is_placed(page)
    }

    fn inherits(&self, page: PageIndex) -> bool {
        self.remote.inherits(page)
    }

    fn has_room(&self) -> bool {
        self.remote.has_room()
    }

    fn replicas_of(&self, page: PageIndex) -> NodeSet {
        self.remote.replicas_of(page)
    }

    fn check_wanted(&self) -> Option<CheckOrder> {
        self.remote.check_wanted()
    }

    fn check_told(&self, report: &CheckReport) -> Result<(), AuthorityError> {
        self.remote.check_told(report)
    }

    fn release(&self) {
        self.remote.release();
        let lease = self
            .lease
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Err(error)) = lease.map(RegionLease::delete) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the region is given back, and the control plane could not be told; delete it with `myco region delete`"
            );
        }
    }
}

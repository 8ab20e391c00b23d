//! Why a call failed: one enum an operation, each with the sentence a user can act on.

use mycoram_agent::daemon::client::{AttachError as DaemonAttachError, ConnectError, OrderError};
use mycoram_agent::daemon::{Refusal, SourceError};
use mycoram_agent::kernel::{MemoryFileError, OpenUserfaultError, PidFdError, RoomsError};
use mycoram_agent::{AttachError, ParkingPipeError, RegionError};
use mycoram_control::NodesFileError;
use mycoram_control::metrics::MetricsError;
use mycoram_fabric::remote::{CreateError, TransportError};
use mycoram_fabric::session::SessionError;
use mycoram_fabric::units::ByteCount;

use crate::config::{ConfigError, ParseError, ResolveError};
use crate::fork::Forked;
use crate::status::Status;

/// Largest mapping: 2^32 pages less one, 16 TiB.
pub const MAX_MAPPING_BYTES: u64 = (u32::MAX as u64) << 12;
/// Most mappings that a process may have at a time. Each has threads, queue pairs, a userfaultfd, and pipes of
/// 4 MiB, of which an unprivileged user may have 64 MiB (`fs.pipe-user-pages-soft`).
pub const MAX_MAPPINGS: usize = 16;

/// Why far memory was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Called in a forked child.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The text is no configuration.
    #[error("far memory cannot be opened with this configuration")]
    Parse(#[from] ParseError),
    /// The configuration, made by hand, is not possible.
    #[error("far memory cannot be opened with this configuration")]
    Config(#[from] ConfigError),
    /// A memory node's name has no address.
    #[error("a memory node cannot be found")]
    Resolve(#[from] ResolveError),
    /// A memory node does not answer as one.
    #[error("far memory cannot be opened")]
    Node(#[from] SessionError),
    /// The nodes file cannot be used.
    #[error("far memory cannot be opened with this nodes file")]
    NodesFile(#[from] NodesFileError),
    /// The control plane cannot be used.
    #[error("far memory cannot be opened by this control plane")]
    Control(#[from] mycoram_control::client::OpenError),
    /// A transport is not to be had here.
    #[error("the memory nodes cannot be reached from here")]
    Transport(#[from] TransportError),
    /// Figures cannot be served where the configuration says.
    #[error("the figures of far memory cannot be served")]
    Metrics(#[from] MetricsError),
    /// There is no daemon, or it refuses.
    #[error("far memory cannot be opened through the daemon")]
    Daemon(#[from] ConnectError),
}

/// Why nothing was mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Called in a forked child.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// 0 bytes.
    #[error("a mapping of 0 bytes was asked for: it has at least one page")]
    Empty,
    /// More than can be counted.
    #[error(
        "a mapping of {asked} was asked for, the largest is {}",
        ByteCount::new(MAX_MAPPING_BYTES)
    )]
    TooLarge {
        /// What was asked, rounded up to whole pages; capped at 2^64 - 1.
        asked: ByteCount,
    },
    /// [`MAX_MAPPINGS`] are there.
    #[error("this process has {MAX_MAPPINGS} far mappings already: unmap one first")]
    TooMany,
    /// No address space, memory or descriptors.
    #[error("{what} refused the mapping")]
    Memory {
        /// Which call.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        source: nix::Error,
    },
    /// No file for the pages.
    #[error("the mapping's memory file could not be made")]
    File(#[source] MemoryFileError),
    /// No userfaultfd.
    #[error(
        "far memory needs a userfaultfd; where this process cannot have one of its own, use the daemon \
         (myco agent serve, and myco+agent:///run/mycoram-agent.sock), which hands the right over"
    )]
    Userfault(#[source] OpenUserfaultError),
    /// No rooms for pages on their way out.
    #[error("the mapping's memory for pages on their way out could not be made")]
    Rooms(#[source] RoomsError),
    /// No pipe for pages on their way out.
    #[error("the mapping's parking pipes could not be made")]
    Pipe(#[source] ParkingPipeError),
    /// This process cannot be held by a descriptor.
    #[error("this process's own pidfd could not be had")]
    PidFd(#[source] PidFdError),
    /// The memory nodes do not take it.
    #[error("the memory nodes do not take the mapping")]
    Remote(#[from] CreateError),
    /// Its identity could not be drawn, or the like.
    #[error("the mapping's remote side could not be set up")]
    Source(#[source] SourceError),
    /// There is no daemon any more, or it refuses.
    #[error("the daemon does not take the mapping")]
    Daemon(#[from] ConnectError),
    /// The daemon does not serve it.
    #[error("the mapping is not served")]
    DaemonAttach(#[from] DaemonAttachError),
    /// The agent in this process did not start serving the mapping.
    #[error("the mapping could not be attached")]
    Attach(#[from] AttachError),
}

/// Why advice was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AdviseError {
    /// Called in a forked child.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The range is not inside of the mapping.
    #[error("the range reaches outside of the mapping of {bytes}")]
    OutOfBounds {
        /// The mapping's size.
        bytes: ByteCount,
    },
    /// The agent could not follow it.
    #[error("the advice could not be followed")]
    Region(#[from] RegionError),
    /// The daemon did not do it.
    #[error("the daemon did not do it")]
    Daemon(#[from] OrderError),
}

/// Why not all of a mapping has a copy on its memory node.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// Called in a forked child.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// Pages could not be written.
    #[error("not all of the mapping has a copy on its memory node")]
    Region(#[from] RegionError),
    /// The daemon did not do it.
    #[error("the daemon did not do it")]
    Daemon(#[from] OrderError),
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// Called in a forked child.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The daemon did not do it.
    #[error("the daemon did not do it")]
    Daemon(#[from] OrderError),
}

/// Why unmapping was not clean.
#[derive(Debug, thiserror::Error)]
pub enum UnmapError {
    /// Called in a forked child.
    #[error(transparent)]
    Forked(#[from] Forked),
    /// The daemon did not do it.
    #[error("the daemon did not do it")]
    Daemon(#[from] OrderError),
}

impl OpenError {
    /// The kind of failure.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Forked(_) => Status::Forked,
            Self::Parse(_) | Self::Config(_) => Status::Config,
            Self::Resolve(_) => Status::Unreachable,
            Self::Node(error) => session_status(error),
            Self::NodesFile(_) | Self::Metrics(_) => Status::Config,
            Self::Control(error) => control_status(error),
            Self::Transport(_) => Status::System,
            Self::Daemon(error) => daemon_status(error),
        }
    }
}

impl MapError {
    /// The kind of failure.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Forked(_) => Status::Forked,
            Self::Empty | Self::TooLarge { .. } => Status::InvalidArgument,
            Self::TooMany => Status::Limit,
            Self::Userfault(OpenUserfaultError::NotPermitted { .. }) => Status::Permission,
            Self::Memory { .. }
            | Self::File(_)
            | Self::Userfault(_)
            | Self::Pipe(_)
            | Self::PidFd(_)
            | Self::Rooms(_)
            | Self::Source(_)
            | Self::Attach(_) => Status::System,
            Self::Remote(CreateError::NoRoom { .. }) => Status::NoSpace,
            Self::Remote(CreateError::Node { source, .. }) => session_status(source),
            Self::Remote(CreateError::Size(_)) => Status::InvalidArgument,
            Self::Remote(_) => Status::System,
            Self::Daemon(error) => daemon_status(error),
            Self::DaemonAttach(DaemonAttachError::Daemon(error)) => daemon_status(error),
            Self::DaemonAttach(DaemonAttachError::Userfault(
                OpenUserfaultError::NotPermitted { .. },
            )) => Status::Permission,
            Self::DaemonAttach(_) => Status::System,
        }
    }
}

impl AdviseError {
    /// The kind of failure.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Forked(_) => Status::Forked,
            Self::Daemon(error) => order_status(error),
            Self::OutOfBounds { .. } => Status::InvalidArgument,
            Self::Region(error) => region_status(error),
        }
    }
}

impl FlushError {
    /// The kind of failure.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Forked(_) => Status::Forked,
            Self::Daemon(error) => order_status(error),
            Self::Region(error) => region_status(error),
        }
    }
}

impl StatsError {
    /// The kind of failure.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Forked(_) => Status::Forked,
            Self::Daemon(error) => order_status(error),
        }
    }
}

impl UnmapError {
    /// The kind of failure.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Forked(_) => Status::Forked,
            Self::Daemon(error) => order_status(error),
        }
    }
}

fn control_status(error: &mycoram_control::client::OpenError) -> Status {
    use mycoram_control::client::OpenError;
    match error {
        OpenError::Client(error) if error.is_away() => Status::Unreachable,
        OpenError::Client(_) | OpenError::Field(_) => Status::Refused,
        OpenError::Credentials(_) => Status::Config,
        OpenError::NoNodes { .. } => Status::NoSpace,
        OpenError::Setup(_) | OpenError::Transport(_) => Status::System,
    }
}

fn session_status(error: &SessionError) -> Status {
    match error {
        SessionError::Unreachable { .. } | SessionError::Broke { .. } => Status::Unreachable,
        SessionError::Tls { .. }
        | SessionError::Protocol { .. }
        | SessionError::Version { .. }
        | SessionError::Unexpected { .. }
        | SessionError::Refused { .. } => Status::Refused,
    }
}

fn region_status(error: &RegionError) -> Status {
    match error {
        RegionError::Pages { .. } => Status::Lost,
        RegionError::OutOfRange { .. } => Status::InvalidArgument,
        RegionError::LostPages { .. } => Status::Lost,
        RegionError::Lane(_) => Status::Unreachable,
        RegionError::Failed(_) => Status::Bug,
        RegionError::Ended | RegionError::Config(_) | RegionError::State(_) => Status::System,
    }
}

fn daemon_status(error: &ConnectError) -> Status {
    match error {
        ConnectError::Socket { .. } => Status::Unreachable,
        ConnectError::Refused { source, .. } => refusal_status(source),
        ConnectError::Message { .. } | ConnectError::Unexpected { .. } => Status::Refused,
    }
}

fn refusal_status(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::NotAllowed { .. } => Status::Permission,
        Refusal::TooManyClients { .. } | Refusal::Budget { .. } => Status::Limit,
        _ => Status::Refused,
    }
}

fn order_status(error: &OrderError) -> Status {
    match error {
        OrderError::Away => Status::Unreachable,
        OrderError::Unknown => Status::Lost,
        OrderError::Refused(refusal) => refusal_status(refusal),
        OrderError::Unexpected => Status::Refused,
    }
}

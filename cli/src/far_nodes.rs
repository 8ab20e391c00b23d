//! Where pages go that are not local, as it is named on the command line: a file with memory nodes, or a
//! control plane's URL.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use mycoram_agent::daemon::{PlacedRegions, RemoteSource};
use mycoram_control::client::{
    CONTROL_SCHEME, ControlRegions, ControlUrl, ControlUrlError, OpenError,
};
use mycoram_control::{NodesFile, NodesFileError};
use mycoram_fabric::placement::Placement;
use mycoram_fabric::remote::{TransportError, Transports};
use mycoram_fabric::units::{ByteCount, DEFAULT_EXTENT_BYTES};

use crate::control::{client_failure, credentials_failure};
use crate::exit_codes;
use crate::failure::Failure;

/// What stands behind `--nodes`.
#[derive(Clone, Debug)]
pub(crate) enum FarNodes {
    /// A nodes file.
    File(PathBuf),
    /// A control plane, and what its regions are to be.
    Control(Box<ControlUrl>),
}

impl FromStr for FarNodes {
    type Err = ControlUrlError;

    fn from_str(text: &str) -> Result<Self, ControlUrlError> {
        if text.starts_with(CONTROL_SCHEME) {
            Ok(Self::Control(Box::new(text.parse()?)))
        } else {
            Ok(Self::File(text.into()))
        }
    }
}

/// The far side, known but not yet used.
pub(crate) struct OpenFar {
    pub(crate) source: Arc<dyn RemoteSource>,
    /// How many nodes there are now.
    pub(crate) nodes: usize,
    pub(crate) extent_bytes: ByteCount,
}

impl FarNodes {
    /// As a successor is to be told it.
    pub(crate) fn word(&self) -> PathBuf {
        match self {
            Self::File(path) => path.clone(),
            Self::Control(url) => url.to_string().into(),
        }
    }

    pub(crate) fn open(&self) -> Result<OpenFar, Failure> {
        match self {
            Self::File(path) => {
                let file = NodesFile::read(path).map_err(nodes_failure)?;
                let placement = file.placement();
                let transports =
                    Transports::for_nodes(placement.nodes()).map_err(transport_failure)?;
                Ok(OpenFar {
                    nodes: placement.nodes().len(),
                    source: Arc::new(
                        PlacedRegions::new(Arc::new(placement), transports)
                            .with_replicas(file.replicas()),
                    ),
                    extent_bytes: file.extent_bytes(),
                })
            }
            Self::Control(url) => {
                let regions = ControlRegions::open(url).map_err(open_failure)?;
                Ok(OpenFar {
                    nodes: regions.nodes(),
                    source: Arc::new(regions),
                    extent_bytes: ByteCount::new(DEFAULT_EXTENT_BYTES),
                })
            }
        }
    }
}

fn nodes_failure(error: NodesFileError) -> Failure {
    Failure::new(exit_codes::CONFIG, error)
}

fn transport_failure(error: TransportError) -> Failure {
    Failure::new(exit_codes::MISSING, error)
        .advise("nodes with transport = \"tcp\" are reached without a device")
}

fn open_failure(error: OpenError) -> Failure {
    match error {
        OpenError::Credentials(error) => credentials_failure(error),
        OpenError::Client(error) => client_failure(error),
        OpenError::Transport(error) => transport_failure(error),
        OpenError::NoNodes { .. } => Failure::new(exit_codes::FULL, error)
            .advise("start memory nodes with `myco node serve --control`"),
        OpenError::Setup(_) | OpenError::Field(_) => Failure::new(exit_codes::FAILURE, error),
    }
}

//! Where the pages of this process's mappings live: the memory nodes of the configuration.

use std::sync::Arc;

use mycoram_agent::Owner;
use mycoram_agent::daemon::{PlacedRegions, RemoteSource};
use mycoram_control::client::ControlRegions;
use mycoram_control::{NodesFile, StaticPlacement};
use mycoram_fabric::pages::RemoteRegion;
use mycoram_fabric::placement::{FailureDomain, NodeEntry, Placement};
use mycoram_fabric::remote::{CreateError, Transports};
use mycoram_fabric::session::{Dial, TcpDial};
use mycoram_fabric::units::ByteCount;

use crate::config::{Config, Source};
use crate::error::{MapError, OpenError};

/// Memory nodes that answered.
pub(super) struct Nodes {
    regions: Box<dyn RemoteSource>,
    extent: ByteCount,
}

impl Nodes {
    /// Asks every node whether it is there.
    pub(super) fn open(config: &Config) -> Result<Self, OpenError> {
        if let Source::Control(url) = &config.source {
            return Ok(Self {
                regions: Box::new(ControlRegions::open(url)?),
                extent: config.extent,
            });
        }
        let placement = placement(config)?;
        for node in placement.nodes() {
            TcpDial::default()
                .dial(node.control)
                .and_then(|mut channel| channel.hello())?;
        }
        let transports = Transports::for_nodes(placement.nodes())?;
        Ok(Self {
            regions: Box::new(
                PlacedRegions::new(Arc::new(placement), transports).with_replicas(config.replicas),
            ),
            extent: config.extent,
        })
    }

    /// A new region of `bytes` on them, and whose it is.
    pub(super) fn region(
        &self,
        bytes: ByteCount,
    ) -> Result<(Arc<dyn RemoteRegion>, Owner), MapError> {
        self.regions.create(bytes, self.extent).map_err(|error| {
            match error.downcast::<CreateError>() {
                Ok(create) => MapError::Remote(*create),
                Err(other) => MapError::Source(other),
            }
        })
    }
}

fn placement(config: &Config) -> Result<StaticPlacement, OpenError> {
    match &config.source {
        Source::Nodes { nodes, transport } => {
            let entries = nodes.iter().map(|node| {
                Ok(NodeEntry {
                    name: node.to_string(),
                    control: node.resolve()?,
                    transport: *transport,
                    domain: FailureDomain::default(),
                })
            });
            Ok(StaticPlacement::new(
                entries.collect::<Result<_, OpenError>>()?,
            ))
        }
        Source::NodesFile(path) => Ok(NodesFile::read(path)?.placement()),
        // A daemon and a control plane have their own nodes; who asks here has none.
        Source::Agent(_) | Source::Control(_) => Err(crate::ConfigError::NoNodes.into()),
    }
}

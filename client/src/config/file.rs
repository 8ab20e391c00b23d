//! Configuration files: TOML with the same options as a URI, and one of four sources.
//!
//! ```toml
//! local = "128MiB"
//! nodes = ["10.0.0.7:7700", "10.0.0.8:7700"]   # or nodes_file = "nodes.toml", or agent = "/run/..sock",
//!                                              # or control = "control://10.0.0.1:7400?tls=/etc/myco"
//! transport = "tcp"                            # with `nodes` only; a nodes file says its own
//! extent = "16MiB"                             # optional
//! replicas = 2                                 # optional
//! workers = 0                                  # optional
//! memory = "private"                           # optional
//! seal_key = "seal.key"                        # optional
//! metrics = "127.0.0.1:9100"                   # optional
//! ```
//!
//! A relative `nodes_file` or `seal_key` is looked for beside the file that names it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use mycoram_control::client::{ControlUrl, ControlUrlError};
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::units::{ByteCount, DEFAULT_EXTENT_BYTES};

use super::{
    Config, ConfigError, HostPort, HostPortError, Memory, Source, metrics_address, transport_named,
};

/// Largest configuration file that is read: 1 MiB.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It is too large to be one.
    #[error("{} is larger than a configuration can be ({MAX_FILE_BYTES} bytes)", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not TOML, or not these keys.
    #[error("{} is not a far memory configuration", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// One of the nodes is not `HOST:PORT`.
    #[error("{}: memory node number {number} cannot be read", path.display())]
    Node {
        /// The file.
        path: PathBuf,
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        #[source]
        source: HostPortError,
    },
    /// Two of `nodes`, `nodes_file`, `control` and `agent`.
    #[error("{} names two sources: one of nodes, nodes_file, control and agent", path.display())]
    TwoSources {
        /// The file.
        path: PathBuf,
    },
    /// Not a control plane's URL.
    #[error("{}: the control plane's URL cannot be read", path.display())]
    Control {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ControlUrlError,
    },
    /// An option that means nothing with this source.
    #[error("{}: {option} has no meaning with {source_key}", path.display())]
    Meaningless {
        /// The file.
        path: PathBuf,
        /// Which option.
        option: &'static str,
        /// With which source.
        source_key: &'static str,
    },
    /// All of it could be read, and it makes no sense.
    #[error("{} asks for what is not possible", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What.
        #[source]
        source: ConfigError,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    local: Option<ByteCount>,
    nodes: Option<Vec<String>>,
    nodes_file: Option<PathBuf>,
    control: Option<String>,
    agent: Option<PathBuf>,
    transport: Option<String>,
    extent: Option<ByteCount>,
    replicas: Option<u8>,
    workers: Option<u16>,
    memory: Option<String>,
    seal_key: Option<PathBuf>,
    metrics: Option<String>,
}

impl Config {
    /// Reads a configuration file.
    pub fn from_file(path: &Path) -> Result<Self, FileError> {
        let read = |source| FileError::Read {
            path: path.to_owned(),
            source,
        };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_FILE_BYTES {
            return Err(FileError::TooLarge {
                path: path.to_owned(),
            });
        }
        Self::from_toml(&std::fs::read_to_string(path).map_err(read)?, path)
    }

    /// Reads a configuration from a file's `text`. `path` is what errors call it and where a relative
    /// `nodes_file` starts; nothing is read from it.
    pub fn from_toml(text: &str, path: &Path) -> Result<Self, FileError> {
        let raw: Raw = toml::from_str(text).map_err(|source| FileError::Toml {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let impossible = |source| FileError::Config {
            path: path.to_owned(),
            source,
        };
        let meaningless = |option, source_key| FileError::Meaningless {
            path: path.to_owned(),
            option,
            source_key,
        };
        let given = |option: bool, name, source_key| {
            if option {
                Err(meaningless(name, source_key))
            } else {
                Ok(())
            }
        };
        let source = match (raw.nodes, raw.nodes_file, raw.agent, raw.control) {
            (None, None, None, None) => return Err(impossible(ConfigError::NoNodes)),
            (Some(nodes), None, None, None) => Source::Nodes {
                nodes: nodes
                    .iter()
                    .enumerate()
                    .map(|(index, node)| {
                        node.parse::<HostPort>().map_err(|source| FileError::Node {
                            path: path.to_owned(),
                            number: index + 1,
                            source,
                        })
                    })
                    .collect::<Result<_, _>>()?,
                transport: match &raw.transport {
                    Some(word) => transport_named(word).map_err(impossible)?,
                    None => TransportKind::Tcp,
                },
            },
            (None, Some(file), None, None) => {
                given(raw.transport.is_some(), "transport", "nodes_file")?;
                Source::NodesFile(path.parent().unwrap_or(Path::new("")).join(file))
            }
            (None, None, None, Some(url)) => {
                given(raw.transport.is_some(), "transport", "control")?;
                given(raw.replicas.is_some(), "replicas", "control")?;
                let url: ControlUrl = url.parse().map_err(|source| FileError::Control {
                    path: path.to_owned(),
                    source,
                })?;
                Source::Control(Box::new(url))
            }
            (None, None, Some(socket), None) => {
                given(raw.transport.is_some(), "transport", "agent")?;
                given(raw.extent.is_some(), "extent", "agent")?;
                given(raw.replicas.is_some(), "replicas", "agent")?;
                given(raw.workers.is_some(), "workers", "agent")?;
                given(raw.memory.is_some(), "memory", "agent")?;
                given(raw.seal_key.is_some(), "seal_key", "agent")?;
                given(raw.metrics.is_some(), "metrics", "agent")?;
                Source::Agent(socket)
            }
            _ => {
                return Err(FileError::TwoSources {
                    path: path.to_owned(),
                });
            }
        };
        // A control plane's URL says it itself.
        let of_url = match &source {
            Source::Control(url) => Some(url.replicas),
            _ => None,
        };
        let config = Self {
            source,
            local: raw.local.ok_or_else(|| impossible(ConfigError::NoLocal))?,
            extent: raw.extent.unwrap_or(ByteCount::new(DEFAULT_EXTENT_BYTES)),
            replicas: of_url.or(raw.replicas).unwrap_or(1),
            workers: raw.workers.unwrap_or(0),
            memory: match &raw.memory {
                Some(word) => word.parse().map_err(impossible)?,
                None => Memory::default(),
            },
            seal_key: raw
                .seal_key
                .map(|file| path.parent().unwrap_or(Path::new("")).join(file)),
            metrics: raw
                .metrics
                .map(|text| metrics_address(&text))
                .transpose()
                .map_err(impossible)?,
        };
        config.check().map_err(impossible)?;
        Ok(config)
    }
}

//! How far memory is to be had: which memory nodes or which daemon, and how much may be local.
//!
//! ```text
//!   "myco://HOST:PORT,..?.."   \
//!   "myco+agent:///SOCKET?.."   >  Config  ->  FarMemory::open
//!   "far.toml" (a file)        /
//! ```
//!
//! A [`Config`] is a plain value; nothing is contacted before it is opened. Combinations that make
//! no sense (no node and no daemon, both of them, a budget of no pages) do not parse.

mod file;
mod uri;

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use mycoram_control::client::ControlUrl;
use mycoram_fabric::placement::MAX_REPLICAS;
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::units::{ByteCount, DEFAULT_EXTENT_BYTES, PAGE_BYTES, ParseSizeError};

pub use file::FileError;
pub use uri::UriError;

/// Smallest local budget of a mapping: 1 MiB. Below it the agent's reserve would be the budget.
pub const MIN_LOCAL_BYTES: u64 = 1 << 20;
/// Most fault workers a mapping may be given.
pub const MAX_WORKERS: u16 = 64;
/// Most memory nodes in a configuration.
pub const MAX_NODES: usize = 256;

/// A host by name or number, and a port. Names are looked up when far memory is opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// Why a text is not `HOST:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPortError {
    /// No port, or it is not a number from 1 to 65535.
    #[error("a memory node is named as HOST:PORT (an IPv6 address as [ADDRESS]:PORT)")]
    Port,
    /// Nothing before the port, or a character that no host name has.
    #[error("this is not the name or address of a host")]
    Host,
}

impl HostPort {
    /// The host, without the brackets that an IPv6 address is written with.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its first address. Asks the resolver where the host is a name; may block for as long as that does.
    pub fn resolve(&self) -> Result<SocketAddr, ResolveError> {
        let failed = |source| ResolveError::Failed {
            host: self.clone(),
            source,
        };
        (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map_err(failed)?
            .next()
            .ok_or_else(|| ResolveError::NoAddress { host: self.clone() })
    }
}

/// Why a host's address is not known.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver said no.
    #[error("the address of memory node {host} could not be found")]
    Failed {
        /// What was looked up.
        host: HostPort,
        /// The resolver's reason.
        #[source]
        source: std::io::Error,
    },
    /// The resolver knows the name, and no address for it.
    #[error("memory node {host} has no address")]
    NoAddress {
        /// What was looked up.
        host: HostPort,
    },
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let (host, port) = text.rsplit_once(':').ok_or(HostPortError::Port)?;
        let port: u16 = port.parse().map_err(|_| HostPortError::Port)?;
        if port == 0 {
            return Err(HostPortError::Port);
        }
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let (host, valid) = match bracketed {
            Some(v6) => (v6, v6.parse::<std::net::Ipv6Addr>().is_ok()),
            None => (
                host,
                !host.is_empty()
                    && host
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')),
            ),
        };
        if !valid {
            return Err(HostPortError::Host);
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Who keeps the pages that are not local.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Memory nodes named one by one; the agent runs inside this process.
    Nodes {
        /// Their control addresses; at least one.
        nodes: Vec<HostPort>,
        /// Over which transport their memory is reached.
        transport: TransportKind,
    },
    /// Memory nodes listed in a nodes file (as for `myco vm run --nodes`); the agent runs inside this process.
    NodesFile(PathBuf),
    /// A control plane, and what its regions are to be; the agent runs inside this process.
    Control(Box<ControlUrl>),
    /// A daemon (`myco agent serve`) that was told its memory nodes; the agent runs there.
    Agent(PathBuf),
}

/// How far memory is to be had. Read from a text with [`Config::parse`] or [`str::parse`], or made by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who keeps the pages.
    pub source: Source,
    /// Bytes of *each* mapping that may be local at a time. At least [`MIN_LOCAL_BYTES`], whole pages.
    /// More costs this machine's memory, less costs faults.
    pub local: ByteCount,
    /// The unit of placement on memory nodes: a power of two from 64 KiB to 16 MiB. Default 16 MiB.
    /// Smaller spreads a small mapping over more nodes and costs more keys.
    pub extent: ByteCount,
    /// On how many memory nodes each extent lives, 1 to 4. Default 1. With more, so many less one can die and
    /// no page is lost; each costs as many bytes on the wire and at the nodes as the first. Without meaning
    /// where a daemon is the agent.
    pub replicas: u8,
    /// Fault workers a mapping, 1 to [`MAX_WORKERS`]; 0, the default, lets the agent choose. Each is a
    /// thread with a queue pair to every node. Without meaning where a daemon is the agent.
    pub workers: u16,
    /// What mappings are made of. Without meaning where a daemon is the agent.
    pub memory: Memory,
    /// The file with the key that pages are sealed with before they leave this machine; see docs/sealing.md. Default
    /// `None`: they leave as they are. Not where a daemon is the agent: it seals for all its programs or for none.
    pub seal_key: Option<PathBuf>,
    /// Where monitors read the figures of the mappings over HTTP, in the format of Prometheus; port 0 takes any.
    /// Default `None`: nowhere. Not where a daemon is the agent: it serves those of all its programs. Whoever reaches
    /// the address may read them.
    pub metrics: Option<SocketAddr>,
}

/// What a mapping is made of in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Memory {
    /// Private memory where the kernel can move its pages (Linux 6.8), else a memfd. Pages leave without
    /// being copied, and a page under direct IO stays until that is over. The default.
    #[default]
    Private,
    /// A memfd. Its pages are spliced out, which costs more, and wait a while when the program has a file
    /// open for direct IO. For direct IO on file systems that do not pin the memory (NFS, 9p, Ceph), and for
    /// programs that make parts of a mapping read-only with mprotect.
    File,
}

impl FromStr for Memory {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "private" => Ok(Self::Private),
            "file" => Ok(Self::File),
            _ => Err(ConfigError::Memory),
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private",
            Self::File => "file",
        })
    }
}

/// Why a configuration makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Neither a node nor a daemon.
    #[error(
        "no memory node is named: give at least one HOST:PORT, a nodes file or an agent's socket"
    )]
    NoNodes,
    /// More nodes than [`MAX_NODES`].
    #[error("{given} memory nodes are named, at most {MAX_NODES} can be")]
    TooManyNodes {
        /// How many there are.
        given: usize,
    },
    /// The same node twice would look like two failure domains.
    #[error("memory node {node} is named twice")]
    NodeTwice {
        /// Which.
        node: HostPort,
    },
    /// `local` was not given.
    #[error(
        "the local budget is missing: say how much of a mapping may be local, as in local=128MiB"
    )]
    NoLocal,
    /// `local` is too small or not whole pages.
    #[error(
        "a local budget of {local} is not possible: whole pages of {PAGE_BYTES} bytes, 1MiB at least"
    )]
    Local {
        /// What was asked.
        local: ByteCount,
    },
    /// `replicas` is not possible.
    #[error(
        "{replicas} replicas are not possible: 1 to {MAX_REPLICAS}, and no more than there are memory nodes"
    )]
    Replicas {
        /// What was asked.
        replicas: u8,
    },
    /// `extent` is not one of the possible sizes.
    #[error("an extent of {extent} is not possible: a power of two from 64KiB to 16MiB")]
    Extent {
        /// What was asked.
        extent: ByteCount,
    },
    /// `workers` is out of range.
    #[error("{workers} fault workers are not possible: 0 (the agent chooses) to {MAX_WORKERS}")]
    Workers {
        /// What was asked.
        workers: u16,
    },
    /// `memory` names none.
    #[error("the memory of a mapping is private or file")]
    Memory,
    /// `transport` names none.
    #[error("the transport is tcp or verbs")]
    Transport,
    /// An agent's socket is a path from the root.
    #[error("the agent's socket is an absolute path, as in myco+agent:///run/mycoram-agent.sock")]
    AgentPath,
    /// A key for pages that a daemon would seal.
    #[error(
        "a daemon seals with its own key (`myco agent serve --seal-key`), none can be given here"
    )]
    SealByAgent,
    /// An address for figures that a daemon has.
    #[error(
        "a daemon serves its programs' figures (`myco agent serve --metrics`), no address can be given here"
    )]
    MetricsByAgent,
    /// `metrics` is no address.
    #[error("metrics is an address of this machine and a port, as in metrics=127.0.0.1:9100")]
    Metrics,
    /// A size does not parse.
    #[error("{option} is not a size")]
    Size {
        /// Which option.
        option: &'static str,
        /// Why.
        #[source]
        source: ParseSizeError,
    },
}

/// Why a text gave no [`Config`].
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// It looked like a URI.
    #[error("this is not a far memory URI")]
    Uri(#[from] UriError),
    /// It was taken for the name of a configuration file.
    #[error("the configuration file cannot be used")]
    File(#[from] FileError),
}

impl Config {
    /// Memory nodes by address over tcp, with a local budget for each mapping.
    pub fn tcp(nodes: Vec<HostPort>, local: ByteCount) -> Result<Self, ConfigError> {
        Self::with_source(
            Source::Nodes {
                nodes,
                transport: TransportKind::Tcp,
            },
            local,
        )
    }

    /// Any source, with defaults for everything else.
    pub fn with_source(source: Source, local: ByteCount) -> Result<Self, ConfigError> {
        let config = Self {
            source,
            local,
            extent: ByteCount::new(DEFAULT_EXTENT_BYTES),
            replicas: 1,
            workers: 0,
            memory: Memory::default(),
            seal_key: None,
            metrics: None,
        };
        config.check()?;
        Ok(config)
    }

    /// Reads `text`: a `myco:`, `myco+agent:` or `control:` URI, or else the path of a TOML file.
    ///
    /// ```
    /// # use mycoram::Config;
    /// let config = Config::parse("myco://10.0.0.7:7700,10.0.0.8:7700?local=128MiB")?;
    /// assert_eq!(config.local.get(), 128 << 20);
    /// # Ok::<(), mycoram::ParseError>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if ["myco:", "myco+", "control:"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
        {
            Ok(text.parse::<Self>()?)
        } else {
            Ok(Self::from_file(Path::new(text))?)
        }
    }

    /// Whether everything in it is possible. `open` asks as well.
    pub fn check(&self) -> Result<(), ConfigError> {
        match &self.source {
            Source::Nodes { nodes, transport } => {
                if nodes.is_empty() {
                    return Err(ConfigError::NoNodes);
                }
                if nodes.len() > MAX_NODES {
                    return Err(ConfigError::TooManyNodes { given: nodes.len() });
                }
                for (i, node) in nodes.iter().enumerate() {
                    if nodes[..i].contains(node) {
                        return Err(ConfigError::NodeTwice { node: node.clone() });
                    }
                }
                if *transport == TransportKind::Sim {
                    return Err(ConfigError::Transport);
                }
            }
            Source::NodesFile(_) | Source::Control(_) => {}
            Source::Agent(socket) => {
                if !socket.is_absolute() {
                    return Err(ConfigError::AgentPath);
                }
                if self.seal_key.is_some() {
                    return Err(ConfigError::SealByAgent);
                }
                if self.metrics.is_some() {
                    return Err(ConfigError::MetricsByAgent);
                }
            }
        }
        if self.local.get() < MIN_LOCAL_BYTES || !self.local.is_page_aligned() {
            return Err(ConfigError::Local { local: self.local });
        }
        let extent = self.extent.get();
        if !extent.is_power_of_two() || !(64 << 10..=16 << 20).contains(&extent) {
            return Err(ConfigError::Extent {
                extent: self.extent,
            });
        }
        let nodes = match &self.source {
            Source::Nodes { nodes, .. } => nodes.len(),
            Source::NodesFile(_) | Source::Control(_) | Source::Agent(_) => {
                usize::from(MAX_REPLICAS)
            }
        };
        if !(1..=MAX_REPLICAS).contains(&self.replicas) || usize::from(self.replicas) > nodes {
            return Err(ConfigError::Replicas {
                replicas: self.replicas,
            });
        }
        if self.workers > MAX_WORKERS {
            return Err(ConfigError::Workers {
                workers: self.workers,
            });
        }
        Ok(())
    }
}

/// The transports a configuration may name, by the word it uses.
fn transport_named(word: &str) -> Result<TransportKind, ConfigError> {
    match word {
        "tcp" => Ok(TransportKind::Tcp),
        "verbs" => Ok(TransportKind::Verbs),
        _ => Err(ConfigError::Transport),
    }
}

/// Where figures are to be read.
fn metrics_address(text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| ConfigError::Metrics)
}

#[cfg(test)]
mod tests;

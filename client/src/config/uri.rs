//! URIs: `myco://HOST:PORT[,HOST:PORT...]?local=SIZE&...`, `myco+agent:///SOCKET?local=SIZE&...` and
//! `control://HOST:PORT?local=SIZE&...`.
//!
//! Options stand once, in any order: `local`, `transport`, `extent`, `replicas`, `workers`, `memory`, `seal_key` (a
//! path), `metrics` (IP:PORT); for a control plane those of its URL (see `mycoram_control`) too. What is not known is refused, so that a mistyped option is
//! not silently a default. `%XX` may stand for a byte of a path.

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use mycoram_control::client::{CONTROL_SCHEME, ControlUrl, ControlUrlError};
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::units::{ByteCount, DEFAULT_EXTENT_BYTES};

use super::{
    Config, ConfigError, HostPort, HostPortError, Memory, Source, metrics_address, transport_named,
};

const NODES_SCHEME: &str = "myco://";
const AGENT_SCHEME: &str = "myco+agent://";

/// Why a text is no far memory URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Starts with neither scheme.
    #[error(
        "it starts with myco:// (memory nodes), control:// (a control plane) or myco+agent:// (a daemon's socket)"
    )]
    Scheme,
    /// Not a control plane's.
    #[error(transparent)]
    Control(#[from] ControlUrlError),
    /// One of the nodes is not `HOST:PORT`.
    #[error("memory node number {number} cannot be read")]
    Node {
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        #[source]
        source: HostPortError,
    },
    /// An option without `=`.
    #[error("option number {number} is not of the form NAME=VALUE")]
    OptionForm {
        /// Which one, counted from 1.
        number: usize,
    },
    /// An option that there is not.
    #[error(
        "option number {number} is not known: there are local, transport, extent, replicas, workers, memory, seal_key and metrics (for myco+agent: local only)"
    )]
    OptionUnknown {
        /// Which one, counted from 1.
        number: usize,
    },
    /// The same option twice.
    #[error("option number {number} was given before")]
    OptionTwice {
        /// Which one, counted from 1.
        number: usize,
    },
    /// `%` without two hexadecimal digits, or `%00`.
    #[error("the path has a % that is not followed by two hexadecimal digits (or is %00)")]
    Escape,
    /// `replicas` is not a number.
    #[error("replicas is not a number from 1 to 4")]
    Replicas,
    /// `workers` is not a number.
    #[error("workers is not a number from 0 to 64")]
    Workers,
    /// All of it could be read, and it makes no sense.
    #[error("the configuration is not possible")]
    Config(#[from] ConfigError),
}

#[derive(Default)]
struct Options {
    local: Option<ByteCount>,
    transport: Option<TransportKind>,
    extent: Option<ByteCount>,
    replicas: Option<u8>,
    workers: Option<u16>,
    memory: Option<Memory>,
    seal_key: Option<PathBuf>,
    metrics: Option<SocketAddr>,
}

fn set<T>(slot: &mut Option<T>, number: usize, value: T) -> Result<(), UriError> {
    if slot.is_some() {
        return Err(UriError::OptionTwice { number });
    }
    *slot = Some(value);
    Ok(())
}

fn size(option: &'static str, value: &str) -> Result<ByteCount, UriError> {
    value
        .parse()
        .map_err(|source| ConfigError::Size { option, source }.into())
}

impl Options {
    fn read(query: &str, for_agent: bool) -> Result<Self, UriError> {
        let mut options = Self::default();
        for (index, part) in query.split('&').enumerate() {
            let number = index + 1;
            let (name, value) = part
                .split_once('=')
                .ok_or(UriError::OptionForm { number })?;
            match name {
                "local" => set(&mut options.local, number, size("local", value)?)?,
                "transport" if !for_agent => {
                    set(&mut options.transport, number, transport_named(value)?)?;
                }
                "extent" if !for_agent => {
                    set(&mut options.extent, number, size("extent", value)?)?;
                }
                "replicas" if !for_agent => {
                    let replicas = value.parse().map_err(|_| UriError::Replicas)?;
                    set(&mut options.replicas, number, replicas)?;
                }
                "memory" if !for_agent => {
                    set(&mut options.memory, number, value.parse::<Memory>()?)?;
                }
                "workers" if !for_agent => {
                    let workers = value.parse().map_err(|_| UriError::Workers)?;
                    set(&mut options.workers, number, workers)?;
                }
                "seal_key" if !for_agent => {
                    set(&mut options.seal_key, number, unescape(value)?)?;
                }
                "metrics" if !for_agent => {
                    set(&mut options.metrics, number, metrics_address(value)?)?;
                }
                _ => return Err(UriError::OptionUnknown { number }),
            }
        }
        Ok(options)
    }
}

impl FromStr for Config {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.starts_with(CONTROL_SCHEME) {
            return control(text);
        }
        let (rest, for_agent) = if let Some(rest) = text.strip_prefix(NODES_SCHEME) {
            (rest, false)
        } else if let Some(rest) = text.strip_prefix(AGENT_SCHEME) {
            (rest, true)
        } else {
            return Err(UriError::Scheme);
        };
        let (place, options) = match rest.split_once('?') {
            Some((place, query)) => (place, Options::read(query, for_agent)?),
            None => (rest, Options::default()),
        };
        let source = if for_agent {
            Source::Agent(unescape(place)?)
        } else {
            let place = place.strip_suffix('/').unwrap_or(place);
            if place.is_empty() {
                return Err(ConfigError::NoNodes.into());
            }
            let nodes = place
                .split(',')
                .enumerate()
                .map(|(index, node)| {
                    node.parse().map_err(|source| UriError::Node {
                        number: index + 1,
                        source,
                    })
                })
                .collect::<Result<Vec<HostPort>, _>>()?;
            Source::Nodes {
                nodes,
                transport: options.transport.unwrap_or(TransportKind::Tcp),
            }
        };
        let config = Self {
            source,
            local: options.local.ok_or(ConfigError::NoLocal)?,
            extent: options
                .extent
                .unwrap_or(ByteCount::new(DEFAULT_EXTENT_BYTES)),
            replicas: options.replicas.unwrap_or(1),
            workers: options.workers.unwrap_or(0),
            memory: options.memory.unwrap_or_default(),
            seal_key: options.seal_key,
            metrics: options.metrics,
        };
        config.check()?;
        Ok(config)
    }
}

/// A control plane's URL, with this process's own options in it.
fn control(text: &str) -> Result<Config, UriError> {
    let (address, query) = text.split_once('?').unwrap_or((text, ""));
    let own = |part: &&str| {
        let name = part.split_once('=').map_or(*part, |(name, _)| name);
        matches!(
            name,
            "local" | "extent" | "workers" | "memory" | "seal_key" | "metrics"
        )
    };
    let (own, theirs): (Vec<&str>, Vec<&str>) = query.split('&').partition(own);
    let options = match own.is_empty() {
        true => Options::default(),
        false => Options::read(&own.join("&"), false)?,
    };
    let url = format!("{address}?{}", theirs.join("&"));
    let url: ControlUrl = url.parse()?;
    let config = Config {
        replicas: url.replicas,
        source: Source::Control(Box::new(url)),
        local: options.local.ok_or(ConfigError::NoLocal)?,
        extent: options
            .extent
            .unwrap_or(ByteCount::new(DEFAULT_EXTENT_BYTES)),
        workers: options.workers.unwrap_or(0),
        memory: options.memory.unwrap_or_default(),
        seal_key: options.seal_key,
        metrics: options.metrics,
    };
    config.check()?;
    Ok(config)
}

/// The URI that means this configuration; for a nodes file, which no URI names, its path.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Nodes { nodes, transport } => {
                f.write_str(NODES_SCHEME)?;
                for (i, node) in nodes.iter().enumerate() {
                    write!(f, "{}{node}", if i == 0 { "" } else { "," })?;
                }
                let transport = match transport {
                    TransportKind::Verbs => "verbs",
                    TransportKind::Tcp => "tcp",
                    TransportKind::Sim => "sim",
                };
                write!(
                    f,
                    "?local={}&transport={transport}&extent={}&replicas={}&workers={}&memory={}",
                    self.local, self.extent, self.replicas, self.workers, self.memory
                )?;
                self.write_optional(f)
            }
            Source::Agent(socket) => {
                f.write_str(AGENT_SCHEME)?;
                escape(socket, f)?;
                write!(f, "?local={}", self.local)
            }
            Source::Control(url) => {
                write!(
                    f,
                    "{url}&local={}&extent={}&workers={}&memory={}",
                    self.local, self.extent, self.workers, self.memory
                )?;
                self.write_optional(f)
            }
            Source::NodesFile(file) => write!(f, "{}", file.display()),
        }
    }
}

impl Config {
    /// What has no default.
    fn write_optional(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.seal_key {
            f.write_str("&seal_key=")?;
            escape(file, f)?;
        }
        match self.metrics {
            Some(address) => write!(f, "&metrics={address}"),
            None => Ok(()),
        }
    }
}

fn escape(path: &Path, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'-' | b'_') {
            write!(f, "{}", byte as char)?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

fn unescape(text: &str) -> Result<PathBuf, UriError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|d| (d as char).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) if high + low > 0 => bytes.push((high * 16 + low) as u8),
            _ => return Err(UriError::Escape),
        }
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

//! The nodes file: which memory nodes there are, written by people.
//!
//! ```toml
//! extent = "16MiB"              # optional: the unit of placement of new regions
//! replicas = 2                  # optional: on how many nodes each extent of new regions lives; 1
//!
//! [[node]]
//! name = "n1"                   # unique; placement goes by it, so renaming a node moves extents
//! control = "10.0.0.7:7700"     # HOST:PORT, as `myco node serve` prints it
//! transport = "tcp"             # or "verbs"; optional: tcp
//! weight = 1                    # optional: its share of the extents, in proportion to the others'
//! region = "eu"                 # optional, as are zone, rack and host: what it fails together with;
//! zone = "a"                    # replicas of an extent are kept apart
//! rack = "r7"
//! host = "h3"
//! ```
//!
//! Every complaint names the file, the line and what to do.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use mycoram_fabric::placement::{FailureDomain, MAX_REPLICAS, NodeEntry};
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::units::{ByteCount, DEFAULT_EXTENT_BYTES};
use serde::Deserialize;
use toml::Spanned;

use crate::rendezvous::Weight;
use crate::static_placement::StaticPlacement;

/// Largest nodes file that is read: 1 MiB.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most nodes in a file.
const MAX_NODES: usize = 1024;
/// Longest name of a node.
const MAX_NAME_BYTES: usize = 255;

/// What a nodes file says.
#[derive(Clone, Debug)]
pub struct NodesFile {
    extent_bytes: ByteCount,
    replicas: u8,
    nodes: Vec<(NodeEntry, Weight)>,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The address.
    #[error(
        "\"{address}\" is no address: write HOST:PORT, such as 10.0.0.7:7700 or [fd00::7]:7700"
    )]
    Address {
        /// What stands there.
        address: String,
    },
    /// The host's name.
    #[error("the host of \"{address}\" cannot be found: correct its name, or write its IP address")]
    Resolve {
        /// What stands there.
        address: String,
        /// The system's reason; `None`: the name has no address.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The transport.
    #[error("\"{transport}\" is no transport: write \"tcp\" or \"verbs\"")]
    Transport {
        /// What stands there.
        transport: String,
    },
    /// A name that stands twice.
    #[error("there is a node \"{name}\" already in line {first}: give each a name of its own")]
    SameName {
        /// The name.
        name: String,
        /// The line of the other one.
        first: usize,
    },
    /// An address that stands twice.
    #[error(
        "node \"{name}\" has this address already: a node that is named twice would be asked twice"
    )]
    SameAddress {
        /// The other node.
        name: String,
    },
    /// No name, or too long a one.
    #[error("a node's name has 1 to {MAX_NAME_BYTES} bytes")]
    Name,
    /// The weight.
    #[error(
        "{weight} is no weight: write a number above 0, at most {}",
        Weight::MAX
    )]
    Weight {
        /// What stands there.
        weight: f64,
    },
    /// The replicas.
    #[error(
        "{asked} replicas cannot be: write 1 to {MAX_REPLICAS}, and no more than there are nodes ({nodes})"
    )]
    Replicas {
        /// What stands there.
        asked: u8,
        /// How many nodes there are.
        nodes: usize,
    },
    /// The extent.
    #[error("{extent} is no size for an extent: write whole pages (4KiB), at most 16MiB")]
    Extent {
        /// What stands there.
        extent: ByteCount,
    },
}

/// Why a nodes file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NodesFileError {
    /// It cannot be read.
    #[error("the nodes file {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Too large to be one.
    #[error("{} is larger than a nodes file can be ({MAX_FILE_BYTES} bytes)", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not TOML, or not these keys. The source says where and what.
    #[error("{} is not a nodes file", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// It names nobody.
    #[error("{} names no memory node: add a [[node]] with name and control", path.display())]
    NoNodes {
        /// The file.
        path: PathBuf,
    },
    /// Too many of them.
    #[error("{} names {nodes} memory nodes, at most {MAX_NODES} are used", path.display())]
    TooManyNodes {
        /// The file.
        path: PathBuf,
        /// How many.
        nodes: usize,
    },
    /// A line that makes no sense.
    #[error("{}:{line}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        problem: Problem,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    extent: Option<Spanned<ByteCount>>,
    replicas: Option<Spanned<u8>>,
    #[serde(default)]
    node: Vec<RawNode>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    name: Spanned<String>,
    control: Spanned<String>,
    transport: Option<Spanned<String>>,
    weight: Option<Spanned<f64>>,
    #[serde(default)]
    region: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    rack: String,
    #[serde(default)]
    host: String,
}

impl NodesFile {
    /// Reads the file. Names of hosts are looked up.
    pub fn read(path: &Path) -> Result<Self, NodesFileError> {
        let read = |source| NodesFileError::Read {
            path: path.to_owned(),
            source,
        };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_FILE_BYTES {
            return Err(NodesFileError::TooLarge {
                path: path.to_owned(),
            });
        }
        Self::parse(&std::fs::read_to_string(path).map_err(read)?, path)
    }

    /// Reads a file's `text`; `path` is what errors call it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, NodesFileError> {
        let raw: Raw = toml::from_str(text).map_err(|source| NodesFileError::Toml {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        if raw.node.is_empty() {
            return Err(NodesFileError::NoNodes {
                path: path.to_owned(),
            });
        }
        if raw.node.len() > MAX_NODES {
            return Err(NodesFileError::TooManyNodes {
                path: path.to_owned(),
                nodes: raw.node.len(),
            });
        }
        let lines = Lines { text, path };
        let extent_bytes = match raw.extent {
            None => ByteCount::new(DEFAULT_EXTENT_BYTES),
            Some(extent) => {
                let bytes = *extent.get_ref();
                let fits = bytes.get() > 0 && bytes.get() <= DEFAULT_EXTENT_BYTES;
                if !fits || !bytes.is_page_aligned() {
                    return Err(lines.complain(&extent, Problem::Extent { extent: bytes }));
                }
                bytes
            }
        };
        let replicas = match raw.replicas {
            None => 1,
            Some(replicas) => {
                let asked = *replicas.get_ref();
                if !(1..=MAX_REPLICAS).contains(&asked) || usize::from(asked) > raw.node.len() {
                    let nodes = raw.node.len();
                    let problem = Problem::Replicas { asked, nodes };
                    return Err(lines.complain(&replicas, problem));
                }
                asked
            }
        };
        let mut nodes: Vec<(NodeEntry, Weight)> = Vec::with_capacity(raw.node.len());
        let mut names: Vec<usize> = Vec::with_capacity(raw.node.len());
        for node in raw.node {
            let name = node.name.get_ref();
            if name.is_empty() || name.len() > MAX_NAME_BYTES {
                return Err(lines.complain(&node.name, Problem::Name));
            }
            if let Some(other) = nodes.iter().position(|(known, _)| known.name == *name) {
                let problem = Problem::SameName {
                    name: name.clone(),
                    first: names[other],
                };
                return Err(lines.complain(&node.name, problem));
            }
            let control = resolve(node.control.get_ref())
                .map_err(|problem| lines.complain(&node.control, problem))?;
            if let Some((other, _)) = nodes.iter().find(|(known, _)| known.control == control) {
                let problem = Problem::SameAddress {
                    name: other.name.clone(),
                };
                return Err(lines.complain(&node.control, problem));
            }
            let transport = match &node.transport {
                None => TransportKind::Tcp,
                Some(transport) => match transport.get_ref().as_str() {
                    "tcp" => TransportKind::Tcp,
                    "verbs" => TransportKind::Verbs,
                    other => {
                        let problem = Problem::Transport {
                            transport: other.to_owned(),
                        };
                        return Err(lines.complain(transport, problem));
                    }
                },
            };
            let weight = match &node.weight {
                None => Weight::ONE,
                Some(weight) => Weight::new(*weight.get_ref()).ok_or_else(|| {
                    let problem = Problem::Weight {
                        weight: *weight.get_ref(),
                    };
                    lines.complain(weight, problem)
                })?,
            };
            names.push(lines.line(&node.name));
            let entry = NodeEntry {
                name: name.clone(),
                control,
                transport,
                domain: FailureDomain {
                    region: node.region,
                    zone: node.zone,
                    rack: node.rack,
                    host: node.host,
                },
            };
            nodes.push((entry, weight));
        }
        Ok(Self {
            extent_bytes,
            replicas,
            nodes,
        })
    }

    /// The unit of placement of new regions.
    #[must_use]
    pub fn extent_bytes(&self) -> ByteCount {
        self.extent_bytes
    }

    /// On how many nodes each extent of new regions lives.
    #[must_use]
    pub fn replicas(&self) -> u8 {
        self.replicas
    }

    /// Placement over these nodes.
    #[must_use]
    pub fn placement(&self) -> StaticPlacement {
        StaticPlacement::weighted(self.nodes.clone())
    }
}

/// The address behind HOST:PORT; of a host with several, the first.
fn resolve(address: &str) -> Result<SocketAddr, Problem> {
    if let Ok(address) = address.parse() {
        return Ok(address);
    }
    let port = address
        .rsplit_once(':')
        .map(|(_, port)| port.parse::<u16>());
    if !matches!(port, Some(Ok(port)) if port != 0) {
        return Err(Problem::Address {
            address: address.to_owned(),
        });
    }
    let unknown = |source| Problem::Resolve {
        address: address.to_owned(),
        source,
    };
    let mut found = address
        .to_socket_addrs()
        .map_err(|error| unknown(Some(error)))?;
    found.next().ok_or_else(|| unknown(None))
}

/// Where in the file something stands.
struct Lines<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Lines<'_> {
    fn line<T>(&self, at: &Spanned<T>) -> usize {
        let before = self.text.get(..at.span().start).unwrap_or_default();
        before.matches('\n').count() + 1
    }

    fn complain<T>(&self, at: &Spanned<T>, problem: Problem) -> NodesFileError {
        NodesFileError::Line {
            path: self.path.to_owned(),
            line: self.line(at),
            problem,
        }
    }
}

impl fmt::Display for NodesFile {
    /// As a nodes file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "extent = \"{}\"", self.extent_bytes)?;
        writeln!(f, "replicas = {}", self.replicas)?;
        for (node, weight) in &self.nodes {
            let transport = match node.transport {
                TransportKind::Verbs => "verbs",
                TransportKind::Tcp | TransportKind::Sim => "tcp",
            };
            writeln!(
                f,
                "\n[[node]]\nname = {:?}\ncontrol = \"{}\"\ntransport = \"{transport}\"\nweight = {:?}",
                node.name,
                node.control,
                weight.get()
            )?;
            let domain = &node.domain;
            for (level, name) in [
                ("region", &domain.region),
                ("zone", &domain.zone),
                ("rack", &domain.rack),
                ("host", &domain.host),
            ] {
                if !name.is_empty() {
                    writeln!(f, "{level} = {name:?}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use mycoram_fabric::placement::Placement;

    use super::*;

    fn parse(text: &str) -> Result<NodesFile, NodesFileError> {
        NodesFile::parse(text, Path::new("nodes.toml"))
    }

    /// Message and cause, as a person gets them.
    fn complaint(text: &str) -> String {
        let error = parse(text).expect_err("wrong");
        let cause = error.source().map(|cause| format!(": {cause}"));
        format!("{error}{}", cause.unwrap_or_default())
    }

    #[test]
    fn a_file_says_nodes_and_defaults() {
        let file = parse(
            "extent = \"1MiB\"\nreplicas = 2\n[[node]]\nname = \"a\"\ncontrol = \"127.0.0.1:7700\"\n\
             [[node]]\nname = \"b\"\ncontrol = \"[::1]:7700\"\ntransport = \"verbs\"\nweight = 2\n\
             zone = \"z\"\nhost = \"h\"\n",
        );
        let file = file.expect("a nodes file");
        assert_eq!(file.extent_bytes(), ByteCount::mib(1));
        assert_eq!(file.replicas(), 2);
        let placement = file.placement();
        let nodes = placement.nodes();
        assert_eq!(nodes[0].transport, TransportKind::Tcp);
        assert_eq!(
            (nodes[1].transport, nodes[1].name.as_str()),
            (TransportKind::Verbs, "b")
        );
        assert_eq!(file.nodes[1].1, Weight::new(2.0).expect("a weight"));
        assert_eq!(nodes[0].domain, FailureDomain::default());
        assert_eq!(
            (nodes[1].domain.zone.as_str(), nodes[1].domain.host.as_str()),
            ("z", "h")
        );
        let again = parse(&file.to_string()).expect("its own words");
        assert_eq!(again.nodes, file.nodes);
    }

    #[test]
    fn a_host_may_have_a_name() {
        let file = parse("[[node]]\nname = \"a\"\ncontrol = \"localhost:7700\"\n").expect("known");
        assert!(file.placement().nodes()[0].control.ip().is_loopback());
        assert_eq!(file.extent_bytes(), ByteCount::new(DEFAULT_EXTENT_BYTES));
    }

    #[test]
    fn complaints_name_the_line_and_what_to_do() {
        let node = "[[node]]\nname = \"a\"\ncontrol = \"127.0.0.1:7700\"\n";
        for (text, line, says) in [
            (
                "[[node]]\nname = \"a\"\ncontrol = \"10.0.0.7\"\n",
                3,
                "write HOST:PORT",
            ),
            (
                "[[node]]\nname = \"a\"\ncontrol = \"nowhere.invalid:7700\"\n",
                3,
                "cannot be found",
            ),
            (
                &format!("{node}transport = \"udp\"\n"),
                4,
                "\"tcp\" or \"verbs\"",
            ),
            (&format!("{node}weight = -1\n"), 4, "above 0"),
            (&format!("{node}weight = nan\n"), 4, "above 0"),
            (&format!("{node}{node}"), 5, "already in line 2"),
            (
                &format!("{node}[[node]]\nname = \"b\"\ncontrol = \"127.0.0.1:7700\"\n"),
                6,
                "\"a\" has this address already",
            ),
            (&format!("extent = \"5KiB\"\n{node}"), 1, "whole pages"),
            (&format!("extent = \"32MiB\"\n{node}"), 1, "at most 16MiB"),
            (
                &format!("replicas = 2\n{node}"),
                1,
                "no more than there are nodes (1)",
            ),
            (&format!("replicas = 0\n{node}"), 1, "write 1 to 4"),
            (
                "\n[[node]]\nname = \"\"\ncontrol = \"127.0.0.1:7700\"\n",
                3,
                "1 to 255",
            ),
        ] {
            let said = complaint(text);
            assert!(said.starts_with(&format!("nodes.toml:{line}:")), "{said}");
            assert!(said.contains(says), "{said}");
        }
    }

    #[test]
    fn what_is_no_nodes_file_is_refused_with_its_place() {
        let said = complaint("[[node]]\nname = \"a\"\n");
        assert!(
            said.contains("missing field `control`") && said.contains("line 1"),
            "{said}"
        );
        let said = complaint("[[node]]\nname = \"a\"\ncontrol = \"127.0.0.1:1\"\ncolour = 3\n");
        assert!(
            said.contains("unknown field `colour`") && said.contains("line 4"),
            "{said}"
        );
        assert!(complaint("extent = \"much\"\n[[node]]").contains("a size is a whole number"));
        assert!(complaint("").contains("names no memory node"));
        assert!(complaint("[[node").contains("line 1"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = NodesFile::read(Path::new("/nonexistent/nodes.toml")).expect_err("absent");
        assert!(
            error.to_string().contains("/nonexistent/nodes.toml"),
            "{error}"
        );
    }
}

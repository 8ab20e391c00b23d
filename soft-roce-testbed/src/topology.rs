//! The rxe devices a run gets: a plan of commands, made without running any of them.
//!
//! ```text
//!  pair (every kernel)                          nodes:N (7.2)
//!
//!   initial namespace                            initial namespace        n1          nN
//!   rxe1 on mycv1 ══veth══ mycv2 with rxe2       rxe0 on mycbr ─ mycp1 ═ eth0/rxe1 …  eth0/rxeN
//!   10.77.0.1               10.77.0.2            10.77.0.254              10.77.0.1   10.77.0.N
//! ```
//!
//! In a pair both ends are in one namespace, so the kernel would take the short cut over `lo`. Routing
//! rules keep it from that: what goes to the other end's address leaves by the veth and is delivered
//! only when it has crossed. MTU 9000 gives RDMA an MTU of 4096: one packet for a page.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::KernelSeries;

/// Most nodes of a topology; each costs a namespace, a veth and an rxe device.
pub const NODES_MAX: u8 = 16;

const MTU: &str = "9000";
/// The bridge of `nodes:N`.
pub(crate) const BRIDGE: &str = "mycbr";
/// A bridge that is not told its address takes the least of its ports', and another one when that port
/// leaves: all who had resolved the bridge then send to an address that nobody has.
const BRIDGE_LINK_ADDRESS: &str = "02:4d:79:63:6f:fe";
/// The device of the initial namespace in `nodes:N`.
const HUB: u8 = 254;

/// Which rxe devices there are, and how they are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Topology {
    /// Two devices in the initial namespace, joined by a veth pair that traffic really crosses.
    Pair,
    /// That many namespaces `n1..nN` on a bridge, a device in each, and one in the initial namespace.
    Nodes(u8),
}

/// A topology that cannot be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TopologyError {
    /// Not a topology's name.
    #[error("topology {asked:?} is neither pair nor nodes:N with N from 1 to {NODES_MAX}")]
    Unknown {
        /// What was asked for.
        asked: Box<str>,
    },
    /// This kernel binds rxe to the initial namespace.
    #[error("nodes:N needs rxe inside namespaces, which kernel {kernel} lacks: use 7.2, or pair")]
    NeedsNamespaces {
        /// The kernel asked for.
        kernel: KernelSeries,
    },
}

/// One thing to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Run this program with these arguments.
    Run(Vec<String>),
    /// Write a value to a file under `/proc/sys`.
    Write { path: String, value: &'static str },
    /// Wait until this device's port is active and has a GID for the address.
    AwaitGid { device: String, address: Ipv4Addr },
}

/// Where one device of a topology is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    index: u8,
    namespace: Option<String>,
    netdev: String,
    /// The bridge port in the initial namespace.
    port: Option<String>,
}

impl Node {
    fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, if self.index == 0 { HUB } else { self.index })
    }

    fn device(&self) -> String {
        format!("rxe{}", self.index)
    }
}

impl Topology {
    /// Refuses what `kernel` cannot do.
    pub fn checked_for(self, kernel: KernelSeries) -> Result<Self, TopologyError> {
        match self {
            Self::Nodes(_) if !kernel.has_rxe_in_namespaces() => {
                Err(TopologyError::NeedsNamespaces { kernel })
            }
            _ => Ok(self),
        }
    }

    /// Steps that make it. All are safe to undo with [`Topology::undo`] after any of them failed.
    pub(crate) fn steps(self) -> Vec<Step> {
        let mut steps = match self {
            Self::Pair => pair_steps(),
            Self::Nodes(_) => bridge_steps(),
        };
        let nodes = self.nodes();
        steps.extend(nodes.iter().flat_map(node_steps));
        // Only now: an end of a veth has no carrier before the other end is up.
        steps.extend(nodes.iter().map(|node| Step::AwaitGid {
            device: node.device(),
            address: node.address(),
        }));
        steps
    }

    /// Steps that take it away again. Each may fail where its object was never made.
    pub(crate) fn undo(self) -> Vec<Step> {
        let mut steps = Vec::new();
        for node in self.nodes() {
            steps.push(run(&["rdma", "link", "del", &node.device()]));
        }
        match self {
            Self::Pair => {
                steps.push(run(&["ip", "rule", "add", "pref", "0", "lookup", "local"]));
                steps.push(run(&["ip", "rule", "del", "pref", "100"]));
                for pref in ["10", "11", "15", "16", "20", "21"] {
                    steps.push(run(&["ip", "rule", "del", "pref", pref]));
                }
                steps.push(run(&["ip", "link", "del", "mycv1"]));
            }
            Self::Nodes(_) => {
                for node in self.nodes() {
                    if let Some(namespace) = &node.namespace {
                        steps.push(run(&["ip", "netns", "del", namespace]));
                    }
                }
                steps.push(run(&["ip", "link", "del", BRIDGE]));
            }
        }
        steps
    }

    /// The variables by which a command inside finds the devices.
    pub(crate) fn environment(self) -> Vec<(String, String)> {
        let mut variables = vec![("MYCORAM_TESTBED_TOPOLOGY".to_owned(), self.to_string())];
        let nodes = self.nodes();
        let count = nodes.iter().filter(|node| node.index > 0).count();
        variables.push(("MYCORAM_RXE_COUNT".to_owned(), count.to_string()));
        for node in nodes {
            let mut variable = |what: &str, value: String| {
                variables.push((format!("MYCORAM_RXE_{what}_{}", node.index), value))
            };
            variable("ADDR", node.address().to_string());
            variable("DEV", node.device());
            variable("NETDEV", node.netdev.clone());
            variable("NETNS", node.namespace.clone().unwrap_or_default());
            if let Some(port) = &node.port {
                variable("PORT", port.clone());
            }
        }
        variables
    }

    fn nodes(self) -> Vec<Node> {
        match self {
            Self::Pair => (1..=2)
                .map(|index| Node {
                    index,
                    namespace: None,
                    netdev: format!("mycv{index}"),
                    port: None,
                })
                .collect(),
            Self::Nodes(count) => std::iter::once(Node {
                index: 0,
                namespace: None,
                netdev: BRIDGE.to_owned(),
                port: None,
            })
            .chain((1..=count).map(|index| Node {
                index,
                namespace: Some(format!("n{index}")),
                netdev: "eth0".to_owned(),
                port: Some(format!("mycp{index}")),
            }))
            .collect(),
        }
    }
}

/// A program and its arguments, run in `namespace` (the initial one if `None`).
pub(crate) fn inside_namespace(namespace: Option<&str>, words: &[&str]) -> Vec<String> {
    let enter: &[&str] = match namespace {
        Some(namespace) => &["ip", "netns", "exec", namespace],
        None => &[],
    };
    enter
        .iter()
        .chain(words)
        .map(|word| (*word).to_owned())
        .collect()
}

fn run(words: &[&str]) -> Step {
    Step::Run(inside_namespace(None, words))
}

/// The route by which an end of a pair reaches the other end; `None` for what is no end of a pair.
pub(crate) fn pair_route(index: u8, netdev: &str) -> Option<Vec<String>> {
    let (other, own, table) = match index {
        1 => ("10.77.0.2", "10.77.0.1", "7701"),
        2 => ("10.77.0.1", "10.77.0.2", "7702"),
        _ => return None,
    };
    let words = [
        "ip", "route", "replace", other, "dev", netdev, "src", own, "table", table,
    ];
    Some(inside_namespace(None, &words))
}

fn pair_steps() -> Vec<Step> {
    let mut steps = vec![
        run(&[
            "ip", "link", "add", "mycv1", "mtu", MTU, "type", "veth", "peer", "name", "mycv2",
            "mtu", MTU,
        ]),
        // What arrives over the link is delivered …
        run(&[
            "ip", "rule", "add", "pref", "10", "iif", "mycv1", "lookup", "local",
        ]),
        run(&[
            "ip", "rule", "add", "pref", "11", "iif", "mycv2", "lookup", "local",
        ]),
        // … what an end sends to itself stays …
        run(&[
            "ip",
            "rule",
            "add",
            "pref",
            "15",
            "from",
            "10.77.0.1",
            "to",
            "10.77.0.1",
            "lookup",
            "local",
        ]),
        run(&[
            "ip",
            "rule",
            "add",
            "pref",
            "16",
            "from",
            "10.77.0.2",
            "to",
            "10.77.0.2",
            "lookup",
            "local",
        ]),
        // … what goes to the other end leaves by the link …
        run(&[
            "ip",
            "rule",
            "add",
            "pref",
            "20",
            "to",
            "10.77.0.2",
            "lookup",
            "7701",
        ]),
        run(&[
            "ip",
            "rule",
            "add",
            "pref",
            "21",
            "to",
            "10.77.0.1",
            "lookup",
            "7702",
        ]),
        // … and only then comes the kernel's own short cut.
        run(&["ip", "rule", "add", "pref", "100", "lookup", "local"]),
        run(&["ip", "rule", "del", "pref", "0"]),
    ];
    for netdev in ["all", "mycv1", "mycv2"] {
        let path = |name: &str| format!("/proc/sys/net/ipv4/conf/{netdev}/{name}");
        steps.push(Step::Write {
            path: path("rp_filter"),
            value: "0",
        });
        steps.push(Step::Write {
            path: path("accept_local"),
            value: "1",
        });
        steps.push(Step::Write {
            path: path("arp_ignore"),
            value: "1",
        });
        steps.push(Step::Write {
            path: path("arp_announce"),
            value: "2",
        });
    }
    steps
}

fn bridge_steps() -> Vec<Step> {
    vec![
        run(&[
            "ip",
            "link",
            "add",
            BRIDGE,
            "address",
            BRIDGE_LINK_ADDRESS,
            "type",
            "bridge",
        ]),
        run(&["ip", "link", "set", BRIDGE, "mtu", MTU]),
    ]
}

fn node_steps(node: &Node) -> Vec<Step> {
    let mut steps = Vec::new();
    let namespace = node.namespace.as_deref();
    let within = |words: &[&str]| Step::Run(inside_namespace(namespace, words));
    let (netdev, device) = (node.netdev.as_str(), node.device());
    let with_prefix = format!("{}/24", node.address());
    if let (Some(namespace), Some(port)) = (namespace, &node.port) {
        steps.push(run(&["ip", "netns", "add", namespace]));
        steps.push(run(&[
            "ip", "link", "add", port, "mtu", MTU, "type", "veth", "peer", "name", netdev, "mtu",
            MTU, "netns", namespace,
        ]));
        steps.push(run(&["ip", "link", "set", port, "master", BRIDGE, "up"]));
        steps.push(within(&["ip", "link", "set", "lo", "up"]));
    }
    steps.push(within(&[
        "ip",
        "address",
        "add",
        &with_prefix,
        "dev",
        netdev,
    ]));
    steps.push(within(&["ip", "link", "set", netdev, "up"]));
    if namespace.is_none() {
        steps.extend(pair_route(node.index, netdev).map(Step::Run));
    }
    steps.push(within(&[
        "rdma", "link", "add", &device, "type", "rxe", "netdev", netdev,
    ]));
    steps
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pair => f.write_str("pair"),
            Self::Nodes(count) => write!(f, "nodes:{count}"),
        }
    }
}

impl FromStr for Topology {
    type Err = TopologyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || TopologyError::Unknown { asked: text.into() };
        match text.split_once(':') {
            None if text == "pair" => Ok(Self::Pair),
            Some(("nodes", count)) => {
                let count = count.parse::<u8>().map_err(|_| unknown())?;
                if (1..=NODES_MAX).contains(&count) {
                    Ok(Self::Nodes(count))
                } else {
                    Err(unknown())
                }
            }
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests;

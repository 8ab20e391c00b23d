//! Faults on the links between rxe devices, for tests that run inside the test bed.
//!
//! A [`Fault`] lasts as long as its guard: dropping it heals the link, also when a test panics.
//!
//! ```text
//!   Node::find(1) ── down ───────> own link down: work is flushed at once, a port event comes
//!                 ── port_down ──> the bridge's end: the device sees a black hole, no event
//!                 ── netem ──────> loss, delay, or everything lost, of what this node sends
//! ```
//!
//! It runs `ip` and `tc` in the node's namespace, and needs root, which inside the test bed it has.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::topology::{inside_namespace, pair_route};

/// Packets a netem queue holds: enough for the delay times the rate of an emulated link.
const NETEM_QUEUE_PACKETS: u32 = 10_000;

/// One rxe device of the topology and its link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    index: u8,
    address: Ipv4Addr,
    device: Box<str>,
    netdev: Box<str>,
    /// `None` is the initial namespace.
    namespace: Option<Box<str>>,
    port: Option<Box<str>>,
}

/// What a link does to the packets a node sends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Netem {
    /// Added to each packet. Default: none.
    pub delay: Duration,
    /// Share of packets lost, 0 to 100. Default: none.
    pub loss_percent: f32,
}

impl Netem {
    /// Everything is lost: the path is a black hole.
    pub const BLACK_HOLE: Self = Self {
        delay: Duration::ZERO,
        loss_percent: 100.0,
    };

    /// Each packet takes this much longer.
    pub const fn delay(delay: Duration) -> Self {
        Self {
            delay,
            loss_percent: 0.0,
        }
    }

    /// This share of the packets is lost.
    pub const fn loss(percent: f32) -> Self {
        Self {
            delay: Duration::ZERO,
            loss_percent: percent,
        }
    }

    fn words(self, netdev: &str) -> Vec<String> {
        let mut words: Vec<String> = ["tc", "qdisc", "replace", "dev", netdev, "root", "netem"]
            .map(str::to_owned)
            .into();
        words.extend(["limit".to_owned(), NETEM_QUEUE_PACKETS.to_string()]);
        if !self.delay.is_zero() {
            words.extend(["delay".to_owned(), format!("{}us", self.delay.as_micros())]);
        }
        if self.loss_percent > 0.0 {
            words.extend(["loss".to_owned(), format!("{}%", self.loss_percent)]);
        }
        words
    }
}

/// Why a fault could not be made or healed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No such device: not inside the test bed, or the topology has fewer.
    #[error("the test bed's variable {variable} is missing or malformed")]
    NoNode {
        /// Which.
        variable: Box<str>,
    },
    /// A pair has no bridge between its ends.
    #[error("topology pair has no bridge; use nodes:N to take a bridge's port down")]
    NoPort,
    /// A program could not be started.
    #[error("cannot run {program}")]
    Start {
        /// Its name.
        program: Box<str>,
        /// Why.
        source: io::Error,
    },
    /// A program refused.
    #[error("{command} failed: {said}")]
    Failed {
        /// As it was run.
        command: Box<str>,
        /// What it wrote.
        said: Box<str>,
    },
    /// The link's counters.
    #[error("cannot read the counters of {netdev}: {said}")]
    Counters {
        /// The network device.
        netdev: Box<str>,
        /// What there was instead of a number.
        said: Box<str>,
    },
}

/// What a link has carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
}

impl Node {
    /// The node with this number, from the test bed's variables. In `nodes:N` number 0 is the device
    /// of the initial namespace.
    pub fn find(index: u8) -> Result<Self, LinkError> {
        Self::from_variables(index, |name| std::env::var(name).ok())
    }

    fn from_variables(
        index: u8,
        value: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, LinkError> {
        let needed = |what: &str| {
            let variable = format!("MYCORAM_RXE_{what}_{index}");
            value(&variable).ok_or(LinkError::NoNode {
                variable: variable.into(),
            })
        };
        let address = needed("ADDR")?.parse().map_err(|_| LinkError::NoNode {
            variable: format!("MYCORAM_RXE_ADDR_{index}").into(),
        })?;
        let namespace =
            value(&format!("MYCORAM_RXE_NETNS_{index}")).filter(|namespace| !namespace.is_empty());
        Ok(Self {
            index,
            address,
            device: needed("DEV")?.into(),
            netdev: needed("NETDEV")?.into(),
            namespace: namespace.map(Into::into),
            port: value(&format!("MYCORAM_RXE_PORT_{index}")).map(Into::into),
        })
    }

    /// The address its device is reached at.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The RDMA device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The network device below it.
    pub fn netdev(&self) -> &str {
        &self.netdev
    }

    /// Its namespace; `None` is the initial one.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The index of its GID, now: ask each time, an index does not last.
    pub fn gid_index(&self) -> Option<u32> {
        crate::device::gid_index(self.device(), self.address)
    }

    /// Whether its port can carry traffic.
    pub fn is_active(&self) -> bool {
        crate::device::port_is_active(self.device())
    }

    /// A command that will run in this node's namespace.
    pub fn command(&self, program: &str) -> Command {
        let words = inside_namespace(self.namespace(), &[program]);
        let mut words = words.iter();
        let mut command = Command::new(words.next().map_or(program, String::as_str));
        command.args(words);
        command
    }

    /// What its link has carried so far.
    pub fn counters(&self) -> Result<Counters, LinkError> {
        let read = |direction: &str| {
            let path = format!(
                "/sys/class/net/{}/statistics/{direction}_bytes",
                self.netdev
            );
            // Sysfs shows the devices of the namespace it was mounted in; `ip netns exec` mounts its own.
            let text = match self.namespace() {
                None => fs::read_to_string(&path).unwrap_or_default(),
                Some(_) => checked(&inside_namespace(self.namespace(), &["cat", &path]))?,
            };
            text.trim().parse::<u64>().map_err(|_| LinkError::Counters {
                netdev: self.netdev.clone(),
                said: text.into(),
            })
        };
        Ok(Counters {
            received_bytes: read("rx")?,
            sent_bytes: read("tx")?,
        })
    }
}

/// A fault that lasts until it is healed or dropped.
#[derive(Debug)]
#[must_use = "dropping the fault heals the link"]
pub struct Fault {
    healing: Vec<Vec<String>>,
}

impl Fault {
    /// Heals the link and says whether that worked; a drop cannot.
    pub fn heal(mut self) -> Result<(), LinkError> {
        std::mem::take(&mut self.healing)
            .iter()
            .try_for_each(|words| checked(words).map(drop))
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        for words in &self.healing {
            if let Err(error) = checked(words) {
                eprintln!("testbed: a link was not healed: {error}");
            }
        }
    }
}

/// Takes the node's own link down: its device flushes its work and reports a port error.
pub fn down(node: &Node) -> Result<Fault, LinkError> {
    let set = |state: &str| {
        inside_namespace(
            node.namespace(),
            &["ip", "link", "set", node.netdev(), state],
        )
    };
    checked(&set("down"))?;
    let mut healing = vec![set("up")];
    if node.namespace().is_none() {
        // The kernel drops the routes of a link that goes down.
        healing.extend(pair_route(node.index, node.netdev()));
    }
    Ok(Fault { healing })
}

/// Takes the bridge's port to the node down: a path that is cut somewhere else.
pub fn port_down(node: &Node) -> Result<Fault, LinkError> {
    let port = node.port.as_deref().ok_or(LinkError::NoPort)?;
    // Detached and not set down: an end of a veth that is down takes the carrier from the other end.
    checked(&inside_namespace(
        None,
        &["ip", "link", "set", port, "nomaster"],
    ))?;
    Ok(Fault {
        healing: vec![inside_namespace(
            None,
            &["ip", "link", "set", port, "master", crate::topology::BRIDGE],
        )],
    })
}

/// Makes the node's link lose or delay what the node sends. For both directions do it to both nodes.
pub fn netem(node: &Node, netem: Netem) -> Result<Fault, LinkError> {
    checked(&within(node, netem.words(node.netdev())))?;
    let undo: Vec<String> = ["tc", "qdisc", "del", "dev", node.netdev(), "root"]
        .map(str::to_owned)
        .into();
    Ok(Fault {
        healing: vec![within(node, undo)],
    })
}

fn within(node: &Node, words: Vec<String>) -> Vec<String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    inside_namespace(node.namespace(), &words)
}

fn checked(words: &[String]) -> Result<String, LinkError> {
    let Some((program, arguments)) = words.split_first() else {
        return Ok(String::new());
    };
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|source| LinkError::Start {
        program: program.as_str().into(),
        source,
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().into();
    Err(LinkError::Failed {
        command: words.join(" ").into(),
        said,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Topology;

    #[test]
    fn finds_what_the_topology_announces() {
        let variables = Topology::Nodes(2).environment();
        let value = |name: &str| {
            variables
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.clone())
        };
        let node = Node::from_variables(2, value).unwrap();
        assert_eq!(
            (node.namespace(), node.netdev(), node.device()),
            (Some("n2"), "eth0", "rxe2")
        );
        assert!(matches!(
            Node::from_variables(3, value),
            Err(LinkError::NoNode { .. })
        ));
        assert_eq!(Node::from_variables(0, value).unwrap().namespace(), None);
    }

    #[test]
    fn netem_says_only_what_was_asked() {
        assert_eq!(
            Netem::delay(Duration::from_millis(2)).words("x").join(" "),
            "tc qdisc replace dev x root netem limit 10000 delay 2000us"
        );
        assert_eq!(
            Netem::BLACK_HOLE.words("x").join(" "),
            "tc qdisc replace dev x root netem limit 10000 loss 100%"
        );
        assert_eq!(
            Netem::loss(0.5).words("x").join(" "),
            "tc qdisc replace dev x root netem limit 10000 loss 0.5%"
        );
    }
}

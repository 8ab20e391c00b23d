//! Who is reached how: a namespace to each memory node on a bridge, where the agent and the control plane are
//! too. Its own, made and removed by the test, or the test bed's `nodes:N`.

use std::path::Path;
use std::process::{Command, Stdio};

use super::plan::Means;
use super::stale;

/// Begins the names of the namespaces that are made.
const NAMESPACE: &str = "myf";

/// Where a memory node is.
#[derive(Clone, Debug)]
pub(crate) struct NodePlace {
    pub(crate) address: String,
    namespace: String,
    netdev: String,
    /// The bridge's end of its link.
    port: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Net {
    /// Where the agent and the control plane are.
    pub(crate) address: String,
    /// Its namespace; `None` is the initial one.
    hub: Option<String>,
    bridge: String,
    pub(crate) nodes: Vec<NodePlace>,
    pub(crate) means: Means,
    /// Namespaces that are removed at the end.
    made: Vec<String>,
}

fn run(words: &[&str]) -> Result<(), String> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{words:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{words:?}: {}", said.trim()))
}

fn within<'a>(namespace: Option<&'a str>, words: &[&'a str]) -> Vec<&'a str> {
    let enter = namespace.map(|name| ["ip", "netns", "exec", name]);
    enter.iter().flatten().chain(words).copied().collect()
}

impl Net {
    /// The test bed's; else, where `own` says so, one that is made.
    pub(crate) fn find(nodes: usize, own: bool) -> Result<Self, String> {
        match Self::of_the_testbed(nodes) {
            Some(net) => Ok(net),
            None if own => Self::make(nodes),
            None => Err("this is not the test bed with nodes:3".to_owned()),
        }
    }

    /// Namespaces of its own. They take root, `ip` and a kernel with bridges.
    fn make(nodes: usize) -> Result<Self, String> {
        for left in stale::left_in(Path::new("/run/netns"), NAMESPACE) {
            run(&["ip", "netns", "del", &left])?;
        }
        let prefix = stale::name(NAMESPACE);
        let hub = format!("{prefix}-h");
        let mut net = Self {
            address: "10.79.0.254".to_owned(),
            hub: Some(hub.clone()),
            bridge: "br0".to_owned(),
            nodes: Vec::new(),
            means: Means::LEAST,
            made: Vec::new(),
        };
        run(&["ip", "netns", "add", &hub])?;
        net.made.push(hub.clone());
        let in_hub = |words: &[&str]| run(&within(Some(&hub), words));
        // With an address of its own, or it changes when a port leaves.
        in_hub(&[
            "ip",
            "link",
            "add",
            "br0",
            "address",
            "02:4d:79:63:66:fe",
            "type",
            "bridge",
        ])?;
        in_hub(&["ip", "link", "set", "lo", "up"])?;
        in_hub(&["ip", "address", "add", "10.79.0.254/24", "dev", "br0"])?;
        in_hub(&["ip", "link", "set", "br0", "up"])?;
        for number in 1..=nodes {
            let namespace = format!("{prefix}-n{number}");
            run(&["ip", "netns", "add", &namespace])?;
            net.made.push(namespace.clone());
            let (port, address) = (format!("p{number}"), format!("10.79.0.{number}"));
            let inside = |words: &[&str]| run(&within(Some(&namespace), words));
            in_hub(&[
                "ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
                &namespace,
            ])?;
            in_hub(&["ip", "link", "set", &port, "master", "br0", "up"])?;
            inside(&["ip", "link", "set", "lo", "up"])?;
            inside(&[
                "ip",
                "address",
                "add",
                &format!("{address}/24"),
                "dev",
                "eth0",
            ])?;
            inside(&["ip", "link", "set", "eth0", "up"])?;
            net.nodes.push(NodePlace {
                address,
                namespace,
                netdev: "eth0".to_owned(),
                port,
            });
        }
        net.probe();
        Ok(net)
    }

    /// The test bed's; `None` where there is none.
    fn of_the_testbed(nodes: usize) -> Option<Self> {
        let variable = |what: &str, number: usize| {
            std::env::var(format!("MYCORAM_RXE_{what}_{number}"))
                .ok()
                .filter(|value| !value.is_empty())
        };
        let place = |number| {
            Some(NodePlace {
                address: variable("ADDR", number)?,
                namespace: variable("NETNS", number)?,
                netdev: variable("NETDEV", number)?,
                port: variable("PORT", number)?,
            })
        };
        let mut net = Self {
            address: variable("ADDR", 0)?,
            hub: None,
            bridge: variable("NETDEV", 0)?,
            nodes: (1..=nodes).map(place).collect::<Option<_>>()?,
            means: Means::LEAST,
            made: Vec::new(),
        };
        net.probe();
        Some(net)
    }

    /// Whether this kernel can lose and delay.
    fn probe(&mut self) {
        let done = self.lose(0, 1).and_then(|()| self.pass(0));
        self.means.netem = done.is_ok();
        if let Err(why) = done {
            eprintln!(
                "faults: nothing is lost or delayed, only cut: this kernel has no netem ({why})"
            );
        }
    }

    /// A command at a node (from 0), or where the agent and the control plane are.
    pub(crate) fn command(&self, node: Option<usize>, program: &str) -> Command {
        let namespace = match node {
            Some(node) => Some(self.nodes[node].namespace.as_str()),
            None => self.hub.as_deref(),
        };
        let words = within(namespace, &[program]);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command
    }

    fn at(&self, node: usize, words: &[&str]) -> Result<(), String> {
        run(&within(Some(&self.nodes[node].namespace), words))
    }

    fn at_bridge(&self, words: &[&str]) -> Result<(), String> {
        run(&within(self.hub.as_deref(), words))
    }

    pub(crate) fn cut(&self, node: usize) -> Result<(), String> {
        self.at_bridge(&["ip", "link", "set", &self.nodes[node].port, "nomaster"])
    }

    pub(crate) fn join(&self, node: usize) -> Result<(), String> {
        let port = &self.nodes[node].port;
        self.at_bridge(&["ip", "link", "set", port, "master", &self.bridge])
    }

    pub(crate) fn set_link(&self, node: usize, up: bool) -> Result<(), String> {
        let state = if up { "up" } else { "down" };
        self.at(
            node,
            &["ip", "link", "set", &self.nodes[node].netdev, state],
        )
    }

    fn netem(&self, node: usize, words: &[&str]) -> Result<(), String> {
        let netdev = self.nodes[node].netdev.as_str();
        let set = ["tc", "qdisc", "replace", "dev", netdev, "root", "netem"];
        self.at(node, &[&set[..], &["limit", "10000"], words].concat())
    }

    pub(crate) fn lose(&self, node: usize, percent: u8) -> Result<(), String> {
        self.netem(node, &["loss", &format!("{percent}%")])
    }

    pub(crate) fn delay(&self, node: usize, ms: u8) -> Result<(), String> {
        self.netem(node, &["delay", &format!("{ms}ms")])
    }

    /// Neither lost nor delayed any more.
    pub(crate) fn pass(&self, node: usize) -> Result<(), String> {
        self.at(
            node,
            &[
                "tc",
                "qdisc",
                "del",
                "dev",
                &self.nodes[node].netdev,
                "root",
            ],
        )
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in &self.made {
            if let Err(why) = run(&["ip", "netns", "del", namespace]) {
                eprintln!("faults: a namespace is left behind: {why}");
            }
        }
    }
}

//! Memory nodes that are processes of their own, to be killed.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use mycoram_fabric::node::NodeConfig;

use super::{Fabric, LOOPBACK};

/// The body of the test `node_process` that a test program has whose nodes are to be processes: lends memory
/// until whoever started it ends.
pub(crate) fn serve_as_node(fabric: Fabric, bytes: u64) {
    let (node, _data) = fabric.serve(bytes, &NodeConfig::new(LOOPBACK));
    println!("control {}", node.control());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// A memory node that is a process: this program's test `node_process`.
pub(crate) struct NodeProcess {
    child: Child,
    pub(crate) control: SocketAddr,
}

impl NodeProcess {
    pub(crate) fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--exact", "node_process", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = lines.map_while(Result::ok).find_map(|line| {
            let (_, address) = line.split_once("control ")?;
            address.trim().parse().ok()
        });
        Self {
            child,
            control: line.expect("an address"),
        }
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! Runs perftest between two nodes: the device's own word, without our code.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mycoram_testbed::link::Node;

/// Emulated and on a busy machine, a measurement of this size takes seconds.
const LIMIT_S: &str = "60";
/// perftest's own port.
const PORT: &str = "18515";
const LISTEN_LIMIT: Duration = Duration::from_secs(30);

/// Ends its process when the test does, also by a panic.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(node: &Node, program: &str, words: &[&str]) -> Command {
    let mut command = node.command("timeout");
    let gid = node
        .gid_index()
        .expect("the device has a GID for its address");
    command
        .args([
            "-s",
            "KILL",
            LIMIT_S,
            program,
            "-d",
            node.device(),
            "-x",
            &gid.to_string(),
            "-F",
        ])
        .args(words);
    command.stdin(Stdio::null());
    command
}

/// Whether somebody listens on perftest's port in the node's namespace.
fn listens(node: &Node) -> bool {
    let output = node
        .command("ss")
        .args(["-Hltn", "sport", "=", PORT])
        .output()
        .expect("ss of iproute2");
    !output.stdout.is_empty()
}

/// Runs `program` from `client` to `server`; the client's output.
pub(crate) fn run(client: &Node, server: &Node, program: &str, words: &[&str]) -> Output {
    let mut serving = command(server, program, words);
    let mut serving = Server(
        serving
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("perftest"),
    );
    let deadline = Instant::now() + LISTEN_LIMIT;
    while !listens(server) {
        assert!(
            Instant::now() < deadline,
            "{program} does not listen on {}",
            server.address()
        );
        assert!(
            serving.0.try_wait().expect("a child").is_none(),
            "{program} ended before it listened"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let address = server.address().to_string();
    command(client, program, words)
        .arg(address)
        .output()
        .expect("perftest")
}

/// The row of figures perftest ends with.
pub(crate) fn figures(output: &Output) -> Vec<f64> {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "perftest failed: {text} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut lines = text
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("#bytes"));
    let row = lines
        .nth(1)
        .unwrap_or_else(|| panic!("no figures in {text}"));
    row.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

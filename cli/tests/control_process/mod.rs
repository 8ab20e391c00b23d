//! A control plane and memory nodes as processes of their own, on loopback.

#![allow(dead_code, reason = "each test file uses its part of this")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mycoram_control::client::{Access, ControlClient};
use mycoram_control::identity::{Credentials, Role};
use mycoram_fabric::session::TlsDial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const MYCO: &str = env!("CARGO_BIN_EXE_myco");
/// How long anything in these tests may take before it counts as a hang.
pub(crate) const HANG: Duration = Duration::from_secs(60);
/// How long a node may be silent in these tests: several times what a loaded machine makes of a heartbeat.
pub(crate) const NODE_LEASE: &str = "1500ms";

/// Waits for something that another process brings about.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + HANG;
    while !holds() {
        assert!(Instant::now() < until, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that says on its first line that it is ready. Killed when it is dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) ready: Value,
}

impl Process {
    fn start(args: &[String]) -> Self {
        let mut child = Command::new(MYCO)
            .args(args)
            .arg("--json")
            .stdout(Stdio::piped())
            .spawn()
            .expect("myco starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| panic!("ready line: {line:?}"));
        Self { child, ready }
    }

    pub(crate) fn address(&self, field: &str) -> SocketAddr {
        let text = self.ready[field].as_str().expect("an address");
        text.parse().expect("an address")
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// SIGTERM; waits for its end and gives its exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("our own child");
        let until = Instant::now() + HANG;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its figures, as a monitor reads them.
    pub(crate) fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.address("metrics")).expect("listening");
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: myco\r\n\r\n")
            .expect("sent");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("an answer");
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
        page
    }

    /// One figure of them; `None`: it is not there.
    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        let page = self.metrics();
        let line = page.lines().find_map(|line| {
            let value = line.strip_prefix(name)?;
            value.strip_prefix(' ')
        });
        line.map(|value| value.parse().expect("a number"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cluster with certificates.
pub(crate) struct Cluster {
    dir: TempDir,
    pub(crate) control: Option<Process>,
    address: SocketAddr,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        mycoram_control::identity::init_cluster(&dir.path().join("tls")).expect("made");
        let any = "127.0.0.1:0".parse().expect("an address");
        let mut cluster = Self {
            dir,
            control: None,
            address: any,
        };
        cluster.start_control();
        cluster
    }

    /// Again at the same address, on the same store.
    pub(crate) fn start_control(&mut self) {
        let store = self.dir.path().join("store");
        let args = [
            "control".to_owned(),
            "serve".to_owned(),
            "--listen".to_owned(),
            self.address.to_string(),
            "--store".to_owned(),
            format!("redb:{}", store.display()),
            "--tls".to_owned(),
            self.tls().display().to_string(),
            "--node-lease".to_owned(),
            NODE_LEASE.to_owned(),
            "--metrics".to_owned(),
            "127.0.0.1:0".to_owned(),
        ];
        let control = Process::start(&args);
        self.address = control.address("address");
        self.control = Some(control);
    }

    pub(crate) fn kill_control(&mut self) {
        self.control.take().expect("running").kill();
    }

    pub(crate) fn control(&self) -> &Process {
        self.control.as_ref().expect("running")
    }

    pub(crate) fn tls(&self) -> PathBuf {
        self.dir.path().join("tls")
    }

    pub(crate) fn url(&self) -> String {
        format!("control://{}", self.address)
    }

    pub(crate) fn start_node(&self, name: &str) -> Process {
        let args = [
            "node",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--capacity",
            "64MiB",
            "--name",
            name,
            "--control",
            &self.url(),
            "--tls",
            &self.tls().display().to_string(),
            "--domain",
            &format!("eu/a/r1/{name}"),
            "--metrics",
            "127.0.0.1:0",
        ];
        Process::start(&args.map(str::to_owned))
    }

    pub(crate) fn client(&self, role: Role) -> Arc<ControlClient> {
        let credentials = Credentials::read(&self.tls(), role).expect("certificates");
        let address = self.url().parse().expect("an address");
        let client = ControlClient::new(&Access::new(address, Some(credentials)));
        Arc::new(client.expect("threads"))
    }

    /// Opens control channels of its memory nodes.
    pub(crate) fn dial(&self) -> TlsDial {
        let credentials = Credentials::read(&self.tls(), Role::Agent).expect("certificates");
        credentials.channel_client(HANG).expect("good ones")
    }

    /// A subcommand of an admin; what it prints as JSON, and its exit code.
    pub(crate) fn myco(&self, args: &[&str]) -> (i32, Value) {
        self.myco_as(args, &self.tls())
    }

    pub(crate) fn myco_as(&self, args: &[&str], tls: &Path) -> (i32, Value) {
        let output = Command::new(MYCO)
            .args(args)
            .args(["--control", &self.url(), "--json", "--tls"])
            .arg(tls)
            .output()
            .expect("myco runs");
        let object = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code().expect("it ends by itself"), object)
    }

    pub(crate) fn must(&self, args: &[&str]) -> Value {
        let (code, object) = self.myco(args);
        assert_eq!(code, 0, "{args:?}: {object}");
        object
    }

    /// The state of a node, as the control plane has it.
    pub(crate) fn state(&self, name: &str) -> Option<String> {
        let list = self.must(&["node", "list"]);
        let nodes = list["nodes"].as_array().expect("a list");
        let node = nodes.iter().find(|node| node["name"] == name)?;
        node["state"].as_str().map(str::to_owned)
    }
}

//! A control plane and memory nodes as processes of their own, on loopback.

#![allow(dead_code, reason = "each test file uses its part of this")]

use std::fs::File;
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
    /// Where its words go, if not to the test's own.
    log: Option<PathBuf>,
}

impl Process {
    pub(crate) fn start(args: &[String]) -> Self {
        Self::spawn(Command::new(MYCO).args(args), None)
    }

    /// As [`Self::start`]; what it says, down to `levels` (see `MYCO_LOG`), goes to the file `log`.
    pub(crate) fn start_logged(args: &[&str], levels: &str, log: PathBuf) -> Self {
        let file = File::create(&log).expect("a file");
        let mut command = Command::new(MYCO);
        command.args(args).env("MYCO_LOG", levels).stderr(file);
        Self::spawn(&mut command, Some(log))
    }

    fn spawn(command: &mut Command, log: Option<PathBuf>) -> Self {
        let mut child = command
            .arg("--json")
            .stdout(Stdio::piped())
            .spawn()
            .expect("myco starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| panic!("ready line: {line:?}"));
        Self { child, ready, log }
    }

    /// A line of its log with all of these words; waits for it.
    pub(crate) fn says(&self, words: &[&str]) -> String {
        let path = self.log.as_deref().expect("it was started with a log");
        let until = Instant::now() + HANG;
        loop {
            let log = std::fs::read_to_string(path).expect("its log");
            let mut lines = log.lines();
            if let Some(line) = lines.find(|line| words.iter().all(|word| line.contains(word))) {
                return line.to_owned();
            }
            assert!(Instant::now() < until, "{words:?} is not in {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn address(&self, field: &str) -> SocketAddr {
        let text = self.ready[field].as_str().expect("an address");
        text.parse().expect("an address")
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("our own child");
    }

    /// SIGTERM; waits for its end and gives its exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
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
    /// Where the processes of its control plane are.
    pub(crate) addresses: Vec<SocketAddr>,
    /// How long a node may be silent.
    node_lease: &'static str,
    /// What each node lends.
    node_capacity: &'static str,
    insecure: bool,
}

/// A subcommand of `myco`: its exit code, and what it prints as JSON.
pub(crate) fn command(args: &[&str]) -> (i32, Value) {
    let output = Command::new(MYCO).args(args).arg("--json").output();
    let output = output.expect("myco runs");
    let object = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().expect("it ends by itself"), object)
}

/// Any port that is free.
pub(crate) fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Cluster {
    pub(crate) fn start() -> Self {
        Self::without_control().start_first()
    }

    /// For an emulated machine: a heartbeat takes longer, encryption and much memory too long.
    pub(crate) fn start_emulated() -> Self {
        let mut cluster = Self::without_control();
        cluster.node_lease = "30s";
        cluster.node_capacity = "8MiB";
        cluster.insecure = true;
        cluster.start_first()
    }

    fn start_first(mut self) -> Self {
        self.addresses.push(any_port());
        self.start_control();
        self
    }

    /// Certificates, and nobody who has them.
    pub(crate) fn without_control() -> Self {
        // In memory where that can be had: what is tested is not this machine's disk.
        let shared_memory = Path::new("/dev/shm");
        let dir = if shared_memory.is_dir() {
            tempfile::tempdir_in(shared_memory)
        } else {
            tempfile::tempdir()
        };
        let dir = dir.expect("a directory");
        mycoram_control::identity::init_cluster(&dir.path().join("tls")).expect("made");
        Self {
            dir,
            control: None,
            addresses: Vec::new(),
            node_lease: NODE_LEASE,
            node_capacity: "64MiB",
            insecure: false,
        }
    }

    /// Again at the same address, on the same store.
    pub(crate) fn start_control(&mut self) {
        let store = format!("redb:{}", self.store().display());
        let control = self.serve(self.addresses[0], &store, &[]);
        self.addresses[0] = control.address("address");
        self.control = Some(control);
    }

    /// A process of its control plane.
    pub(crate) fn serve(&self, listen: SocketAddr, store: &str, more: &[&str]) -> Process {
        let listen = listen.to_string();
        let trust = self.trust();
        let args = [
            "control",
            "serve",
            "--listen",
            &listen,
            "--store",
            store,
            "--node-lease",
            self.node_lease,
            "--metrics",
            "127.0.0.1:0",
        ];
        let args = args.iter().chain(more).map(|arg| (*arg).to_owned());
        Process::start(&args.chain(trust).collect::<Vec<_>>())
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

    /// How all of them are told whom to trust.
    fn trust(&self) -> Vec<String> {
        match self.insecure {
            true => vec!["--insecure".to_owned()],
            false => vec!["--tls".to_owned(), self.tls().display().to_string()],
        }
    }

    pub(crate) fn url(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(SocketAddr::to_string).collect();
        format!("control://{}", addresses.join(","))
    }

    pub(crate) fn start_node(&self, name: &str) -> Process {
        self.start_node_with(name, &[])
    }

    /// With these arguments more.
    pub(crate) fn start_node_with(&self, name: &str, more: &[&str]) -> Process {
        self.node_of(name, &format!("eu/a/r1/{name}"), more)
    }

    /// In a failure domain.
    pub(crate) fn start_node_in(&self, name: &str, domain: &str) -> Process {
        self.node_of(name, domain, &[])
    }

    fn node_of(&self, name: &str, domain: &str, more: &[&str]) -> Process {
        let url = self.url();
        let args = [
            "node",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--capacity",
            self.node_capacity,
            "--name",
            name,
            "--control",
            &url,
            "--domain",
            domain,
            "--metrics",
            "127.0.0.1:0",
        ];
        let args = args.iter().chain(more).map(|arg| (*arg).to_owned());
        Process::start(&args.chain(self.trust()).collect::<Vec<_>>())
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
        self.myco_trusting(args, &self.trust())
    }

    pub(crate) fn myco_as(&self, args: &[&str], tls: &Path) -> (i32, Value) {
        self.myco_trusting(args, &["--tls".to_owned(), tls.display().to_string()])
    }

    fn myco_trusting(&self, args: &[&str], trust: &[String]) -> (i32, Value) {
        let url = self.url();
        let more = ["--control", &url].into_iter();
        let more = more.chain(trust.iter().map(String::as_str));
        command(&args.iter().copied().chain(more).collect::<Vec<_>>())
    }

    /// The file that its first control plane keeps everything in.
    pub(crate) fn store(&self) -> PathBuf {
        self.dir.path().join("store")
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

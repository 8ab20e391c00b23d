//! `myco agent serve` with real memory nodes: this test is the program that connects.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use mycoram_agent::daemon::client::{AttachRequest, Attached, Connection, ProgramNotice};
use mycoram_agent::kernel::MemoryFile;
use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::{ByteCount, PAGE_BYTES};

/// Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(30);
const BYTES: ByteCount = ByteCount::mib(32);
const LOCAL: ByteCount = ByteCount::mib(4);

/// A `myco` that runs; ended and reaped in any case.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_myco"));
        command.args(arguments).stdout(Stdio::piped());
        // SAFETY: prctl is a plain system call; the child dies with its test.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        let mut child = command.spawn().expect("myco");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Self { child, lines }
    }

    fn line(&self) -> serde_json::Value {
        let line = self.lines.recv_timeout(PATIENCE).expect("a line in time");
        serde_json::from_str(&line).expect("a line of JSON")
    }

    fn kill(&mut self) {
        self.child.kill().expect("it lives");
        self.child.wait().expect("reaped");
    }

    fn terminate(&mut self) -> ExitStatus {
        // SAFETY: a plain system call on a child that is not reaped yet.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        self.child.wait().expect("reaped")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Place {
    dir: tempfile::TempDir,
    nodes: Vec<Running>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("mycoram-agent-serve")
            .tempdir_in("/dev/shm")
            .expect("a directory in /dev/shm");
        let mut file = String::new();
        let nodes = ["n1", "n2"].map(|name| {
            let listen = ["--json", "node", "serve", "--listen", "127.0.0.1:0"];
            let node = Running::start(&[&listen[..], &["--capacity", "64MiB"]].concat());
            let ready = node.line();
            let control = ready["control"].as_str().expect("an address");
            file += &format!("[[node]]\nname = \"{name}\"\ncontrol = \"{control}\"\n");
            node
        });
        std::fs::write(dir.path().join("nodes.toml"), file).expect("written");
        Self {
            dir,
            nodes: nodes.into(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn agent(&self) -> Running {
        let text = |path: &Path| path.to_str().expect("utf-8").to_owned();
        let agent = Running::start(&[
            "--json",
            "agent",
            "serve",
            "--max-local",
            "16MiB",
            "--nodes",
            &text(&self.path("nodes.toml")),
            "--socket",
            &text(&self.path("agent.sock")),
            "--state-dir",
            &text(&self.path("state")),
            "--metrics",
            "127.0.0.1:0",
        ]);
        let ready = agent.line();
        let metrics = ready["metrics"].as_str().expect("an address");
        std::fs::write(self.path("metrics"), metrics).expect("written");
        assert_eq!(ready["schema"], "myco.agent-ready");
        agent
    }

    /// One figure of the agent, as a monitor reads it; all of that name together.
    fn figure(&self, name: &str) -> f64 {
        let address = std::fs::read_to_string(self.path("metrics")).expect("an agent was started");
        let mut stream = std::net::TcpStream::connect(address).expect("listening");
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: myco\r\n\r\n")
            .expect("sent");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("an answer");
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        let lines = page.lines().filter(|line| line.contains(labels));
        lines
            .filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '))
            .filter(|(rest, _)| rest.is_empty() || rest.starts_with('{'))
            .map(|(_, value)| value.parse::<f64>().expect("a number"))
            .sum()
    }

    /// Bytes that the nodes have lent.
    fn lent(&self) -> u64 {
        let nodes = std::fs::read_to_string(self.path("nodes.toml")).expect("it was written");
        nodes
            .lines()
            .filter_map(|line| line.strip_prefix("control = "))
            .map(|control| {
                let out = Command::new(env!("CARGO_BIN_EXE_myco"))
                    .args([
                        "--json",
                        "node",
                        "status",
                        "--node",
                        control.trim_matches('"'),
                    ])
                    .output()
                    .expect("myco");
                let status: serde_json::Value =
                    serde_json::from_slice(&out.stdout).expect("a status");
                status["lent_bytes"].as_u64().expect("a number")
            })
            .sum()
    }
}

struct Program {
    mapping: Mapping,
    attached: Attached,
    notices: mpsc::Receiver<ProgramNotice>,
}

impl Program {
    fn start(place: &Place) -> Self {
        let memory = MemoryFile::create(c"program", BYTES).expect("a memfd");
        let mapping = Mapping::shared(&memory, BYTES.as_usize()).expect("a mapping");
        let request = AttachRequest {
            memory: memory.as_fd().try_clone_to_owned().expect("dup"),
            base: mapping.as_ptr() as u64,
            bytes: BYTES,
            file_offset: 0,
            local_budget: LOCAL,
            extent_bytes: ByteCount::mib(1),
            fault_workers: 0,
        };
        let (tell, notices) = mpsc::channel();
        let attached = Connection::open(&place.path("agent.sock"))
            .expect("the daemon listens")
            .attach(request, move |notice| {
                let _ = tell.send(notice);
            })
            .expect("there is room");
        Self {
            mapping,
            attached,
            notices,
        }
    }

    fn pages(&self) -> usize {
        self.mapping.len() / PAGE_BYTES
    }

    fn fill(&self, round: u64) {
        for page in 0..self.pages() {
            let word = (page as u64) << 32 | round;
            self.mapping
                .copy_in(page * PAGE_BYTES, &word.to_le_bytes())
                .expect("inside");
        }
    }

    fn verify(&self, round: u64) {
        let mut word = [0; 8];
        for page in 0..self.pages() {
            self.mapping
                .copy_out(page * PAGE_BYTES, &mut word)
                .expect("inside");
            assert_eq!(u64::from_le_bytes(word), (page as u64) << 32 | round);
        }
    }

    fn notice(&self) -> ProgramNotice {
        self.notices.recv_timeout(PATIENCE).expect("a notice")
    }
}

#[test]
fn a_program_outlives_the_agent_that_serves_it() {
    let place = Place::new();
    let mut agent = place.agent();
    let program = Program::start(&place);
    program.fill(1);
    program.verify(1);
    let stats = program.attached.stats().expect("figures");
    assert!(stats.evictions > 0 && stats.transport.bytes_written > 0);
    assert!(place.lent() >= BYTES.get());

    agent.kill();
    assert_eq!(program.notice(), ProgramNotice::Away);
    let mut agent = place.agent();
    assert_eq!(program.notice(), ProgramNotice::Back);
    program.verify(1);
    program.fill(2);

    assert!(agent.terminate().success(), "SIGTERM is an end in order");
    assert_eq!(program.notice(), ProgramNotice::Away);
    let mut agent = place.agent();
    assert_eq!(program.notice(), ProgramNotice::Back);
    program.verify(2);

    let Program {
        attached, mapping, ..
    } = program;
    attached.end().expect("the daemon is there");
    drop(mapping);
    assert_eq!(place.lent(), 0, "remote memory is freed");
    assert!(agent.terminate().success());
}

/// Waits for a figure, which is written down once a second.
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < until, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_an_agent_does_moves_its_figures() {
    let mut place = Place::new();
    let _agent = place.agent();
    assert_eq!(place.figure("mycoram_agent_regions"), 0.0);
    let program = Program::start(&place);
    wait_for("the region is seen", || {
        place.figure("mycoram_agent_regions") == 1.0
    });
    program.fill(1);
    program.verify(1);
    let moves = [
        "mycoram_agent_faults_total{kind=\"major\"",
        "mycoram_agent_faults_total{kind=\"hit\"",
        "mycoram_agent_fault_service_seconds_count",
        "mycoram_agent_fault_service_seconds_sum",
        "mycoram_agent_hit_ratio",
        "mycoram_agent_evictions_total{kind=\"written\"",
        "mycoram_agent_moved_bytes_total{direction=\"read\"",
        "mycoram_agent_moved_bytes_total{direction=\"written\"",
        "mycoram_agent_memory_bytes{state=\"resident\"",
        "mycoram_agent_memory_bytes{state=\"remote\"",
        "mycoram_agent_budget_bytes{which=\"peak\"",
        "mycoram_agent_replicas{state=\"live\"",
    ];
    for name in moves {
        wait_for(name, || place.figure(name) > 0.0);
    }
    assert_eq!(
        place.figure("mycoram_agent_budget_bytes{which=\"allowed\""),
        LOCAL.get() as f64
    );
    for kind in ["page_lost", "page_wrong", "node_lost"] {
        let errors = format!("mycoram_agent_errors_total{{kind=\"{kind}\"");
        assert_eq!(place.figure(&errors), 0.0, "{kind}");
    }
    place.nodes.remove(0).kill();
    let lost = "mycoram_agent_errors_total{kind=\"node_lost\"";
    wait_for(lost, || {
        // Pages that have no place any more: it fails, and nothing is touched that may be lost.
        let _ = program.attached.flush();
        place.figure(lost) > 0.0
    });
}

#[test]
fn a_second_agent_is_refused_and_says_why() {
    let place = Place::new();
    let _agent = place.agent();
    let text = |name| place.path(name).to_str().expect("utf-8").to_owned();
    let out = Command::new(env!("CARGO_BIN_EXE_myco"))
        .args(["agent", "serve", "--max-local", "16MiB"])
        .args(["--nodes", &text("nodes.toml")])
        .args(["--socket", &text("other.sock")])
        .args(["--state-dir", &text("state")])
        .output()
        .expect("myco");
    assert_eq!(out.status.code(), Some(8));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        said.contains("another daemon has the state directory"),
        "{said}"
    );
    assert_eq!(place.nodes.len(), 2);
}

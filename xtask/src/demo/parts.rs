//! The processes of the demo: built, started, and ended again whatever happens.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use super::{DemoError, Plan, program};
use crate::bench::Transport;
use crate::checkout;

/// How long nodes may take until the control plane has seen them.
const JOINING: Duration = Duration::from_secs(60);

/// A node that is not heard for so long is down: shorter than the default, as the demo is short too. In the
/// test bed's emulation a living node may be silent for longer.
fn node_lease(plan: &Plan) -> &'static str {
    match plan.transport {
        Transport::Tcp => "2s",
        Transport::Verbs => "15s",
    }
}

/// Builds `myco`, and the workload as one static file.
pub(super) fn build() -> Result<(), DemoError> {
    let cargo = |what: &'static str, arguments: &[&str]| -> Result<(), DemoError> {
        eprintln!("demo: building {what}");
        let status = checkout::cargo()
            .args(arguments)
            .status()
            .map_err(|source| DemoError::Start {
                program: "cargo".to_owned(),
                source,
            })?;
        if status.success() {
            Ok(())
        } else {
            Err(DemoError::Build { what })
        }
    };
    cargo(
        "myco",
        &["build", "--quiet", "--release", "--package", "myco"],
    )?;
    cargo(
        "the guest's workload",
        &[
            "rustc",
            "--quiet",
            "--release",
            "--package",
            "mycoram-guest-workload",
            "--",
            "-C",
            "target-feature=+crt-static",
            // It lies in the guest's RAM, twice while it is unpacked.
            "-C",
            "strip=symbols",
        ],
    )
}

/// A directory in tmpfs (memory files and sockets do not work on every test bed's root), removed at the end.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Result<Self, DemoError> {
        let path = PathBuf::from(format!("/dev/shm/mycoram-demo-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|source| DemoError::File {
            path: path.clone(),
            source,
        })?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that does not outlive its guard, nor this process.
pub(super) struct Part(Child);

impl Part {
    pub(super) fn start(mut command: Command) -> Result<Self, DemoError> {
        let program = command.get_program().to_string_lossy().into_owned();
        die_with_us(&mut command);
        command
            .spawn()
            .map(Self)
            .map_err(|source| DemoError::Start { program, source })
    }

    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
            let _ = self.0.wait();
        }
    }
}

/// Asks the kernel to end the command when this process ends, however it ends.
fn die_with_us(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure runs between fork and exec and makes one system call that allocates nothing.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
            Ok(())
        })
    };
}

/// In which namespace a part of the demo runs: the test bed has one to each device, counted from 1; 0 is the
/// initial one.
pub(super) fn place(plan: &Plan, number: usize, words: &[&str]) -> Command {
    let namespace = match plan.transport {
        Transport::Tcp => String::new(),
        Transport::Verbs => {
            std::env::var(format!("MYCORAM_RXE_NETNS_{number}")).unwrap_or_default()
        }
    };
    let mut all = words.to_vec();
    if !namespace.is_empty() {
        all.splice(0..0, ["ip", "netns", "exec", &namespace]);
    }
    let mut command = Command::new(all[0]);
    command.args(&all[1..]);
    command
}

/// Where a part listens.
fn host(plan: &Plan, number: usize) -> Result<String, DemoError> {
    match plan.transport {
        Transport::Tcp => Ok("127.0.0.1".to_owned()),
        Transport::Verbs => {
            let variable = format!("MYCORAM_RXE_ADDR_{number}");
            std::env::var(&variable).map_err(|_| DemoError::NoDevice { variable })
        }
    }
}

/// Starts a part that says on its first line that it is ready.
fn ready(part: &str, mut command: Command) -> Result<(Part, serde_json::Value), DemoError> {
    command
        .arg("--json")
        .stdout(Stdio::piped())
        .stdin(Stdio::null());
    let mut process = Part::start(command)?;
    let mut line = String::new();
    if let Some(stdout) = process.child().stdout.take() {
        let _ = BufReader::new(stdout).read_line(&mut line);
    }
    match serde_json::from_str(&line) {
        Ok(ready) => Ok((process, ready)),
        Err(_) => Err(DemoError::NotReady {
            part: part.to_owned(),
        }),
    }
}

/// What `myco cluster status --json` says, as far as the demo needs it.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) nodes_up: usize,
    pub(super) nodes_down: usize,
    pub(super) endangered_extents: u64,
    pub(super) lost_extents: u64,
}

/// How the control plane is asked.
#[derive(Clone, Debug)]
pub(super) struct Control {
    url: String,
    tls: String,
}

impl Control {
    /// `None`: it did not answer.
    pub(super) fn status(&self) -> Option<Status> {
        let output = Command::new(program("myco"))
            .args(["cluster", "status", "--json", "--control", &self.url])
            .args(["--tls", &self.tls])
            .stderr(Stdio::null())
            .output();
        serde_json::from_slice(&output.ok()?.stdout).ok()
    }
}

/// A control plane and its memory nodes, ready.
pub(super) struct Cluster {
    pub(super) control: Control,
    nodes: Vec<Option<Part>>,
    _control: Part,
}

impl Cluster {
    /// Starts them, with room for the guest's RAM also when one node is lost.
    pub(super) fn start(plan: &Plan, scratch: &Path) -> Result<Self, DemoError> {
        let myco = program("myco").display().to_string();
        let tls = scratch.join("tls").display().to_string();
        let made = Command::new(&myco)
            .args(["cluster", "init", &tls, "--json"])
            .stdout(Stdio::null())
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return Err(DemoError::Cluster { verb: "init" });
        }
        let listen = format!("{}:0", host(plan, 0)?);
        let store = format!("redb:{}", scratch.join("store").display());
        #[rustfmt::skip]
        let words = [
            &myco, "control", "serve", "--listen", &listen, "--store", &store, "--tls", &tls,
            "--node-lease", node_lease(plan),
        ];
        let (process, says) = ready("the control plane", place(plan, 0, &words))?;
        let url = format!("control://{}", says["address"].as_str().unwrap_or_default());
        eprintln!("demo: the control plane is {url}");
        let mut cluster = Self {
            control: Control { url, tls },
            nodes: Vec::new(),
            _control: process,
        };
        for number in 1..=plan.nodes() {
            cluster.start_node(plan, number)?;
        }
        cluster.await_nodes()?;
        Ok(cluster)
    }

    fn start_node(&mut self, plan: &Plan, number: usize) -> Result<(), DemoError> {
        let myco = program("myco").display().to_string();
        let capacity = format!("{}MiB", plan.capacity_mib());
        let (name, transport) = (Self::node_name(number), plan.transport.name());
        let listen = format!("{}:0", host(plan, number)?);
        let domain = format!("demo/zone/rack{number}/host{number}");
        #[rustfmt::skip]
        let words = [
            &myco, "node", "serve", "--listen", &listen, "--capacity", &capacity, "--transport", transport,
            "--name", &name, "--domain", &domain, "--control", &self.control.url, "--tls", &self.control.tls,
        ];
        let (part, says) = ready(&name, place(plan, number, &words))?;
        eprintln!(
            "demo: memory node {name} lends {capacity} at {} over {transport}",
            says["control"].as_str().unwrap_or_default()
        );
        self.nodes.push(Some(part));
        Ok(())
    }

    fn await_nodes(&self) -> Result<(), DemoError> {
        let (nodes, until) = (self.nodes.len(), Instant::now() + JOINING);
        while self
            .control
            .status()
            .is_none_or(|status| status.nodes_up < nodes)
        {
            if Instant::now() > until {
                return Err(DemoError::NotJoined {
                    nodes,
                    seconds: JOINING.as_secs(),
                });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn node_name(number: usize) -> String {
        format!("node{number}")
    }

    /// Where a guest's RAM goes.
    pub(super) fn far(&self, plan: &Plan) -> String {
        format!(
            "{}?tls={}&replicas={}",
            self.control.url, self.control.tls, plan.replicas
        )
    }

    /// kill -9 of the last node; its name.
    pub(super) fn kill_node(&mut self) -> Option<String> {
        let number = self.nodes.len();
        let mut part = self.nodes.last_mut()?.take()?;
        part.child().kill().ok()?;
        let _ = part.child().wait();
        Some(Self::node_name(number))
    }
}

//! The processes of the demo: built, started, and ended again whatever happens.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{DemoError, Plan, program};
use crate::bench::Transport;
use crate::checkout;

/// Memory nodes of the demo.
pub(super) const NODES: usize = 2;

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

/// In which namespace a part of the demo runs: the test bed has one to each device, counted from 1.
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

/// The memory nodes, ready, and the file that names them.
pub(super) struct Nodes {
    pub(super) file: PathBuf,
    parts: Vec<Part>,
}

impl Nodes {
    /// Starts them with enough memory for the guest's RAM between them.
    pub(super) fn start(plan: &Plan, scratch: &Path) -> Result<Self, DemoError> {
        let myco = program("myco").display().to_string();
        let capacity = format!("{}MiB", (plan.memory_mib * 3 / 4).next_multiple_of(16));
        let mut nodes = Self {
            file: scratch.join("nodes.toml"),
            parts: Vec::new(),
        };
        let mut text = String::new();
        for number in 1..=NODES {
            let host = match plan.transport {
                Transport::Tcp => "127.0.0.1".to_owned(),
                Transport::Verbs => {
                    let variable = format!("MYCORAM_RXE_ADDR_{number}");
                    std::env::var(&variable).map_err(|_| DemoError::NoDevice { variable })?
                }
            };
            let listen = format!("{host}:0");
            let mut command = place(
                plan,
                number,
                &[
                    &myco,
                    "node",
                    "serve",
                    "--listen",
                    &listen,
                    "--capacity",
                    &capacity,
                    "--transport",
                    plan.transport.name(),
                    "--json",
                ],
            );
            command.stdout(Stdio::piped()).stdin(Stdio::null());
            let mut part = Part::start(command)?;
            let mut line = String::new();
            if let Some(stdout) = part.child().stdout.take() {
                let _ = BufReader::new(stdout).read_line(&mut line);
            }
            let ready: serde_json::Value =
                serde_json::from_str(&line).map_err(|_| DemoError::Node { node: number })?;
            let control = ready["control"]
                .as_str()
                .ok_or(DemoError::Node { node: number })?;
            eprintln!(
                "demo: memory node {number} lends {capacity} at {control} over {}",
                plan.transport.name()
            );
            text.push_str(&format!("[[node]]\nname = \"node{number}\"\ncontrol = \"{control}\"\ntransport = \"{}\"\n\n", plan.transport.name()));
            nodes.parts.push(part);
        }
        std::fs::write(&nodes.file, text).map_err(|source| DemoError::File {
            path: nodes.file.clone(),
            source,
        })?;
        Ok(nodes)
    }
}

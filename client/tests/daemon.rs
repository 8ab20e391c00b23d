//! C programs whose far memory is served by `myco agent serve`, as users without any right of their own.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{Node, c_program, myco, start};

/// The user `nobody`.
const NOBODY: u32 = 65534;

/// A daemon over one memory node; ended when dropped.
struct Daemon {
    child: Child,
    directory: tempfile::TempDir,
    _node: Node,
}

impl Daemon {
    fn start(node: Node) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs");
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).expect("its rights");
        let nodes = directory.path().join("nodes.toml");
        let text = format!("[[node]]\nname = 'n1'\ncontrol = '{}'\n", node.control);
        std::fs::write(&nodes, text).expect("the nodes file");
        let child = Self::spawn(directory.path());
        let daemon = Self {
            child,
            directory,
            _node: node,
        };
        daemon.await_socket();
        daemon
    }

    fn spawn(directory: &Path) -> Child {
        Command::new(myco())
            .args([
                "agent",
                "serve",
                "--max-local",
                "64MiB",
                "--allow",
                "everybody",
            ])
            .arg("--nodes")
            .arg(directory.join("nodes.toml"))
            .arg("--socket")
            .arg(directory.join("agent.sock"))
            .arg("--state-dir")
            .arg(directory.join("state"))
            .stdout(Stdio::null())
            .spawn()
            .expect("myco runs")
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn await_socket(&self) {
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err()
            && mycoram::FarMemory::open(&self.place()).is_err()
        {
            assert!(
                begun.elapsed() < support::LIMIT,
                "the daemon does not answer"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn place(&self) -> String {
        format!("myco+agent://{}?local=8MiB", self.socket().display())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a C program as nobody, with the daemon's place as its argument.
fn run_as_nobody(daemon: &Daemon, name: &str) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test needs root, to become nobody"
    );
    let mut command = Command::new(c_program(name));
    command.arg(daemon.place()).uid(NOBODY).gid(NOBODY);
    start(&mut command).finish().pass();
}

#[test]
fn threads_of_an_unprivileged_program() {
    run_as_nobody(&Daemon::start(Node::start("256MiB")), "threads");
}

#[test]
fn a_mapping_of_an_unprivileged_program_is_moved() {
    run_as_nobody(&Daemon::start(Node::start("256MiB")), "moved");
}

#[test]
fn a_fork_of_an_unprivileged_program() {
    run_as_nobody(&Daemon::start(Node::start("256MiB")), "fork");
}

#[test]
fn no_daemon_is_said_in_words() {
    let error = mycoram::FarMemory::open("myco+agent:///nonexistent/agent.sock?local=8MiB")
        .expect_err("nobody listens");
    assert_eq!(error.status(), mycoram::Status::Unreachable);
    let source = std::error::Error::source(&error)
        .expect("a reason")
        .to_string();
    assert!(source.contains("myco agent serve"), "{source}");
}

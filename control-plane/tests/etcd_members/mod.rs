//! Members of an etcd cluster as processes of their own, on loopback, in a directory that goes with them.
//!
//! Each test process has addresses of 127.0.0.0/8 to itself, made of its pid, so that nobody else's port is hit
//! however many run at once.

#![allow(dead_code, reason = "each test file uses its part of this")]

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a member may take to come, on a machine that does much else.
const HANG: Duration = Duration::from_secs(60);

/// Clusters of this process so far: each has ports of its own.
static CLUSTERS: AtomicU16 = AtomicU16::new(0);

struct Member {
    address: Ipv4Addr,
    process: Option<Child>,
}

/// Members that run. Killed when it is dropped.
pub(crate) struct EtcdMembers {
    directory: TempDir,
    ports: (u16, u16),
    /// Of clients. Members speak to each other in clear.
    scheme: &'static str,
    options: Vec<String>,
    members: Vec<Member>,
}

/// Whether there is an etcd. If not it is said so, and in CI it is a failure.
fn is_installed() -> bool {
    let found = Command::new("etcd")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "there is no etcd; install it: cargo xtask deps"
    );
    // Past the capture of the test harness: a skip is never silent.
    let _ = writeln!(
        std::io::stderr(),
        "skipped: this needs etcd (Debian's etcd-server); run: cargo xtask deps"
    );
    false
}

impl EtcdMembers {
    /// So many members, with these options more, when all of them take connections; `None`: no etcd is installed.
    pub(crate) fn start(count: u8, options: &[&str]) -> Option<Self> {
        let options = options.iter().map(|option| (*option).to_owned());
        Self::start_over("http", count, options.collect())
    }

    /// As [`Self::start`]; `options` name the certificates, which are for [`addresses`].
    pub(crate) fn start_tls(count: u8, options: Vec<String>) -> Option<Self> {
        Self::start_over("https", count, options)
    }

    fn start_over(scheme: &'static str, count: u8, options: Vec<String>) -> Option<Self> {
        if !is_installed() {
            return None;
        }
        let port = 2379 + 2 * CLUSTERS.fetch_add(1, Ordering::Relaxed);
        // In memory where that can be had: what is tested is not this machine's disk.
        let shared_memory = Path::new("/dev/shm");
        let directory = if shared_memory.is_dir() {
            tempfile::tempdir_in(shared_memory)
        } else {
            tempfile::tempdir()
        };
        let mut cluster = Self {
            directory: directory.expect("a directory"),
            ports: (port, port + 1),
            scheme,
            options,
            members: (0..count)
                .map(|number| Member {
                    address: address(number),
                    process: None,
                })
                .collect(),
        };
        for number in 0..cluster.members.len() {
            cluster.spawn(number);
        }
        for number in 0..cluster.members.len() {
            cluster.wait(number);
        }
        Some(cluster)
    }

    /// Where members are asked.
    pub(crate) fn urls(&self) -> Vec<String> {
        let url =
            |member: &Member| format!("{}://{}:{}", self.scheme, member.address, self.ports.0);
        self.members.iter().map(url).collect()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, number: usize) {
        let mut process = self.members[number].process.take().expect("running");
        process.kill().expect("our own child");
        process.wait().expect("our own child");
    }

    /// Again, on what it had.
    pub(crate) fn restart(&mut self, number: usize) {
        self.spawn(number);
        self.wait(number);
    }

    fn spawn(&mut self, number: usize) {
        let (client, peer) = self.ports;
        let urls = self.members.iter().enumerate();
        let urls =
            urls.map(|(number, member)| format!("m{number}=http://{}:{peer}", member.address));
        let all: Vec<String> = urls.collect();
        let here = self.members[number].address;
        let url = format!("{}://{here}:{client}", self.scheme);
        let log = self.directory.path().join(format!("m{number}.log"));
        let log = File::options().create(true).append(true).open(log);
        let log = log.expect("a log");
        let process = Command::new("etcd")
            .args(["--name", &format!("m{number}")])
            .arg("--data-dir")
            .arg(self.directory.path().join(format!("m{number}")))
            .args(["--listen-client-urls", &url])
            .args(["--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &format!("http://{here}:{peer}")])
            .args([
                "--initial-advertise-peer-urls",
                &format!("http://{here}:{peer}"),
            ])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--logger", "zap", "--log-level", "warn"])
            .args(&self.options)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd starts");
        self.members[number].process = Some(process);
    }

    fn wait(&mut self, number: usize) {
        let until = Instant::now() + HANG;
        let client = SocketAddr::from((self.members[number].address, self.ports.0));
        while TcpStream::connect_timeout(&client, Duration::from_millis(200)).is_err() {
            let process = self.members[number].process.as_mut().expect("started");
            let ended = process.try_wait().expect("our own child");
            assert!(
                ended.is_none() && Instant::now() < until,
                "etcd does not come: {}",
                self.log(number)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self, number: usize) -> String {
        let log = self.directory.path().join(format!("m{number}.log"));
        std::fs::read_to_string(log).unwrap_or_default()
    }
}

/// Where so many members are.
pub(crate) fn addresses(count: u8) -> Vec<Ipv4Addr> {
    (0..count).map(address).collect()
}

/// Of this process alone: 22 bits of its pid, and the member.
fn address(number: u8) -> Ipv4Addr {
    let [_, a, b, c] = (std::process::id() * 4 + u32::from(number)).to_be_bytes();
    Ipv4Addr::new(127, a, b, c)
}

impl Drop for EtcdMembers {
    fn drop(&mut self) {
        for process in self
            .members
            .iter_mut()
            .filter_map(|member| member.process.as_mut())
        {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

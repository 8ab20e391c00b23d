//! What the tests with real processes share: the installed library, C programs, memory nodes.
//!
//! Every process that is started here is ended when its handle is dropped, also when a test fails. Nothing
//! is waited for longer than [`LIMIT`].

#![allow(dead_code)] // Each test binary uses a part of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use mycoram_fabric::session::{Dial, TcpDial};

/// Longer than any of these tests takes on a slow, busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

fn client_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) {
        "dev"
    } else {
        "release"
    }
}

fn target_dir() -> PathBuf {
    // .../target/PROFILE/deps/TEST
    let here = std::env::current_exe().expect("this program has a path");
    here.ancestors().nth(2).expect("cargo's layout").to_owned()
}

fn cargo(words: &[&str]) {
    let status = Command::new(env!("CARGO"))
        .args(words)
        .current_dir(
            client_dir()
                .parent()
                .expect("the client is a part of a checkout"),
        )
        .status()
        .expect("cargo runs");
    assert!(status.success(), "cargo {words:?} failed");
}

/// `myco`, freshly built.
pub(crate) fn myco() -> &'static Path {
    static MYCO: OnceLock<PathBuf> = OnceLock::new();
    MYCO.get_or_init(|| {
        cargo(&[
            "build",
            "--quiet",
            "--package",
            "myco",
            "--bin",
            "myco",
            "--profile",
            profile(),
        ]);
        target_dir().join("myco")
    })
}

/// The prefix under which libmycoram is installed, by the installer that users have.
pub(crate) fn installed() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = scratch().join("installed");
        let path = prefix.to_str().expect("a path of plain text");
        cargo(&[
            "run",
            "--quiet",
            "--package",
            "xtask",
            "--",
            "install-client",
            "--prefix",
            path,
            "--profile",
            profile(),
        ]);
        prefix
    })
}

/// Compiles `source` against the installed library, found by pkg-config as any program would.
pub(crate) fn compile(source: &Path, into: &Path, more: &[&str]) {
    let flags = Command::new("pkg-config")
        .args(["--cflags", "--libs", "mycoram"])
        .env("PKG_CONFIG_PATH", installed().join("lib/pkgconfig"))
        .output()
        .expect("pkg-config is needed: apt-get install pkg-config");
    assert!(
        flags.status.success(),
        "pkg-config: {}",
        String::from_utf8_lossy(&flags.stderr)
    );
    let flags = String::from_utf8(flags.stdout).expect("plain text");
    let output = Command::new("gcc")
        .args([
            "-std=gnu11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-pthread",
        ])
        .args(more)
        .arg(source)
        .args(flags.split_whitespace())
        .arg(format!("-Wl,-rpath,{}", installed().join("lib").display()))
        .arg("-o")
        .arg(into)
        .output()
        .expect("gcc is needed: apt-get install build-essential");
    assert!(
        output.status.success(),
        "{}:\n{}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A C test program, by its name in `tests/c/`.
pub(crate) fn c_program(name: &str) -> PathBuf {
    built(&client_dir().join("tests/c").join(name).with_extension("c"))
}

/// The program that `source` compiles to. Put in its place whole, for an older one may be running.
pub(crate) fn built(source: &Path) -> PathBuf {
    let name = source.file_stem().expect("a file");
    let into = scratch().join(name);
    let new = tempfile::NamedTempFile::new_in(scratch())
        .expect("a file")
        .into_temp_path();
    compile(source, &new, &[]);
    std::fs::rename(&new, &into).expect("the program takes its place");
    into
}

/// A memory node: `myco node serve`.
pub(crate) struct Node {
    child: Child,
    pub(crate) control: SocketAddr,
}

impl Node {
    pub(crate) fn start(capacity: &str) -> Self {
        Self::start_with(capacity, &[])
    }

    pub(crate) fn start_with(capacity: &str, more: &[&str]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let control = listener.local_addr().expect("an address");
        drop(listener);
        let child = Command::new(myco())
            .args([
                "node",
                "serve",
                "--transport",
                "tcp",
                "--capacity",
                capacity,
            ])
            .args(["--listen", &control.to_string()])
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .expect("myco runs");
        let mut node = Self { child, control };
        let begun = Instant::now();
        while TcpDial::default()
            .dial(control)
            .and_then(|mut channel| channel.hello())
            .is_err()
        {
            let ended = node.child.try_wait().expect("the node can be waited for");
            assert!(ended.is_none(), "the memory node ended: {ended:?}");
            assert!(begun.elapsed() < LIMIT, "the memory node does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        node
    }

    /// Bytes that it has not lent.
    pub(crate) fn free(&self) -> u64 {
        let mut channel = TcpDial::default()
            .dial(self.control)
            .expect("the node answers");
        channel.status().expect("the node answers").free.get()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the node can be killed");
        self.child.wait().expect("the node can be waited for");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A URI for these nodes.
pub(crate) fn uri(nodes: &[&Node], options: &str) -> String {
    let nodes: Vec<String> = nodes.iter().map(|node| node.control.to_string()).collect();
    format!("myco://{}?{options}", nodes.join(","))
}

/// A running program with its output kept; killed when dropped.
pub(crate) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    errors: Option<std::thread::JoinHandle<String>>,
    said: Vec<String>,
}

/// What a program left.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
    pub(crate) errors: String,
}

impl Ended {
    pub(crate) fn pass(self) -> Self {
        assert!(
            self.status.success(),
            "{} (signal {:?})\n{}\n{}",
            self.status,
            self.status.signal(),
            self.output,
            self.errors
        );
        self
    }
}

pub(crate) fn start(command: &mut Command) -> Running {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, mut err) = (
        child.stdout.take().expect("piped"),
        child.stderr.take().expect("piped"),
    );
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = err.read_to_string(&mut text);
        text
    });
    Running {
        stdin: child.stdin.take(),
        child,
        lines,
        errors: Some(errors),
        said: Vec::new(),
    }
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the program says `word` on a line of its own.
    pub(crate) fn await_line(&mut self, word: &str) {
        let until = Instant::now() + LIMIT;
        loop {
            match self
                .lines
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.said.push(line);
                    if self.said.last().is_some_and(|line| line == word) {
                        return;
                    }
                }
                Err(error) => {
                    let _ = self.child.kill();
                    let errors = self.errors.take().map(|thread| thread.join());
                    panic!(
                        "the program did not say {word}: {error}; {:?}; {errors:?}",
                        self.said
                    );
                }
            }
        }
    }

    /// Lets the program go on from where it said a word.
    pub(crate) fn go_on(&mut self) {
        let stdin = self.stdin.as_mut().expect("not finished yet");
        stdin.write_all(b"\n").expect("the program listens");
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Ended {
        drop(self.stdin.take());
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self
                .child
                .try_wait()
                .expect("the program can be waited for")
            {
                break status;
            }
            if begun.elapsed() > LIMIT {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!("the program hangs; it said {:?}", self.said);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        self.said.extend(self.lines.iter());
        let errors = self.errors.take().and_then(|thread| thread.join().ok());
        Ended {
            status,
            output: std::mem::take(&mut self.said).join("\n"),
            errors: errors.unwrap_or_default(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes of far mappings' pages that process `pid` has in memory, as the kernel counts them: the blocks of
/// its memfds of that name, and private memory that is registered with a userfaultfd.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    file_bytes(pid) + private_bytes(pid)
}

fn file_bytes(pid: u32) -> u64 {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return 0;
    };
    let mut files = std::collections::BTreeMap::new();
    for path in descriptors.flatten().map(|entry| entry.path()) {
        let is_ours = std::fs::read_link(&path)
            .is_ok_and(|link| link.to_string_lossy().starts_with("/memfd:mycoram"));
        if let (true, Ok(file)) = (is_ours, std::fs::metadata(&path)) {
            use std::os::unix::fs::MetadataExt;
            files.insert(file.ino(), file.blocks() * 512);
        }
    }
    files.values().sum()
}

/// Each mapping of smaps has its lines in this order: addresses and file, Rss, and at the end its flags, of
/// which `um` says that missing pages are reported.
fn private_bytes(pid: u32) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut bytes, mut rss, mut private) = (0, 0, false);
    for line in maps.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["Rss:", kib, "kB"] => rss = kib.parse::<u64>().unwrap_or(0) << 10,
            ["VmFlags:", ..] if private && words.contains(&"um") => bytes += rss,
            [range, _, _, _, inode, ..] if range.contains('-') => private = inode == "0",
            _ => {}
        }
    }
    bytes
}

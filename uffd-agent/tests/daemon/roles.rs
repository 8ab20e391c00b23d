//! The processes of these tests: this very test binary, started again with a role.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use mycoram_agent::daemon::client::{AttachRequest, Attached, Connection};
use mycoram_agent::daemon::{AllowedPeers, Daemon, DaemonConfig};
use mycoram_agent::kernel::MemoryFile;
use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::{ByteCount, PAGE_BYTES};

use crate::file_remote::FileSource;

const ROLE: &str = "MYCORAM_TEST_ROLE";
/// In front of what a role tells its test: the test harness prints lines of its own.
const MARK: &str = "@";
/// Only a failing test waits this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Where a test's processes meet.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("mycoram-daemon-test")
            .tempdir_in("/dev/shm")
            .expect("a directory in /dev/shm");
        std::fs::create_dir(dir.path().join("remote")).expect("a directory");
        // The unprivileged client must be able to reach the socket.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).expect("its mode");
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path().join("agent.sock")
    }

    /// Everything in it belongs to nobody, whom a weak daemon runs as.
    pub(crate) fn give_to_nobody(&self) {
        for path in [self.path().to_owned(), self.path().join("remote")] {
            std::os::unix::fs::chown(path, Some(65534), Some(65534))
                .expect("these tests run as root");
        }
    }

    pub(crate) fn remote_regions(&self) -> usize {
        std::fs::read_dir(self.path().join("remote"))
            .expect("the directory")
            .count()
    }

    /// Where the pages of the only region are.
    pub(crate) fn remote_region(&self) -> PathBuf {
        let mut all = std::fs::read_dir(self.path().join("remote")).expect("the directory");
        all.next().expect("a region").expect("an entry").path()
    }

    /// Files of regions and clients that the daemon keeps.
    pub(crate) fn state_files(&self) -> Vec<String> {
        std::fs::read_dir(self.path().join("state"))
            .expect("the directory")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .filter(|name| name.starts_with("client-"))
            .collect()
    }
}

/// A process with a role; ended and reaped in any case.
pub(crate) struct Role {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Role {
    pub(crate) fn start(place: &Place, role: &str, arguments: &[&str]) -> Self {
        let words = [&[role, place.path().to_str().expect("utf-8")], arguments].concat();
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command
            .args(["--exact", "roles::role", "--nocapture", "--test-threads=1"])
            .env(ROLE, words.join("\n"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // SAFETY: prctl is a plain system call; the child dies with its test.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        let mut child = command.spawn().expect("this binary again");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(at) = line.find(MARK) {
                    let _ = tell.send(line[at + 1..].to_owned());
                }
            }
        });
        Self {
            stdin: child.stdin.take().expect("piped"),
            child,
            lines,
        }
    }

    pub(crate) fn daemon(place: &Place, max_local_mib: u64, allow: &str) -> Self {
        Self::daemon_as("daemon", place, max_local_mib, allow)
    }

    /// A daemon without any rights.
    pub(crate) fn weak_daemon(place: &Place, max_local_mib: u64) -> Self {
        Self::daemon_as("weak-daemon", place, max_local_mib, "same")
    }

    fn daemon_as(role: &str, place: &Place, max_local_mib: u64, allow: &str) -> Self {
        let daemon = Self::start(place, role, &[&max_local_mib.to_string(), allow]);
        assert_eq!(daemon.line(), "listening");
        daemon
    }

    /// What it says next.
    pub(crate) fn line(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .expect("the process says something in time")
    }

    /// Waits until it says `wanted`, whatever it says before.
    pub(crate) fn await_line(&self, wanted: &str) {
        while self.line() != wanted {}
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("the process listens");
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it lives");
        self.child.wait().expect("reaped");
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return status;
            }
            assert!(Instant::now() < until, "the process does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends a daemon in order.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.tell("stop");
        self.child.wait().expect("reaped")
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{MARK}{line}");
    let _ = out.flush();
}

fn heard() -> Option<String> {
    let mut line = String::new();
    let bytes = std::io::stdin().read_line(&mut line).unwrap_or(0);
    (bytes > 0).then(|| line.trim().to_owned())
}

/// Not a test: what a started process does. Without a role it does nothing.
#[test]
fn role() {
    let Ok(words) = std::env::var(ROLE) else {
        return;
    };
    let words: Vec<&str> = words.split('\n').collect();
    match words[..] {
        ["daemon", place, max_local_mib, allow] => {
            daemon(Path::new(place), max_local_mib.parse().expect("MiB"), allow);
        }
        // One that may not look into its programs.
        ["weak-daemon", place, max_local_mib, allow] => {
            become_nobody();
            daemon(Path::new(place), max_local_mib.parse().expect("MiB"), allow);
        }
        ["program", place, mib, local_mib] => {
            program(
                Path::new(place),
                mib.parse().expect("MiB"),
                local_mib.parse().expect("MiB"),
            );
        }
        ["nobody", place, mib, local_mib] => {
            become_nobody();
            program(
                Path::new(place),
                mib.parse().expect("MiB"),
                local_mib.parse().expect("MiB"),
            );
        }
        _ => panic!("no such role: {words:?}"),
    }
}

fn daemon(place: &Path, max_local_mib: u64, allow: &str) {
    let mut config = DaemonConfig::new(place.join("agent.sock"), ByteCount::mib(max_local_mib));
    config.state_dir = place.join("state");
    config.max_local_per_user = ByteCount::mib(max_local_mib * 3 / 4);
    config.max_far = ByteCount::mib(128);
    config.max_far_per_user = ByteCount::mib(64);
    config.max_clients = 8;
    config.allow = match allow {
        "same" => AllowedPeers::SameUser,
        "everybody" => AllowedPeers::Everybody,
        uid => AllowedPeers::Users(vec![uid.parse().expect("a uid")]),
    };
    let source = Arc::new(FileSource::new(&place.join("remote")));
    let daemon = Daemon::start(config, source).expect("the daemon starts");
    let stopper = daemon.stopper();
    std::thread::spawn(move || {
        if heard().as_deref() == Some("stop") {
            stopper.stop();
        }
    });
    say("listening");
    daemon.run();
}

fn become_nobody() {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let (nobody, nogroup) = (Uid::from_raw(65534), Gid::from_raw(65534));
    setgroups(&[]).expect("these tests run as root");
    setresgid(nogroup, nogroup, nogroup).expect("root");
    setresuid(nobody, nobody, nobody).expect("root");
    // A process that changed its user is not its own to look at in /proc until it says so.
    // SAFETY: a plain system call.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
}

/// A program with far memory. What it shall do it is told line by line.
fn program(place: &Path, mib: u64, local_mib: u64) {
    let bytes = ByteCount::mib(mib);
    let memory = MemoryFile::create(c"program", bytes).expect("a memfd");
    let mapping = Mapping::shared(&memory, bytes.as_usize()).expect("a mapping");
    let attached = Connection::open(&place.join("agent.sock"))
        .map_err(|error| words(&error))
        .and_then(|connection| {
            let request = AttachRequest {
                memory: std::os::fd::AsFd::as_fd(&memory)
                    .try_clone_to_owned()
                    .expect("dup"),
                base: mapping.as_ptr() as u64,
                bytes,
                file_offset: 0,
                local_budget: ByteCount::mib(local_mib),
                extent_bytes: ByteCount::mib(1),
                fault_workers: 1,
            };
            connection
                .attach(request, |notice| say(&format!("notice {notice:?}")))
                .map_err(|error| words(&error))
        });
    let mut attached = match attached {
        Ok(attached) => Some(attached),
        Err(refused) => {
            say(&format!("refused {refused}"));
            return;
        }
    };
    say("attached");
    let mut round = 0;
    while let Some(line) = heard() {
        match line.as_str() {
            "fill" => {
                round += 1;
                fill(&mapping, round);
                say("filled");
            }
            "verify" => say(&verify(&mapping, round)),
            // Forever: until it is killed, or something is wrong.
            "work" => loop {
                round += 1;
                fill(&mapping, round);
                let verdict = verify(&mapping, round);
                say(&format!("round {round} {verdict}"));
                if verdict != "verified" {
                    return;
                }
            },
            "stats" => say(&stats(attached.as_ref().expect("attached"))),
            "flush" => say(&format!("{:?}", attached.as_ref().map(Attached::flush))),
            "end" => say(&format!("{:?}", attached.take().map(Attached::end))),
            _ => panic!("what is {line}?"),
        }
    }
}

fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        next = cause.source();
    }
    words
}

fn stats(attached: &Attached) -> String {
    match attached.stats() {
        Ok(stats) => format!(
            "faults {} budget {} peak {} evictions {} panics {}",
            stats.faults,
            stats.budget_pages,
            stats.peak_resident,
            stats.evictions,
            stats.thread_panics
        ),
        Err(error) => words(&error),
    }
}

/// What page `page` starts with in round `round`.
fn pattern(page: usize, round: u64) -> [u8; 16] {
    let mixed = (page as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&mixed.to_le_bytes());
    bytes[8..].copy_from_slice(&round.to_le_bytes());
    bytes
}

/// All pages, in an order that jumps.
fn pages(mapping: &Mapping) -> impl Iterator<Item = usize> {
    let pages = mapping.len() / PAGE_BYTES;
    // Odd, so that it meets every page of a power of two.
    (0..pages).map(move |at| at.wrapping_mul(2_654_435_761) % pages)
}

fn fill(mapping: &Mapping, round: u64) {
    for page in pages(mapping) {
        mapping
            .copy_in(page * PAGE_BYTES + 64, &pattern(page, round))
            .expect("inside");
    }
}

fn verify(mapping: &Mapping, round: u64) -> String {
    let mut found = [0; 16];
    for page in pages(mapping) {
        mapping
            .copy_out(page * PAGE_BYTES + 64, &mut found)
            .expect("inside");
        if found != pattern(page, round) {
            return format!("page {page} is wrong in round {round}: {found:02x?}");
        }
    }
    "verified".into()
}

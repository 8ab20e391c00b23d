//! The processes: control plane and its etcd, memory nodes, agent, worker.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::net::Net;
use super::{stale, worker};

const MYCO: &str = env!("CARGO_BIN_EXE_myco");
/// How long anything may take before it counts as a hang: longer than the control plane watches a node that came
/// back again and again (five minutes).
pub(crate) const HANG: Duration = Duration::from_secs(420);
/// How long a node may be silent: several times what a loaded machine makes of a heartbeat, and an emulated one.
const NODE_LEASE: &str = "2s";
const NODE_LEASE_IN_TESTBED: &str = "6s";
/// Of the first; each has its own.
const CONTROL_PORT: u16 = 7400;
const NODE_PORT: u16 = 7700;
/// Of the first member; each has two.
const ETCD_PORT: u16 = 2379;

/// A process that ends with its guard, and with this process.
pub(crate) struct Part {
    child: Child,
    /// It has said on its first line that it is ready.
    ready: Arc<AtomicBool>,
}

impl Part {
    fn spawn(command: &mut Command) -> Self {
        // SAFETY: prctl is a plain system call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Self {
            child: child.expect("the program starts"),
            ready: Arc::default(),
        }
    }

    /// A `myco` that serves.
    fn serve(mut command: Command) -> Self {
        let mut part = Self::spawn(&mut command);
        let (stdout, ready) = (part.child.stdout.take(), Arc::clone(&part.ready));
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = stdout.map(|stdout| BufReader::new(stdout).read_line(&mut line));
            let says: Value = serde_json::from_str(&line).unwrap_or_default();
            let is_ready = says["schema"]
                .as_str()
                .is_some_and(|s| s.ends_with("-ready"));
            ready.store(is_ready, Ordering::Release);
        });
        part
    }

    /// One that says nothing: it counts as ready.
    fn serve_silently(mut command: Command) -> Self {
        let part = Self::spawn(&mut command);
        part.ready.store(true, Ordering::Release);
        part
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("our own child");
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One of the processes that serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Control(usize),
    Node(usize),
    Agent,
    /// Of the control plane's etcd.
    Member(usize),
}

/// Whether a process is to run, and whether it does.
#[derive(Default)]
struct Slot {
    wanted: bool,
    part: Option<Part>,
    /// How often it ended although nobody killed it.
    ended: u32,
}

/// Control plane, its etcd, memory nodes and agent, with what a supervisor does for them.
pub(crate) struct Parts {
    dir: tempfile::TempDir,
    transport: &'static str,
    slots: Vec<(Which, Slot)>,
    replicas: usize,
    pub(crate) net: Net,
}

impl Parts {
    pub(crate) fn start(net: Net, transport: &'static str) -> Self {
        let dir = stale::directory(Path::new("/dev/shm")).expect("a directory in /dev/shm");
        mycoram_control::identity::init_cluster(&dir.path().join("tls")).expect("made");
        let mut all: Vec<_> = (0..net.means.members).map(Which::Member).collect();
        all.extend((0..net.means.controls).map(Which::Control));
        all.extend((0..net.nodes.len()).map(Which::Node));
        let wanted = all.clone();
        all.push(Which::Agent);
        let mut parts = Self {
            dir,
            transport,
            slots: all
                .into_iter()
                .map(|which| (which, Slot::default()))
                .collect(),
            replicas: 0,
            net,
        };
        for which in wanted {
            parts.want(which, true);
        }
        parts
    }

    fn slot(&mut self, which: Which) -> &mut Slot {
        let found = self.slots.iter_mut().find(|(slot, _)| *slot == which);
        &mut found.expect("one of them").1
    }

    /// Starts it with the next [`Self::tend`], or kills it now: SIGKILL, and waited for.
    pub(crate) fn want(&mut self, which: Which, wanted: bool) {
        let slot = self.slot(which);
        slot.wanted = wanted;
        if !wanted {
            slot.part = None;
        }
    }

    /// The agent's regions have so many replicas from now on.
    pub(crate) fn want_agent(&mut self, replicas: usize) {
        self.replicas = replicas;
        self.want(Which::Agent, true);
    }

    pub(crate) fn signal(&mut self, which: Which, signal: Signal) {
        if let Some(part) = &self.slot(which).part {
            part.signal(signal);
        }
    }

    /// Starts what is to run and does not: also what ended by itself, because another part was away.
    pub(crate) fn tend(&mut self) {
        for at in 0..self.slots.len() {
            let (which, slot) = &mut self.slots[at];
            if slot.part.as_mut().is_some_and(Part::has_ended) {
                slot.part = None;
                slot.ended += 1;
            }
            if !slot.wanted || slot.part.is_some() {
                continue;
            }
            let which = *which;
            let part = match which {
                Which::Member(_) => Part::serve_silently(self.command(which)),
                _ => Part::serve(self.command(which)),
            };
            self.slots[at].1.part = Some(part);
        }
    }

    /// All that are to run have said so.
    pub(crate) fn are_ready(&self) -> bool {
        let mut wanted = self.slots.iter().filter(|(_, slot)| slot.wanted);
        wanted.all(|(_, slot)| {
            let ready = slot.part.as_ref().map(|part| &part.ready);
            ready.is_some_and(|ready| ready.load(Ordering::Acquire))
        })
    }

    /// Who ended by itself how often.
    pub(crate) fn ended(&self) -> String {
        let ended = self.slots.iter().filter(|(_, slot)| slot.ended > 0);
        let ended: Vec<_> = ended
            .map(|(which, slot)| format!("{which:?} {} times", slot.ended))
            .collect();
        ended.join(", ")
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn url(&self) -> String {
        let controls = 0..self.net.means.controls;
        let controls = controls.map(|control| self.control_address(control));
        format!("control://{}", controls.collect::<Vec<_>>().join(","))
    }

    fn control_address(&self, control: usize) -> String {
        format!(
            "{}:{}",
            self.net.address,
            usize::from(CONTROL_PORT) + control
        )
    }

    /// `http://HOST:PORT` of a member, for clients or, with `peers`, for the others.
    fn member_url(&self, member: usize, peers: bool) -> String {
        let port = usize::from(ETCD_PORT) + 2 * member + usize::from(peers);
        format!("http://{}:{port}", self.net.address)
    }

    fn store(&self) -> String {
        if self.net.means.members == 0 {
            return format!("redb:{}", self.path("store"));
        }
        let members = 0..self.net.means.members;
        let members = members.map(|member| self.member_url(member, false));
        format!("etcd:{}", members.collect::<Vec<_>>().join(","))
    }

    fn etcd(&self, member: usize) -> Command {
        let name = format!("m{member}");
        let members = 0..self.net.means.members;
        let all = members.map(|member| format!("m{member}={}", self.member_url(member, true)));
        let all = all.collect::<Vec<_>>().join(",");
        let (data, log) = (self.path(&name), self.path(&format!("{name}.log")));
        let (client, peer) = (
            self.member_url(member, false),
            self.member_url(member, true),
        );
        let mut command = self.net.command(None, "etcd");
        #[rustfmt::skip]
        command.args([
            "--name", &name, "--data-dir", &data, "--listen-client-urls", &client,
            "--advertise-client-urls", &client, "--listen-peer-urls", &peer,
            "--initial-advertise-peer-urls", &peer, "--initial-cluster", &all,
            "--logger", "zap", "--log-level", "warn",
        ]);
        let log = File::options().create(true).append(true).open(log);
        command.stderr(log.expect("a log"));
        command
    }

    fn myco(&self, node: Option<usize>, words: &[&str]) -> Command {
        let mut command = self.net.command(node, MYCO);
        command.args(words).arg("--json");
        command
    }

    fn command(&self, which: Which) -> Command {
        let (tls, url) = (self.path("tls"), self.url());
        match which {
            Which::Control(control) => {
                let (listen, store) = (self.control_address(control), self.store());
                let lease = match std::env::var_os("MYCORAM_TESTBED_TOPOLOGY") {
                    Some(_) => NODE_LEASE_IN_TESTBED,
                    None => NODE_LEASE,
                };
                #[rustfmt::skip]
                let words = [
                    "control", "serve", "--listen", &listen, "--store", &store, "--tls", &tls,
                    "--node-lease", lease,
                ];
                self.myco(None, &words)
            }
            Which::Node(node) => {
                let listen = format!("{}:{NODE_PORT}", self.net.nodes[node].address);
                let (name, domain) = (format!("n{node}"), format!("eu/a/r{node}/n{node}"));
                #[rustfmt::skip]
                let words = [
                    "node", "serve", "--listen", &listen, "--capacity", "64MiB", "--transport", self.transport,
                    "--name", &name, "--domain", &domain, "--control", &url, "--tls", &tls,
                ];
                self.myco(Some(node), &words)
            }
            Which::Agent => {
                let far = format!("{url}?tls={tls}&replicas={}", self.replicas);
                let (socket, state) = (self.path("agent.sock"), self.path("state"));
                #[rustfmt::skip]
                let words = [
                    "agent", "serve", "--max-local", "16MiB", "--nodes", &far, "--socket", &socket,
                    "--state-dir", &state,
                ];
                self.myco(None, &words)
            }
            Which::Member(member) => self.etcd(member),
        }
    }

    /// A subcommand of an admin; `None`: it failed.
    pub(crate) fn ask(&self, words: &[&str]) -> Option<Value> {
        let (url, tls) = (self.url(), self.path("tls"));
        let mut command = self.myco(None, words);
        command.args(["--control", &url, "--tls", &tls]);
        let output = command.stderr(Stdio::null()).output().expect("myco runs");
        serde_json::from_slice(&output.stdout).ok()
    }
}

/// The verifying workload.
pub(crate) struct Worker {
    part: Part,
    visits: Arc<AtomicU64>,
    reader: Option<std::thread::JoinHandle<Option<u64>>>,
}

impl Worker {
    pub(crate) fn start(parts: &Parts, seed: u64) -> Self {
        let exe = std::env::current_exe().expect("this test");
        let mut command = Command::new(exe);
        command
            .args(["worker_process", "--ignored", "--exact", "--nocapture"])
            .env(worker::SOCKET, parts.socket())
            .env(worker::SEED, seed.to_string());
        let mut part = Part::spawn(&mut command);
        let visits = Arc::<AtomicU64>::default();
        let (told, stdout) = (Arc::clone(&visits), part.child.stdout.take());
        let reader = std::thread::spawn(move || {
            let mut done = None;
            for line in BufReader::new(stdout?).lines().map_while(Result::ok) {
                if let Some(count) = line.strip_prefix(worker::VISITS) {
                    told.store(count.parse().ok()?, Ordering::Relaxed);
                } else if let Some(count) = line.strip_prefix(worker::DONE) {
                    done = count.parse().ok();
                }
            }
            done
        });
        Self {
            part,
            visits,
            reader: Some(reader),
        }
    }

    pub(crate) fn visits(&self) -> u64 {
        self.visits.load(Ordering::Relaxed)
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let status = self.part.child.try_wait().expect("our own child")?;
        Some(match status.signal() {
            Some(libc::SIGBUS) => "a page was lost: it got SIGBUS".to_owned(),
            Some(signal) => format!("it was ended by signal {signal}"),
            None => format!("it ended with {status}; its words are above"),
        })
    }

    /// Tells it to verify everything once more and to end; visits of pages, or what went wrong.
    pub(crate) fn finish(mut self) -> Result<u64, String> {
        drop(self.part.child.stdin.take());
        let until = Instant::now() + HANG;
        let ended = loop {
            if let Some(ended) = self.ended() {
                break ended;
            }
            if Instant::now() > until {
                return Err("it does not end".to_owned());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let done = self.reader.take().and_then(|reader| reader.join().ok());
        done.flatten().ok_or(ended)
    }
}

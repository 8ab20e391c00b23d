//! What different processes say about one request, or one owner, carries the same number.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mycoram_control::client::{Access, ControlClient, RegionKey, RegionLease};
use mycoram_fabric::session::{Dial, Identity, Session, TcpDial};
use serde_json::Value;

const MYCO: &str = env!("CARGO_BIN_EXE_myco");
const HANG: Duration = Duration::from_secs(60);
const OWNER: u64 = 0x0123_4567_89ab_cdef;

/// A process whose words go to a file. Killed when it is dropped.
struct Process {
    child: Child,
    ready: Value,
    log: PathBuf,
}

impl Process {
    fn start(dir: &Path, name: &str, args: &[&str]) -> Self {
        let log = dir.join(name);
        let mut child = Command::new(MYCO)
            .args(args)
            .arg("--json")
            .env("MYCO_LOG", "mycoram_control=debug,mycoram_fabric=debug")
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a file"))
            .spawn()
            .expect("myco starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| panic!("ready line: {line:?}"));
        Self { child, ready, log }
    }

    /// A line of its log with all of these words; waits for it.
    fn says(&self, words: &[&str]) -> String {
        let until = Instant::now() + HANG;
        loop {
            let log = std::fs::read_to_string(&self.log).expect("its log");
            let mut lines = log.lines();
            if let Some(line) = lines.find(|line| words.iter().all(|word| line.contains(word))) {
                return line.to_owned();
            }
            assert!(Instant::now() < until, "{words:?} is not in {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn both_sides_of_a_call_and_of_a_session_name_the_same_number() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = format!("redb:{}", dir.path().join("store").display());
    #[rustfmt::skip]
    let serve = ["control", "serve", "--listen", "127.0.0.1:0", "--store", &store, "--insecure"];
    let control = Process::start(dir.path(), "control", &serve);
    let url = format!(
        "control://{}",
        control.ready["address"].as_str().expect("an address")
    );
    #[rustfmt::skip]
    let serve = [
        "node", "serve", "--listen", "127.0.0.1:0", "--capacity", "8MiB", "--name", "n1", "--control", &url,
        "--insecure",
    ];
    let node = Process::start(dir.path(), "node", &serve);
    // The memory node's own words about its call, and the control plane's about the same one.
    let asked = node.says(&["call=\"register_node\"", "request="]);
    let number = asked
        .split("request=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    let number = number.expect("a number");
    assert_eq!(number.len(), 16, "{asked}");
    control.says(&[number, "RegisterNode", "a memory node registered"]);

    #[rustfmt::skip]
    let create = [
        "region", "create", "r", "--size", "4MiB", "--extent", "1MiB", "--control", &url, "--insecure", "--json",
    ];
    let made = Command::new(MYCO).args(create).output().expect("myco runs");
    assert!(made.status.success(), "{made:?}");
    let access = Access::new(url.parse().expect("an address"), None);
    let client = std::sync::Arc::new(ControlClient::new(&access).expect("threads"));
    let key = RegionKey::Name("r".to_owned());
    let lease = RegionLease::acquire(client, &key, OWNER, false, HANG).expect("acquired");
    let entry = lease.entry();
    let identity = Identity {
        tenant: entry.tenant,
        region: entry.id,
        epoch: entry.epoch,
        token: lease.token(),
        owner: OWNER,
    };
    let address = node.ready["control"].as_str().expect("an address");
    let channel = TcpDial::default()
        .dial(address.parse().expect("an address"))
        .expect("alive");
    let _session = Session::open(channel, identity, true).expect("a session");
    let owner = format!("owner={OWNER:016x}");
    control.says(&[&owner, "an owner wants a region"]);
    node.says(&[&owner, "a session is open"]);
}

//! A region goes on when its owner's machine is gone: by what the control plane knows, and nothing else. The owner is
//! a process of its own: this test program, called again.

mod control_process;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use control_process::{Cluster, Process, wait_until};
use mycoram::FarMemory;
use mycoram_agent::daemon::RemoteSource;
use mycoram_control::client::{ControlRegions, RegionKey, RegionLease};
use mycoram_control::identity::Role;
use mycoram_fabric::units::{ByteCount, PageIndex};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
/// How large the region is, and how much of it its first owner writes.
const SIZE: usize = 64 * MIB;
const WRITTEN: usize = 6 * MIB;
/// Tells the child what to be.
const OWNER: &str = "MYCORAM_TEST_OWNER";
/// The word for a notice of its, that somebody else is the owner now.
const TOLD: &str = "told";

fn value(place: usize) -> u8 {
    (place / PAGE * 7 + place + 1) as u8
}

/// Pages that were zeroed again after they had been written back.
fn is_zeroed(page: usize) -> bool {
    page % 50 == 3
}

/// What the first owner does. Nothing, where nobody asks for it.
#[test]
fn as_an_owner() {
    let Ok(uri) = std::env::var(OWNER) else {
        return;
    };
    let far = FarMemory::open(&uri).expect("opens");
    let mut memory = far.map(SIZE).expect("maps");
    for (place, byte) in memory[..WRITTEN].iter_mut().enumerate() {
        *byte = value(place);
    }
    memory.flush().expect("on all replicas");
    for page in (0..WRITTEN / PAGE).filter(|page| is_zeroed(*page)) {
        memory[page * PAGE..(page + 1) * PAGE].fill(0);
    }
    memory.flush().expect("on all replicas");
    println!("\nflushed");
    let mut line = String::new();
    while std::io::stdin()
        .read_line(&mut line)
        .is_ok_and(|read| read > 0)
    {
        // It has a successor by now, which it does not know.
        for page in 0..WRITTEN / PAGE {
            memory[page * PAGE] = 0xee;
        }
        match memory.flush() {
            Ok(()) => println!("\naccepted"),
            Err(_) => println!("\nrefused"),
        }
        line.clear();
    }
}

struct Owner {
    child: Child,
    /// Its words, as they come.
    says: Receiver<String>,
}

impl Owner {
    fn start(uri: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args(["--exact", "as_an_owner", "--nocapture"])
            .env(OWNER, uri)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let (say, says) = channel();
        let words = ["flushed", "accepted", "refused"];
        pass_on(
            child.stdout.take().expect("piped"),
            say.clone(),
            move |line| words.into_iter().find(|word| *word == line),
        );
        pass_on(child.stderr.take().expect("piped"), say, |line| {
            eprintln!("{line}");
            line.contains("has a new owner").then_some(TOLD)
        });
        let owner = Self { child, says };
        let first = owner.says.recv_timeout(control_process::HANG);
        assert_eq!(first.as_deref(), Ok("flushed"));
        owner
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("our own child");
    }
}

/// Passes words on that are found in lines of `from`. Ends with who writes them.
fn pass_on(
    from: impl Read + Send + 'static,
    say: Sender<String>,
    word_in: impl Fn(&str) -> Option<&'static str> + Send + 'static,
) {
    std::thread::spawn(move || {
        let lines = BufReader::new(from).lines().map_while(Result::ok);
        for line in lines {
            if let Some(word) = word_in(line.trim())
                && say.send(word.to_owned()).is_err()
            {
                break;
            }
        }
    });
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn cluster() -> (Cluster, [Process; 2]) {
    let cluster = Cluster::start();
    let nodes = ["n1", "n2"].map(|name| cluster.start_node(name));
    wait_until("both are up", || {
        cluster.must(&["cluster", "status"])["nodes_up"] == 2
    });
    (cluster, nodes)
}

fn uri(cluster: &Cluster, more: &str) -> String {
    let (url, tls) = (cluster.url(), cluster.tls());
    let tls = tls.display();
    format!("{url}?tls={tls}&region=db&replicas=2&local=1MiB&extent=256KiB&ahead=1MiB{more}")
}

fn check(memory: &[u8]) {
    for (page, bytes) in memory[..WRITTEN].chunks_exact(PAGE).enumerate() {
        let right = |(nth, byte): (usize, &u8)| match is_zeroed(page) {
            true => *byte == 0,
            false => *byte == value(page * PAGE + nth),
        };
        assert!(
            bytes.iter().enumerate().all(right),
            "page {page} is not as it was flushed"
        );
    }
}

#[test]
fn a_region_whose_owner_is_gone_with_its_machine_goes_on_with_all_that_was_flushed() {
    let (cluster, mut nodes) = {
        let (cluster, nodes) = cluster();
        (cluster, Vec::from(nodes))
    };
    let owner = Owner::start(&uri(&cluster, ""));
    let epoch = |cluster: &Cluster| cluster.must(&["region", "show", "db"])["epoch"].clone();
    let before = epoch(&cluster).as_u64().expect("a number");
    // Killed, its page table and its directory are gone with it: they were never files that outlive it.
    owner.signal(Signal::SIGKILL);
    drop(owner);
    let far = FarMemory::open(&uri(&cluster, "&take-over=yes")).expect("opens");
    let mut memory = far.map(SIZE).expect("taken over");
    assert_eq!(epoch(&cluster), before + 1);
    check(&memory);
    assert!(memory[32 * MIB..33 * MIB].iter().all(|byte| *byte == 0));
    // It goes on: what is written is there, with the loss of a node too.
    for (place, byte) in memory[WRITTEN..2 * WRITTEN].iter_mut().enumerate() {
        *byte = value(place);
    }
    memory.flush().expect("on all replicas");
    nodes.remove(0).kill();
    check(&memory);
    let again = &memory[WRITTEN..2 * WRITTEN];
    assert!(
        again
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == value(at))
    );
    assert_eq!(memory.stats().expect("figures").lost_pages, 0);
    memory.unmap().expect("unmaps");
}

#[test]
fn an_owner_that_slept_through_its_succession_writes_nothing_any_more() {
    let (cluster, nodes) = cluster();
    let mut owner = Owner::start(&uri(&cluster, ""));
    owner.signal(Signal::SIGSTOP);
    let far = FarMemory::open(&uri(&cluster, "&take-over=yes")).expect("opens");
    let memory = far.map(SIZE).expect("taken over");
    check(&memory);
    owner.signal(Signal::SIGCONT);
    let mut says = owner.child.stdin.take().expect("piped");
    // Once more, or its end: its pages are not its own any more.
    let _ = says.write_all(b"go on\n");
    drop(says);
    // Whatever becomes of it: it may also wait for a page that it does not get any more.
    // Who tells it first, the control plane or a node that it asks, is a matter of moments. Told it is.
    let mut told = false;
    let refusals = "mycoram_node_refusals_total{kind=\"EpochTooLow\"}";
    wait_until(
        "it was refused where the data is, or told before it got there",
        || {
            while let Ok(word) = owner.says.recv_timeout(Duration::from_millis(20)) {
                assert_ne!(word, "accepted", "two owners wrote");
                told |= word == TOLD;
            }
            let refused = |node: &Process| node.figure(refusals).is_some_and(|count| count > 0.0);
            told || nodes.iter().any(refused)
        },
    );
    while let Ok(word) = owner.says.recv_timeout(Duration::from_secs(5)) {
        assert_ne!(word, "accepted", "two owners wrote");
    }
    // Read anew from the nodes: nothing of it has landed.
    check(&memory);
    memory.unmap().expect("unmaps");
}

#[test]
fn policies_reach_owners_and_the_load_of_nodes_is_told() {
    let (cluster, _nodes) = cluster();
    let create = [
        "region", "create", "r", "--size", "4MiB", "--extent", "1MiB",
    ];
    let made = cluster.must(&[&create[..], &["--copy-percent", "20"]].concat());
    assert_eq!(made["copy_percent"], 20);
    let key = RegionKey::Name("r".to_owned());
    let client = cluster.client(Role::Agent);
    let patience = control_process::HANG;
    let lease = RegionLease::acquire(client, &key, 7, false, patience).expect("acquired");
    assert_eq!(lease.copy_percent(), 20);
    drop(lease);
    // Nobody has written it: a region that is taken over is as thin as it was.
    let url = format!(
        "{}?tls={}&region=r&take-over=yes",
        cluster.url(),
        cluster.tls().display()
    );
    let regions = ControlRegions::open(&url.parse().expect("a URL")).expect("nodes");
    let (region, _) = regions
        .create(ByteCount::mib(4), ByteCount::mib(1))
        .expect("taken over");
    assert!(!region.inherits(PageIndex::new(0)));
    drop(region);

    let load = || {
        let list = cluster.must(&["node", "list"]);
        let nodes = list["nodes"].as_array().expect("a list").clone();
        let loads = nodes.iter().map(|node| node["load_percent"].as_u64());
        loads.max().flatten().expect("a number")
    };
    let far = FarMemory::open(&uri(&cluster, "")).expect("opens");
    let mut memory = far.map(SIZE).expect("maps");
    wait_until("nodes that move pages say so", || {
        memory[..WRITTEN].fill(1);
        memory[..WRITTEN]
            .iter()
            .step_by(PAGE)
            .for_each(|byte| assert_eq!(*byte, 1));
        load() > 0
    });
    memory.unmap().expect("unmaps");
}

//! A memory node as a process of its own, and a region on such nodes.

#![allow(dead_code, reason = "each test file uses its part of this")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mycoram_control::{NodesFile, StaticPlacement};
use mycoram_fabric::authority::StaticAuthority;
use mycoram_fabric::pages::{
    Direction, FrameIndex, PageDone, PageError, PageLane, PageRequest, Which, await_answers,
};
use mycoram_fabric::placement::{Placement, RegionEntry};
use mycoram_fabric::remote::{CreateError, Remote, RemoteOptions, Transports};
use mycoram_fabric::units::{ByteCount, Epoch, PageIndex, RegionId, TenantId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub(crate) const MYCO: &str = env!("CARGO_BIN_EXE_myco");
/// How long anything in these tests may take before it counts as a hang.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// A node that runs until it is dropped.
pub(crate) struct Node {
    pub(crate) child: Child,
    pub(crate) ready: Value,
}

impl Node {
    pub(crate) fn start(more: &[&str]) -> Self {
        let mut child = Command::new(MYCO)
            .args(["node", "serve", "--json", "--listen", "127.0.0.1:0"])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .expect("myco starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| panic!("ready line: {line:?}"));
        Self { child, ready }
    }

    pub(crate) fn control(&self) -> SocketAddr {
        let control = self.ready["control"].as_str().expect("an address");
        control.parse().expect("an address")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("our own child");
    }

    /// Waits for its end; its exit code.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let until = Instant::now() + HANG;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return status.code();
            }
            assert!(Instant::now() < until, "the node does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A placement over nodes, and what they are reached over.
pub(crate) fn placement(nodes: &[&Node]) -> (StaticPlacement, Transports) {
    let mut text = String::new();
    for (n, node) in nodes.iter().enumerate() {
        text += &format!(
            "[[node]]\nname = \"n{n}\"\ncontrol = \"{}\"\ntransport = {}\n",
            node.control(),
            node.ready["transport"]
        );
    }
    let file = NodesFile::parse(&text, "nodes.toml".as_ref()).expect("a nodes file");
    let placement = file.placement();
    let transports = Transports::for_nodes(placement.nodes()).expect("io_uring");
    (placement, transports)
}

pub(crate) fn create(nodes: &[&Node], bytes: ByteCount) -> Result<Arc<Remote>, CreateError> {
    create_replicated(nodes, bytes, 1)
}

pub(crate) fn create_replicated(
    nodes: &[&Node],
    bytes: ByteCount,
    replicas: u8,
) -> Result<Arc<Remote>, CreateError> {
    let (placement, transports) = placement(nodes);
    let options = RemoteOptions::system().expect("random numbers");
    let region = RegionEntry {
        id: RegionId::new(options.owner),
        tenant: TenantId::new(1),
        epoch: Epoch::new(1),
        bytes,
        extent_bytes: ByteCount::mib(1),
        replicas,
    };
    let authority = StaticAuthority::new(Arc::new(placement));
    Remote::create(Arc::new(authority), &transports, &region, &options)
}

/// Asks for one page and waits for the answer.
pub(crate) fn read(lane: &mut dyn PageLane, page: u32) -> Result<(), PageError> {
    ask(lane, Direction::Read, page)
}

/// Asks for one page, or puts it, by frame 0, and waits for the answer.
pub(crate) fn ask(
    lane: &mut dyn PageLane,
    direction: Direction,
    page: u32,
) -> Result<(), PageError> {
    carry_out(lane, direction, page).result
}

/// The same, with all that is answered.
pub(crate) fn carry_out(lane: &mut dyn PageLane, direction: Direction, page: u32) -> PageDone {
    lane.queue(PageRequest {
        tag: 0,
        direction,
        page: PageIndex::new(page),
        run: 1,
        frame: FrameIndex(0),
        which: Which::Live,
    })
    .expect("room");
    lane.ring();
    let until = Instant::now() + HANG;
    let mut done = Vec::with_capacity(1);
    while lane.poll(&mut done) == 0 {
        assert!(Instant::now() < until, "never answered");
        await_answers(lane, Duration::from_secs(5));
    }
    done.remove(0)
}

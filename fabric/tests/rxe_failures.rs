//! What only a real RDMA device can go through: links that go down or lose everything, peers that are
//! stopped or killed, strangers, forks, and queue pairs by the hundred.
//!
//! The tests change the test bed's link, so they run one at a time and put back what they changed.

#![cfg(any(feature = "verbs", feature = "rdma-sys"))]

#[allow(
    dead_code,
    reason = "the conformance suite's client and victim are used, its checks are not"
)]
mod conformance;
mod rxe;
mod rxe_place;

use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use conformance::client::{Client, read};
use conformance::{Fabric, Node, Victim, at};
use mycoram_fabric::transport::verbs::{ServerLimits, TurnedAway, VerbsServer, VerbsTransport};
use mycoram_fabric::transport::{
    AdmitError, ConnectError, DataServer, ErrorKind, Mapping, QueuePairConfig, Ticket, Transport,
};
use mycoram_fabric::units::{Epoch, RegionId, TenantId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rxe::VerbsFabric;

/// One test at a time: they share the link.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(words: &[&str]) -> String {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .expect("the program starts");
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The test bed's pair of devices: network devices and addresses of both ends.
struct Link {
    near: String,
    far: String,
}

impl Link {
    /// `None`, said aloud, where there are devices but not the test bed's pair.
    fn of_the_testbed() -> Option<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        if variable("MYCORAM_TESTBED_TOPOLOGY").as_deref() != Some("pair") {
            eprintln!("not run: it changes the link, so it runs in `cargo xtask testbed` only");
            return None;
        }
        Some(Self {
            near: variable("MYCORAM_RXE_NETDEV_1")?,
            far: variable("MYCORAM_RXE_NETDEV_2")?,
        })
    }

    /// Takes the near end down until the guard is dropped.
    fn down(&self) -> LinkDown<'_> {
        let routes = run(&["ip", "-4", "route", "show", "table", "all"])
            .lines()
            .filter(|route| route.contains(" table 770"))
            .map(str::to_owned)
            .collect();
        run(&["ip", "link", "set", &self.near, "down"]);
        LinkDown { link: self, routes }
    }

    /// Loses every packet until the guard is dropped.
    fn black_hole(&self) -> BlackHole<'_> {
        run(&[
            "tc", "qdisc", "add", "dev", &self.far, "root", "netem", "loss", "100%",
        ]);
        BlackHole(self)
    }
}

struct LinkDown<'a> {
    link: &'a Link,
    /// The kernel forgets routes over a device that goes down.
    routes: Vec<String>,
}

impl Drop for LinkDown<'_> {
    fn drop(&mut self) {
        run(&["ip", "link", "set", &self.link.near, "up"]);
        for route in &self.routes {
            let mut words = vec!["ip", "-4", "route", "replace"];
            words.extend(route.split_whitespace().filter(|word| *word != "linkdown"));
            run(&words);
        }
    }
}

struct BlackHole<'a>(&'a Link);

impl Drop for BlackHole<'_> {
    fn drop(&mut self) {
        run(&["tc", "qdisc", "del", "dev", &self.0.far, "root"]);
    }
}

/// Keeps the queue full until it breaks; how it broke. Every completion came once, successes first.
fn work_until_broken(
    client: &mut Client,
    place: mycoram_fabric::transport::RemoteSlice,
) -> ErrorKind {
    let into = client.slice(0, 4096);
    let (mut posted, mut completed) = (0, 0);
    let mut completions = Vec::with_capacity(64);
    let begun = Instant::now();
    while client.pair.broken().is_none() || completed < posted {
        assert!(begun.elapsed() < VerbsFabric.patience(), "it never breaks");
        while client.pair.free_slots() > 0 && client.pair.post(&[read(posted, into, place)]).is_ok()
        {
            posted += 1;
        }
        if client.pair.poll(&mut completions) == 0 {
            client.pair.wait(Duration::from_millis(100));
        }
        for completion in completions.drain(..) {
            assert_eq!(completion.id.0, completed, "in order, each once");
            completed += 1;
        }
    }
    client.pair.broken().expect("broken").kind
}

/// A client that would wait long for an answer: what it notices early it was told.
struct Patient;

impl Patient {
    const CONFIG: QueuePairConfig = QueuePairConfig {
        depth: 16,
        connect_timeout_ms: 20_000,
        response_timeout_ms: 60_000,
    };
}

fn eventually_connects<F: Fabric>(
    fabric: &F,
    transport: &Arc<dyn Transport>,
    address: std::net::SocketAddr,
    ticket: &Ticket,
) -> Client {
    let begun = Instant::now();
    loop {
        match Client::connect(fabric, transport, address, ticket, 16, 65_536) {
            Ok(client) => return client,
            Err(error) => assert!(begun.elapsed() < fabric.patience(), "{error:?}"),
        }
    }
}

#[test]
#[ignore = "the body of another process"]
fn victim_process() {
    rxe::serve_as_victim();
}

#[test]
fn a_link_that_goes_down_breaks_its_queue_pairs_at_once_and_comes_back() {
    let _alone = alone();
    let (Some(fabric), Some(link)) = (rxe::fabric(), Link::of_the_testbed()) else {
        return;
    };
    let node = fabric.start_node(1 << 20);
    let (tenant, ticket) = conformance::client::admit(&node, 1, 1, 1);
    let export = node.server().export(tenant, 0, 1 << 20).expect("inside");
    let transport = fabric.transport();
    let address = node.server().address();
    let mut client =
        Client::connect(&fabric, &transport, address, &ticket, 16, 65_536).expect("admitted");
    assert_eq!(client.read(0, 4096, at(&export, 0)), Ok(()));
    let down = link.down();
    // The fabric's own time-out is 10 s: this must come from the device's event.
    assert_eq!(
        work_until_broken(&mut client, at(&export, 0)),
        ErrorKind::LocalDevice
    );
    drop(down);
    drop(client);
    let mut client = eventually_connects(&fabric, &transport, address, &ticket);
    assert_eq!(client.read(0, 4096, at(&export, 0)), Ok(()));
}

#[test]
fn a_path_that_swallows_everything_makes_the_peer_unreachable() {
    let _alone = alone();
    let (Some(fabric), Some(link)) = (rxe::fabric(), Link::of_the_testbed()) else {
        return;
    };
    let node = fabric.start_node(1 << 20);
    let (tenant, ticket) = conformance::client::admit(&node, 1, 1, 1);
    let export = node.server().export(tenant, 0, 1 << 20).expect("inside");
    let transport = fabric.transport();
    let address = node.server().address();
    let config = QueuePairConfig {
        response_timeout_ms: 3000,
        ..fabric.config(16)
    };
    let mut client =
        Client::connect(&fabric, &transport, address, &ticket, 16, 65_536).expect("admitted");
    client.pair = transport
        .connect(address, &ticket, &config)
        .expect("admitted");
    assert_eq!(client.read(0, 4096, at(&export, 0)), Ok(()));
    let hole = link.black_hole();
    assert_eq!(
        work_until_broken(&mut client, at(&export, 0)),
        ErrorKind::PeerUnreachable
    );
    let short = QueuePairConfig {
        connect_timeout_ms: 200,
        ..config
    };
    match transport.connect(address, &ticket, &short) {
        Err(ConnectError::Unreachable { peer, .. }) => assert_eq!(peer, address),
        Err(other) => panic!("a swallowed request was answered with {other:?}"),
        Ok(_) => panic!("a swallowed request was answered"),
    }
    drop(hole);
    let mut client = eventually_connects(&fabric, &transport, address, &ticket);
    assert_eq!(client.read(0, 4096, at(&export, 0)), Ok(()));
}

#[test]
fn a_killed_peer_is_noticed_without_waiting_for_a_time_out() {
    let _alone = alone();
    let Some(fabric) = rxe::fabric() else {
        return;
    };
    let mut victim = fabric.start_victim(1 << 20);
    let facts = victim.facts();
    let transport = fabric.transport();
    let mut client = Client::connect(
        &fabric,
        &transport,
        facts.address,
        &facts.ticket,
        16,
        65_536,
    )
    .expect("admitted");
    client.pair = transport
        .connect(facts.address, &facts.ticket, &Patient::CONFIG)
        .expect("admitted");
    assert_eq!(client.read(0, 4096, at(&facts.export, 0)), Ok(()));
    victim.kill();
    assert_eq!(
        work_until_broken(&mut client, at(&facts.export, 0)),
        ErrorKind::PeerDisconnected
    );
}

#[test]
fn a_stopped_peer_is_read_and_written_as_before() {
    let _alone = alone();
    let Some(fabric) = rxe::fabric() else {
        return;
    };
    let victim = fabric.start_victim(1 << 20);
    let facts = victim.facts();
    let mut client = Client::connect(
        &fabric,
        &fabric.transport(),
        facts.address,
        &facts.ticket,
        16,
        65_536,
    )
    .expect("admitted");
    let process = Pid::from_raw(i32::try_from(victim.id()).expect("a process id"));
    kill(process, Signal::SIGSTOP).expect("our own child");
    client.fill(0, &[0x42; 4096]);
    for n in 0..64 {
        assert_eq!(client.write(0, 4096, at(&facts.export, n * 4096)), Ok(()));
        assert_eq!(client.read(8192, 4096, at(&facts.export, n * 4096)), Ok(()));
    }
    assert_eq!(client.bytes(8192, 4096), [0x42; 4096]);
    kill(process, Signal::SIGCONT).expect("our own child");
}

#[test]
fn five_hundred_queue_pairs_come_and_go() {
    let _alone = alone();
    let Some(fabric) = rxe::fabric() else {
        return;
    };
    let node = fabric.start_node(1 << 20);
    let (tenant, ticket) = conformance::client::admit(&node, 1, 1, 1);
    let export = node.server().export(tenant, 0, 1 << 20).expect("inside");
    let transport = fabric.transport();
    let address = node.server().address();
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("procfs").count();
    let mut client =
        Client::connect(&fabric, &transport, address, &ticket, 16, 65_536).expect("admitted");
    let before = descriptors();
    for n in 0..500 {
        client.pair = transport
            .connect(address, &ticket, &fabric.config(16))
            .expect("admitted");
        let into = client.slice(0, 4096);
        // Some go with work in flight.
        let chain: Vec<_> = (0..n % 16)
            .map(|id| read(id, into, at(&export, 0)))
            .collect();
        client.pair.post(&chain).expect("room");
        if n % 3 == 0 {
            client.complete(chain.len());
        }
    }
    client.pair = transport
        .connect(address, &ticket, &fabric.config(16))
        .expect("admitted");
    assert_eq!(client.read(0, 4096, at(&export, 0)), Ok(()));
    assert!(descriptors() <= before + 8, "descriptors are left behind");
    let begun = Instant::now();
    while node.server().connections() != 1 {
        assert!(
            begun.elapsed() < fabric.patience(),
            "connections are left behind"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_stranger_is_turned_away_and_disturbs_nobody() {
    let _alone = alone();
    let Some(fabric) = rxe::fabric() else {
        return;
    };
    let (node, export, mut client) = Client::with_node(&fabric, 1 << 20, 16, 65_536);
    let address = node.server().address();
    let stranger = Command::new("ib_read_lat")
        .args(["-R", "-n", "5", "-p", &address.port().to_string()])
        .arg(address.ip().to_string())
        .output()
        .expect("perftest is installed");
    assert!(
        !stranger.status.success(),
        "perftest speaks another protocol"
    );
    assert_eq!(node.server().connections(), 1);
    assert_eq!(client.read(0, 4096, at(&export, 0)), Ok(()));
}

#[test]
fn a_node_that_is_full_says_so() {
    let _alone = alone();
    let Some(fabric) = rxe::fabric() else {
        return;
    };
    let limits = ServerLimits {
        sessions: 1,
        connections: 1,
    };
    let pool = Arc::new(Mapping::anonymous(8192).expect("memory"));
    let address = rxe_place::node_address().expect("an RDMA device");
    let server = VerbsServer::listen(address, pool, limits).expect("a listening node");
    let ticket = conformance::client::ticket(1);
    let (tenant, epoch) = (TenantId::new(1), Epoch::new(1));
    let admit = |ticket| server.admit(ticket, tenant, RegionId::new(1), epoch);
    admit(ticket).expect("the first session");
    match admit(conformance::client::ticket(2)) {
        Err(AdmitError::TooManySessions { limit: 1 }) => {}
        other => panic!("one session too many was answered with {other:?}"),
    }
    let transport = fabric.transport();
    let connect = || transport.connect(server.address(), &ticket, &fabric.config(4));
    let first = connect().expect("the first connection");
    match connect() {
        Err(ConnectError::Unreachable { source, .. }) => {
            let reason = source
                .get_ref()
                .and_then(|r| r.downcast_ref::<TurnedAway>());
            assert_eq!(reason, Some(&TurnedAway::Busy));
        }
        Err(other) => panic!("one connection too many was answered with {other:?}"),
        Ok(_) => panic!("one connection too many was let in"),
    }
    drop(first);
    let begun = Instant::now();
    while let Err(error) = connect() {
        assert!(begun.elapsed() < fabric.patience(), "{error:?}");
    }
}

#[test]
fn memory_that_is_registered_stays_with_the_parent_of_a_fork() {
    let _alone = alone();
    let Some(fabric) = rxe::fabric() else {
        return;
    };
    let (node, export, mut client) = Client::with_node(&fabric, 1 << 20, 16, 65_536);
    client.fill(0, &[1; 4096]);
    let (reader, writer) = nix::unistd::pipe().expect("a pipe");
    // SAFETY: the child makes async-signal-safe calls only, and ends by _exit.
    let child = match unsafe { nix::unistd::fork() }.expect("a fork") {
        nix::unistd::ForkResult::Child => {
            drop(writer);
            // Lives, and so shares the pages, until the parent closes its end.
            let _ = nix::unistd::read(&reader, &mut [0]);
            // SAFETY: ends the child at once.
            unsafe { nix::libc::_exit(0) }
        }
        nix::unistd::ForkResult::Parent { child } => child,
    };
    drop(reader);
    // The page is written after the fork: the device must send what the parent wrote.
    client.fill(0, &[2; 4096]);
    assert_eq!(client.write(0, 4096, at(&export, 0)), Ok(()));
    let mut stored = [0; 4096];
    node.pool().copy_out(0, &mut stored).expect("inside");
    assert_eq!(stored, [2; 4096]);
    drop(writer);
    nix::sys::wait::waitpid(child, None).expect("our own child");
}

#[test]
fn a_transport_names_its_devices() {
    let _alone = alone();
    if rxe::fabric().is_none() {
        return;
    }
    let transport = VerbsTransport::open().expect("an RDMA device");
    assert!(transport.devices().count() > 0);
}

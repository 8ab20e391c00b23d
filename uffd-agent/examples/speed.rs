//! Where the time of a fault and of a scan goes: the agent over tcp on loopback, next to its floor.
//!
//! `cargo run --release -p mycoram-agent --example speed`. The memory node is a process of its own. For
//! looking, not for the record: `cargo xtask bench` keeps figures.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mycoram_agent::kernel::{
    EventReader, Feature, FeatureSet, TargetAddr, TargetEvent, TargetRange, Userfault, Wake, Watch,
};
use mycoram_agent::{PrefetchPolicy, Region};
use mycoram_fabric::authority::StaticAuthority;
use mycoram_fabric::node::{HugePages, MemoryNode, NodeConfig, Pool};
use mycoram_fabric::pages::{
    Direction, FrameIndex, LaneConfig, PageLane, PageRequest, RemoteRegion, Which, await_answers,
};
use mycoram_fabric::placement::{FailureDomain, NodeEntry, Placement, PlacementError, RegionEntry};
use mycoram_fabric::remote::{Remote, RemoteOptions, Transports};
use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::transport::tcp::{TcpServer, TcpServerConfig};
use mycoram_fabric::units::{
    ByteCount, DEFAULT_EXTENT_BYTES, Epoch, ExtentIndex, PAGE_BYTES, PageIndex, RegionId, TenantId,
};
use support::Dice;
use support::local_target::{LocalTarget, config, owner};

const PAGES: u32 = 32 << 10;

struct OneNode(Vec<NodeEntry>);

impl Placement for OneNode {
    fn nodes(&self) -> &[NodeEntry] {
        &self.0
    }
    fn candidates(
        &self,
        _: &RegionEntry,
        _: ExtentIndex,
        into: &mut Vec<usize>,
    ) -> Result<(), PlacementError> {
        into.push(0);
        Ok(())
    }
}

fn be_a_node() {
    let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    let pool = Pool::reserve(ByteCount::mib(1024), HugePages::Off).expect("memory");
    let data = TcpServer::start(any, Arc::clone(pool.mapping()), TcpServerConfig::default());
    let node = MemoryNode::start(
        &NodeConfig::new(any),
        pool,
        Arc::new(data.expect("a server")),
    )
    .expect("a node");
    println!("{}", node.control());
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

fn p(times: &mut [u64], q: f64) -> f64 {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * q) as usize] as f64 / 1000.0
}

fn say(what: &str, times: &mut [u64]) {
    println!(
        "{what:40} p50 {:7.1} p90 {:7.1} p99 {:7.1} us  (n {})",
        p(times, 0.5),
        p(times, 0.9),
        p(times, 0.99),
        times.len()
    );
}

fn lane_rtt(lane: &mut dyn PageLane, spin: bool) -> Vec<u64> {
    let mut dice = Dice::new(1);
    let mut done = Vec::with_capacity(4);
    (0..10_000)
        .map(|_| {
            let since = Instant::now();
            let request = PageRequest {
                tag: 0,
                direction: Direction::Read,
                page: PageIndex::new(dice.below(u64::from(PAGES)) as u32),
                run: 1,
                frame: FrameIndex(0),
                which: Which::Live,
            };
            lane.queue(request).expect("room");
            lane.ring();
            while lane.poll(&mut done) == 0 {
                if spin {
                    std::thread::yield_now();
                } else {
                    await_answers(lane, Duration::MAX);
                }
            }
            done.clear();
            since.elapsed().as_nanos() as u64
        })
        .collect()
}

fn lane_bandwidth(lane: &mut dyn PageLane) -> f64 {
    let mut done = Vec::with_capacity(64);
    let since = Instant::now();
    let (mut next, mut flying, mut bytes) = (0_u32, 0, 0_u64);
    let mut frames: Vec<u32> = (0..16).map(|f| f * 16).collect();
    while bytes < 512 << 20 {
        while let Some(frame) = frames.pop() {
            let request = PageRequest {
                tag: u64::from(frame),
                direction: Direction::Read,
                page: PageIndex::new(next),
                run: 16,
                frame: FrameIndex(frame),
                which: Which::Live,
            };
            next = (next + 16) % PAGES;
            lane.queue(request).expect("room");
            flying += 1;
        }
        lane.ring();
        if lane.poll(&mut done) == 0 {
            std::thread::yield_now();
        }
        for done in done.drain(..) {
            frames.push(done.tag as u32);
            flying -= 1;
            bytes += 16 * PAGE_BYTES as u64;
        }
    }
    let _ = flying;
    bytes as f64 / since.elapsed().as_secs_f64() / 1e6
}

fn bare_fault(spin: bool) -> Vec<u64> {
    let target = LocalTarget::new(20_000);
    let uffd = Userfault::from_received(target.uffd.try_clone().expect("fd")).expect("uffd");
    uffd.handshake(FeatureSet::of(&[Feature::MissingShmem]))
        .expect("handshake");
    let range = TargetRange::new(
        TargetAddr::new(target.mapping.as_ptr() as u64),
        20_000 * 4096,
    )
    .expect("range");
    uffd.register(range, Watch::Missing).expect("registered");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let source = [7_u8; PAGE_BYTES];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut reader = EventReader::new(16);
            while !stop.load(Ordering::Relaxed) {
                let mut faults = Vec::new();
                reader
                    .read(&uffd, |event| {
                        if let TargetEvent::Fault { addr, .. } = event {
                            faults.push(addr);
                        }
                    })
                    .expect("read");
                for addr in &faults {
                    let page =
                        TargetRange::new(TargetAddr::new(addr.get() & !4095), 4096).expect("page");
                    // SAFETY: `source` is a page.
                    unsafe { uffd.copy(page, source.as_ptr(), Wake::Now) };
                }
                if faults.is_empty() {
                    if spin {
                        std::thread::yield_now();
                    } else {
                        use std::os::fd::AsFd;
                        let mut fds = [nix::poll::PollFd::new(
                            uffd.as_fd(),
                            nix::poll::PollFlags::POLLIN,
                        )];
                        let _ = nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(100_u16));
                    }
                }
            }
        });
        let times = (0..20_000)
            .map(|page| {
                let since = Instant::now();
                target.word(page, 0).load(Ordering::Relaxed);
                since.elapsed().as_nanos() as u64
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        times
    })
}

/// CPU time of each of this process's threads so far, us.
fn cpu() -> std::collections::BTreeMap<String, f64> {
    std::fs::read_dir("/proc/self/task")
        .expect("proc")
        .flatten()
        .filter_map(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            let times = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            let ns: f64 = times.split(' ').next()?.parse().ok()?;
            Some((name.trim().to_owned(), ns / 1000.0))
        })
        .collect()
}

fn say_cpu(before: &std::collections::BTreeMap<String, f64>) {
    for (name, us) in cpu() {
        let spent = us - before.get(&name).copied().unwrap_or(0.0);
        if spent > 1000.0 {
            print!("  {name} {:.2}", spent / f64::from(PAGES));
        }
    }
    println!("  us of CPU a page");
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("node") {
        return be_a_node();
    }
    let mut node = Command::new(std::env::current_exe().expect("ourselves"))
        .arg("node")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a node");
    let mut address = String::new();
    BufReader::new(node.stdout.take().expect("piped"))
        .read_line(&mut address)
        .expect("an address");
    let entry = NodeEntry {
        name: "n".to_owned(),
        control: address.trim().parse().expect("an address"),
        transport: TransportKind::Tcp,
        domain: FailureDomain::default(),
    };
    let placement = OneNode(vec![entry]);
    let transports = Transports::for_nodes(&placement.0).expect("tcp");
    let region = RegionEntry {
        id: RegionId::new(1),
        tenant: TenantId::new(1),
        epoch: Epoch::new(1),
        bytes: ByteCount::new(u64::from(PAGES) * PAGE_BYTES as u64),
        extent_bytes: ByteCount::new(DEFAULT_EXTENT_BYTES),
        replicas: 1,
    };
    let remote = Remote::create(
        Arc::new(StaticAuthority::new(Arc::new(placement))),
        &transports,
        &region,
        &RemoteOptions::system().expect("options"),
    )
    .expect("room");
    let which = std::env::args().nth(1).unwrap_or_default();
    let workers: u8 = std::env::var("WORKERS")
        .ok()
        .and_then(|w| w.parse().ok())
        .unwrap_or(1);
    let spin: u32 = std::env::var("SPIN")
        .ok()
        .and_then(|w| w.parse().ok())
        .unwrap_or(200);
    let mut lane = remote.open_lane(&LaneConfig::default()).expect("a lane");
    if which.is_empty() {
        say("bare 4 KiB READ, spinning", &mut lane_rtt(&mut *lane, true));
        say(
            "bare 4 KiB READ, sleeping",
            &mut lane_rtt(&mut *lane, false),
        );
        say("bare fault, handler spinning", &mut bare_fault(true));
        say("bare fault, handler sleeping", &mut bare_fault(false));
    }
    println!(
        "64 KiB READs, 16 in flight: {:.0} MB/s",
        lane_bandwidth(&mut *lane)
    );
    drop(lane);

    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let mut config = config("speed", dir.path(), u64::from(PAGES) / 4);
    config.prefetch = PrefetchPolicy::Stride;
    config.fault_workers = workers;
    config.spin_us = spin;
    if let Ok(window) = std::env::var("WINDOW") {
        config.prefetch_window_pages = window.parse().expect("a number");
        config.lane.frames = config.prefetch_window_pages * 3;
    }
    if let Ok(settle) = std::env::var("SETTLE") {
        config.settle_ms = settle.parse().expect("a number");
    }
    let region = Region::attach(
        target.target(),
        remote.clone(),
        owner(1),
        config,
        Box::new(|_| {}),
    )
    .expect("attached");
    let mb = f64::from(PAGES) * PAGE_BYTES as f64 / 1e6;
    let since = Instant::now();
    for page in 0..PAGES {
        target.fill(page, 1);
    }
    println!(
        "first touch, in order: {:.0} MB/s",
        mb / since.elapsed().as_secs_f64()
    );
    for round in 0..3 {
        let before = region.stats();
        let spent = cpu();
        let since = Instant::now();
        for page in 0..PAGES {
            target.word(page, 1).load(Ordering::Relaxed);
        }
        let took = since.elapsed().as_secs_f64();
        let after = region.stats();
        println!(
            "scan, reading, round {round}: {:.0} MB/s; faults {} majors {} ahead {} evicted {} clean {} waits {}",
            mb / took,
            after.faults - before.faults,
            after.majors - before.majors,
            after.prefetch_issued - before.prefetch_issued,
            after.evictions - before.evictions,
            after.evictions_clean - before.evictions_clean,
            after.waited_for_budget - before.waited_for_budget,
        );
        say_cpu(&spent);
    }
    let since = Instant::now();
    for page in 0..PAGES {
        target.word(page, 1).fetch_add(1, Ordering::Relaxed);
    }
    println!(
        "scan, writing: {:.0} MB/s",
        mb / since.elapsed().as_secs_f64()
    );
    let mut dice = Dice::new(3);
    let mut times = Vec::new();
    let since = Instant::now();
    // Told to scan only: the random part would blur a profile.
    let seconds = if which == "scan" { 0 } else { 3 };
    while since.elapsed() < Duration::from_secs(seconds) {
        let page = dice.below(u64::from(PAGES)) as u32;
        let since = Instant::now();
        target.word(page, 1).load(Ordering::Relaxed);
        let took = since.elapsed().as_nanos() as u64;
        if took > 3000 {
            times.push(took);
        }
    }
    if !times.is_empty() {
        say("random fault", &mut times);
    }
    println!("{:#?}", region.stats());
    region.end();
    drop(node.stdin.take());
    let _ = node.wait();
}

//! Real memory nodes that are killed and stopped under a region with two replicas.

mod node_process;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use mycoram_fabric::authority::StaticAuthority;
use mycoram_fabric::pages::{
    Direction, FrameIndex, LaneConfig, PageDone, PageLane, PageRequest, RemoteRegion, Which,
};
use mycoram_fabric::remote::{Remote, RemoteOptions, ReplicaState};
use mycoram_fabric::units::{ByteCount, ExtentIndex, PAGE_BYTES, PageIndex};
use nix::sys::signal::Signal;
use node_process::{HANG, Node, ask, create_replicated, placement};

/// Every page is written with its number and the round.
fn write_all(lane: &mut dyn PageLane, pages: u32, round: u32) {
    for page in 0..pages {
        let word = (u64::from(page) << 32 | u64::from(round)).to_le_bytes();
        let bytes = word.repeat(PAGE_BYTES / 8);
        lane.frames().copy_in(0, &bytes).expect("a frame");
        ask(lane, Direction::Write, page).expect("written");
    }
}

fn read_all(lane: &mut dyn PageLane, pages: u32, round: u32) {
    let mut bytes = vec![0; PAGE_BYTES];
    for page in 0..pages {
        ask(lane, Direction::Read, page).expect("read");
        lane.frames().copy_out(0, &mut bytes).expect("a frame");
        let word = (u64::from(page) << 32 | u64::from(round)).to_le_bytes();
        assert!(bytes == word.repeat(PAGE_BYTES / 8), "page {page}");
    }
}

fn nodes() -> [Node; 3] {
    std::array::from_fn(|_| Node::start(&["--capacity", "16MiB"]))
}

/// One that has a replica of the first extent: which nodes have one, a new region's random number decides.
fn holder(remote: &Remote) -> usize {
    let replicas = remote.replicas(ExtentIndex::new(0));
    replicas.first().expect("it is placed").node.into()
}

#[test]
fn kill_9_of_one_node_of_two_replicas_loses_nothing() {
    let mut nodes = nodes();
    let [a, b, c] = &nodes;
    let remote = create_replicated(&[a, b, c], ByteCount::mib(4), 2).expect("room");
    let patient = LaneConfig {
        node_deadline_ms: 60_000,
        ..LaneConfig::default()
    };
    let mut lane = remote.open_lane(&patient).expect("a lane");
    let pages = remote.pages().get();
    write_all(&mut *lane, pages, 1);
    nodes[holder(&remote)].child.kill().expect("our own child");
    read_all(&mut *lane, pages, 1);
    // The deadline is a minute, and the test a matter of seconds.
    write_all(&mut *lane, pages, 2);
    read_all(&mut *lane, pages, 2);
    assert_eq!(remote.stats().nodes_lost, 1);
    assert!(remote.stats().replicas_stale > 0);
}

#[test]
fn what_a_stopped_node_missed_is_never_read_again() {
    let nodes = nodes();
    let [a, b, c] = &nodes;
    let remote = create_replicated(&[a, b, c], ByteCount::mib(4), 2).expect("room");
    let kept = Arc::new(Mutex::new(Vec::new()));
    let store = Arc::clone(&kept);
    let keep = move |directory: &[u8]| {
        *store.lock().expect("no panic") = directory.to_vec();
        Ok(())
    };
    remote.keep_directory(Box::new(keep)).expect("kept");
    // Longer than a busy machine holds up the nodes that are well.
    let hasty = LaneConfig {
        node_deadline_ms: 3000,
        ..LaneConfig::default()
    };
    let mut lane = remote.open_lane(&hasty).expect("a lane");
    let pages = remote.pages().get();
    write_all(&mut *lane, pages, 1);
    let stopped = holder(&remote);
    nodes[stopped].signal(Signal::SIGSTOP);
    write_all(&mut *lane, pages, 2);
    nodes[stopped].signal(Signal::SIGCONT);
    read_all(&mut *lane, pages, 2);
    drop(lane);
    drop(remote);
    let directory = kept.lock().expect("no panic").clone();
    let (placement, transports) = placement(&[a, b, c]);
    let authority = Arc::new(StaticAuthority::new(Arc::new(placement)));
    let options = RemoteOptions::system().expect("random numbers");
    let successor = Remote::reopen(&directory, authority, &transports, &options).expect("reopened");
    let stale = (0..4).flat_map(|extent| successor.replicas(ExtentIndex::new(extent)));
    let stale = stale.filter(|replica| replica.state == ReplicaState::Stale);
    assert!(stale.clone().count() > 0);
    assert!(
        stale
            .clone()
            .all(|replica| replica.name == format!("n{stopped}"))
    );
    let mut lane = successor.open_lane(&hasty).expect("a lane");
    read_all(&mut *lane, pages, 2);
}

/// One after the other, so that what the second one holds is what was written without the first one.
#[test]
fn two_of_three_nodes_are_killed_or_stopped_and_nothing_is_lost() {
    for signals in [
        [Signal::SIGKILL, Signal::SIGKILL],
        [Signal::SIGSTOP, Signal::SIGSTOP],
        [Signal::SIGSTOP, Signal::SIGKILL],
    ] {
        let nodes = nodes();
        let [a, b, c] = &nodes;
        let remote = create_replicated(&[a, b, c], ByteCount::mib(2), 3).expect("room");
        // Longer than a busy machine holds up the nodes that are well.
        let hasty = LaneConfig {
            node_deadline_ms: 3000,
            ..LaneConfig::default()
        };
        let mut lane = remote.open_lane(&hasty).expect("a lane");
        let pages = remote.pages().get();
        write_all(&mut *lane, pages, 1);
        for (round, (node, signal)) in (2..).zip(nodes.iter().zip(signals)) {
            node.signal(signal);
            read_all(&mut *lane, pages, round - 1);
            write_all(&mut *lane, pages, round);
            read_all(&mut *lane, pages, round);
        }
        assert_eq!(remote.stats().nodes_lost, 2, "{signals:?}");
        // Who wakes up is behind, and is not asked.
        for node in &nodes[..2] {
            node.signal(Signal::SIGCONT);
        }
        read_all(&mut *lane, pages, 3);
        let live = (0..2).flat_map(|extent| remote.replicas(ExtentIndex::new(extent)));
        let live = live.filter(|replica| replica.state == ReplicaState::Live);
        let live: Vec<_> = live.map(|replica| replica.name).collect();
        assert_eq!(live, ["n2", "n2"], "{signals:?}");
    }
}

/// Reads the first `count` pages, all at once.
fn read_at_once(lane: &mut dyn PageLane, count: u32) -> Vec<PageDone> {
    for page in 0..count {
        let request = PageRequest {
            tag: page.into(),
            direction: Direction::Read,
            page: PageIndex::new(page),
            run: 1,
            frame: FrameIndex(page),
            which: Which::Live,
        };
        lane.queue(request).expect("room");
    }
    lane.ring();
    let until = Instant::now() + HANG;
    let mut done = Vec::with_capacity(count as usize);
    while done.len() < count as usize {
        assert!(Instant::now() < until, "{} of {count}", done.len());
        lane.poll(&mut done);
        std::thread::yield_now();
    }
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    done
}

fn is_stopped(node: &Node) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.child.id()));
    let stat = stat.expect("our own child");
    stat.rsplit_once(") ").expect("a name").1.starts_with('T')
}

/// More reads wait for a stopped node than may be asked for twice in a row: each is, in the end, long before
/// its connection counts as broken.
#[test]
fn reads_go_on_however_many_a_stopped_node_holds_up() {
    const STUCK: u32 = 48;
    /// No more than these may be asked for twice in a row by the rule of one in sixteen.
    const IN_A_ROW: u64 = 8;
    let nodes = nodes();
    let [a, b, _] = &nodes;
    let remote = create_replicated(&[a, b], ByteCount::mib(4), 2).expect("room");
    let patient = LaneConfig {
        node_deadline_ms: 60_000,
        ..LaneConfig::default()
    };
    let mut lane = remote.open_lane(&patient).expect("a lane");
    write_all(&mut *lane, remote.pages().get(), 1);
    read_all(&mut *lane, remote.pages().get(), 1);
    // Who is nearest may be somebody else by the next read.
    for _ in 0..20 {
        let nearest = read_at_once(&mut *lane, 1)[0].node.expect("one node");
        let nearest = &nodes[usize::from(nearest)];
        nearest.signal(Signal::SIGSTOP);
        let until = Instant::now() + HANG;
        while !is_stopped(nearest) {
            assert!(Instant::now() < until, "it does not stop");
            std::thread::yield_now();
        }
        let before = remote.stats();
        read_at_once(&mut *lane, STUCK);
        let after = remote.stats();
        nearest.signal(Signal::SIGCONT);
        // Those it gave before it stopped would not have been asked for twice, too.
        if after.hedges_won - before.hedges_won > 2 * IN_A_ROW {
            assert_eq!(after.nodes_lost, 0);
            return;
        }
    }
    panic!("never were that many asked for twice: {:?}", remote.stats());
}

//! What must hold where extents have several replicas.

use std::sync::{Arc, Mutex};

use mycoram_fabric::pages::{Direction, LaneConfig, NodeSet, PageError, RemoteRegion, Which};
use mycoram_fabric::remote::{ChangeError, CopyStep, Remote, ReplicaState};
use mycoram_fabric::units::{ExtentIndex, PAGE_BYTES};

use super::{MIB, NODE_DEADLINE_MS};
use crate::cluster::{Cluster, Fabric, Pages, wait_until};

const TENANT: u64 = 1;

fn region(cluster: &Cluster, replicas: u8) -> Arc<Remote> {
    cluster
        .create_replicated(TENANT, 4 * MIB, MIB, replicas)
        .expect("room")
}

fn write_all(remote: &Remote, pages: &mut Pages) {
    for page in (0..remote.pages().get()).step_by(16) {
        pages.write(page, 16).expect("written");
    }
}

fn read_all(remote: &Remote, pages: &mut Pages) {
    for page in (0..remote.pages().get()).step_by(8) {
        pages.read_back(page, 8).expect("read");
        pages.read_back(page + 3, 1).expect("read");
    }
}

fn live(remote: &Remote, extent: u32) -> Vec<String> {
    let replicas = remote.replicas(ExtentIndex::new(extent)).into_iter();
    let live = replicas.filter(|replica| replica.state == ReplicaState::Live);
    live.map(|replica| replica.name).collect()
}

pub(crate) fn one_node_of_three_may_die_under_load_and_no_page_is_lost(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[8 * MIB, 8 * MIB, 8 * MIB]);
    let remote = region(&cluster, 2);
    let patient = LaneConfig {
        node_deadline_ms: 60_000,
        ..LaneConfig::default()
    };
    let mut pages = Pages::open(&*remote, &patient);
    write_all(&remote, &mut pages);
    let stats = remote.stats();
    assert_eq!(stats.bytes_written, 8 * MIB, "two replicas of all");
    assert_eq!((stats.replicas_live, stats.replicas_stale), (8, 0));
    read_all(&remote, &mut pages);
    let count = remote.pages().get();
    for page in (0..count).step_by(32) {
        pages.start(Direction::Read, page, 1);
        pages.start(Direction::Read, page + 1, 7);
    }
    cluster.nodes[1].kill();
    for (page, result) in pages.finish() {
        assert_eq!(result, Ok(()), "page {page}");
    }
    // A long deadline, and yet nobody waits for it.
    write_all(&remote, &mut pages);
    read_all(&remote, &mut pages);
    let stats = remote.stats();
    assert_eq!(stats.nodes_lost, 1);
    assert!(stats.replicas_stale > 0, "{stats:?}");
    assert_eq!(stats.replicas_live + stats.replicas_stale, 8);
    let mut other = Pages::open(&*remote, &LaneConfig::default());
    other.adopt(&pages);
    read_all(&remote, &mut other);
}

pub(crate) fn a_silent_node_holds_up_reads_for_moments_and_writes_for_its_deadline(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[8 * MIB, 8 * MIB]);
    let remote = region(&cluster, 2);
    let hasty = LaneConfig {
        node_deadline_ms: NODE_DEADLINE_MS,
        ..LaneConfig::default()
    };
    let mut pages = Pages::open(&*remote, &hasty);
    write_all(&remote, &mut pages);
    cluster.nodes[0].become_mute();
    read_all(&remote, &mut pages);
    write_all(&remote, &mut pages);
    read_all(&remote, &mut pages);
    assert_eq!(remote.stats().nodes_lost, 1);
    assert_eq!(live(&remote, 0), ["n1"]);
}

pub(crate) fn when_the_last_replica_dies_the_page_is_lost(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[8 * MIB, 8 * MIB]);
    let remote = region(&cluster, 2);
    let mut pages = Pages::open(&*remote, &LaneConfig::default());
    write_all(&remote, &mut pages);
    cluster.nodes[0].kill();
    read_all(&remote, &mut pages);
    cluster.nodes[1].kill();
    for direction in [Direction::Read, Direction::Write] {
        let lost = pages.one_at(direction, Which::Live, 5, 1);
        assert!(matches!(lost, Err(PageError::Lost { .. })), "{lost:?}");
    }
}

pub(crate) fn a_wrong_page_is_read_from_another_replica_and_repaired(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[8 * MIB, 8 * MIB]);
    let remote = region(&cluster, 2);
    let mut pages = Pages::open(&*remote, &LaneConfig::default());
    write_all(&remote, &mut pages);
    pages.read_back(7, 1).expect("read");
    let wrong = pages.node.expect("of one replica");
    pages.fill(&[0x5a; PAGE_BYTES]);
    pages
        .one_at(Direction::Write, Which::Only(wrong), 7, 1)
        .expect("spoilt");
    let read = |pages: &mut Pages, which| {
        pages
            .one_at(Direction::Read, which, 7, 1)
            .expect("a live replica");
        let mut bytes = vec![0; PAGE_BYTES];
        pages.copy_out(&mut bytes);
        bytes
    };
    assert_eq!(read(&mut pages, Which::Only(wrong)), [0x5a; PAGE_BYTES]);
    let mut avoided = NodeSet::default();
    avoided.add(wrong);
    let right = read(&mut pages, Which::Except(avoided));
    assert_eq!(right, pages.expected(7));
    assert_eq!(pages.node, Some(1 - wrong));
    // The right content is still in the frame.
    pages
        .one_at(Direction::Write, Which::Only(wrong), 7, 1)
        .expect("repaired");
    assert_eq!(read(&mut pages, Which::Only(wrong)), pages.expected(7));
    assert_eq!(remote.stats().repairs, 2);
    avoided.add(1 - wrong);
    let nobody = pages.one_at(Direction::Read, Which::Except(avoided), 7, 1);
    assert!(matches!(nobody, Err(PageError::Lost { .. })), "{nobody:?}");
}

/// Copies an extent to another node while its pages are written.
fn copy(remote: &Arc<Remote>, cluster: &Cluster, extent: u32, to: usize, writer: &mut Pages) {
    let extent = ExtentIndex::new(extent);
    let entry = cluster.entry(to);
    let mut copy = remote.begin_copy(extent, entry).expect("begun");
    let mut carrier = Pages::open(&**remote, &LaneConfig::default());
    let mut rounds = 0;
    loop {
        match copy.next(16) {
            CopyStep::Copy(run) => {
                let first = run.page.get();
                let read = carrier.one_at(Direction::Read, Which::Live, first, run.run);
                // The writer comes between.
                writer.write(first, 1).expect("written");
                let only = Which::Only(copy.node());
                let put = carrier.one_at(Direction::Write, only, first, run.run);
                copy.settled(&run, read.is_ok() && put.is_ok());
                rounds += 1;
                if rounds % 3 == 0 {
                    // A page that is right already.
                    writer.write(extent.get() * 256 + 255, 1).expect("written");
                }
                if rounds > 40 {
                    break;
                }
            }
            CopyStep::Wait => {
                let _ = writer.read_raw(0, 1);
                carrier.poll();
            }
            CopyStep::Done => break,
        }
    }
    assert!(
        matches!(remote.finish_copy(&copy), Err(ChangeError::NotComplete))
            || copy.left().get() == 0
    );
    // Now the writer rests.
    loop {
        match copy.next(16) {
            CopyStep::Copy(run) => {
                let first = run.page.get();
                let only = Which::Only(copy.node());
                let read = carrier.one_at(Direction::Read, Which::Live, first, run.run);
                let put = carrier.one_at(Direction::Write, only, first, run.run);
                copy.settled(&run, read.is_ok() && put.is_ok());
            }
            CopyStep::Wait => {
                let _ = writer.read_raw(0, 1);
                carrier.poll();
            }
            CopyStep::Done => break,
        }
    }
    remote.finish_copy(&copy).expect("complete");
    // Everybody has heard of it, and nobody is kept awake by it.
    wait_until("the lanes sleep again", || {
        writer.would_sleep() && carrier.would_sleep()
    });
    for _ in 0..20 {
        assert!(writer.would_sleep() && carrier.would_sleep());
    }
}

/// Drops a replica as soon as no lane uses it.
fn drop_in_time(remote: &Remote, extent: u32, node: &str, pages: &mut Pages) {
    wait_until("the replica is dropped", || {
        let dropped = remote.drop_replica(ExtentIndex::new(extent), node);
        pages.poll();
        match dropped {
            Ok(()) => true,
            Err(ChangeError::Busy) => false,
            Err(error) => panic!("{error}"),
        }
    });
}

pub(crate) fn replicas_are_made_anew_elsewhere_while_pages_are_written(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[8 * MIB, 8 * MIB, 8 * MIB]);
    let remote = region(&cluster, 2);
    let mut pages = Pages::open(&*remote, &LaneConfig::default());
    write_all(&remote, &mut pages);
    // Extents go round the nodes: 0 is on n0 and n1, and n1 goes.
    cluster.nodes[1].kill();
    write_all(&remote, &mut pages);
    assert_eq!(live(&remote, 0), ["n0"]);
    copy(&remote, &cluster, 0, 2, &mut pages);
    assert_eq!(live(&remote, 0), ["n0", "n2"]);
    // It is of no use any more, wherever its node is.
    drop_in_time(&remote, 0, "n1", &mut pages);
    assert_eq!(remote.replicas(ExtentIndex::new(0)).len(), 2);
    let last = remote.drop_replica(ExtentIndex::new(3), "n0");
    assert!(matches!(last, Err(ChangeError::LastReplica)), "{last:?}");
    // The extents of n1 that were not copied have one replica left: on n2, or on n0.
    copy(&remote, &cluster, 3, 2, &mut pages);
    cluster.nodes[0].kill();
    for page in [0, 100, 255] {
        pages.read_back(page, 1).expect("the new replica is read");
    }
}

pub(crate) fn a_live_replica_moves_and_its_memory_is_given_back(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[4 * MIB, 4 * MIB]);
    let remote = cluster.create(2 * MIB, MIB).expect("room");
    let mut pages = Pages::open(&*remote, &LaneConfig::default());
    for page in (0..remote.pages().get()).step_by(16) {
        pages.write(page, 16).expect("written");
    }
    let free = cluster.nodes[0].status().free;
    copy(&remote, &cluster, 0, 1, &mut pages);
    assert_eq!(live(&remote, 0), ["n0", "n1"]);
    drop_in_time(&remote, 0, "n0", &mut pages);
    assert_eq!(cluster.nodes[0].status().free.get(), free.get() + MIB);
    for page in (0..remote.pages().get()).step_by(16) {
        pages.read_back(page, 16).expect("read");
    }
    let last = remote.drop_replica(ExtentIndex::new(0), "n1");
    assert!(matches!(last, Err(ChangeError::LastReplica)));
}

pub(crate) fn drops_wait_for_lanes_and_not_for_each_other(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[8 * MIB, 8 * MIB, 8 * MIB]);
    let remote = region(&cluster, 2);
    let mut pages = Pages::open(&*remote, &LaneConfig::default());
    write_all(&remote, &mut pages);
    // Extents go round the nodes: 0 and 1 are on n1, and each on another one.
    let dropped = |extent| remote.drop_replica(ExtentIndex::new(extent), "n1");
    for extent in [0, 1] {
        let busy = dropped(extent);
        assert!(
            matches!(busy, Err(ChangeError::Busy)),
            "the lane has not heard of it: {busy:?}"
        );
    }
    pages.poll();
    for extent in [0, 1] {
        dropped(extent).expect("the lane has heard of both");
        assert_eq!(live(&remote, extent).len(), 1);
    }
    read_all(&remote, &mut pages);
}

pub(crate) fn a_successor_knows_which_replicas_are_stale(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[8 * MIB, 8 * MIB]);
    let remote = region(&cluster, 2);
    let kept = Arc::new(Mutex::new(Vec::new()));
    let store = Arc::clone(&kept);
    let keep = move |directory: &[u8]| {
        *store.lock().expect("no panic") = directory.to_vec();
        Ok(())
    };
    remote.keep_directory(Box::new(keep)).expect("kept");
    let before = kept.lock().expect("no panic").clone();
    let mut pages = Pages::open(&*remote, &LaneConfig::default());
    write_all(&remote, &mut pages);
    cluster.nodes[0].kill();
    write_all(&remote, &mut pages);
    let after = kept.lock().expect("no panic").clone();
    assert_ne!(before, after, "it was stored before the writes were done");
    let successor = cluster.reopen(&after).expect("taken over");
    assert_eq!(live(&successor, 0), ["n1"]);
    let mut theirs = Pages::open(&*successor, &LaneConfig::default());
    theirs.adopt(&pages);
    read_all(&successor, &mut theirs);
    assert_eq!(pages.write(3, 1), Err(PageError::Fenced));
}

pub(crate) fn a_write_waits_until_its_replica_is_durably_stale(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[8 * MIB, 8 * MIB]);
    let remote = region(&cluster, 2);
    let full = Arc::new(Mutex::new(0));
    let refusals = Arc::clone(&full);
    let keep = move |_: &[u8]| {
        let mut refusals = refusals.lock().expect("no panic");
        *refusals += 1;
        // The first is the directory as it is; then the disk is full for a while.
        match *refusals {
            2 | 3 => Err("the disk is full".into()),
            _ => Ok(()),
        }
    };
    remote.keep_directory(Box::new(keep)).expect("kept");
    let mut pages = Pages::open(&*remote, &LaneConfig::default());
    write_all(&remote, &mut pages);
    cluster.nodes[1].kill();
    pages.write(9, 1).expect("when the disk has room again");
    assert_eq!(*full.lock().expect("no panic"), 4);
    read_all(&remote, &mut pages);
}

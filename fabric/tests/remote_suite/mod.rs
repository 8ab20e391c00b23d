//! What must hold of nodes, sessions and lanes together, over every transport that has real machines.

pub(crate) mod replicas;

use std::sync::Arc;

use mycoram_fabric::node::Bounds;
use mycoram_fabric::pages::{Direction, LaneConfig, PageError, RemoteRegion};
use mycoram_fabric::remote::{CreateError, Remote, ReopenError, Room};
use mycoram_fabric::session::{Dial, Identity, Session, TcpDial};
use mycoram_fabric::transport::ErrorKind;
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex, RegionId, TenantId};
use mycoram_fabric::wire::control::{Grant, Token};

use crate::cluster::{self, Cluster, Fabric, Pages, TestNode, read_word, wait_until};

const MIB: u64 = 1 << 20;
/// After this a silent node is given up. A healthy one that a busy machine holds up is back before.
const NODE_DEADLINE_MS: u32 = 3000;

pub(crate) fn pages_come_back_as_they_were_written_from_both_nodes(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[8 * MIB, 8 * MIB]);
    let remote = cluster.create(8 * MIB, MIB).expect("room");
    let mut pages = Pages::open(&*remote, &LaneConfig::default());
    let count = remote.pages().get();
    for page in (0..count).step_by(16) {
        pages.write(page, 16).expect("written");
    }
    for page in (0..count - 16).rev().step_by(7) {
        pages.read_back(page, 13).expect("read");
    }
    let stats = remote.stats();
    assert_eq!(stats.bytes_written, 8 * MIB);
    assert_eq!((stats.reconnects, stats.nodes_lost), (0, 0));
    assert!(
        cluster.nodes.iter().all(|node| node.status().extents > 0),
        "one node has it all"
    );
    drop(pages);
    remote.release();
    for node in &cluster.nodes {
        let status = node.status();
        assert_eq!((status.regions, status.free.get()), (0, 8 * MIB));
    }
}

pub(crate) fn freed_memory_is_zero_for_the_next_tenant(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[2 * MIB]);
    let first = cluster.create(2 * MIB, MIB).expect("room");
    let mut pages = Pages::open(&*first, &LaneConfig::default());
    for page in (0..first.pages().get()).step_by(16) {
        pages.write(page, 16).expect("written");
    }
    drop(pages);
    first.release();
    let second = cluster
        .create_for(7, 2 * MIB, MIB)
        .expect("the same memory");
    let mut pages = Pages::open(&*second, &LaneConfig::default());
    for page in (0..second.pages().get()).step_by(16) {
        let bytes = pages.read_raw(page, 16).expect("read");
        assert!(
            bytes.iter().all(|byte| *byte == 0),
            "something was left behind at page {page}"
        );
    }
}

pub(crate) fn a_full_cluster_says_what_each_node_has_and_keeps_nothing(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[2 * MIB, 3 * MIB]);
    match cluster.create(8 * MIB, MIB) {
        Err(CreateError::NoRoom { asked, nodes }) => {
            assert_eq!(asked, ByteCount::mib(8));
            let had = |room: &Room| match room {
                Room::Full { given, free } => given.get() + free.get(),
                Room::Absent(error) => panic!("absent: {error}"),
            };
            assert_eq!(had(&nodes[0].1), 2 * MIB);
            assert_eq!(had(&nodes[1].1), 3 * MIB);
        }
        other => panic!("{other:?}"),
    }
    for node in &cluster.nodes {
        assert_eq!(node.status().lent.get(), 0);
    }
    // Exactly full is no failure.
    cluster.create(5 * MIB, MIB).expect("all there is");
}

pub(crate) fn an_unreachable_node_takes_no_part_and_is_named_when_the_rest_is_too_small(
    fabric: Fabric,
) {
    let mut cluster = Cluster::start(fabric, &[2 * MIB, 2 * MIB]);
    cluster.nodes[1].kill();
    cluster
        .create(2 * MIB, MIB)
        .expect("the other node has room");
    let refused = cluster
        .create(3 * MIB, MIB)
        .expect_err("no room")
        .to_string();
    assert!(refused.contains("n0 has 0B for it"), "{refused}");
    assert!(refused.contains("n1: memory node 127.0.0.1:"), "{refused}");
    assert!(refused.contains("Connection refused"), "{refused}");
}

pub(crate) fn a_node_that_dies_under_load_loses_its_own_pages_at_once_and_no_others(
    fabric: Fabric,
) {
    let mut cluster = Cluster::start(fabric, &[8 * MIB, 8 * MIB]);
    let remote = cluster.create(8 * MIB, MIB).expect("room");
    let mut pages = Pages::open(
        &*remote,
        &LaneConfig {
            node_deadline_ms: 60_000,
            ..LaneConfig::default()
        },
    );
    let count = remote.pages().get();
    for page in (0..count).step_by(16) {
        pages.write(page, 16).expect("written");
    }
    // In flight to both when it happens.
    for page in (0..count).step_by(64) {
        pages.start(Direction::Read, page, 1);
    }
    cluster.nodes[1].kill();
    let answers = pages.finish();
    assert_eq!(answers.len(), count as usize / 64);
    let mut lost = 0;
    for page in 0..count {
        match pages.read_back(page, 1) {
            Ok(()) => {}
            Err(PageError::Lost { node }) => {
                assert_eq!(remote.node_name(node), "n1");
                lost += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(lost > 0 && lost < count, "{lost} of {count} pages are lost");
    // A long deadline, and yet nobody waited for it: the test would have timed out.
    assert_eq!(remote.stats().nodes_lost, 1);
    let mut other = Pages::open(&*remote, &LaneConfig::default());
    let survivor = (0..count).find(|page| other.read_raw(*page, 1).is_ok());
    assert!(
        survivor.is_some(),
        "a lane that is opened later works with the nodes that are left"
    );
}

pub(crate) fn a_node_that_was_started_again_has_lost_its_pages(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[4 * MIB]);
    let remote = cluster.create(4 * MIB, MIB).expect("room");
    let mut pages = Pages::open(
        &*remote,
        &LaneConfig {
            node_deadline_ms: 60_000,
            ..LaneConfig::default()
        },
    );
    pages.write(0, 1).expect("written");
    cluster.nodes[0].restart();
    assert_eq!(pages.read_back(0, 1), Err(PageError::Lost { node: 0 }));
}

pub(crate) fn a_connection_that_breaks_is_replaced_and_nobody_notices(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[4 * MIB]);
    let remote = cluster.create(4 * MIB, MIB).expect("room");
    let mut pages = Pages::open(&*remote, &LaneConfig::default());
    for page in (0..remote.pages().get()).step_by(16) {
        pages.write(page, 16).expect("written");
    }
    for round in 0..5 {
        for page in (0..remote.pages().get()).step_by(8) {
            pages.start(Direction::Read, page, 2);
        }
        cluster.nodes[0].break_data_connections();
        for (page, result) in pages.finish() {
            assert_eq!(result, Ok(()), "round {round}, page {page}");
        }
        pages.read_back(round, 3).expect("read");
    }
    assert!(remote.stats().reconnects >= 1);
}

pub(crate) fn an_owner_that_died_is_succeeded_and_its_late_writes_are_fenced(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[4 * MIB, 4 * MIB]);
    let former = cluster.create(6 * MIB, MIB).expect("room");
    let mut former_pages = Pages::open(&*former, &LaneConfig::default());
    let count = former.pages().get();
    for page in (0..count).step_by(16) {
        former_pages.write(page, 16).expect("written");
    }
    let successor = cluster.reopen(&former.directory()).expect("taken over");
    assert_eq!(successor.entry().epoch, Epoch::new(2));
    let mut pages = Pages::open(&*successor, &LaneConfig::default());
    pages.adopt(&former_pages);
    for page in (0..count).step_by(16) {
        pages
            .read_back(page, 16)
            .expect("what the former owner wrote");
    }
    assert_eq!(former_pages.write(3, 1), Err(PageError::Fenced));
    assert_eq!(former_pages.read_back(3, 1), Err(PageError::Fenced));
    pages
        .read_back(3, 1)
        .expect("untouched by the former owner");
    // A stale directory still gets there: the epoch that holds is asked of the nodes.
    drop(pages);
    let third = cluster
        .reopen(&former.directory())
        .expect("taken over again");
    assert_eq!(third.entry().epoch, Epoch::new(3));
    former.release();
    let mut pages = Pages::open(&*third, &LaneConfig::default());
    pages.adopt(&former_pages);
    pages
        .read_back(0, 16)
        .expect("a fenced owner releases nothing");
}

pub(crate) fn a_take_over_goes_on_without_the_nodes_that_died(fabric: Fabric) {
    let mut cluster = Cluster::start(fabric, &[4 * MIB, 4 * MIB]);
    let former = cluster.create(6 * MIB, MIB).expect("room");
    let mut former_pages = Pages::open(&*former, &LaneConfig::default());
    let count = former.pages().get();
    for page in (0..count).step_by(16) {
        former_pages.write(page, 16).expect("written");
    }
    let directory = former.directory();
    cluster.nodes[0].kill();
    let successor = cluster.reopen(&directory).expect("taken over");
    let mut pages = Pages::open(&*successor, &LaneConfig::default());
    pages.adopt(&former_pages);
    let results: Vec<_> = (0..count).map(|page| pages.read_back(page, 1)).collect();
    assert!(results.contains(&Ok(())));
    assert!(results.contains(&Err(PageError::Lost { node: 0 })));
}

pub(crate) fn orphans_are_kept_for_their_time_and_then_freed_to_the_last_byte(fabric: Fabric) {
    let bounds = Bounds {
        orphan_ttl_ms: 2000,
        ..Bounds::default()
    };
    let cluster = Cluster::with_bounds(fabric, &[2 * MIB], bounds);
    let remote = cluster.create(2 * MIB, MIB).expect("room");
    let directory = remote.directory();
    drop(remote);
    wait_until("the region is an orphan", || {
        cluster.nodes[0].status().orphans == 1
    });
    let back = cluster.reopen(&directory).expect("in time");
    assert_eq!(cluster.nodes[0].status().orphans, 0);
    let directory = back.directory();
    drop(back);
    wait_until("the region is gone", || {
        cluster.nodes[0].status().regions == 0
    });
    assert_eq!(cluster.nodes[0].status().free.get(), 2 * MIB);
    match cluster.reopen(&directory) {
        Ok(remote) => {
            let mut pages = Pages::open(&*remote, &LaneConfig::default());
            assert_eq!(pages.read_back(0, 1), Err(PageError::Lost { node: 0 }));
        }
        Err(error) => panic!("a region of which nothing is left is lost, not refused: {error}"),
    }
}

pub(crate) fn a_quota_bounds_one_tenant_and_not_the_others(fabric: Fabric) {
    let bounds = Bounds {
        tenant_bytes: Some(ByteCount::mib(3)),
        ..Bounds::default()
    };
    let cluster = Cluster::with_bounds(fabric, &[8 * MIB], bounds);
    let first = cluster
        .create_for(1, 2 * MIB, MIB)
        .expect("below the quota");
    let refused = cluster
        .create_for(1, 2 * MIB, MIB)
        .expect_err("above it")
        .to_string();
    assert!(refused.contains("n0 has 1MiB for it"), "{refused}");
    cluster.create_for(2, 3 * MIB, MIB).expect("another tenant");
    drop(first);
}

pub(crate) fn a_directory_that_is_damaged_is_refused(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[MIB]);
    let mut directory = cluster.create(MIB, MIB).expect("room").directory();
    let last = directory.len() - 1;
    directory[last] ^= 1;
    assert!(matches!(
        cluster.reopen(&directory),
        Err(ReopenError::Directory(_))
    ));
}

pub(crate) fn a_node_that_does_not_answer_is_given_up_when_its_time_is_over(fabric: Fabric) {
    // A machine that is there, takes connections, and says nothing: what SIGSTOP makes of a node.
    let mut cluster = Cluster::start(fabric, &[2 * MIB, 2 * MIB]);
    let remote = cluster.create(4 * MIB, MIB).expect("room");
    let mut pages = Pages::open(
        &*remote,
        &LaneConfig {
            node_deadline_ms: NODE_DEADLINE_MS,
            ..LaneConfig::default()
        },
    );
    let count = remote.pages().get();
    for page in (0..count).step_by(16) {
        pages.write(page, 16).expect("written");
    }
    cluster.nodes[0].become_mute();
    let results: Vec<_> = (0..count)
        .step_by(16)
        .map(|page| pages.read_back(page, 1))
        .collect();
    assert!(results.contains(&Ok(())));
    assert!(results.contains(&Err(PageError::Lost { node: 0 })));
    assert_eq!(remote.stats().nodes_lost, 1);
}

pub(crate) fn lanes_of_many_threads_share_a_region(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[8 * MIB, 8 * MIB]);
    let remote: Arc<Remote> = cluster.create(8 * MIB, MIB).expect("room");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let remote = Arc::clone(&remote);
            scope.spawn(move || {
                let mut pages = Pages::open(
                    &*remote,
                    &LaneConfig {
                        frames: 64,
                        ..LaneConfig::default()
                    },
                );
                let quarter = remote.pages().get() / 4;
                for page in (thread * quarter..(thread + 1) * quarter).step_by(8) {
                    pages.write(page, 8).expect("written");
                }
                for page in (thread * quarter..(thread + 1) * quarter).step_by(3) {
                    pages.read_back(page, 1).expect("read");
                }
            });
        }
    });
    assert_eq!(remote.stats().bytes_written, 8 * MIB);
    // A lane that is gone leaves no queue pair behind.
    wait_until("all lanes are gone", || cluster.queue_pairs() == 0);
}

pub(crate) fn lanes_that_come_and_go_use_the_same_memory(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[2 * MIB, 2 * MIB]);
    let remote = cluster.create(4 * MIB, MIB).expect("room");
    let mut places = std::collections::BTreeSet::new();
    for round in 0..20 {
        let lane = remote.open_lane(&LaneConfig::default()).expect("a lane");
        places.insert(lane.frames().as_ptr() as usize);
        // Some end while their queue pairs are being replaced.
        if round % 4 == 0 {
            cluster
                .nodes
                .iter()
                .for_each(TestNode::break_data_connections);
        }
    }
    assert!(
        places.len() < 10,
        "{} sets of frames for one lane at a time",
        places.len()
    );
    wait_until("no queue pair is left behind", || {
        cluster.queue_pairs() == 0
    });
}

/// A session of a tenant and region of that number.
fn open(node: &TestNode, number: u64) -> Session {
    let identity = Identity {
        tenant: TenantId::new(number),
        region: RegionId::new(number),
        epoch: Epoch::new(1),
        token: Token([number as u8; 16]),
        owner: number,
    };
    let channel = TcpDial::default().dial(node.control()).expect("alive");
    Session::open(channel, identity, true).expect("a session")
}

pub(crate) fn an_owner_reaches_its_own_extents_only(fabric: Fabric) {
    let cluster = Cluster::start(fabric, &[4 * MIB]);
    let node = &cluster.nodes[0];
    let transport = cluster::transport(fabric);
    let extents: Vec<_> = (0..2).map(ExtentIndex::new).collect();
    let mut alice = open(node, 1);
    let alices = alice.allocate(ByteCount::mib(1), &extents).expect("room");
    let mut bob = open(node, 2);
    let bobs = bob.allocate(ByteCount::mib(1), &extents).expect("room");

    let with_bobs_ticket = |grant: &Grant, bob: &mut Session| {
        let ticket = bob.ticket(None).expect("a ticket");
        read_word(
            &*transport,
            bob.welcome().data,
            &ticket,
            grant.addr,
            grant.rkey,
        )
    };
    with_bobs_ticket(&bobs[0], &mut bob).expect("his own");
    for grant in &alices {
        let stolen = with_bobs_ticket(grant, &mut bob).expect_err("another tenant's memory");
        assert_eq!(stolen, ErrorKind::RemoteAccess);
    }
    // With his own key, but past the end of what it covers.
    let mut past = bobs[1].clone();
    past.addr = past.addr.checked_add(MIB - 4).expect("an address");
    let stolen = with_bobs_ticket(&past, &mut bob).expect_err("half of it is not his");
    assert_eq!(stolen, ErrorKind::RemoteAccess);
    // What is freed is out of reach at once.
    bob.free(&extents[..1]).expect("freed");
    with_bobs_ticket(&bobs[0], &mut bob).expect_err("freed");
    with_bobs_ticket(&bobs[1], &mut bob).expect("kept");
}

/// Makes a test of each check. The expression says over what, or returns.
#[macro_export]
macro_rules! remote_suite {
    ($fabric:expr) => {
        $crate::remote_suite!(@each $fabric;
            pages_come_back_as_they_were_written_from_both_nodes
            freed_memory_is_zero_for_the_next_tenant
            a_full_cluster_says_what_each_node_has_and_keeps_nothing
            an_unreachable_node_takes_no_part_and_is_named_when_the_rest_is_too_small
            a_node_that_dies_under_load_loses_its_own_pages_at_once_and_no_others
            a_node_that_was_started_again_has_lost_its_pages
            a_connection_that_breaks_is_replaced_and_nobody_notices
            an_owner_that_died_is_succeeded_and_its_late_writes_are_fenced
            a_take_over_goes_on_without_the_nodes_that_died
            orphans_are_kept_for_their_time_and_then_freed_to_the_last_byte
            a_quota_bounds_one_tenant_and_not_the_others
            a_directory_that_is_damaged_is_refused
            a_node_that_does_not_answer_is_given_up_when_its_time_is_over
            lanes_of_many_threads_share_a_region
            an_owner_reaches_its_own_extents_only
            lanes_that_come_and_go_use_the_same_memory
        );
        $crate::remote_suite!(@each $fabric; in replicas:
            one_node_of_three_may_die_under_load_and_no_page_is_lost
            a_silent_node_holds_up_reads_for_moments_and_writes_for_its_deadline
            when_the_last_replica_dies_the_page_is_lost
            a_wrong_page_is_read_from_another_replica_and_repaired
            replicas_are_made_anew_elsewhere_while_pages_are_written
            a_live_replica_moves_and_its_memory_is_given_back
            drops_wait_for_lanes_and_not_for_each_other
            a_successor_knows_which_replicas_are_stale
            a_write_waits_until_its_replica_is_durably_stale
        );
    };
    (@each $fabric:expr; in $module:ident: $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                remote_suite::$module::$check($fabric);
            }
        )*
    };
    (@each $fabric:expr; $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                remote_suite::$check($fabric);
            }
        )*
    };
}

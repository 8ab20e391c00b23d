//! The control plane as a real process: members, regions, leases, and what goes on while it is away.

mod control_process;
mod node_process;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use control_process::{Cluster, HANG, Process, wait_until};
use mycoram::FarMemory;
use mycoram_agent::Owner;
use mycoram_agent::daemon::RemoteSource;
use mycoram_control::client::{ClientError, ControlRegions, RegionKey, RegionLease};
use mycoram_control::identity::{Role, init_cluster};
use mycoram_control::proto;
use mycoram_fabric::authority::{AuthorityError, RegionAuthority, Sighting, StaleMark};
use mycoram_fabric::pages::{Direction, LaneConfig, PageLane};
use mycoram_fabric::session::{Dial, Identity, Session, SessionError, TcpDial};
use mycoram_fabric::units::{ByteCount, Epoch, ExtentIndex};
use mycoram_fabric::wire::Refusal;
use mycoram_fabric::wire::grant::SignedGrant;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use node_process::ask;

/// Acquires a region as a new owner.
fn acquire(cluster: &Cluster, region: &str, owner: u64, take_over: bool) -> RegionLease {
    let client = cluster.client(Role::Agent);
    RegionLease::acquire(
        client,
        &RegionKey::Name(region.to_owned()),
        owner,
        take_over,
        HANG,
    )
    .expect("acquired")
}

/// Opens a session on a node by the lease.
fn open(
    cluster: &Cluster,
    lease: &RegionLease,
    node: &Process,
    owner: u64,
) -> Result<Session, SessionError> {
    let name = node.ready["name"].as_str().expect("a name").to_owned();
    let grant = lease.authority().grant(&name).expect("a grant");
    let grant = grant.map(|bytes| SignedGrant::from_bytes(bytes).expect("short enough"));
    let entry = lease.entry();
    let identity = Identity {
        tenant: entry.tenant,
        region: entry.id,
        epoch: entry.epoch,
        token: lease.token(),
        owner,
    };
    let channel = cluster.dial().dial(node.address("control"))?;
    Session::open_granted(channel, identity, true, grant)
}

/// Whether something can be read within so many ms.
fn is_readable(fd: &OwnedFd, ms: u16) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(ms)).expect("a descriptor") > 0
}

fn extents(count: u32) -> Vec<ExtentIndex> {
    (0..count).map(ExtentIndex::new).collect()
}

#[test]
fn nodes_join_and_regions_are_made_looked_at_and_deleted() {
    let cluster = Cluster::start();
    let _nodes = ["n1", "n2"].map(|name| cluster.start_node(name));
    wait_until("both are up", || {
        cluster.must(&["cluster", "status"])["nodes_up"] == 2
    });
    let list = cluster.must(&["node", "list"]);
    assert_eq!(list["schema"], "myco.node-list");
    assert_eq!(list["nodes"][0]["rack"], "r1");
    assert_eq!(list["nodes"][0]["capacity_bytes"], 64 << 20);

    let create = [
        "region", "create", "db", "--size", "8MiB", "--extent", "1MiB",
    ];
    let made = cluster.must(&[&create[..], &["--replicas", "2"]].concat());
    assert_eq!(
        (&made["replicas"], &made["lease"]),
        (&2.into(), &"free".into())
    );
    // Thin: nothing is placed yet.
    assert_eq!(made["placed_extents"], 0);
    let (code, error) = cluster.myco(&create);
    assert_eq!(
        (code, &error["exit_code"]),
        (8, &8.into()),
        "the name is taken"
    );
    let wide = [
        "region",
        "create",
        "wide",
        "--size",
        "1MiB",
        "--replicas",
        "3",
    ];
    let (code, _) = cluster.myco(&wide);
    assert_eq!(code, 5, "there are two machines");
    assert_eq!(
        cluster.must(&["region", "list"])["regions"][0]["name"],
        "db"
    );
    assert_eq!(cluster.must(&["region", "show", "db"])["bytes"], 8 << 20);
    assert_eq!(
        cluster.must(&["region", "delete", "db"])["unreleased_nodes"],
        0
    );
    assert_eq!(cluster.myco(&["region", "show", "db"]).0, 8);
}

#[test]
fn who_has_no_certificate_or_another_role_or_cluster_is_refused() {
    let cluster = Cluster::start();
    let node = cluster.start_node("n1");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let elsewhere = elsewhere.path().join("tls");
    init_cluster(&elsewhere).expect("made");
    assert_eq!(
        cluster.myco_as(&["node", "list"], &elsewhere).0,
        4,
        "another cluster's certificate"
    );
    let bare = std::process::Command::new(control_process::MYCO)
        .args(["node", "list", "--insecure", "--control", &cluster.url()])
        .output()
        .expect("myco runs");
    assert_eq!(bare.status.code(), Some(4), "no certificate");

    // The memory node's own channel, in the same way.
    let at = |tls: Option<&std::path::Path>| {
        let mut myco = std::process::Command::new(control_process::MYCO);
        let node = node.address("control").to_string();
        myco.args(["node", "status", "--json", "--node", &node]);
        if let Some(tls) = tls {
            myco.arg("--tls").arg(tls);
        }
        let output = myco.output().expect("myco runs");
        output.status.code()
    };
    assert_eq!(at(Some(&cluster.tls())), Some(0));
    assert_eq!(
        at(Some(&elsewhere)),
        Some(8),
        "another cluster's certificate"
    );
    assert_ne!(at(None), Some(0), "no certificate");
    let mut plain = TcpDial::default()
        .dial(node.address("control"))
        .expect("listening");
    plain.hello().expect_err("not without encryption");
    let mut secret = cluster.dial().dial(node.address("control")).expect("ours");
    let ending = secret.ending().expect("a socket").try_clone_to_owned();
    secret.hello().expect("ours");
    // Nothing comes unasked, so that what becomes readable is the end.
    let ending = ending.expect("a descriptor");
    assert!(!is_readable(&ending, 50), "something came unasked");
    drop(node);
    assert!(is_readable(&ending, 20_000), "its end was not seen");

    let agent = cluster.tls().join("agent");
    assert_eq!(cluster.myco_as(&["node", "list"], &agent).0, 0);
    let drain = cluster.myco_as(&["node", "drain", "n1"], &agent);
    assert_eq!(drain.0, 8, "an agent drains nobody: {}", drain.1);
    let node = cluster.client(Role::Node);
    let refused = node
        .get_orders(proto::OwnerRequest::default())
        .expect_err("a node owns nothing");
    let ClientError::Refused(refused) = refused else {
        panic!("{refused:?}");
    };
    assert!(refused.message.contains("\"node\""), "{refused}");
}

#[test]
fn a_new_owner_is_told_to_go_on_when_the_old_one_is_fenced_where_the_data_is() {
    let cluster = Cluster::start();
    let node = cluster.start_node("n1");
    wait_until("it is up", || cluster.state("n1").as_deref() == Some("up"));
    cluster.must(&[
        "region", "create", "r", "--size", "4MiB", "--extent", "1MiB",
    ]);
    let first = acquire(&cluster, "r", 1, false);
    let entry = first.entry().clone();
    let places = first.authority().place(&entry, &extents(4), &[]);
    let places = places.expect("room");
    assert_eq!(places.nodes.len(), 1);
    assert_eq!(places.nodes[0].control, node.address("control"));
    assert_eq!(places.homes, [[0]; 4]);
    let mut session = open(&cluster, &first, &node, 1).expect("granted");
    session
        .allocate(entry.extent_bytes, &extents(4))
        .expect("room");

    let client = cluster.client(Role::Agent);
    let owned = client.acquire_region(proto::AcquireRegionRequest {
        region: "r".to_owned(),
        owner: 2,
        take_over: false,
        id: 0,
        waiting_for: 0,
    });
    assert!(owned.is_err(), "its lease runs");
    let second = acquire(&cluster, "r", 2, true);
    assert_eq!(second.entry().epoch, Epoch::new(entry.epoch.get() + 1));
    // By now the first one is refused: with its session, and with a new one by its old grant.
    let too_low = Some(Refusal::EpochTooLow {
        requested: entry.epoch,
        current: second.entry().epoch,
    });
    let refused = session.keep_alive().expect_err("fenced").refusal();
    assert_eq!(refused, too_low);
    let again = open(&cluster, &first, &node, 1)
        .expect_err("fenced")
        .refusal();
    assert_eq!(again, too_low);
    let marks = [StaleMark {
        extent: ExtentIndex::new(0),
        node: "n1",
    }];
    assert!(matches!(
        first.authority().mark_stale(&marks),
        Err(AuthorityError::EpochTooLow { .. })
    ));
    // What is there is the second one's.
    let mut session = open(&cluster, &second, &node, 2).expect("granted");
    assert_eq!(session.list().expect("its own").len(), 4);
    // Deleted by force, it is freed at the node, and nobody comes back.
    cluster.must(&["region", "delete", "r", "--force"]);
    wait_until("it is gone", || {
        cluster.myco(&["region", "show", "r"]).0 == 8
    });
    let gone = session.keep_alive().expect_err("deleted").refusal();
    assert_eq!(gone, Some(Refusal::UnknownRegion {}));
}

#[test]
fn while_the_control_plane_is_away_sessions_go_on_and_then_it_goes_on_where_it_was() {
    let mut cluster = Cluster::start();
    let nodes = ["n1", "n2"].map(|name| cluster.start_node(name));
    wait_until("both are up", || {
        cluster.must(&["cluster", "status"])["nodes_up"] == 2
    });
    cluster.must(&[
        "region",
        "create",
        "r",
        "--size",
        "4MiB",
        "--extent",
        "1MiB",
        "--replicas",
        "2",
    ]);
    let lease = acquire(&cluster, "r", 1, false);
    let entry = lease.entry().clone();
    let authority = lease.authority();
    let before = authority.place(&entry, &extents(4), &[]).expect("room");
    let mut sessions = nodes
        .each_ref()
        .map(|node| open(&cluster, &lease, node, 1).expect("granted"));
    for session in &mut sessions {
        session
            .allocate(entry.extent_bytes, &extents(4))
            .expect("room");
    }
    let marks = [StaleMark {
        extent: ExtentIndex::new(3),
        node: "n2",
    }];
    authority.mark_stale(&marks).expect("another is live");

    cluster.kill_control();
    let error = authority
        .place(&entry, &extents(4), &[])
        .expect_err("it is away");
    let AuthorityError::Away(why) = &error else {
        panic!("{error:?}");
    };
    assert!(why.to_string().contains("pages keep flowing"), "{why}");
    // Sessions live, and one that broke is opened again by the grant that was kept.
    for session in &mut sessions {
        session.keep_alive().expect("no control plane is needed");
    }
    drop(sessions);
    let mut again = nodes
        .each_ref()
        .map(|node| open(&cluster, &lease, node, 1).expect("granted before"));
    for session in &mut again {
        assert_eq!(session.list().expect("its own").len(), 4);
    }

    cluster.start_control();
    let shown = cluster.must(&["region", "show", "r"]);
    assert_eq!(shown["epoch"], entry.epoch.get());
    assert_eq!(
        (&shown["live_replicas"], &shown["placed_extents"]),
        (&7.into(), &4.into())
    );
    wait_until("both are heard again", || {
        cluster.must(&["cluster", "status"])["nodes_up"] == 2
    });
    let after = authority
        .place(&entry, &extents(3), &[])
        .expect("they have their places");
    assert_eq!(after.homes, before.homes[..3]);
    // The replica that missed a write is made anew by its owner.
    wait_until("the copy is ordered", || {
        authority.orders().is_ok_and(|orders| !orders.is_empty())
    });
    authority
        .copied(ExtentIndex::new(3), "n2")
        .expect("it was ordered");
    let live = || cluster.must(&["region", "show", "r"])["live_replicas"] == 8;
    assert!(live(), "it counts");
    assert_eq!(
        cluster.control().figure("mycoram_rebuild_replicas_total"),
        Some(1.0)
    );
}

#[test]
fn a_node_that_is_killed_is_suspect_when_its_owner_says_so_and_down_when_its_lease_is_over() {
    let cluster = Cluster::start();
    let node = cluster.start_node("n1");
    let other = cluster.start_node("n2");
    wait_until("both are up", || {
        cluster.must(&["cluster", "status"])["nodes_up"] == 2
    });
    cluster.must(&[
        "region", "create", "r", "--size", "1MiB", "--extent", "1MiB",
    ]);
    let lease = acquire(&cluster, "r", 1, false);
    // Alive, it is suspect for a while only.
    lease.authority().report("n1", Sighting::NoAnswer);
    assert_eq!(cluster.state("n1").as_deref(), Some("suspect"));
    wait_until("it is heard", || {
        cluster.state("n1").as_deref() == Some("up")
    });
    node.kill();
    lease.authority().report("n1", Sighting::NobodyListens);
    assert_eq!(cluster.state("n1").as_deref(), Some("suspect"));
    wait_until("its lease is over", || {
        cluster.state("n1").as_deref() == Some("down")
    });
    assert_eq!(cluster.state("n2").as_deref(), Some("up"));
    // Another life under the same name.
    let _node = cluster.start_node("n1");
    wait_until("it is back", || {
        cluster.state("n1").as_deref() == Some("up")
    });
    // Who goes politely has left.
    assert_eq!(other.terminate(), Some(0));
    assert_eq!(cluster.state("n2").as_deref(), Some("left"));
}

#[test]
fn every_figure_moves() {
    let cluster = Cluster::start();
    let control = cluster.control();
    let figure = |name: &str| control.figure(name).unwrap_or(0.0);
    assert_eq!(figure("mycoram_nodes{state=\"up\"}"), 0.0);
    let nodes = ["n1", "n2"].map(|name| cluster.start_node(name));
    wait_until("both are up", || {
        figure("mycoram_nodes{state=\"up\"}") == 2.0
    });
    let of_n1 = "{node=\"n1\",zone=\"a\",region=\"eu\"}";
    let capacity = figure(&format!("mycoram_pool_capacity_bytes{of_n1}"));
    assert_eq!(capacity, f64::from(64 << 20));
    let available = || figure(&format!("mycoram_pool_available_bytes{of_n1}"));
    let before = available();
    assert!(before > 0.0 && before < capacity);

    assert_eq!(figure("mycoram_regions"), 0.0);
    cluster.must(&[
        "region",
        "create",
        "r",
        "--size",
        "4MiB",
        "--extent",
        "1MiB",
        "--replicas",
        "2",
    ]);
    assert_eq!(figure("mycoram_regions"), 1.0);
    assert_eq!(figure("mycoram_extents"), 4.0);
    assert_eq!(figure("mycoram_extents_placed"), 0.0);
    let lease = acquire(&cluster, "r", 1, false);
    let entry = lease.entry().clone();
    lease
        .authority()
        .place(&entry, &extents(4), &[])
        .expect("room");
    assert_eq!(figure("mycoram_replicas{state=\"live\"}"), 8.0);
    assert_eq!(figure("mycoram_extents_placed"), 4.0);
    let placed = figure(&format!("mycoram_pool_placed_bytes{of_n1}"));
    assert_eq!(placed, f64::from(4 << 20));
    assert_eq!(available(), before - placed);

    let refused = "mycoram_control_errors_total{kind=\"not_found\"}";
    let before = figure(refused);
    assert_eq!(cluster.myco(&["region", "show", "nobody"]).0, 8);
    assert_eq!(figure(refused), before + 1.0);
    assert!(figure("mycoram_control_calls_total") > before);

    // The nodes' own.
    let [n1, n2] = &nodes;
    assert_eq!(n1.figure("mycoram_node_pool_lent_bytes"), Some(0.0));
    let mut session = open(&cluster, &lease, n1, 1).expect("granted");
    session
        .allocate(entry.extent_bytes, &extents(2))
        .expect("room");
    assert_eq!(
        n1.figure("mycoram_node_pool_lent_bytes"),
        Some(f64::from(2 << 20))
    );
    for (name, value) in [
        ("mycoram_node_extents", 2.0),
        ("mycoram_node_sessions", 1.0),
        ("mycoram_node_regions", 1.0),
    ] {
        assert_eq!(n1.figure(name), Some(value), "{name}");
        assert_eq!(n2.figure(name), Some(0.0), "{name}");
    }
    let forged = "mycoram_node_refusals_total{kind=\"GrantMissing\"}";
    assert_eq!(n1.figure(forged), Some(0.0));
    let identity = Identity {
        tenant: entry.tenant,
        region: entry.id,
        epoch: entry.epoch,
        token: lease.token(),
        owner: 1,
    };
    let channel = cluster.dial().dial(n1.address("control")).expect("there");
    Session::open(channel, identity, true).expect_err("no grant");
    assert_eq!(n1.figure(forged), Some(1.0));

    // A replica is lost, and its extent is in danger.
    let marks = [StaleMark {
        extent: ExtentIndex::new(0),
        node: "n1",
    }];
    lease
        .authority()
        .mark_stale(&marks)
        .expect("another is live");
    assert_eq!(figure("mycoram_extents_endangered"), 1.0);
    let [n1, _n2] = nodes;
    n1.kill();
    wait_until("it is down", || {
        figure("mycoram_nodes{state=\"down\"}") == 1.0
    });
    wait_until("what it had waits", || {
        figure("mycoram_rebuild_waiting_extents") > 0.0
    });
    assert_eq!(
        control.figure("mycoram_control_store_failures_total"),
        Some(0.0)
    );
    drop(lease);
}

#[test]
fn pages_flow_by_a_control_url_while_the_control_plane_and_a_node_are_killed() {
    let mut cluster = Cluster::start();
    let mut nodes = vec![cluster.start_node("n1"), cluster.start_node("n2")];
    wait_until("both are up", || {
        cluster.must(&["cluster", "status"])["nodes_up"] == 2
    });
    let url = format!(
        "{}?tls={}&replicas=2&region=vm",
        cluster.url(),
        cluster.tls().display()
    );
    let url = url.parse().expect("a URL");
    let regions = ControlRegions::open(&url).expect("nodes");
    assert_eq!(regions.nodes(), 2);
    let (bytes, extent) = (ByteCount::mib(8), ByteCount::mib(1));
    let (region, owner) = regions.create(bytes, extent).expect("room");
    let (stored, storing) = (
        Arc::new(Mutex::new(owner.directory.clone())),
        Mutex::new(()),
    );
    let keep = {
        let stored = Arc::clone(&stored);
        move |directory: &[u8]| {
            let _one = storing.lock().expect("no panic");
            *stored.lock().expect("no panic") = directory.to_vec();
            Ok(())
        }
    };
    region.keep_directory(Box::new(keep)).expect("kept");
    let shown = cluster.must(&["region", "show", "vm"]);
    assert_eq!(
        (&shown["live_replicas"], &shown["lease"]),
        (&16.into(), &"granted".into())
    );
    // The name is taken, and what is in it is somebody's.
    let again = regions.create(bytes, extent).err().expect("in use");
    assert!(again.to_string().contains("not empty"), "{again}");

    let mut lane = region.open_lane(&LaneConfig::default()).expect("a lane");
    let write = |lane: &mut dyn PageLane, page: u32, value: u8| {
        lane.frames().copy_in(0, &[value; 4096]).expect("a frame");
        ask(lane, Direction::Write, page)
    };
    let read = |lane: &mut dyn PageLane, page: u32| {
        ask(lane, Direction::Read, page).expect("a replica is there");
        let mut bytes = [0; 4096];
        lane.frames().copy_out(0, &mut bytes).expect("a frame");
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    };
    for page in 0..64 {
        write(&mut *lane, page * 32, page as u8).expect("written");
    }
    // Without a control plane, pages flow both ways.
    cluster.kill_control();
    for page in 0..64 {
        assert_eq!(read(&mut *lane, page * 32), page as u8);
        write(&mut *lane, page * 32, page as u8 + 100).expect("written");
    }
    cluster.start_control();
    wait_until("both are heard again", || {
        cluster.must(&["cluster", "status"])["nodes_up"] == 2
    });
    // A node dies: its replicas are stale before a write is done without them.
    nodes.remove(1).kill();
    for page in 0..64 {
        write(&mut *lane, page * 32, page as u8 + 10).expect("on the other");
        assert_eq!(read(&mut *lane, page * 32), page as u8 + 10);
    }
    wait_until("its replicas are stale", || {
        cluster.must(&["region", "show", "vm"])["live_replicas"] == 8
    });

    // A successor, with what the owner stored.
    drop((lane, region));
    let saved = Owner {
        directory: stored.lock().expect("no panic").clone(),
        ..owner
    };
    let (region, _) = regions.reopen(&saved).expect("one node has it all");
    let mut lane = region.open_lane(&LaneConfig::default()).expect("a lane");
    for page in 0..64 {
        assert_eq!(read(&mut *lane, page * 32), page as u8 + 10);
    }
    drop(lane);
    region.release();
    wait_until("it is gone", || {
        let (code, shown) = cluster.myco(&["region", "show", "vm"]);
        code == 8 || shown["deleting"] == true
    });
    let free = nodes[0].figure("mycoram_node_pool_free_bytes");
    assert_eq!(free, Some(f64::from(64 << 20)), "something was left behind");
}

#[test]
fn a_program_maps_memory_by_a_control_url_and_lost_replicas_are_made_anew() {
    let cluster = Cluster::start();
    let mut nodes = vec![cluster.start_node("n1"), cluster.start_node("n2")];
    let status = |field: &str| cluster.must(&["cluster", "status"])[field].clone();
    wait_until("both are up", || status("nodes_up") == 2);
    let uri = format!(
        "{}?tls={}&replicas=2&local=1MiB&extent=1MiB",
        cluster.url(),
        cluster.tls().display()
    );
    let far = FarMemory::open(&uri).expect("opens");
    let mut memory = far.map(8 << 20).expect("maps");
    let value = |place: usize| (place / 4096 + place) as u8;
    for (place, byte) in memory.iter_mut().enumerate() {
        *byte = value(place);
    }
    memory.flush().expect("on both");
    assert_eq!(status("live_replicas"), 16);
    nodes.push(cluster.start_node("n3"));
    wait_until("the third is up", || status("nodes_up") == 3);
    let is_whole = |memory: &[u8]| {
        memory
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == value(at))
    };
    // One after the other, the two that had it die; each time another takes the place.
    nodes.remove(0).kill();
    assert!(is_whole(&memory), "a page came back wrong");
    wait_until("the first is down", || status("nodes_down") == 1);
    wait_until("its replicas are made anew", || {
        status("endangered_extents") == 0
    });
    nodes.remove(0).kill();
    assert!(is_whole(&memory), "a page came back wrong");
    wait_until("the second is down", || status("nodes_down") == 2);
    assert_eq!(status("lost_extents"), 0);
    memory.unmap().expect("unmaps");
    wait_until("the region is gone", || {
        let regions = cluster.must(&["region", "list"])["regions"].clone();
        let regions = regions.as_array().expect("a list").clone();
        regions.iter().all(|region| region["deleting"] == true)
    });
}

#[test]
fn memory_is_promised_ahead_and_others_are_refused_that_much_earlier() {
    let cluster = Cluster::start();
    let _node = cluster.start_node("n1");
    wait_until("it is up", || cluster.state("n1").as_deref() == Some("up"));
    // Of 64 MiB a region of the class normal may have 85%.
    let made = cluster.must(&["region", "reserve", "--size", "40MiB", "--tenant", "7"]);
    let id = made["id"].as_str().expect("a number").to_owned();
    let (code, _) = cluster.myco(&["region", "reserve", "--size", "40MiB"]);
    assert_eq!(code, 5, "it is promised");
    let create = |name: &str, more: &[&str]| {
        let create = [
            "region", "create", name, "--size", "32MiB", "--extent", "1MiB",
        ];
        cluster.must(&[&create[..], more].concat());
    };
    create("mine", &["--tenant", "7", "--reservation", &id]);
    create("other", &[]);
    let place = |region: &str, owner| {
        let lease = acquire(&cluster, region, owner, false);
        let placed = lease.authority().place(lease.entry(), &extents(32), &[]);
        placed.map(|places| places.homes.len())
    };
    assert!(matches!(place("other", 1), Err(AuthorityError::Full(_))));
    assert_eq!(place("mine", 2).expect("promised"), 32);
    let unreserve = ["region", "unreserve", &id, "--tenant", "7"];
    assert_eq!(cluster.myco(&unreserve).0, 8, "a region is counted on it");
    cluster.must(&["region", "delete", "mine", "--force"]);
    wait_until("it is gone", || cluster.myco(&unreserve).0 == 0);
    let left = cluster.must(&["region", "reservations"])["reservations"].clone();
    assert_eq!(left.as_array().map(Vec::len), Some(0));
    assert_eq!(place("other", 3).expect("room"), 32);
}

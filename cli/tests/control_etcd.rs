//! Several control planes on one etcd, as real processes: leaders and members of etcd are killed and stopped.

mod control_process;
#[path = "../../control-plane/tests/etcd_certificates/mod.rs"]
mod etcd_certificates;
#[path = "../../control-plane/tests/etcd_members/mod.rs"]
mod etcd_members;
mod node_process;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use control_process::{Cluster, HANG, Process, any_port, command, wait_until};
use etcd_certificates::Certificates;
use etcd_members::EtcdMembers;
use mycoram::FarMemory;
use mycoram_agent::daemon::RemoteSource;
use mycoram_control::client::{Access, ClientError, ControlClient, ControlRegions};
use mycoram_control::identity::{Credentials, Role};
use mycoram_control::proto;
use mycoram_fabric::pages::{Direction, LaneConfig, PageLane};
use mycoram_fabric::units::ByteCount;
use nix::sys::signal::Signal;
use node_process::ask;
use serde_json::Value;

/// Control planes on one etcd of three members.
struct Shared {
    cluster: Cluster,
    controls: Vec<Option<Process>>,
    etcd: EtcdMembers,
}

impl Shared {
    /// `None`: there is no etcd, which was said.
    fn start(controls: usize) -> Option<Self> {
        let etcd = EtcdMembers::start(3, &[])?;
        let mut shared = Self {
            cluster: Cluster::without_control(),
            controls: Vec::new(),
            etcd,
        };
        for number in 0..controls {
            shared.controls.push(None);
            shared.cluster.addresses.push(any_port());
            shared.start_control(number);
        }
        shared.wait_for_leader();
        Some(shared)
    }

    /// Also again, at the same address.
    fn start_control(&mut self, number: usize) {
        let store = format!("etcd:{}", self.etcd.urls().join(","));
        let listen = self.cluster.addresses[number];
        let control = self
            .cluster
            .serve(listen, &store, &["--leader-lease", "3s"]);
        self.cluster.addresses[number] = control.address("address");
        self.controls[number] = Some(control);
    }

    fn kill_control(&mut self, number: usize) {
        self.controls[number].take().expect("running").kill();
    }

    fn control(&self, number: usize) -> &Process {
        self.controls[number].as_ref().expect("running")
    }

    /// `myco cluster status`; null while nobody answers.
    fn status(&self) -> Value {
        self.cluster.myco(&["cluster", "status"]).1
    }

    fn leader(&self) -> Option<usize> {
        let status = self.status();
        let leader = status["leader"].as_str()?.parse().expect("an address");
        let addresses = &self.cluster.addresses;
        Some(
            addresses
                .iter()
                .position(|address| *address == leader)
                .expect("one of ours"),
        )
    }

    fn wait_for_leader(&self) -> usize {
        let mut leader = None;
        wait_until("one leads", || {
            leader = self.leader();
            leader.is_some()
        });
        leader.expect("just seen")
    }

    /// Another one than `former`.
    fn wait_for_successor(&self, former: usize) -> usize {
        let mut leader = former;
        wait_until("another one leads", || {
            leader = self.leader().unwrap_or(former);
            leader != former
        });
        leader
    }

    /// Until `myco cluster status` says so; if never, what it says instead.
    fn wait_for(&self, what: &str, mut holds: impl FnMut(&Value) -> bool) {
        let until = Instant::now() + HANG;
        loop {
            let status = self.status();
            if holds(&status) {
                return;
            }
            assert!(Instant::now() < until, "in vain: {what}: {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for_nodes(&self, up: u64) {
        self.wait_for("the nodes are up", |status| status["nodes_up"] == up);
    }

    /// A subcommand that is to succeed, as soon as somebody leads.
    fn insist(&self, args: &[&str]) -> Value {
        let mut object = Value::Null;
        wait_until("it is done", || {
            let (code, printed) = self.cluster.myco(args);
            object = printed;
            code == 0
        });
        object
    }

    /// A client of one process, that asks once.
    fn hasty(&self, number: usize) -> ControlClient {
        let credentials = Credentials::read(&self.cluster.tls(), Role::Admin);
        let address = format!("control://{}", self.cluster.addresses[number]);
        let address = address.parse().expect("an address");
        let mut access = Access::new(address, Some(credentials.expect("certificates")));
        access.patience = Duration::ZERO;
        ControlClient::new(&access).expect("threads")
    }

    fn create(&self, name: &str) -> (i32, Value) {
        let create = [
            "region", "create", name, "--size", "4MiB", "--extent", "1MiB",
        ];
        self.cluster.myco(&create)
    }
}

#[test]
fn a_stopped_leader_is_followed_and_changes_nothing_when_it_wakes() {
    let Some(mut shared) = Shared::start(2) else {
        return;
    };
    let _nodes = ["n1", "n2"].map(|name| shared.cluster.start_node(name));
    shared.wait_for_nodes(2);
    let first = shared.wait_for_leader();
    let second = 1 - first;
    let status = shared.status();
    let address = |number: usize| shared.cluster.addresses[number].to_string();
    assert_eq!(status["followers"], serde_json::json!([address(second)]));
    assert_eq!(
        (&status["store"]["kind"], &status["store"]["writable"]),
        (&"etcd".into(), &true.into())
    );
    let members = status["store"]["members"].as_array().expect("a list");
    assert!(members.len() == 3 && members.iter().all(|member| member["up"] == true));
    let leads = |number: usize| shared.control(number).figure("mycoram_control_leader");
    assert_eq!((leads(first), leads(second)), (Some(1.0), Some(0.0)));
    assert_eq!(shared.create("a").0, 0);

    // Who follows says who leads, and a client that only knows it gets there.
    let follower = format!("control://{}", address(second));
    let ask = |region: &str| {
        let admin = shared.cluster.tls();
        let output = std::process::Command::new(control_process::MYCO)
            .args([
                "region",
                "delete",
                region,
                "--json",
                "--control",
                &follower,
                "--tls",
            ])
            .arg(admin)
            .output();
        output.expect("myco runs").status.code()
    };
    assert_eq!(shared.create("b").0, 0);
    assert_eq!(ask("b"), Some(0), "it is led to the leader");
    let told = shared
        .hasty(second)
        .get_orders(proto::OwnerRequest::default());
    let told = told.expect_err("it follows");
    assert!(
        told.is_away() && source_of(&told).contains("another control plane leads"),
        "{told:?}"
    );

    // The leader sleeps; what it is asked meanwhile it takes up when it is no leader any more.
    let past = shared.hasty(first);
    let seen = past.list_regions(proto::Nothing {}).expect("it leads");
    let create = proto::CreateRegionRequest {
        id: 77,
        name: "past".to_owned(),
        tenant: seen.regions[0].region.as_ref().expect("a region").tenant,
        bytes: 4 << 20,
        ..proto::CreateRegionRequest::default()
    };
    shared.control(first).signal(Signal::SIGSTOP);
    assert_eq!(shared.wait_for_successor(first), second);
    assert_eq!(shared.create("c").0, 0);
    let late = std::thread::scope(|scope| {
        let late = scope.spawn(|| past.create_region(create));
        // In its socket, mostly: whenever it comes, it must not be done.
        std::thread::sleep(Duration::from_millis(100));
        shared.control(first).signal(Signal::SIGCONT);
        late.join().expect("no panic")
    });
    let late = late.expect_err("another one leads");
    assert!(late.is_away(), "{late:?}");
    wait_until("it knows", || {
        shared.control(first).figure("mycoram_control_leader") == Some(0.0)
    });
    let deposed = shared
        .control(first)
        .figure("mycoram_control_deposed_total");
    assert!(deposed >= Some(1.0), "{deposed:?}");
    assert_eq!(shared.cluster.myco(&["region", "show", "past"]).0, 8);
    let list = shared.insist(&["region", "list"])["regions"].clone();
    let names: Vec<_> = list
        .as_array()
        .expect("a list")
        .iter()
        .map(|region| region["name"].clone())
        .collect();
    assert!(
        names.contains(&"a".into()) && names.contains(&"c".into()) && !names.contains(&"b".into()),
        "{names:?}"
    );

    // One that ends by SIGTERM is followed at once; all of them ended, the state is there again.
    let ended = shared.controls[second].take().expect("running").terminate();
    assert_eq!(ended, Some(0));
    assert_eq!(shared.wait_for_leader(), first);
    shared.kill_control(first);
    shared.start_control(second);
    assert_eq!(shared.wait_for_successor(first), second);
    assert_eq!(shared.insist(&["region", "show", "a"])["name"], "a");
}

/// What is under an error.
fn source_of(error: &ClientError) -> String {
    std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default()
}

#[test]
fn leaders_members_and_a_node_are_killed_under_pages_that_are_written_and_read() {
    let Some(mut shared) = Shared::start(3) else {
        return;
    };
    let mut nodes: Vec<_> = ["n1", "n2", "n3"]
        .map(|name| shared.cluster.start_node(name))
        .into();
    shared.wait_for_nodes(3);
    let url = format!(
        "{}?tls={}&replicas=2&region=vm",
        shared.cluster.url(),
        shared.cluster.tls().display()
    );
    let regions = ControlRegions::open(&url.parse().expect("a URL")).expect("nodes");
    let (region, owner) = regions
        .create(ByteCount::mib(8), ByteCount::mib(1))
        .expect("room");
    let stored = Arc::new(Mutex::new(owner.directory.clone()));
    let keep = {
        let stored = Arc::clone(&stored);
        move |directory: &[u8]| {
            *stored.lock().expect("no panic") = directory.to_vec();
            Ok(())
        }
    };
    region.keep_directory(Box::new(keep)).expect("kept");
    let mut lane = region.open_lane(&LaneConfig::default()).expect("a lane");
    let mut value = 0;
    let mut rewrite = |lane: &mut dyn PageLane| {
        for page in (0..2048).step_by(32) {
            if value > 0 {
                assert_eq!(read(lane, page), expected(page, value));
            }
            write(lane, page, expected(page, value + 1));
        }
        value += 1;
        for page in (0..2048).step_by(32) {
            assert_eq!(read(lane, page), expected(page, value));
        }
    };
    rewrite(&mut *lane);
    let mut epoch = 0;
    let mut look = |shared: &Shared| {
        let shown = shared.insist(&["region", "show", "vm"]);
        let now = shown["epoch"].as_u64().expect("a number");
        assert!(now >= epoch, "an epoch fell: {now} after {epoch}");
        epoch = now;
        shown
    };
    look(&shared);

    // The leader dies, and a node with it: its replicas are stale before a write is done without them, by
    // word of whoever leads next.
    let mut leader = shared.wait_for_leader();
    shared.kill_control(leader);
    nodes.remove(0).kill();
    rewrite(&mut *lane);
    let former = leader;
    leader = shared.wait_for_successor(former);
    look(&shared);
    shared.start_control(former);
    nodes.push(shared.cluster.start_node("n4"));
    shared.wait_for("what was lost is made anew", |status| {
        // A lane that nobody polls does not hear of the copies.
        rewrite(&mut *lane);
        status["nodes_up"] == 3 && status["endangered_extents"] == 0
    });
    assert_eq!(shared.status()["lost_extents"], 0);

    // Each member of etcd in turn, the one that leads etcd among them.
    for member in 0..3 {
        shared.etcd.kill(member);
        // Two of three are there. A name that is taken: it was done, and its answer did not arrive.
        wait_until("it is made", || {
            matches!(shared.create(&format!("r{member}")).0, 0 | 8)
        });
        rewrite(&mut *lane);
        look(&shared);
        shared.wait_for("it is seen", |status| {
            status["store"]["members"][member]["up"] == false
        });
        shared.etcd.restart(member);
        shared.wait_for("it is back", |status| {
            let members = status["store"]["members"].as_array();
            members.is_some_and(|members| {
                members.len() == 3 && members.iter().all(|member| member["up"] == true)
            })
        });
    }

    // Two leaders, one after the other; one is left, and it has everything.
    leader = shared.leader().unwrap_or(leader);
    shared.kill_control(leader);
    rewrite(&mut *lane);
    let second = shared.wait_for_successor(leader);
    shared.kill_control(second);
    rewrite(&mut *lane);
    let last = shared.wait_for_successor(second);
    assert!(last != leader && last != second);
    for member in 0..3 {
        look(&shared);
        let name = format!("r{member}");
        assert_eq!(
            shared.cluster.must(&["region", "show", &name])["name"],
            name
        );
    }
    shared.wait_for_nodes(3);

    // The last node that has page 0's neighbours may go; what was marked, copied and placed is known.
    drop((lane, region));
    let saved = mycoram_agent::Owner {
        directory: stored.lock().expect("no panic").clone(),
        ..owner
    };
    let (region, _) = regions.reopen(&saved).expect("it is all there");
    let shown = look(&shared);
    assert!(shown["epoch"].as_u64() > Some(1), "{shown}");
    let mut lane = region.open_lane(&LaneConfig::default()).expect("a lane");
    for page in (0..2048).step_by(32) {
        assert_eq!(read(&mut *lane, page), expected(page, value));
    }
    drop(lane);
    region.release();
}

#[test]
fn an_etcd_that_asks_for_certificates_is_led_with_the_right_ones_only() {
    let certificates = Certificates::new();
    let members = certificates.of_members(&etcd_members::addresses(1));
    let Some(etcd) = EtcdMembers::start_tls(1, members) else {
        return;
    };
    let store = format!("etcd:{}", etcd.urls().join(","));
    let ca = certificates.ca().display().to_string();
    let mut cluster = Cluster::without_control();
    let without = cluster.serve(any_port(), &store, &["--store-ca", &ca]);
    cluster.addresses.push(without.address("address"));
    let mut status;
    let until = Instant::now() + HANG;
    loop {
        status = cluster.myco(&["cluster", "status"]).1;
        let because = status["store"]["members"][0]["silent_because"].as_str();
        if because.is_some_and(|because| because.contains("BadCertificate")) {
            break;
        }
        assert!(Instant::now() < until, "it does not say why: {status}");
    }
    assert_eq!(status["store"]["members"][0]["up"], false, "{status}");
    assert_eq!(
        (&status["leader"], &status["store"]["writable"]),
        (&Value::Null, &false.into()),
        "{status}"
    );
    without.kill();

    let (certificate, key) = certificates.sign("control", &[]);
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let shown = [
        "--store-ca",
        &ca,
        "--store-cert",
        &certificate,
        "--store-key",
        &key,
    ];
    let with = cluster.serve(any_port(), &store, &shown);
    cluster.addresses[0] = with.address("address");
    wait_until("it leads", || {
        status = cluster.myco(&["cluster", "status"]).1;
        status["leader"] == cluster.addresses[0].to_string()
    });
    let member = &status["store"]["members"][0];
    assert_eq!(
        (&member["up"], &member["silent_because"]),
        (&true.into(), &Value::Null),
        "{status}"
    );
    let _node = cluster.start_node("n1");
    wait_until("a node is up", || {
        cluster.state("n1").as_deref() == Some("up")
    });
    let made = ["region", "create", "kept", "--size", "1MiB"];
    cluster.must(&made);
    assert_eq!(cluster.must(&["region", "show", "kept"])["name"], "kept");
}

/// What stands in a page after so many rounds.
fn expected(page: u32, round: u32) -> u8 {
    (page / 32 * 7 + round) as u8
}

fn write(lane: &mut dyn PageLane, page: u32, value: u8) {
    lane.frames().copy_in(0, &[value; 4096]).expect("a frame");
    ask(lane, Direction::Write, page).expect("a replica is there");
}

fn read(lane: &mut dyn PageLane, page: u32) -> u8 {
    ask(lane, Direction::Read, page).expect("a replica is there");
    let mut bytes = [0; 4096];
    lane.frames().copy_out(0, &mut bytes).expect("a frame");
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

#[test]
fn a_cluster_is_taken_from_a_file_to_an_etcd_while_its_pages_flow() {
    let Some(etcd) = EtcdMembers::start(3, &[]) else {
        return;
    };
    let to = format!("etcd:{}", etcd.urls().join(","));
    let mut cluster = Cluster::start();
    let mut nodes = vec![cluster.start_node("n1"), cluster.start_node("n2")];
    let status = |cluster: &Cluster, field: &str| {
        let (_, status) = cluster.myco(&["cluster", "status"]);
        status[field].clone()
    };
    wait_until("both are up", || status(&cluster, "nodes_up") == 2);
    let uri = format!(
        "{}?tls={}&region=moved&replicas=2&local=1MiB&extent=1MiB",
        cluster.url(),
        cluster.tls().display()
    );
    let far = FarMemory::open(&uri).expect("opens");
    let mut memory = far.map(4 << 20).expect("maps");
    let value = |place: usize, round: usize| (place / 4096 + place + round) as u8;
    let mut write = |round: usize| {
        for (place, byte) in memory.iter_mut().enumerate() {
            *byte = value(place, round);
        }
        memory.flush().expect("on both");
    };
    write(1);

    let path = cluster.store();
    let store = format!("redb:{}", path.display());
    let moved =
        |store: &str, to: &str| command(&["control", "move-store", "--store", store, "--to", to]);
    let (code, refused) = moved(&store, &to);
    assert_eq!(code, 1, "it is served from: {refused}");
    cluster.kill_control();
    write(2);
    assert_eq!(moved("redb:/nothing/there", &to).0, 3);
    assert_eq!(moved(&to, &store).0, 2, "an etcd is not left");
    assert_eq!(moved(&store, &store).0, 2);
    let (code, done) = moved(&store, &to);
    assert_eq!(code, 0, "{done}");
    assert!(done["records"].as_u64() > Some(3), "{done}");
    assert!(!path.exists(), "two control planes could serve one cluster");
    assert_eq!(moved(&store, &to).0, 3, "it is not there any more");

    // The same cluster, at the same address: its nodes are up again, its owner goes on, and what is lost is healed.
    let _control = cluster.serve(cluster.addresses[0], &to, &[]);
    wait_until("both are up again", || status(&cluster, "nodes_up") == 2);
    assert_eq!(cluster.must(&["region", "show", "moved"])["replicas"], 2);
    nodes.push(cluster.start_node("n3"));
    wait_until("the third is up", || status(&cluster, "nodes_up") == 3);
    nodes.remove(0).kill();
    write(3);
    wait_until("the first is down", || status(&cluster, "nodes_down") == 1);
    wait_until("its replicas are made anew", || {
        status(&cluster, "endangered_extents") == 0
    });
    let wrong = memory.iter().enumerate();
    let wrong = wrong.filter(|(place, byte)| **byte != value(*place, 3));
    assert_eq!(wrong.count(), 0);

    // Another cluster does not go there, too.
    let mut other = Cluster::start();
    let _node = other.start_node("n1");
    wait_until("it is up", || status(&other, "nodes_up") == 1);
    other.kill_control();
    let (code, refused) = moved(&format!("redb:{}", other.store().display()), &to);
    assert_eq!(code, 8, "{refused}");
    assert!(other.store().exists());
    memory.unmap().expect("unmaps");
}

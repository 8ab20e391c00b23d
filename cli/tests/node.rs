//! `myco node` as a real process: what it prints, how it refuses, how it ends.

mod node_process;

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Instant;

use mycoram_control::NodesFile;
use mycoram_fabric::authority::StaticAuthority;
use mycoram_fabric::pages::{LaneConfig, PageError, RemoteRegion};
use mycoram_fabric::placement::Placement;
use mycoram_fabric::remote::{Remote, RemoteOptions, Transports};
use mycoram_fabric::units::{ByteCount, Epoch};
use mycoram_fabric::wire::grant::{ClusterId, SigningKey};
use nix::sys::signal::Signal;
use node_process::{HANG, MYCO, Node, create, read};
use serde_json::Value;

fn myco(args: &[&str]) -> Output {
    Command::new(MYCO).args(args).output().expect("myco runs")
}

/// Exit code, the error object of `--json` and the words on stderr of a command that fails.
fn failure(args: &[&str]) -> (i32, Value, String) {
    let output = myco(&[args, &["--json"]].concat());
    let code = output.status.code().expect("it ends by itself");
    let words = String::from_utf8(output.stderr).expect("text");
    let object = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    if !object.is_null() {
        assert_eq!(object["schema"], "myco.error");
        assert_eq!(object["exit_code"], code);
    }
    (code, object, words)
}

fn serve(listen: &str, capacity: &str, more: &[&str]) -> (i32, Value, String) {
    let args = ["node", "serve", "--listen", listen, "--capacity", capacity];
    failure(&[&args, more].concat())
}

fn status(node: SocketAddr) -> Value {
    let output = myco(&["node", "status", "--node", &node.to_string(), "--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("one object")
}

#[test]
fn a_node_with_a_cluster_key_says_so_and_one_without_warns() {
    let dir = tempfile::tempdir().expect("a directory");
    let key = SigningKey::draw(ClusterId([1; 16])).expect("a key");
    let file = dir.path().join("cluster.pub");
    std::fs::write(&file, key.public().to_line()).expect("written");
    let file = file.to_str().expect("text");
    let node = Node::start(&["--capacity", "1MiB", "--cluster-key", file, "--name", "n1"]);
    assert_eq!(node.ready["grants"], true);
    let refused = create(&[&node], ByteCount::mib(1)).expect_err("no grant");
    assert!(
        format!("{refused:?}").contains("GrantMissing"),
        "{refused:?}"
    );

    let (code, _, words) = serve("127.0.0.1:0", "1", &[]);
    assert_ne!(code, 0);
    assert!(words.contains("without --cluster-key"), "{words}");
    // The secret half is not what it wants, and a name is needed.
    std::fs::write(file, key.to_line()).expect("written");
    let (code, error, _) = serve(
        "127.0.0.1:0",
        "1MiB",
        &["--cluster-key", file, "--name", "n1"],
    );
    assert_eq!((code, &error["exit_code"]), (3, &3.into()));
    let (code, ..) = serve("127.0.0.1:0", "1MiB", &["--cluster-key", file]);
    assert_eq!(code, 2);
}

#[test]
fn the_ready_line_and_the_status_have_their_schemas() {
    let node = Node::start(&["--capacity", "8MiB"]);
    let ready = &node.ready;
    assert_eq!(
        (&ready["schema"], &ready["schema_version"]),
        (&"myco.node-ready".into(), &1.into())
    );
    assert_eq!(ready["capacity_bytes"], 8 << 20);
    assert_eq!(ready["transport"], "tcp");
    assert_eq!(ready["pid"], node.child.id());
    assert!(
        ready["data"]
            .as_str()
            .is_some_and(|data| data.parse::<SocketAddr>().is_ok())
    );

    let before = status(node.control());
    assert_eq!(
        (&before["schema"], &before["schema_version"]),
        (&"myco.node-status".into(), &1.into())
    );
    let fields = [
        "node",
        "incarnation",
        "transport",
        "data",
        "uptime_ms",
        "draining",
        "hugepages",
        "capacity_bytes",
        "lent_bytes",
        "free_bytes",
        "unzeroed_bytes",
        "extents",
        "tenants",
        "regions",
        "orphans",
        "sessions",
        "control_connections",
        "data_connections",
    ];
    let known = before.as_object().expect("an object");
    for field in fields {
        assert!(known.contains_key(field), "{field} is missing");
    }
    assert_eq!(
        known.len(),
        fields.len() + 2,
        "a field that is not in the schema: raise its version?"
    );
    assert_eq!(before["incarnation"], ready["incarnation"]);

    let remote = create(&[&node], ByteCount::mib(3)).expect("room");
    let _lane = remote.open_lane(&LaneConfig::default()).expect("a lane");
    let during = status(node.control());
    assert_eq!(during["lent_bytes"], 3 << 20);
    assert_eq!(during["free_bytes"], 5 << 20);
    let counts = [
        "extents",
        "tenants",
        "regions",
        "orphans",
        "sessions",
        "data_connections",
    ];
    let counts: Vec<_> = counts.iter().map(|count| during[count].as_u64()).collect();
    assert_eq!(counts, [3, 1, 1, 0, 1, 1].map(Some));
    remote.release();
    assert_eq!(status(node.control())["lent_bytes"], 0);

    let words = myco(&["node", "status", "--node", &node.control().to_string()]);
    let words = String::from_utf8(words.stdout).expect("text");
    assert!(words.contains("8MiB in all"), "{words}");
}

#[test]
fn wrong_sizes_and_addresses_are_refused_with_what_to_do() {
    for capacity in ["", "0", "12", "4097", "1.5GiB", "10MB", "-1MiB"] {
        let (code, _, words) = serve("127.0.0.1:0", capacity, &[]);
        assert_eq!(code, 2, "{capacity}: {words}");
        assert!(words.contains("MiB"), "{capacity}: {words}");
    }
    let (code, object, words) = serve("127.0.0.1:0", "999TiB", &[]);
    assert_eq!(code, 5, "{words}");
    assert!(
        object["error"]
            .as_str()
            .is_some_and(|error| error.contains("to spare")),
        "{object}"
    );
    assert!(object["what_to_do"].is_string(), "{object}");
    for listen in ["", "localhost", "10.0.0.1", "127.0.0.1:99999", ":7700"] {
        let (code, _, words) = serve(listen, "1MiB", &[]);
        assert_eq!(code, 2, "{listen}: {words}");
    }
    // An address of documentation, which no machine has.
    let (code, _, words) = serve("192.0.2.1:0", "1MiB", &[]);
    assert_eq!(code, 1, "{words}");
    assert!(
        words.contains("192.0.2.1") && words.contains("what to do:"),
        "{words}"
    );
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("a port").to_string();
    let (code, _, words) = serve(&taken, "1MiB", &[]);
    assert_eq!(code, 1, "{words}");
    assert!(
        words.contains("in use") && words.contains("what to do:"),
        "{words}"
    );
    for time in ["", "10", "soon", "1d"] {
        let (code, _, words) = serve("127.0.0.1:0", "1MiB", &["--orphan-ttl", time]);
        assert_eq!(code, 2, "{time}: {words}");
    }
}

#[test]
fn without_a_device_the_verbs_transport_says_so_and_names_the_other() {
    // An address of documentation: where there is a device, it is not the device's.
    let (code, object, words) = serve("192.0.2.1:0", "1MiB", &["--transport", "verbs"]);
    assert_eq!(code, 6, "{words}");
    let error = object["error"].as_str().expect("an error");
    assert!(error.contains("--transport tcp"), "{error}");
}

#[test]
fn huge_pages_that_are_not_there_are_required_in_vain_and_preferred_with_a_word() {
    // One page is no multiple of a huge page, so there is no machine that has it in one.
    let (code, _, words) = serve("127.0.0.1:0", "4KiB", &["--hugepages=require"]);
    assert_eq!(code, 5, "{words}");
    assert!(words.contains("nr_hugepages"), "{words}");
    let node = Node::start(&["--capacity", "4KiB", "--hugepages"]);
    assert_eq!(node.ready["hugepages"], false);
}

#[test]
fn a_node_that_is_not_there_is_unreachable() {
    let (code, object, words) = failure(&["node", "status", "--node", "127.0.0.1:1"]);
    assert_eq!(code, 4, "{words}");
    assert!(
        words.contains("127.0.0.1:1") && words.contains("myco node serve"),
        "{words}"
    );
    assert_eq!(
        object["causes"].as_array().map(Vec::len),
        Some(1),
        "{object}"
    );
    // Something that listens and is no node.
    let mute = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = mute.local_addr().expect("a port").to_string();
    let (code, _, words) = failure(&["node", "status", "--node", &address, "--timeout", "200ms"]);
    assert_eq!(code, 4, "{words}");
}

#[test]
fn a_full_node_says_what_was_asked_and_what_there_is() {
    let node = Node::start(&["--capacity", "4MiB"]);
    let _held = create(&[&node], ByteCount::mib(3)).expect("room");
    let refused = create(&[&node], ByteCount::mib(2))
        .expect_err("full")
        .to_string();
    assert!(
        refused.contains("no room for 2MiB") && refused.contains("n0 has 1MiB"),
        "{refused}"
    );
    assert_eq!(status(node.control())["lent_bytes"], 3 << 20);
}

#[test]
fn sigterm_without_owners_ends_at_once_with_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut node = Node::start(&["--capacity", "1MiB", "--drain-timeout", "1h"]);
        node.signal(signal);
        assert_eq!(node.ended(), Some(0));
    }
}

#[test]
fn sigterm_waits_for_owners_until_they_leave() {
    let mut node = Node::start(&["--capacity", "1MiB", "--drain-timeout", "1h"]);
    let remote = create(&[&node], ByteCount::mib(1)).expect("room");
    let mut lane = remote.open_lane(&LaneConfig::default()).expect("a lane");
    node.signal(Signal::SIGTERM);
    let until = Instant::now() + HANG;
    while status(node.control())["draining"] == false {
        assert!(Instant::now() < until, "never begins to drain");
    }
    read(&mut *lane, 7).expect("an owner is served until it leaves");
    assert!(
        create(&[&node], ByteCount::mib(1)).is_err(),
        "nobody new is let in"
    );
    remote.release();
    assert_eq!(node.ended(), Some(0));
}

#[test]
fn sigterm_waits_no_longer_than_it_was_told() {
    let mut node = Node::start(&["--capacity", "1MiB", "--drain-timeout", "200ms"]);
    let remote = create(&[&node], ByteCount::mib(1)).expect("room");
    let mut lane = remote.open_lane(&LaneConfig::default()).expect("a lane");
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0));
    assert_eq!(read(&mut *lane, 7), Err(PageError::Lost { node: 0 }));
}

#[test]
fn a_second_sigterm_does_not_wait() {
    let mut node = Node::start(&["--capacity", "1MiB", "--drain-timeout", "1h"]);
    let _remote = create(&[&node], ByteCount::mib(1)).expect("room");
    node.signal(Signal::SIGTERM);
    let until = Instant::now() + HANG;
    while status(node.control())["draining"] == false {
        assert!(Instant::now() < until, "never begins to drain");
    }
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0));
}

#[test]
fn kill_9_of_a_node_loses_its_pages_at_once_and_no_others() {
    let mut nodes = [0, 1].map(|_| Node::start(&["--capacity", "8MiB"]));
    let remote = create(&[&nodes[0], &nodes[1]], ByteCount::mib(12)).expect("room");
    let patient = LaneConfig {
        // Nobody waits for a node that is known to be dead: this one is longer than the test may take.
        node_deadline_ms: 600_000,
        ..LaneConfig::default()
    };
    let mut lane = remote.open_lane(&patient).expect("a lane");
    let pages = remote.pages().get();
    for page in 0..pages {
        read(&mut *lane, page).expect("both live");
    }
    nodes[0].signal(Signal::SIGKILL);
    nodes[0].ended();
    let answers: Vec<_> = (0..pages).map(|page| read(&mut *lane, page)).collect();
    let lost = answers.iter().filter(|answer| answer.is_err()).count() as u32;
    assert!(
        lost >= pages / 3 && lost <= pages / 3 * 2,
        "{lost} of {pages} pages are lost"
    );
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Ok(()) | Err(PageError::Lost { node: 0 })))
    );
    assert_eq!(remote.stats().nodes_lost, 1);
}

#[test]
fn an_owner_that_is_killed_leaves_its_memory_for_its_successor() {
    let node = Node::start(&["--capacity", "4MiB", "--orphan-ttl", "1h"]);
    let directory = create(&[&node], ByteCount::mib(2))
        .expect("room")
        .directory();
    let until = Instant::now() + HANG;
    while status(node.control())["orphans"] == 0 {
        assert!(Instant::now() < until, "never an orphan");
    }
    assert_eq!(status(node.control())["lent_bytes"], 2 << 20);
    let options = RemoteOptions::system().expect("random numbers");
    let placement = NodesFile::parse(
        &format!("[[node]]\nname = \"n\"\ncontrol = \"{}\"\n", node.control()),
        "nodes.toml".as_ref(),
    );
    let placement = placement.expect("a nodes file").placement();
    let transports = Transports::for_nodes(placement.nodes()).expect("io_uring");
    let authority = Arc::new(StaticAuthority::new(Arc::new(placement)));
    let successor =
        Remote::reopen(&directory, authority, &transports, &options).expect("taken over");
    assert_eq!(successor.entry().epoch, Epoch::new(2));
    let mut lane = successor.open_lane(&LaneConfig::default()).expect("a lane");
    read(&mut *lane, 0).expect("still there");
}

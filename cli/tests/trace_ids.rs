//! What different processes say about one request, or one owner, carries the same number.

mod control_process;

use std::path::Path;
use std::process::Command;

use control_process::{HANG, MYCO, Process};
use mycoram_control::client::{Access, ControlClient, RegionKey, RegionLease};
use mycoram_fabric::session::{Dial, Identity, Session, TcpDial};

const OWNER: u64 = 0x0123_4567_89ab_cdef;

fn start(dir: &Path, name: &str, args: &[&str]) -> Process {
    let levels = "mycoram_control=debug,mycoram_fabric=debug";
    Process::start_logged(args, levels, dir.join(name))
}

#[test]
fn both_sides_of_a_call_and_of_a_session_name_the_same_number() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = format!("redb:{}", dir.path().join("store").display());
    #[rustfmt::skip]
    let serve = ["control", "serve", "--listen", "127.0.0.1:0", "--store", &store, "--insecure"];
    let control = start(dir.path(), "control", &serve);
    let url = format!("control://{}", control.address("address"));
    #[rustfmt::skip]
    let serve = [
        "node", "serve", "--listen", "127.0.0.1:0", "--capacity", "8MiB", "--name", "n1", "--control", &url,
        "--insecure",
    ];
    let node = start(dir.path(), "node", &serve);
    // The memory node's own words about its call, and the control plane's about the same one.
    let asked = node.says(&["call=\"register_node\"", "request="]);
    let number = asked
        .split("request=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    let number = number.expect("a number");
    assert_eq!(number.len(), 16, "{asked}");
    control.says(&[number, "RegisterNode", "a memory node registered"]);

    #[rustfmt::skip]
    let create = [
        "region", "create", "r", "--size", "4MiB", "--extent", "1MiB", "--control", &url, "--insecure", "--json",
    ];
    let made = Command::new(MYCO).args(create).output().expect("myco runs");
    assert!(made.status.success(), "{made:?}");
    let access = Access::new(url.parse().expect("an address"), None);
    let client = std::sync::Arc::new(ControlClient::new(&access).expect("threads"));
    let key = RegionKey::Name("r".to_owned());
    let lease = RegionLease::acquire(client, &key, OWNER, false, HANG).expect("acquired");
    let entry = lease.entry();
    let identity = Identity {
        tenant: entry.tenant,
        region: entry.id,
        epoch: entry.epoch,
        token: lease.token(),
        owner: OWNER,
    };
    let channel = TcpDial::default()
        .dial(node.address("control"))
        .expect("alive");
    let _session = Session::open(channel, identity, true).expect("a session");
    let owner = format!("owner={OWNER:016x}");
    control.says(&[&owner, "an owner wants a region"]);
    node.says(&[&owner, "a session is open"]);
}

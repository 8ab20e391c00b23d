//! `myco region verify` of a region that nobody owns: replicas are compared with each other, healed where most agree
//! or the directory knows which are missing, and left alone where nothing tells; an owner that comes ends it.

mod control_process;
mod node_memory;
mod verify_report;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_process::{Cluster, HANG, MYCO, Process, any_port, wait_until};
use mycoram_agent::daemon::RemoteSource;
use mycoram_control::client::ControlRegions;
use mycoram_control::identity::Role;
use mycoram_control::proto;
use mycoram_fabric::pages::{
    Direction, FrameIndex, LaneConfig, MAX_RUN_PAGES, PageError, PageLane, PageRequest,
    RemoteRegion, Which, await_answers,
};
use mycoram_fabric::units::{ByteCount, PAGE_BYTES, PageIndex};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use node_memory::NodeMemory;
use serde_json::Value;
use verify_report::found;

const REGION: &str = "left";

struct Place {
    cluster: Cluster,
    nodes: Vec<Process>,
    pages: usize,
}

impl Place {
    fn new(nodes: usize, pages: usize) -> Self {
        Self::of(Cluster::start(), nodes, pages)
    }

    fn of(cluster: Cluster, nodes: usize, pages: usize) -> Self {
        let names = (1..=nodes).map(|nth| format!("n{nth}"));
        let nodes: Vec<Process> = names.map(|name| cluster.start_node(&name)).collect();
        wait_until("all are up", || {
            cluster.must(&["cluster", "status"])["nodes_up"] == nodes.len()
        });
        Self {
            cluster,
            nodes,
            pages,
        }
    }

    /// The region, owned by this process until it is dropped.
    fn own(&self, more: &str) -> Arc<dyn RemoteRegion> {
        own(&self.cluster.url(), &self.cluster.tls(), self.pages, more)
    }

    /// Every page is written by an owner that then gives the region back.
    fn write_and_leave(&self, replicas: usize) {
        let region = self.own(&format!("&replicas={replicas}"));
        write(&*region, 1).expect("written");
        drop(region);
        let free = || self.cluster.must(&["region", "show", REGION])["lease"] == "free";
        wait_until("it is given back", free);
    }

    fn memory(&self, node: usize) -> NodeMemory {
        NodeMemory::of(self.nodes[node].child.id())
    }

    /// Changes a page where a node was found to hold it.
    fn flip(&self, held: &[Vec<(usize, Vec<u8>)>], (node, page): (usize, usize), bit: u8) {
        let memory = self.memory(node);
        let place = place_of(&held[node], page).expect("the node has it");
        let mut bytes = memory.page(place);
        bytes[1000] ^= bit;
        memory.put(place, &bytes);
    }

    /// What each node holds.
    fn held(&self) -> Vec<Vec<(usize, Vec<u8>)>> {
        let nodes = 0..self.nodes.len();
        nodes.map(|node| self.memory(node).pages()).collect()
    }

    fn verify(&self, more: &[&str]) -> (i32, Value) {
        let words = [&["region", "verify", REGION][..], more].concat();
        self.cluster.myco(&words)
    }

    fn epoch(&self) -> u64 {
        let shown = self.cluster.must(&["region", "show", REGION]);
        shown["epoch"].as_u64().expect("a number")
    }
}

fn stamp(page: usize) -> [u8; 8] {
    (0x1ef7_0000_0000_0000 | page as u64).to_le_bytes()
}

fn place_of(held: &[(usize, Vec<u8>)], page: usize) -> Option<usize> {
    let found = held.iter().find(|(_, bytes)| bytes[..8] == stamp(page));
    found.map(|(place, _)| *place)
}

/// The region, owned by this process until it is dropped.
fn own(url: &str, tls: &Path, pages: usize, more: &str) -> Arc<dyn RemoteRegion> {
    let bytes = ByteCount::new((pages * PAGE_BYTES) as u64);
    let url = format!(
        "{url}?tls={}&region={REGION}&ahead={bytes}{more}",
        tls.display()
    );
    let regions = ControlRegions::open(&url.parse().expect("a URL")).expect("nodes");
    let made = regions.create(bytes, ByteCount::mib(1));
    made.expect("is there").0
}

/// Writes all pages, each with its stamp and the round, to all replicas.
fn write(region: &dyn RemoteRegion, round: u8) -> Result<(), PageError> {
    let mut lane = region.open_lane(&LaneConfig::default()).expect("opens");
    write_by(&mut *lane, region.pages().get(), round)
}

fn write_by(lane: &mut dyn PageLane, pages: u32, round: u8) -> Result<(), PageError> {
    for first in (0..pages).step_by(MAX_RUN_PAGES.into()) {
        let run = MAX_RUN_PAGES.min((pages - first) as u16);
        for nth in 0..u32::from(run) {
            let mut bytes = [round; PAGE_BYTES];
            bytes[..8].copy_from_slice(&stamp((first + nth) as usize));
            let at = nth as usize * PAGE_BYTES;
            lane.frames().copy_in(at, &bytes).expect("a frame");
        }
        lane.queue(PageRequest {
            tag: 0,
            direction: Direction::Write,
            page: PageIndex::new(first),
            run,
            frame: FrameIndex(0),
            which: Which::Live,
        })
        .expect("room");
        lane.ring();
        answered(lane)?;
    }
    Ok(())
}

fn answered(lane: &mut dyn PageLane) -> Result<(), PageError> {
    let until = Instant::now() + HANG;
    let mut done = Vec::with_capacity(1);
    while lane.poll(&mut done) == 0 {
        assert!(Instant::now() < until, "never answered");
        await_answers(lane, Duration::from_millis(500));
    }
    done[0].result
}

/// An owner in a process of its own: it writes all pages, and again for each line that it reads. Killed when it is
/// dropped.
struct Owner(Child);

/// What it is told by the environment: the control plane's address, the certificates, the pages.
const OWNER: [&str; 3] = ["MYCORAM_TEST_URL", "MYCORAM_TEST_TLS", "MYCORAM_TEST_PAGES"];
/// What its lines begin with, among those of the test harness.
const SAYS: &str = "owner: ";

impl Owner {
    fn start(place: &Place) -> Self {
        let told = [
            place.cluster.url(),
            place.cluster.tls().display().to_string(),
            place.pages.to_string(),
        ];
        let program = std::env::current_exe().expect("this program");
        let child = Command::new(program)
            .args(["owner_process", "--exact", "--ignored", "--nocapture"])
            .envs(OWNER.into_iter().zip(told))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        Self(child)
    }

    /// The next thing that it says.
    fn says(&mut self) -> String {
        let stdout = self.0.stdout.as_mut().expect("piped");
        // One byte of look-ahead, so that nothing is lost between two calls.
        let lines = BufReader::with_capacity(1, stdout).lines();
        let said = lines
            .map(|line| line.expect("text"))
            .find_map(|line| Some(line.split_once(SAYS)?.1.to_owned()));
        said.expect("it lives")
    }

    fn write_again(&mut self) {
        let stdin = self.0.stdin.as_mut().expect("piped");
        stdin.write_all(b"\n").expect("it lives");
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("our own child");
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "the body of another process"]
fn owner_process() {
    let [url, tls, pages] = OWNER.map(|name| std::env::var(name).expect("told"));
    let pages = pages.parse().expect("a number");
    let region = own(&url, tls.as_ref(), pages, "&replicas=3");
    let mut lane = region.open_lane(&LaneConfig::default()).expect("opens");
    let mut lines = std::io::stdin().lines();
    for round in 1.. {
        println!(
            "{SAYS}{:?}",
            write_by(&mut *lane, region.pages().get(), round)
        );
        if lines.next().is_none() {
            return;
        }
    }
}

#[test]
fn what_most_replicas_contradict_is_healed_and_what_nothing_tells_is_left_alone() {
    let place = Place::new(3, 512);
    place.write_and_leave(3);
    let before = place.held();
    let epoch = place.epoch();
    let (code, clean) = place.verify(&[]);
    assert_eq!((code, &clean["by"]), (0, &"each-other".into()), "{clean}");
    assert_eq!(clean["compared_replicas"], 3 * 512);
    assert!(place.epoch() > epoch, "it was an owner meanwhile");

    let planted = [(0, 3), (0, 300), (1, 77), (2, 511)];
    for at in planted {
        place.flip(&before, at, 0x10);
    }
    // All three differ.
    place.flip(&before, (0, 400), 0x10);
    place.flip(&before, (1, 400), 0x20);
    let expected = |repaired: bool| -> BTreeSet<_> {
        let name =
            |(node, page): &(usize, usize)| (*page as u64, format!("n{}", node + 1), repaired);
        planted.iter().map(name).collect()
    };
    let harmed = place.held();
    let (code, report) = place.verify(&[]);
    assert_eq!(code, 10, "{report}");
    assert_eq!(found(&report), expected(false), "{report}");
    assert_eq!(report["undecided"], serde_json::json!([400]));
    assert!(place.held() == harmed, "it only looked");

    let (code, report) = place.verify(&["--repair"]);
    assert_eq!(code, 10, "one page is undecided: {report}");
    assert_eq!(found(&report), expected(true), "{report}");
    assert_eq!(report["undecided"], serde_json::json!([400]));
    for (node, (now, before)) in place.held().iter().zip(&before).enumerate() {
        for ((place, now), (_, before)) in now.iter().zip(before) {
            let of_400 = before[..8] == stamp(400);
            assert_eq!(now != before, of_400 && node < 2, "{place} on node {node}");
        }
    }
    place.flip(&before, (0, 400), 0x10);
    let (code, report) = place.verify(&["--repair"]);
    assert_eq!(code, 0, "two of three agree by now: {report}");
    assert!(place.held() == before, "as it was");
}

#[test]
fn of_two_nothing_tells_which_is_right_and_a_missing_one_is_made_anew() {
    let mut place = Place::new(3, 512);
    place.write_and_leave(2);
    let before = place.held();
    let holds = |node: &usize| place_of(&before[*node], 9).is_some();
    let homes: Vec<usize> = (0..before.len()).filter(holds).collect();
    assert_eq!(homes.len(), 2);
    place.flip(&before, (homes[0], 9), 0x01);
    let harmed = place.held();
    for more in [&[][..], &["--repair"][..]] {
        let (code, report) = place.verify(more);
        assert_eq!(code, 10, "{report}");
        assert_eq!(report["undecided"], serde_json::json!([9]));
        assert_eq!(report["wrong_replicas"], 0);
        assert!(place.held() == harmed, "neither is believed");
    }
    place.flip(&before, (homes[0], 9), 0x01);

    let gone = place.nodes.remove(homes[1]);
    gone.kill();
    let name = format!("n{}", homes[1] + 1);
    wait_until("it is down", || {
        place.cluster.state(&name).as_deref() == Some("down")
    });
    let (code, report) = place.verify(&[]);
    assert_eq!(code, 10, "{report}");
    assert!(report["endangered_extents"].as_u64() > Some(0), "{report}");
    assert!(report["single_pages"].as_u64() > Some(0), "{report}");
    let (code, report) = place.verify(&["--repair"]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["endangered_extents"], 0);
    assert!(report["rebuilt_replicas"].as_u64() > Some(0), "{report}");
    let held = place.held();
    for page in 0..512 {
        let homes = held.iter().filter(|held| place_of(held, page).is_some());
        // One that is being moved for balance may be there thrice.
        assert!(homes.count() >= 2, "page {page}");
    }
    assert_eq!(place.verify(&[]).0, 0);
}

#[test]
fn an_owner_that_comes_ends_it_and_nothing_is_written_behind_its_back() {
    const PAGES: usize = 4096;
    let place = Place::new(3, PAGES);
    place.write_and_leave(3);
    let client = place.cluster.client(Role::Admin);
    let status = || {
        let region = REGION.to_owned();
        let asked = client.get_region(proto::GetRegionRequest { region });
        asked.expect("it is there")
    };
    let mut round = 1;
    // It may be over before it could be stopped.
    let ended = (0..5).find_map(|_| {
        // What repairing finds to do, from the first page to the last.
        for node in 0..3 {
            let memory = place.memory(node);
            for (at, mut bytes) in memory.pages().into_iter().skip(node).step_by(21) {
                bytes[1000] ^= 0x40;
                memory.put(at, &bytes);
            }
        }
        let before = status().epoch;
        let mut check = Command::new(MYCO)
            .args(["region", "verify", REGION, "--repair", "--json"])
            .args(["--control", &place.cluster.url(), "--tls"])
            .arg(place.cluster.tls())
            .stdout(Stdio::piped())
            .spawn()
            .expect("myco starts");
        let pid = Pid::from_raw(i32::try_from(check.id()).expect("a pid"));
        wait_until("it has the region", || {
            let now = status();
            now.epoch > before && now.lease() != proto::LeaseState::Fencing
        });
        kill(pid, Signal::SIGSTOP).expect("our own child");
        round += 1;
        let owner = place.own("&take-over=yes");
        write(&*owner, round).expect("written");
        let written = place.held();
        kill(pid, Signal::SIGCONT).expect("our own child");
        let code = check.wait().expect("our own child").code();
        assert!(place.held() == written, "the owner's pages were touched");
        let (refused, report) = place.verify(&["--ownerless"]);
        assert_eq!(refused, 8, "its lease runs: {report}");
        drop(owner);
        wait_until("it is given back", || {
            status().lease() == proto::LeaseState::Free
        });
        (code == Some(8)).then_some(())
    });
    assert!(ended.is_some(), "it was never stopped in the middle");
    assert_eq!(place.verify(&[]).0, 0);
}

#[test]
fn an_owner_whose_lease_has_run_out_is_followed_by_the_comparison_and_writes_no_more() {
    let mut cluster = Cluster::without_control();
    let store = format!("redb:{}", cluster.tls().with_file_name("store").display());
    // Short, and still long for an owner that lives on a machine that does much else.
    let control = cluster.serve(any_port(), &store, &["--owner-lease", "5s"]);
    cluster.addresses.push(control.address("address"));
    cluster.control = Some(control);
    let place = Place::of(cluster, 3, 512);
    let mut owner = Owner::start(&place);
    assert_eq!(owner.says(), "Ok(())");
    let before = place.held();
    let epoch = place.epoch();
    let (code, report) = place.verify(&["--ownerless"]);
    assert_eq!(code, 8, "its lease runs: {report}");
    assert_eq!(place.epoch(), epoch, "the owner was not touched");

    owner.signal(Signal::SIGSTOP);
    place.flip(&before, (1, 77), 0x10);
    let mut last = (8, Value::Null);
    wait_until("its lease has run out", || {
        last = place.verify(&["--ownerless", "--repair"]);
        last.0 != 8
    });
    let (code, report) = last;
    assert_eq!((code, &report["by"]), (0, &"each-other".into()), "{report}");
    assert_eq!(report["compared_replicas"], 3 * 512);
    assert_eq!(found(&report), [(77, "n2".to_owned(), true)].into());
    assert!(place.held() == before, "as the owner wrote it");
    assert!(place.epoch() > epoch, "somebody else was its owner");

    owner.write_again();
    owner.signal(Signal::SIGCONT);
    assert_eq!(owner.says(), "Err(Fenced)");
    assert!(place.held() == before, "it was too late");
    let (code, report) = place.verify(&[]);
    assert_eq!((code, &report["by"]), (0, &"each-other".into()), "{report}");
}

#[test]
fn with_too_few_nodes_what_is_missing_is_said_at_once() {
    let mut place = Place::new(2, 512);
    place.write_and_leave(2);
    place.nodes.remove(1).kill();
    wait_until("it is down", || {
        place.cluster.state("n2").as_deref() == Some("down")
    });
    // Longer than this test may take.
    let repair = ["--repair", "--patience", "1h"];
    let began = Instant::now();
    let (code, report) = place.verify(&repair);
    assert!(began.elapsed() < HANG, "it waited: {report}");
    assert_eq!(code, 10, "{report}");
    assert!(report["endangered_extents"].as_u64() > Some(0), "{report}");
    assert_eq!(report["rebuilt_replicas"], 0);
    let stuck = &report["stuck_extents"];
    assert_eq!(stuck["no_domain"], report["endangered_extents"], "{report}");
    assert_eq!(
        (&stuck["no_source"], &stuck["no_room"]),
        (&0.into(), &0.into())
    );

    let another = place.cluster.start_node("n3");
    place.nodes.push(another);
    wait_until("it is up", || {
        place.cluster.state("n3").as_deref() == Some("up")
    });
    let (code, report) = place.verify(&repair);
    assert_eq!(
        (code, &report["endangered_extents"]),
        (0, &0.into()),
        "{report}"
    );
    assert!(report["rebuilt_replicas"].as_u64() > Some(0), "{report}");
}

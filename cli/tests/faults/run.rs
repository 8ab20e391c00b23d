//! Carries rounds of faults out, and looks that everything is whole again after each.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use super::net::Net;
use super::parts::{HANG, Parts, Which, Worker};
use super::plan::{self, Draw, Fault, Trouble};

const NODES: usize = 3;
/// Processes of the control plane, and members of the etcd that they share, with `MYCORAM_FAULT_STORE=etcd`.
const CONTROLS: usize = 2;
const MEMBERS: usize = 3;
/// How long it goes on where nobody says otherwise, s: half of it with two replicas, half with three.
const SECONDS: u64 = 40;
/// Visits of pages that show that the workload goes on.
const GOES_ON: u64 = 50;

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

/// What was done when, for whoever has to find out why it failed.
struct Story {
    began: Instant,
    text: String,
}

impl Story {
    fn tell(&mut self, what: &str) {
        let _ = writeln!(
            self.text,
            "{:8.3} s  {what}",
            self.began.elapsed().as_secs_f64()
        );
    }
}

struct Run {
    seed: u64,
    parts: Parts,
    worker: Option<Worker>,
    replicas: usize,
    story: Story,
    counts: BTreeMap<&'static str, u64>,
}

/// Random faults over `transport` for as long as `MYCORAM_FAULT_SECONDS` says. `own_net`: where there is no
/// test bed, a network is made; `insists`: without one it is a failure, else it is said.
pub(crate) fn random_faults(transport: &'static str, own_net: bool, insists: bool) {
    let net = match Net::find(NODES, own_net) {
        Ok(mut net) => {
            if std::env::var_os("MYCORAM_FAULT_STORE").is_some_and(|store| store == "etcd") {
                net.means.controls = CONTROLS;
                net.means.members = MEMBERS;
            }
            net
        }
        Err(why) => {
            assert!(!insists, "random faults over {transport}: {why}");
            eprintln!("skipped: random faults over {transport}: {why}");
            return;
        }
    };
    let seed = variable("MYCORAM_SEED").unwrap_or(1);
    let seconds = variable("MYCORAM_FAULT_SECONDS").unwrap_or(SECONDS);
    eprintln!("faults: seed {seed}, {seconds} s over {transport}; again with MYCORAM_SEED={seed}");
    let mut run = Run {
        seed,
        parts: Parts::start(net, transport),
        worker: None,
        replicas: 0,
        story: Story {
            began: Instant::now(),
            text: String::new(),
        },
        counts: BTreeMap::new(),
    };
    let mut draw = Draw::new(seed);
    let (mut rounds, mut visits) = (0, 0);
    for (replicas, share) in [(2, seconds.div_ceil(2)), (3, seconds / 2)] {
        let until = Instant::now() + Duration::from_secs(share);
        run.begin(replicas);
        while Instant::now() < until {
            let faults = plan::round(&mut draw, NODES, replicas, run.parts.net.means);
            run.round(&faults);
            rounds += 1;
        }
        visits += run.end();
    }
    let report = json!({
        "schema": "soak.report", "schema_version": 1,
        "transport": transport, "seed": seed, "seconds": run.story.began.elapsed().as_secs(),
        "netem": run.parts.net.means.netem,
        "controls": run.parts.net.means.controls, "etcd_members": run.parts.net.means.members,
        "rounds": rounds, "faults": run.counts, "page_visits": visits, "lost_pages": 0, "wrong_pages": 0,
    });
    eprintln!("faults: {report}");
    if let Some(path) = std::env::var_os("MYCORAM_FAULT_JSON") {
        std::fs::write(path, report.to_string()).expect("the report is written");
    }
}

impl Run {
    fn fail(&self, why: &str) -> ! {
        let status = self.parts.ask(&["cluster", "status"]);
        let nodes = self.parts.ask(&["node", "list"]);
        panic!(
            "{why}\nseed {}, {} replicas; what was done:\n{}ended by themselves: {}\ncluster: {}\nnodes: {}",
            self.seed,
            self.replicas,
            self.story.text,
            self.parts.ended(),
            status.unwrap_or_default(),
            nodes.unwrap_or_default()
        );
    }

    fn begin(&mut self, replicas: usize) {
        self.replicas = replicas;
        self.await_whole();
        self.parts.want_agent(replicas);
        self.await_whole();
        self.worker = Some(Worker::start(&self.parts, self.seed));
        self.story.tell(&format!("a worker on {replicas} replicas"));
        self.await_visits(GOES_ON);
    }

    fn end(&mut self) -> u64 {
        let Some(worker) = self.worker.take() else {
            return 0;
        };
        self.story.tell("the worker verifies all and ends");
        match worker.finish() {
            Ok(visits) => {
                self.parts.want(Which::Agent, false);
                visits
            }
            Err(why) => self.fail(&why),
        }
    }

    /// What a supervisor does, and a look at the workload.
    fn tend(&mut self) {
        self.parts.tend();
        if let Some(why) = self.worker.as_mut().and_then(Worker::ended) {
            self.fail(&format!("the worker: {why}"));
        }
    }

    fn await_visits(&mut self, more: u64) {
        let visits = |run: &Self| run.worker.as_ref().map_or(0, Worker::visits);
        let (from, until) = (visits(self), Instant::now() + HANG);
        while visits(self) < from + more {
            self.tend();
            if Instant::now() > until {
                self.fail("the workload stands still");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All nodes and members are up, and no extent has too few replicas.
    fn await_whole(&mut self) {
        let until = Instant::now() + HANG;
        loop {
            self.tend();
            let status = self.parts.ask(&["cluster", "status"]);
            let status = status.unwrap_or_default();
            if status["lost_extents"].as_u64() > Some(0) {
                self.fail("extents are lost");
            }
            let members = status["store"]["members"].as_array();
            let members = members.into_iter().flatten();
            let members_up = members.filter(|member| member["up"] == true).count();
            if self.parts.are_ready()
                && members_up == self.parts.net.means.members
                && status["nodes_up"] == NODES
                && status["endangered_extents"] == 0
            {
                return;
            }
            if Instant::now() > until {
                self.fail("it does not become whole again");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn round(&mut self, faults: &[Fault]) {
        for fault in faults {
            self.story.tell(&format!("planned: {fault}"));
            *self.counts.entry(fault.trouble.kind()).or_default() += 1;
        }
        let steps = faults.iter().flat_map(|fault| {
            [
                (fault.from_ms, true, fault.trouble),
                (fault.until_ms, false, fault.trouble),
            ]
        });
        let mut steps: Vec<_> = steps.collect();
        steps.sort_by_key(|(at, ..)| *at);
        let began = Instant::now();
        for (at_ms, begins, trouble) in steps {
            let at = began + Duration::from_millis(at_ms);
            while Instant::now() < at {
                self.tend();
                let left = at.saturating_duration_since(Instant::now());
                std::thread::sleep(left.min(Duration::from_millis(50)));
            }
            let word = if begins { "begins" } else { "ends" };
            self.story.tell(&format!("{word}: {trouble:?}"));
            let done = if begins {
                self.begin_trouble(trouble)
            } else {
                self.end_trouble(trouble)
            };
            if let Err(why) = done {
                self.fail(&why);
            }
        }
        self.await_whole();
        self.await_visits(GOES_ON);
        self.story.tell("whole, and the workload goes on");
    }

    fn begin_trouble(&mut self, trouble: Trouble) -> Result<(), String> {
        let parts = &mut self.parts;
        match trouble {
            Trouble::KillNode(node) => parts.want(Which::Node(node), false),
            Trouble::KillAgent => parts.want(Which::Agent, false),
            Trouble::KillControl(control) => parts.want(Which::Control(control), false),
            Trouble::KillMember(member) => parts.want(Which::Member(member), false),
            Trouble::StopNode(node) => parts.signal(Which::Node(node), Signal::SIGSTOP),
            Trouble::StopAgent => parts.signal(Which::Agent, Signal::SIGSTOP),
            Trouble::StopControl(control) => parts.signal(Which::Control(control), Signal::SIGSTOP),
            Trouble::StopMember(member) => parts.signal(Which::Member(member), Signal::SIGSTOP),
            Trouble::CutNode(node) => parts.net.cut(node)?,
            Trouble::DownNode(node) => parts.net.set_link(node, false)?,
            Trouble::LoseOfNode(node, percent) => parts.net.lose(node, percent)?,
            Trouble::DelayNode(node, ms) => parts.net.delay(node, ms)?,
        }
        Ok(())
    }

    fn end_trouble(&mut self, trouble: Trouble) -> Result<(), String> {
        let parts = &mut self.parts;
        match trouble {
            Trouble::KillNode(node) => parts.want(Which::Node(node), true),
            Trouble::KillAgent => parts.want(Which::Agent, true),
            Trouble::KillControl(control) => parts.want(Which::Control(control), true),
            Trouble::KillMember(member) => parts.want(Which::Member(member), true),
            Trouble::StopNode(node) => parts.signal(Which::Node(node), Signal::SIGCONT),
            Trouble::StopAgent => parts.signal(Which::Agent, Signal::SIGCONT),
            Trouble::StopControl(control) => parts.signal(Which::Control(control), Signal::SIGCONT),
            Trouble::StopMember(member) => parts.signal(Which::Member(member), Signal::SIGCONT),
            Trouble::CutNode(node) => parts.net.join(node)?,
            Trouble::DownNode(node) => parts.net.set_link(node, true)?,
            Trouble::LoseOfNode(node, _) | Trouble::DelayNode(node, _) => parts.net.pass(node)?,
        }
        Ok(())
    }
}

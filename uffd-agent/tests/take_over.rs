//! An agent process that is killed at random moments under a verifying workload, and its successors.
//!
//! The target is this process; the agent is a child: this test's own program, told by its environment to be
//! one. Remote memory is a memfd, so that it outlives the agents as memory nodes do.

mod support;

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mycoram_agent::kernel::PidFd;
use mycoram_agent::{
    AttachError, HeldDescriptors, ParkingPipe, Region, RegionEvent, SavedRegion, StateFileError,
    TakeOverError, Target,
};
use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::{ByteCount, PAGE_BYTES};
use support::fake_remote::FakeRemote;
use support::local_target::{LocalTarget, attach, config, owner};
use support::{Dice, key_file};

const PAGES: u32 = 1024;
const BUDGET: u64 = 160;
const NAME: &str = "takeover";
const ORDER: &str = "MYCORAM_TEST_AGENT";

/// What an agent process is told.
#[derive(Clone)]
struct Order {
    epoch: u64,
    pid: i32,
    uffd: RawFd,
    memory: RawFd,
    remote: RawFd,
    base: u64,
    pipes: Vec<(RawFd, RawFd)>,
    sealed: bool,
    dir: PathBuf,
}

impl Order {
    fn to_text(&self) -> String {
        let pipes: Vec<String> = self.pipes.iter().map(|(r, w)| format!("{r}:{w}")).collect();
        format!(
            "{} {} {} {} {} {} {} {} {}",
            self.epoch,
            self.pid,
            self.uffd,
            self.memory,
            self.remote,
            self.base,
            pipes.join(","),
            u8::from(self.sealed),
            self.dir.display()
        )
    }

    fn from_text(text: &str) -> Self {
        let words: Vec<&str> = text.splitn(9, ' ').collect();
        let number = |at: usize| words[at].parse::<i64>().expect("a number");
        Self {
            epoch: number(0) as u64,
            pid: number(1) as i32,
            uffd: number(2) as RawFd,
            memory: number(3) as RawFd,
            remote: number(4) as RawFd,
            base: number(5) as u64,
            pipes: words[6]
                .split(',')
                .map(|pair| {
                    let (r, w) = pair.split_once(':').expect("a pair");
                    (r.parse().expect("a number"), w.parse().expect("a number"))
                })
                .collect(),
            sealed: number(7) == 1,
            dir: PathBuf::from(words[8]),
        }
    }

    fn spawn(&self) -> Child {
        let mut child = Command::new(std::env::current_exe().expect("ourselves"))
            .args([
                "--exact",
                "agent_process",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ORDER, self.to_text())
            .stdout(Stdio::piped())
            .spawn()
            .expect("an agent process");
        let stdout = child.stdout.take().expect("piped");
        let ready = BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains("agent is ready"));
        assert!(ready, "the agent did not start");
        child
    }
}

/// Not a test: the agent, when the environment says so.
#[test]
fn agent_process() {
    let Ok(order) = std::env::var(ORDER) else {
        return;
    };
    let order = Order::from_text(&order);
    let target_process = PidFd::open(order.pid).expect("the target");
    let take = |fd| target_process.take_descriptor(fd).expect("a descriptor");
    let memory = Mapping::shared(take(order.remote), PAGES as usize * PAGE_BYTES).expect("mapped");
    let remote = FakeRemote::over(Arc::new(memory), PAGES, 1);
    let mut config = config(NAME, &order.dir, BUDGET);
    config.settle_ms = (order.epoch % 3) as u32;
    config.fault_workers = 1 + (order.epoch % 2) as u8;
    config.seal_key = order.sealed.then(|| key_file(&order.dir));
    let events = Box::new(|event: RegionEvent| eprintln!("agent: {event:?}"));
    let region = if order.epoch == 1 {
        let target = Target {
            pid: order.pid,
            pidfd: PidFd::open(order.pid).expect("the target").into_fd(),
            uffd: take(order.uffd),
            memory: take(order.memory),
            file_offset: 0,
            base: order.base,
            bytes: ByteCount::new(u64::from(PAGES) * PAGE_BYTES as u64),
            pipes: order
                .pipes
                .iter()
                .map(|(read, write)| ParkingPipe {
                    read: take(*read),
                    write: take(*write),
                })
                .collect(),
            held: HeldDescriptors {
                uffd: order.uffd,
                memory: order.memory,
                pipes: order.pipes.clone(),
            },
        };
        Region::attach(target, remote, owner(1), config, events).expect("attached")
    } else {
        let saved = SavedRegion::open(&order.dir, &config.name).expect("a saved region");
        assert_eq!(saved.owner().directory, owner(1).directory);
        let target = saved.target().expect("the target");
        Region::take_over(saved, target, remote, owner(order.epoch), config, events)
            .expect("taken over")
    };
    println!("agent is ready");
    while !region.is_over() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Setting {
    target: LocalTarget,
    order: Order,
    _remote: OwnedFd,
    _dir: tempfile::TempDir,
}

fn setting(sealed: bool) -> Setting {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let remote = nix::sys::memfd::memfd_create(c"remote", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .expect("a memfd");
    nix::unistd::ftruncate(&remote, i64::from(PAGES) * PAGE_BYTES as i64).expect("sized");
    let held = target.target().held;
    let order = Order {
        epoch: 1,
        pid: std::process::id() as i32,
        uffd: held.uffd,
        memory: held.memory,
        remote: remote.as_raw_fd(),
        base: target.mapping.as_ptr() as u64,
        pipes: held.pipes,
        sealed,
        dir: dir.path().to_owned(),
    };
    Setting {
        target,
        order,
        _remote: remote,
        _dir: dir,
    }
}

/// Hammers the region until told to stop; each thread knows what its words must hold.
fn hammer(target: &LocalTarget, thread: u64, stop: &AtomicBool, steps: &AtomicU64) {
    let mut dice = Dice::new(thread + 100);
    let mut counts = vec![0_u64; PAGES as usize];
    while !stop.load(Ordering::Relaxed) {
        let page = dice.below(u64::from(PAGES)) as u32;
        let word = target.word(page, 8 + thread as usize);
        if dice.below(3) == 0 {
            assert_eq!(
                word.load(Ordering::Relaxed),
                counts[page as usize],
                "page {page}"
            );
        } else {
            let before = word.fetch_add(1, Ordering::Relaxed);
            assert_eq!(before, counts[page as usize], "page {page}");
            counts[page as usize] += 1;
        }
        steps.fetch_add(1, Ordering::Relaxed);
    }
    for page in 0..PAGES {
        let held = target
            .word(page, 8 + thread as usize)
            .load(Ordering::Relaxed);
        assert_eq!(held, counts[page as usize], "page {page} at the end");
    }
}

#[test]
fn a_killed_agents_region_goes_on() {
    kill_and_go_on(setting(false), 25);
}

/// Versions go on too: one that was used twice would open as either, and one that is not known as nothing.
#[test]
fn a_killed_agents_sealed_region_goes_on() {
    kill_and_go_on(setting(true), 12);
}

fn kill_and_go_on(mut setting: Setting, kills: u32) {
    let stop = AtomicBool::new(false);
    let steps = AtomicU64::new(0);
    let mut dice = Dice::new(7);
    let mut agent = setting.order.spawn();
    std::thread::scope(|scope| {
        let target = &setting.target;
        for thread in 0..3 {
            let (stop, steps) = (&stop, &steps);
            scope.spawn(move || hammer(target, thread, stop, steps));
        }
        for _ in 0..kills {
            let before = steps.load(Ordering::Relaxed);
            // It serves again; then it dies somewhere in the middle.
            let since = Instant::now();
            while steps.load(Ordering::Relaxed) < before + 50 {
                assert!(
                    since.elapsed() < Duration::from_secs(20),
                    "the target hangs"
                );
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_micros(dice.below(60_000)));
            agent.kill().expect("killed");
            agent.wait().expect("gone");
            setting.order.epoch += 1;
            agent = setting.order.spawn();
        }
        stop.store(true, Ordering::Relaxed);
    });
    eprintln!("{} steps over {kills} kills", steps.load(Ordering::Relaxed));
    agent.kill().expect("killed");
    agent.wait().expect("gone");
}

#[test]
fn a_second_agent_is_refused_and_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let region = attach(
        &target,
        FakeRemote::new(PAGES, 1),
        config("one", dir.path(), BUDGET),
    );
    let name = "one".parse().expect("a name");
    assert!(matches!(
        SavedRegion::open(dir.path(), &name),
        Err(TakeOverError::State(StateFileError::InUse { .. }))
    ));
    let other = LocalTarget::new(PAGES);
    let refused = Region::attach(
        other.target(),
        FakeRemote::new(PAGES, 1),
        owner(2),
        config("one", dir.path(), BUDGET),
        Box::new(|_| {}),
    );
    assert!(matches!(
        refused,
        Err(AttachError::State(StateFileError::InUse { .. }))
    ));
    drop(region);
    // Its target, this process, lives: only a successor may have the region.
    let orphaned = Region::attach(
        other.target(),
        FakeRemote::new(PAGES, 1),
        owner(2),
        config("one", dir.path(), BUDGET),
        Box::new(|_| {}),
    );
    assert!(matches!(
        orphaned,
        Err(AttachError::State(StateFileError::Orphaned { .. }))
    ));
    let saved = SavedRegion::open(dir.path(), &name).expect("unlocked");
    let taken = saved.target().expect("ourselves");
    let too_low = Region::take_over(
        saved,
        taken,
        FakeRemote::new(PAGES, 1),
        owner(1),
        config("one", dir.path(), BUDGET),
        Box::new(|_| {}),
    );
    assert!(matches!(too_low, Err(TakeOverError::EpochTooLow { .. })));
}

#[test]
fn a_region_that_was_dropped_is_taken_over_in_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut target = LocalTarget::new(PAGES);
    let remote = FakeRemote::new(PAGES, 1);
    let region = attach(&target, remote.clone(), config("drop", dir.path(), BUDGET));
    for page in 0..PAGES {
        target.fill(page, 3);
    }
    // The successor has to find the mapping where it was moved to.
    target.move_mapping();
    target.check(0, 3);
    drop(region);
    let saved = SavedRegion::open(dir.path(), &"drop".parse().expect("a name")).expect("saved");
    assert!(saved.target_lives());
    let taken = saved.target().expect("ourselves");
    let config = config("drop", dir.path(), BUDGET);
    let region = Region::take_over(saved, taken, remote, owner(2), config, Box::new(|_| {}))
        .expect("taken over");
    for page in 0..PAGES {
        target.check(page, 3);
    }
    region.end();
}

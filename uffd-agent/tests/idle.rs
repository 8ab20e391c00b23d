//! A region nobody touches. In a program of its own: the agent threads of other tests would be counted too.

mod support;

use std::time::{Duration, Instant};

use support::fake_remote::FakeRemote;
use support::local_target::{LocalTarget, attach, config};

const PAGES: u32 = 1024;

#[test]
fn an_idle_region_uses_next_to_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = LocalTarget::new(PAGES);
    let region = attach(
        &target,
        FakeRemote::new(PAGES, 1),
        config("idle", dir.path(), 128),
    );
    for page in 0..PAGES {
        target.fill(page, 1);
    }
    std::thread::sleep(Duration::from_millis(300));
    let before = cpu_of_agent_threads();
    let since = Instant::now();
    std::thread::sleep(Duration::from_secs(2));
    let share = (cpu_of_agent_threads() - before).as_secs_f64() / since.elapsed().as_secs_f64();
    eprintln!("idle share of a core: {share:.4}");
    // The kernel counts in ticks of 10 ms here; a spinning thread would take hundreds.
    assert!(share < 0.05, "{share}");
    region.end();
}

/// CPU time of this process's threads that are an agent's.
fn cpu_of_agent_threads() -> Duration {
    let mut ticks = 0_u64;
    for task in std::fs::read_dir("/proc/self/task")
        .expect("proc")
        .flatten()
    {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else {
            continue;
        };
        if !stat.contains("(myco-") {
            continue;
        }
        let Some((_, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let numbers: Vec<&str> = rest.split_whitespace().collect();
        ticks +=
            numbers[11].parse::<u64>().expect("ticks") + numbers[12].parse::<u64>().expect("ticks");
    }
    Duration::from_millis(ticks * 10)
}

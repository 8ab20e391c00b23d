//! Where processor time goes: by thread, as the kernel counts it.

use std::collections::BTreeMap;

use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

/// Processor time of the threads of one name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ThreadTime {
    pub(crate) thread: String,
    pub(crate) seconds: f64,
}

/// Seconds of each thread of this process, by id.
pub(crate) type Threads = BTreeMap<u32, ThreadTime>;

/// Of this process.
pub(crate) fn threads() -> Threads {
    threads_of("self")
}

/// Of the process that `pid` names.
pub(crate) fn threads_of(pid: &str) -> Threads {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Threads::new();
    };
    tasks
        .flatten()
        .filter_map(|task| {
            let id: u32 = task.file_name().to_str()?.parse().ok()?;
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            // First field: nanoseconds on a processor.
            let times = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            let nanoseconds: f64 = times.split(' ').next()?.parse().ok()?;
            let time = ThreadTime {
                thread: name.trim().to_owned(),
                seconds: nanoseconds / 1e9,
            };
            Some((id, time))
        })
        .collect()
}

/// What was used since `before` was taken of this process, summed by name, the most first.
pub(crate) fn since(before: &Threads) -> Vec<ThreadTime> {
    difference(before, &threads())
}

pub(crate) fn difference(before: &Threads, after: &Threads) -> Vec<ThreadTime> {
    let mut by_name = BTreeMap::<&str, f64>::new();
    for (id, time) in after {
        let was = before.get(id).map_or(0.0, |time| time.seconds);
        *by_name.entry(&time.thread).or_default() += time.seconds - was;
    }
    let mut times: Vec<ThreadTime> = by_name
        .into_iter()
        .map(|(thread, seconds)| ThreadTime {
            thread: thread.to_owned(),
            seconds,
        })
        .collect();
    times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    times
}

/// Faults of this process for which the kernel had to wait for a device.
pub(crate) fn major_faults() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.major_page_faults() as u64)
}

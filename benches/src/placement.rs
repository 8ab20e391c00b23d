//! Which processors a process may use: programs on one, memory nodes on the other, as on two machines.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Where things run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Placement {
    /// The program, its agent and the floors' client: processor number; null for any.
    pub(crate) program_cpu: Option<usize>,
    /// Memory nodes and the floors' server: processor number; null for any.
    pub(crate) node_cpu: Option<usize>,
}

impl Placement {
    /// Apart where there are two processors, else wherever.
    pub(crate) fn apart() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let at = |cpu| (cpus > 1).then_some(cpu);
        Self {
            program_cpu: at(0),
            node_cpu: at(1),
        }
    }
}

/// Puts the threads of this process whose names begin with `named` on `cpu`, wherever the others are.
pub(crate) fn put_threads(named: &str, cpu: usize) -> std::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    for thread in std::fs::read_dir("/proc/self/task")? {
        let thread = thread?;
        let name = std::fs::read_to_string(thread.path().join("comm"))?;
        if name.starts_with(named)
            && let Some(id) = thread.file_name().to_str().and_then(|id| id.parse().ok())
        {
            sched_setaffinity(Pid::from_raw(id), &set)?;
        }
    }
    Ok(())
}

/// Keeps the calling thread, and every thread and process that it starts from now on, on `cpu`.
pub(crate) fn pin(cpu: Option<usize>) -> nix::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

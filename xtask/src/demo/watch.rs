//! Runs the guest and watches it: what its program says, what the agent's figures say, and what the
//! kernel says is resident.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::guest::Image;
use super::loss::{Copied, Healed, Loss};
use super::parts::{Cluster, Part, place};
use super::report::{Bytes, Fault, Guest, Rebuild, Report};
use super::{DemoError, Plan, program};

/// How often the kernel's count is looked at: between two looks a budget could be exceeded unseen, so often.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// How often a line of progress is printed.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// What `myco vm run --report` and `myco vm stats --json` say, as far as the demo needs it.
#[derive(Debug, Default, Deserialize)]
struct Figures {
    #[serde(default)]
    attach_ms: f64,
    region: Region,
}

/// The agent's figures of the guest's RAM.
#[derive(Debug, Default, Deserialize)]
struct Region {
    faults: u64,
    majors: u64,
    fault_p50_us: f64,
    fault_p99_us: f64,
    fault_p999_us: f64,
    resident: u64,
    remote: u64,
    hit_rate: f64,
    transport: Moved,
}

/// What its lanes moved.
#[derive(Debug, Default, Deserialize)]
struct Moved {
    bytes_read: u64,
    bytes_written: u64,
    rebuilt_replicas: u64,
    rebuilt_bytes: u64,
}

/// The verdict of the guest's program: its last line.
#[derive(Debug, Deserialize)]
struct Verdict {
    verification: String,
    touched_bytes: u64,
    touches: u64,
    wrong_pages: u64,
    seconds: f64,
}

/// Boots the guest, waits for its end, and puts the report together.
pub(super) fn guest(
    plan: &Plan,
    image: &Image,
    cluster: &mut Cluster,
    scratch: &Path,
    limit: Duration,
) -> Result<Report, DemoError> {
    let name = format!("demo-{}", std::process::id());
    let figures_path = scratch.join("figures.json");
    let mut vm = start(plan, image, &cluster.far(plan), &name, &figures_path)?;
    let console = vm.child().stdout.take();
    let verifying = Arc::<AtomicBool>::default();
    let seen = Arc::clone(&verifying);
    let reader = std::thread::spawn(move || read_console(console, &seen));
    let mut loss: Option<Loss> = None;

    let deadline = Instant::now() + limit;
    let mut residency = Residency::new(plan.memory_mib << 20);
    let mut progress = Progress::new(&name);
    let status = loop {
        if let Ok(Some(status)) = vm.child().try_wait() {
            break status;
        }
        if Instant::now() > deadline {
            return Err(DemoError::Timeout {
                seconds: limit.as_secs(),
            });
        }
        residency.look(vm.child().id());
        if plan.losses() > 0
            && loss.is_none()
            && verifying.load(Ordering::Acquire)
            && let Some(node) = cluster.kill_node()
        {
            loss = Some(Loss::watch(node, cluster.control.clone(), progress.copied));
        }
        progress.tick(residency.peak_bytes);
        // The kernel has no event for "a file has grown": its count is sampled.
        std::thread::sleep(LOOK_INTERVAL);
    };
    let loss = loss.map(Loss::end);
    let verdict = reader.join().ok().flatten();
    if !status.success() {
        return Err(DemoError::Vm { status });
    }
    let verdict = verdict.ok_or(DemoError::NoVerdict)?;
    let bytes = std::fs::read(&figures_path).map_err(|source| DemoError::File {
        path: figures_path,
        source,
    })?;
    let figures: Figures = serde_json::from_slice(&bytes).map_err(|source| DemoError::Shape {
        what: "the virtual machine's figures",
        source,
    })?;
    Ok(report(plan, &figures, verdict, residency.peak_bytes, loss))
}

fn start(
    plan: &Plan,
    image: &Image,
    far: &str,
    name: &str,
    figures: &Path,
) -> Result<Part, DemoError> {
    let myco = program("myco").display().to_string();
    let memory = format!("{}MiB", plan.memory_mib);
    let local = format!("{}MiB", plan.local_mib);
    let (kernel, initramfs, figures) = (
        image.kernel.display().to_string(),
        image.initramfs.display().to_string(),
        figures.display().to_string(),
    );
    let append = format!(
        "console=ttyS0 quiet panic=-1 mitigations=off transparent_hugepage=never workload.mib={} workload.passes={} workload.seed={}",
        plan.touch_mib, plan.passes, plan.seed
    );
    let accelerator = if mycoram_testbed::kvm_is_usable() {
        "kvm"
    } else {
        "tcg"
    };
    let machine = format!("q35,accel={accelerator}");
    #[rustfmt::skip]
    let words = [
        &myco, "vm", "run", "--name", name, "--memory", &memory, "--local", &local, "--nodes", far,
        "--report", &figures, "--qemu", &plan.qemu, "--",
        "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-machine", &machine, "-cpu", "max",
        "-kernel", &kernel, "-initrd", &initramfs, "-append", &append,
    ];
    let mut command = place(plan, plan.nodes() + 1, &words);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    Part::start(command)
}

/// Prints the guest's words and keeps the verdict; says when its program has begun to verify.
fn read_console(
    console: Option<std::process::ChildStdout>,
    verifying: &AtomicBool,
) -> Option<Verdict> {
    let mut verdict = None;
    for line in BufReader::new(console?).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        if line.starts_with("workload: verify ") {
            verifying.store(true, Ordering::Release);
        }
        match line
            .strip_prefix("workload: result ")
            .map(serde_json::from_str)
        {
            Some(Ok(found)) => verdict = Some(found),
            _ => eprintln!("guest: {line}"),
        }
    }
    verdict
}

/// The kernel's count of what the guest's memory file holds.
struct Residency {
    ram_bytes: u64,
    /// The memory file as an open descriptor of QEMU, once it was found.
    file: Option<PathBuf>,
    peak_bytes: u64,
}

impl Residency {
    fn new(ram_bytes: u64) -> Self {
        Self {
            ram_bytes,
            file: None,
            peak_bytes: 0,
        }
    }

    /// Looks once. `vm` is the process that was started; QEMU is it or below it.
    fn look(&mut self, vm: u32) {
        if self.file.is_none() {
            self.file = descendants(vm)
                .into_iter()
                .find_map(|pid| memory_file(pid, self.ram_bytes));
        }
        if let Some(found) = self
            .file
            .as_ref()
            .and_then(|path| std::fs::metadata(path).ok())
        {
            self.peak_bytes = self.peak_bytes.max(found.blocks() * 512);
        }
    }
}

/// `pid` and everything below it.
fn descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(&parent) = all.get(next) {
        next += 1;
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
            .unwrap_or_default();
        all.extend(
            children
                .split_whitespace()
                .filter_map(|child| child.parse::<u32>().ok()),
        );
        for task in std::fs::read_dir(format!("/proc/{parent}/task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let children =
                std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children
                .split_whitespace()
                .filter_map(|child| child.parse::<u32>().ok())
            {
                if !all.contains(&child) {
                    all.push(child);
                }
            }
        }
    }
    all
}

/// The open memfd of `bytes` bytes, if that is what this process has.
fn memory_file(pid: u32, bytes: u64) -> Option<PathBuf> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    fds.flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            std::fs::read_link(path)
                .is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:"))
        })
        .find(|path| std::fs::metadata(path).is_ok_and(|found| found.len() == bytes))
}

/// A line a second on stderr, from the figures that `myco vm stats` shows.
struct Progress {
    name: String,
    last: Instant,
    faults: u64,
    copied: Copied,
}

impl Progress {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            last: Instant::now(),
            faults: 0,
            copied: Copied::default(),
        }
    }

    fn tick(&mut self, peak_bytes: u64) {
        let since = self.last.elapsed();
        if since < PROGRESS_INTERVAL {
            return;
        }
        self.last = Instant::now();
        let output = std::process::Command::new(program("myco"))
            .args(["vm", "stats", &self.name, "--json"])
            .stderr(Stdio::null())
            .output();
        // No figures yet, or none any more: the guest is starting or ending.
        let Some(figures) = output
            .ok()
            .and_then(|output| serde_json::from_slice::<Figures>(&output.stdout).ok())
        else {
            return;
        };
        let region = figures.region;
        let rate = region.faults.saturating_sub(self.faults) as f64 / since.as_secs_f64();
        self.faults = region.faults;
        self.copied = Copied {
            replicas: region.transport.rebuilt_replicas,
            bytes: region.transport.rebuilt_bytes,
        };
        let rebuilt = match region.transport.rebuilt_bytes {
            0 => String::new(),
            bytes => format!(
                ", rebuilt {} extents ({} MiB)",
                region.transport.rebuilt_replicas,
                bytes >> 20
            ),
        };
        eprintln!(
            "demo: {rate:.0} faults/s, resident {} MiB (peak {} MiB), remote {} MiB, hit rate of faults {:.2}{rebuilt}",
            region.resident >> 8,
            peak_bytes >> 20,
            region.remote >> 8,
            region.hit_rate
        );
    }
}

fn report(
    plan: &Plan,
    figures: &Figures,
    verdict: Verdict,
    peak_resident_bytes: u64,
    loss: Option<(String, Copied, Healed)>,
) -> Report {
    let region = &figures.region;
    let killed_node = loss.as_ref().map(|(node, ..)| node.clone());
    let rebuild = loss.map(|(_, before, healed)| Rebuild {
        extents: region
            .transport
            .rebuilt_replicas
            .saturating_sub(before.replicas),
        bytes: region.transport.rebuilt_bytes.saturating_sub(before.bytes),
        seconds: healed.whole_after,
        down_after_seconds: healed.down_after,
        lost_extents: healed.lost_extents,
    });
    Report {
        schema: Report::SCHEMA.to_owned(),
        schema_version: Report::version(),
        verification: verdict.verification,
        transport: plan.transport.name().to_owned(),
        nodes: plan.nodes(),
        replicas: plan.replicas,
        killed_node,
        rebuild,
        guest: Guest {
            ram_bytes: plan.memory_mib << 20,
            local_budget_bytes: plan.local_mib << 20,
            peak_resident_bytes,
            touched_bytes: verdict.touched_bytes,
            touches: verdict.touches,
            wrong_pages: verdict.wrong_pages,
        },
        attach_ms: figures.attach_ms,
        fault: Fault {
            count: region.faults,
            p50_us: region.fault_p50_us,
            p99_us: region.fault_p99_us,
            p999_us: region.fault_p999_us,
        },
        hit_rate: 1.0 - (region.majors as f64 / verdict.touches.max(1) as f64).min(1.0),
        bytes: Bytes {
            read: region.transport.bytes_read,
            written: region.transport.bytes_written,
        },
        seconds: verdict.seconds,
    }
}

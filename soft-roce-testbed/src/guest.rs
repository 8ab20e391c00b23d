//! Starts the QEMU that is the guest: files of the run, the process, nothing of what goes on inside.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::booted::Vessel;
use crate::console::Diagnosis;
use crate::frames::FrameError;
use crate::initramfs::{Archive, FirstStage, RUN_DIR};
use crate::kernel_store::{Kernel, KernelStoreError};
use crate::machine::{Accelerator, Machine};

/// The emulator; only this one is known to the recipes here.
const QEMU: &str = "qemu-system-x86_64";
/// Static, so that it runs before there is a root with libraries.
const BUSYBOX: &str = "/bin/busybox";
/// Console logs kept for reading after the fact.
const LOGS_KEPT: usize = 20;
/// Control socket's descriptor number in QEMU.
const CONTROL_FD: i32 = 3;

/// Why no guest came up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No kernel to boot.
    #[error(transparent)]
    Kernel(#[from] KernelStoreError),
    /// A file of the run.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// QEMU or the inside program could not be started.
    #[error("cannot start {program}")]
    Start {
        /// Its name.
        program: Box<str>,
        /// Why.
        source: io::Error,
    },
    /// No sign of life in time, twice.
    #[error("boot stuck for {limit_s} s: {diagnosis} (console: {console})")]
    Stuck {
        /// The limit, seconds.
        limit_s: u64,
        /// What the console says.
        diagnosis: Diagnosis,
        /// Its log.
        console: PathBuf,
    },
    /// It ended while booting.
    #[error(
        "the guest ended while booting ({ending}): {diagnosis}; its emulator said: {emulator} (console: {console})"
    )]
    Ended {
        /// How the process ended.
        ending: Box<str>,
        /// What the console says.
        diagnosis: Diagnosis,
        /// What QEMU wrote.
        emulator: Box<str>,
        /// Its log.
        console: PathBuf,
    },
    /// The devices could not be made.
    #[error("the rxe devices could not be set up: {said} (console: {console})")]
    Topology {
        /// Which step failed and how.
        said: Box<str>,
        /// Its log.
        console: PathBuf,
    },
    /// Ctrl-C and the like.
    #[error("interrupted by signal {signal}")]
    Interrupted {
        /// The signal.
        signal: i32,
    },
    /// The control stream.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// What a guest is made of.
pub(crate) struct GuestPlan<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) series_name: &'a str,
    pub(crate) accelerator: Accelerator,
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
    /// Where runs and logs are kept.
    pub(crate) state_dir: &'a Path,
    pub(crate) out_dir: &'a Path,
    /// This very program, copied into the run share, and the arguments that make it the inside.
    pub(crate) inside_arguments: &'a [String],
}

/// What QEMU wrote to its own standard error, the last of it; its directory may be gone by now.
pub(crate) fn emulator_words(log: Option<File>) -> Box<str> {
    let mut text = String::new();
    if let Some(mut log) = log {
        // An unreadable log leaves the sentence without its words.
        let _ = log.read_to_string(&mut text);
    }
    let tail: Vec<&str> = text
        .lines()
        .filter(|line| !line.contains("doesn't support requested feature"))
        .collect();
    tail[tail.len().saturating_sub(3)..].join("; ").into()
}

impl GuestPlan<'_> {
    /// Starts QEMU. The guest's death follows this thread's: `PR_SET_PDEATHSIG`.
    pub(crate) fn start(&self) -> Result<Vessel, BootError> {
        let (run_dir, console_log) = run_files(self.state_dir, self.series_name)?;
        self.start_in(&run_dir, console_log).inspect_err(|_| {
            let _ = fs::remove_dir_all(&run_dir);
        })
    }

    fn start_in(&self, run_dir: &Path, console_log: PathBuf) -> Result<Vessel, BootError> {
        let inside = run_dir.join("inside");
        let this_program = Path::new("/proc/self/exe");
        fs::copy(this_program, &inside).map_err(file(&inside))?;
        let initramfs = run_dir.join("initramfs.cpio");
        fs::write(&initramfs, self.first_root()?).map_err(file(&initramfs))?;
        let emulator_log = run_dir.join("qemu.log");
        let emulator_stderr = File::create(&emulator_log).map_err(file(&emulator_log))?;
        let (ours, theirs) = UnixStream::pair().map_err(file(run_dir))?;
        let theirs = OwnedFd::from(theirs);
        let machine = Machine {
            accelerator: self.accelerator,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            vmlinuz: &self.kernel.vmlinuz,
            initramfs: &initramfs,
            console_log: &console_log,
            run_dir,
            out_dir: self.out_dir,
            control_fd: CONTROL_FD,
        };
        let mut command = Command::new(QEMU);
        command
            .args(machine.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(emulator_stderr);
        // Its own group: a Ctrl-C at the terminal is ours to answer.
        command.process_group(0);
        let control = theirs.as_raw_fd();
        // SAFETY: between fork and exec only async-signal-safe calls are made (dup2, fcntl, prctl), on
        // descriptors that stay open in the parent until after the spawn.
        unsafe {
            command
                .pre_exec(move || inherit_as(control, CONTROL_FD).and_then(|()| end_with_parent()));
        }
        let child = command.spawn().map_err(|source| BootError::Start {
            program: QEMU.into(),
            source,
        })?;
        drop(theirs);
        Ok(Vessel {
            child,
            control: ours,
            console_log,
            run_dir: run_dir.to_owned(),
            ends_by_kill: true,
        })
    }

    fn first_root(&self) -> Result<Vec<u8>, BootError> {
        let busybox = fs::read(BUSYBOX).map_err(file(Path::new(BUSYBOX)))?;
        let mut modules = Vec::new();
        for path in &self.kernel.first_modules {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            modules.push((name, fs::read(path).map_err(file(path))?));
        }
        let mut process_one = vec![format!("{RUN_DIR}/inside")];
        process_one.extend(self.inside_arguments.iter().cloned());
        let (out_dir, modules_dir) = (
            self.out_dir.to_string_lossy(),
            self.kernel.modules_dir.to_string_lossy(),
        );
        Ok(Archive::first_root(
            &busybox,
            &modules,
            &FirstStage {
                out_dir: &out_dir,
                modules_dir: &modules_dir,
                process_one: &process_one,
            },
        ))
    }
}

/// A fresh directory for one run, and where its console goes.
pub(crate) fn run_files(state_dir: &Path, label: &str) -> Result<(PathBuf, PathBuf), BootError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "{label}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let (run_dir, log_dir) = (state_dir.join("runs").join(&name), state_dir.join("logs"));
    forget_dead_runs(&state_dir.join("runs"));
    fs::create_dir_all(&run_dir).map_err(file(&run_dir))?;
    fs::create_dir_all(&log_dir).map_err(file(&log_dir))?;
    forget_old_logs(&log_dir);
    Ok((run_dir, log_dir.join(format!("{name}.console"))))
}

/// A process that was killed could not remove its run's directory: its name holds the process id.
fn forget_dead_runs(runs: &Path) {
    let Ok(entries) = fs::read_dir(runs) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.rsplit('-').nth(1).unwrap_or_default().to_owned();
        if !owner.is_empty() && !Path::new("/proc").join(&owner).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Keeps the newest logs; a log that cannot be removed is not worth failing for.
fn forget_old_logs(log_dir: &Path) {
    let Ok(entries) = fs::read_dir(log_dir) else {
        return;
    };
    let mut logs: Vec<_> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    logs.sort();
    let surplus = logs.len().saturating_sub(LOGS_KEPT);
    for (_, path) in &logs[..surplus] {
        let _ = fs::remove_file(path);
    }
}

/// Makes `from` the descriptor `to` of the program about to be executed.
pub(crate) fn inherit_as(from: i32, to: i32) -> io::Result<()> {
    // SAFETY: plain system calls on descriptor numbers; `to` is not owned by anything in the child.
    let result = unsafe {
        if from == to {
            libc::fcntl(to, libc::F_SETFD, 0)
        } else {
            libc::dup2(from, to)
        }
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn end_with_parent() -> io::Result<()> {
    // SAFETY: prctl with a signal number touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> BootError {
    let path = path.to_owned();
    move |source| BootError::File { path, source }
}

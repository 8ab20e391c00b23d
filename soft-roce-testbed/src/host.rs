//! The other place: this host itself, where its kernel has rxe and we may use it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::booted::Vessel;
use crate::guest::{BootError, file, inherit_as, run_files};

/// Control socket's descriptor number in the inside process.
pub(crate) const CONTROL_FD: i32 = 3;

/// Why this host cannot be the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Network namespaces and devices need root.
    #[error("rxe devices on the host need root")]
    NotRoot,
    /// The kernel has no `rdma_rxe`, or may not load it.
    #[error("this host's kernel cannot load rdma_rxe")]
    NoModule,
}

/// Whether rxe devices can be made on this host; loads the module if it must.
pub(crate) fn usable() -> Result<(), HostError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(HostError::NotRoot);
    }
    if Path::new("/sys/module/rdma_rxe").exists() {
        return Ok(());
    }
    let loaded = Command::new("modprobe")
        .args(["-a", "-q", "rdma_rxe", "rdma_ucm"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if loaded.is_ok_and(|status| status.success()) {
        Ok(())
    } else {
        Err(HostError::NoModule)
    }
}

/// Starts the inside as a process of this host.
pub(crate) fn start(state_dir: &Path, inside_arguments: &[String]) -> Result<Vessel, BootError> {
    let (run_dir, console_log) = run_files(state_dir, "host")?;
    let (ours, theirs) = UnixStream::pair().map_err(file(&run_dir))?;
    let theirs = OwnedFd::from(theirs);
    let console = std::fs::File::create(&console_log).map_err(file(&console_log))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .args(inside_arguments)
        .arg("--control-fd")
        .arg(CONTROL_FD.to_string());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(console)
        .process_group(0);
    let control = theirs.as_raw_fd();
    // SAFETY: between fork and exec only dup2 or fcntl is called, on a descriptor that stays open until
    // after the spawn. The inside ends by itself when the other end of the socket closes.
    unsafe {
        command.pre_exec(move || inherit_as(control, CONTROL_FD));
    }
    let child = command.spawn().map_err(|source| BootError::Start {
        program: "the inside of the test bed".into(),
        source,
    })?;
    Ok(Vessel {
        child,
        control: ours,
        console_log,
        run_dir,
        ends_by_kill: false,
    })
}

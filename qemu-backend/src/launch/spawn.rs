//! Starting QEMU, with a QMP socket that was there before it.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::unistd::Pid;

use super::SpawnError;
use super::signals::forwarded;
use crate::process::PidFd;
use crate::qmp::{Qmp, QmpError};

/// How long QEMU may take from its start to its greeting: firmware and disks are opened meanwhile.
const GREETING_LIMIT: Duration = Duration::from_secs(60);

/// A QEMU that is our child. Dropping it before it was waited for ends it.
#[derive(Debug)]
pub struct SpawnedQemu {
    child: Option<Child>,
    pidfd: PidFd,
}

/// Starts `program` with `arguments` and a QMP socket at `qmp`, and waits for its greeting.
///
/// The socket is ours before QEMU starts and is handed down, so our connection waits in its backlog
/// and nobody has to look for a path to appear.
pub fn spawn(
    program: &Path,
    arguments: &[OsString],
    qmp: &Path,
) -> Result<(SpawnedQemu, Qmp), SpawnError> {
    let socket = |source| SpawnError::Socket {
        path: qmp.to_owned(),
        source,
    };
    let listener = UnixListener::bind(qmp).map_err(socket)?;
    let connection = UnixStream::connect(qmp).map_err(socket)?;
    let number = listener.as_raw_fd();

    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg("-chardev")
        .arg(format!(
            "socket,id=mycoram-qmp,fd={number},server=on,wait=off"
        ))
        .args(["-mon", "chardev=mycoram-qmp,mode=control"]);
    let blocked_by_us = forwarded();
    // SAFETY: fcntl and sigprocmask are async-signal-safe; the descriptor is the child's copy of the listener.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(number, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            // A mask is inherited, and QEMU does not look at it.
            blocked_by_us.thread_unblock()?;
            Ok(())
        });
    }
    let child = command.spawn().map_err(|source| SpawnError::Program {
        program: program.to_owned(),
        source,
    })?;
    // Ours is closed: if QEMU ends without having accepted, the connection ends too.
    drop(listener);
    let pidfd = match PidFd::open(Pid::from_raw(child.id() as i32)) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            let mut child = child;
            let _ = child.kill();
            let _ = child.wait();
            return Err(SpawnError::Watch(io::Error::other(error)));
        }
    };
    let mut qemu = SpawnedQemu {
        child: Some(child),
        pidfd,
    };
    match Qmp::negotiate(connection, GREETING_LIMIT) {
        Ok(qmp) => Ok((qemu, qmp)),
        // It has ended, or is about to: it has said why itself.
        Err(QmpError::Closed) => Err(SpawnError::Ended {
            status: qemu.wait().map_err(SpawnError::Watch)?,
        }),
        Err(other) => Err(SpawnError::Qmp(other)),
    }
}

impl SpawnedQemu {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pidfd.pid()
    }

    /// QEMU, to be watched.
    #[must_use]
    pub fn pidfd(&self) -> &PidFd {
        &self.pidfd
    }

    /// Waits until it has ended, and takes its status.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        match self.child.as_mut() {
            Some(child) => {
                let status = child.wait()?;
                self.child = None;
                Ok(status)
            }
            None => Ok(ExitStatus::from_raw(0)),
        }
    }
}

impl Drop for SpawnedQemu {
    fn drop(&mut self) {
        if let Some(child) = self.child.as_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

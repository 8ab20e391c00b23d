//! Who a process is: a pid alone is reused, a pid with its start time is not.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The process id, as this pid namespace counts.
    pub pid: i32,
    /// When it started, in clock ticks after boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
}

/// Why a process could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no such process (any more).
    #[error("there is no process {pid}")]
    Gone {
        /// The process asked for.
        pid: Pid,
    },
    /// Its `/proc` file could not be read.
    #[error("process {pid} cannot be looked at")]
    Read {
        /// The process.
        pid: Pid,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its `/proc` file has another form than the kernel documents.
    #[error("the status of process {pid} has an unknown form")]
    Form {
        /// The process.
        pid: Pid,
    },
}

impl ProcessIdentity {
    /// The process that has `pid` now.
    pub fn of(pid: Pid) -> Result<Self, IdentityError> {
        let text = read(pid, "stat")?;
        // The name in parentheses may itself hold parentheses and spaces: count from the last one.
        let start_ticks = text
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
            .and_then(|field| field.parse().ok())
            .ok_or(IdentityError::Form { pid })?;
        Ok(Self {
            pid: pid.as_raw(),
            start_ticks,
        })
    }

    /// This process.
    pub fn own() -> Result<Self, IdentityError> {
        Self::of(Pid::this())
    }

    /// Whether the very same process is still there and runs (a zombie does not).
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let pid = Pid::from_raw(self.pid);
        let zombie = read(pid, "stat")
            .ok()
            .and_then(|text| {
                text.rsplit_once(')')
                    .and_then(|(_, rest)| rest.trim_start().chars().next())
            })
            .is_none_or(|state| matches!(state, 'Z' | 'X'));
        !zombie && Self::of(pid).is_ok_and(|now| now == *self)
    }
}

/// The arguments that `pid` was started with, its own name first.
pub fn arguments_of(pid: Pid) -> Result<Vec<OsString>, IdentityError> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline"))
        .map_err(|source| IdentityError::Read { pid, source })?;
    let words = text
        .strip_suffix(&[0])
        .unwrap_or(&text)
        .split(|&byte| byte == 0);
    Ok(words
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect())
}

/// The process that traces `pid`, if one does.
pub fn tracer_of(pid: Pid) -> Result<Option<Pid>, IdentityError> {
    let value = status_field(pid, "TracerPid:")?;
    let raw: i32 = value
        .trim()
        .parse()
        .map_err(|_| IdentityError::Form { pid })?;
    Ok((raw != 0).then(|| Pid::from_raw(raw)))
}

/// The real user id of `pid`.
pub fn user_of(pid: Pid) -> Result<u32, IdentityError> {
    let value = status_field(pid, "Uid:")?;
    value
        .split_ascii_whitespace()
        .next()
        .and_then(|uid| uid.parse().ok())
        .ok_or(IdentityError::Form { pid })
}

fn status_field(pid: Pid, name: &str) -> Result<String, IdentityError> {
    read(pid, "status")?
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::to_owned)
        .ok_or(IdentityError::Form { pid })
}

fn read(pid: Pid, file: &str) -> Result<String, IdentityError> {
    match std::fs::read(format!("/proc/{pid}/{file}")) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(source)
            if source.kind() == io::ErrorKind::NotFound
                || source.raw_os_error() == Some(libc::ESRCH) =>
        {
            Err(IdentityError::Gone { pid })
        }
        Err(source) => Err(IdentityError::Read { pid, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_itself() {
        let own = ProcessIdentity::own().unwrap();
        assert!(own.is_alive());
        assert_eq!(tracer_of(Pid::this()).unwrap(), None);
        assert_eq!(
            user_of(Pid::this()).unwrap(),
            nix::unistd::getuid().as_raw()
        );
    }

    #[test]
    fn another_start_time_is_another_process() {
        let mut other = ProcessIdentity::own().unwrap();
        other.start_ticks += 1;
        assert!(!other.is_alive());
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pidfd = super::super::PidFd::open(Pid::from_raw(child.id() as i32)).unwrap();
        pidfd.wait_exit(None).unwrap();
        let identity = ProcessIdentity::of(Pid::from_raw(child.id() as i32)).unwrap();
        assert!(!identity.is_alive());
        child.wait().unwrap();
        assert!(matches!(
            ProcessIdentity::of(Pid::from_raw(identity.pid)),
            Err(IdentityError::Gone { .. })
        ));
    }
}

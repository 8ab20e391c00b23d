//! The commands that we use, with the parts of their answers that we read.

use std::os::fd::{BorrowedFd, RawFd};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Qmp, QmpError};

/// Whether the guest runs, as QEMU calls it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// The guest runs.
    Running,
    /// Paused by a `stop`.
    Paused,
    /// Started with -S and not continued yet.
    Prelaunch,
    /// Waits for an incoming migration.
    Inmigrate,
    /// Was migrated away.
    Postmigrate,
    /// Shut down, kept because of -no-shutdown.
    Shutdown,
    /// Any other of QEMU's states.
    #[serde(other)]
    Other,
}

/// Answer of `query-status`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Whether the virtual CPUs run.
    pub running: bool,
    /// Why, or why not.
    pub status: RunState,
}

/// QEMU's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// 7 of 7.2.22.
    pub major: u32,
    /// 2 of 7.2.22.
    pub minor: u32,
    /// 22 of 7.2.22.
    pub micro: u32,
}

/// One of QEMU's memory backends (`query-memdev`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MemoryBackend {
    /// The id it was given on the command line; one that QEMU made itself has none in some versions.
    #[serde(default)]
    pub id: Option<String>,
    /// Its size in bytes.
    pub size: u64,
    /// Writes reach the file. Not told by QEMU before 6.1.
    #[serde(default)]
    pub share: bool,
}

/// Answer of `add-fd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct AddedFd {
    /// The set it was put in.
    #[serde(rename = "fdset-id")]
    pub fdset: i64,
    /// The descriptor's number in QEMU.
    pub fd: RawFd,
}

impl Qmp {
    /// Whether the guest runs.
    pub fn status(&mut self) -> Result<Status, QmpError> {
        self.execute("query-status", Value::Null)
    }

    /// QEMU's version.
    pub fn version(&mut self) -> Result<Version, QmpError> {
        #[derive(Deserialize)]
        struct Answer {
            qemu: Version,
        }
        self.execute::<Answer>("query-version", Value::Null)
            .map(|a| a.qemu)
    }

    /// Lets the guest run.
    pub fn cont(&mut self) -> Result<(), QmpError> {
        self.execute::<Value>("cont", Value::Null).map(drop)
    }

    /// Pauses the guest. Waits for virtual CPUs that wait for a page: serve faults meanwhile.
    pub fn stop(&mut self) -> Result<(), QmpError> {
        self.execute::<Value>("stop", Value::Null).map(drop)
    }

    /// Ends QEMU.
    pub fn quit(&mut self) -> Result<(), QmpError> {
        self.execute::<Value>("quit", Value::Null).map(drop)
    }

    /// All memory backends.
    pub fn memory_backends(&mut self) -> Result<Vec<MemoryBackend>, QmpError> {
        self.execute("query-memdev", Value::Null)
    }

    /// A property of a QOM object, such as `mem-path` of `/objects/mem`.
    pub fn property(&mut self, path: &str, property: &str) -> Result<Value, QmpError> {
        self.execute("qom-get", json!({ "path": path, "property": property }))
    }

    /// The id of the backend that the machine's main memory is on, if one was named.
    ///
    /// The property is a link, so QEMU answers with the object's path: `/objects/ID`.
    pub fn main_memory_id(&mut self) -> Result<Option<String>, QmpError> {
        match self.property("/machine", "memory-backend") {
            Ok(Value::String(link)) => Ok(link
                .rsplit('/')
                .next()
                .filter(|id| !id.is_empty())
                .map(str::to_owned)),
            Ok(_) => Ok(None),
            // Machines without main memory, and QEMU before 5.0, have no such property.
            Err(QmpError::Refused { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Gives QEMU a descriptor in a set of its own; it lives until [`Self::remove_fd`] or the end of this connection.
    pub fn add_fd(&mut self, fd: BorrowedFd<'_>) -> Result<AddedFd, QmpError> {
        self.execute_with_fd("add-fd", json!({ "opaque": "mycoram" }), fd)
    }

    /// Lets QEMU close a descriptor that [`Self::add_fd`] gave. QEMU 7.2 does so only while the guest runs.
    pub fn remove_fd(&mut self, added: AddedFd) -> Result<(), QmpError> {
        self.execute::<Value>(
            "remove-fd",
            json!({ "fdset-id": added.fdset, "fd": added.fd }),
        )
        .map(drop)
    }

    /// Gives QEMU a descriptor under a name, for commands that take one (`migrate fd:NAME`).
    pub fn get_fd(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        self.execute_with_fd::<Value>("getfd", json!({ "fdname": name }), fd)
            .map(drop)
    }

    /// Lets QEMU close a descriptor that [`Self::get_fd`] gave; done when this returns.
    pub fn close_fd(&mut self, name: &str) -> Result<(), QmpError> {
        self.execute::<Value>("closefd", json!({ "fdname": name }))
            .map(drop)
    }
}

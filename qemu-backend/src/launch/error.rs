//! Why a VM could not be run or adopted.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use mycoram_agent::daemon::SourceError;

use crate::attach::AttachError;
use crate::launch::ArgumentError;
use crate::process::IdentityError;
use crate::qmp::QmpError;
use crate::registry::RegistryError;

/// Why QEMU did not come up.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The socket for QMP could not be made.
    #[error("the QMP socket {} cannot be made", .path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no such program, or it cannot be run.
    #[error("{} cannot be started; install QEMU (qemu-system-x86) or name the program with --qemu", .program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// QEMU ended before it answered QMP; it has said why itself.
    #[error("QEMU ended before the VM could start")]
    Ended {
        /// How.
        status: ExitStatus,
    },
    /// QEMU did not answer.
    #[error("QEMU started, but does not answer on its QMP socket")]
    Qmp(#[source] QmpError),
    /// The started process could not be watched.
    #[error("QEMU cannot be watched")]
    Watch(#[source] io::Error),
}

/// Why a VM could not be run or adopted. A QEMU that we started was ended again, one that we met runs on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The arguments cannot be.
    #[error(transparent)]
    Arguments(#[from] ArgumentError),
    /// The name or its record could not be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The memory nodes do not give the region.
    #[error("the memory nodes do not give the VM its memory")]
    Remote(#[source] SourceError),
    /// QEMU did not come up.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// QEMU's memory could not be taken hold of.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// QEMU holds no descriptor of its memory, so no successor could find it.
    #[error(
        "QEMU {pid} holds no descriptor of its own RAM (memory-backend-ram?), so a new agent could not take over; \
         use memory-backend-memfd"
    )]
    NoMemoryDescriptor {
        /// QEMU.
        pid: i32,
    },
    /// The agent does not serve it.
    #[error("the agent cannot serve the VM's memory")]
    Region(#[source] mycoram_agent::AttachError),
    /// The agent cannot go on where another stopped.
    #[error("the agent cannot take the VM's memory over")]
    TakeOver(#[source] mycoram_agent::TakeOverError),
    /// A bug, again and again.
    #[error("the VM's memory is not served any more, after it was taken over several times")]
    Failed(#[source] mycoram_agent::ThreadPanic),
    /// Another agent serves this QEMU.
    #[error("QEMU {pid} already has an agent: process {agent}")]
    HasAgent {
        /// QEMU.
        pid: i32,
        /// Its agent.
        agent: i32,
    },
    /// A process could not be identified.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// QMP failed.
    #[error("QEMU's control socket failed")]
    Qmp(#[from] QmpError),
    /// Signals or descriptors could not be set up, or waited for.
    #[error("waiting for QEMU failed")]
    Wait(#[from] io::Error),
}

//! What can go wrong on a QMP socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a QMP command was not answered, or how it was refused.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens at that path.
    #[error("no QEMU listens at {}", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// QEMU did not greet: it serves one client at a time, and another one has the socket.
    #[error("QEMU did not greet within {} ms: another program holds this QMP socket; give QEMU a second one (-qmp unix:PATH,server=on,wait=off)", .limit.as_millis())]
    NoGreeting {
        /// How long was waited.
        limit: Duration,
    },
    /// What answers is not QMP.
    #[error("what answers on this socket is not QMP (is it QEMU's human monitor?)")]
    NotQmp,
    /// QEMU closed the connection, or ended.
    #[error("QEMU closed its QMP socket")]
    Closed,
    /// Sending or receiving failed.
    #[error("the QMP socket failed")]
    Io(#[from] io::Error),
    /// A command was not answered in time.
    #[error("QEMU did not answer `{command}` within {} ms", .limit.as_millis())]
    Deadline {
        /// The command.
        command: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// A message is longer than `MAX_MESSAGE_BYTES`.
    #[error("QEMU sent a message of more than {limit} bytes")]
    TooLong {
        /// The bound.
        limit: usize,
    },
    /// A message is no JSON of the form that QMP has.
    #[error("QEMU's answer has an unknown form")]
    Malformed(#[from] serde_json::Error),
    /// QEMU refused a command.
    #[error("QEMU refused `{command}`: {description}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's class of the error, such as `GenericError` or `CommandNotFound`.
        class: Box<str>,
        /// QEMU's words.
        description: Box<str>,
    },
}

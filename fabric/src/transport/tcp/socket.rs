//! Options of a data socket, and what the system's errors on it mean.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::transport::ErrorKind;

/// Keep-alive probes that may go unanswered before a silent peer counts as dead.
const KEEPALIVE_PROBES: u32 = 3;

/// What every data connection wants: no delay for small frames, and an end to waiting for a machine
/// that answers nothing within `timeout`.
pub(super) fn set_options(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let millis = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    setsockopt(stream, sockopt::TcpUserTimeout, &millis)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1);
    setsockopt(stream, sockopt::TcpKeepIdle, &seconds)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &seconds)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    Ok(())
}

/// Ends both directions at once; pending operations complete.
pub(super) fn shut(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Both);
}

/// What an error number of a send or receive says about the peer.
pub(super) fn kind_of(errno: i32) -> ErrorKind {
    match errno {
        libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED | libc::ENOTCONN | libc::ESHUTDOWN => {
            ErrorKind::PeerDisconnected
        }
        libc::ETIMEDOUT
        | libc::EHOSTUNREACH
        | libc::ENETUNREACH
        | libc::EHOSTDOWN
        | libc::ENETDOWN
        | libc::ENETRESET => ErrorKind::PeerUnreachable,
        libc::EFAULT => ErrorKind::LocalProtection,
        _ => ErrorKind::LocalDevice,
    }
}

/// Not failures: the same operation is submitted again.
pub(super) fn is_passing(errno: i32) -> bool {
    matches!(errno, libc::EINTR | libc::ECANCELED | libc::EAGAIN)
}

/// A descriptor number for a submission entry.
pub(super) fn target(stream: &TcpStream) -> io_uring::types::Fd {
    use std::os::fd::AsRawFd;
    io_uring::types::Fd(stream.as_fd().as_raw_fd())
}

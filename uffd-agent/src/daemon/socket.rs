//! One end of the connection between program and daemon: whole messages, with descriptors beside them.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, socket, sockopt,
};

use super::message::MAX_MESSAGE_BYTES;
use crate::MAX_PARKING_PIPES;

/// Most descriptors beside a message: userfaultfd, memory, and two ends of each pipe.
pub(super) const MAX_DESCRIPTORS: usize = 2 + 2 * MAX_PARKING_PIPES;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// A whole message as it came.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Why nothing came, or could be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// The other side has closed it.
    #[error("the connection was closed by the other side")]
    Closed,
    /// Longer than a message may be, or with more descriptors.
    #[error("a message is longer than allowed, or brings more descriptors")]
    TooLong,
    /// Nothing came in time.
    #[error("the other side did not answer in time")]
    Timeout,
    /// The other side does not read what it is sent.
    #[error("the other side does not read what it is sent")]
    NotRead,
    /// The kernel refused.
    #[error("the connection failed")]
    Kernel(#[source] Errno),
}

impl From<Errno> for SocketError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ECONNRESET | Errno::EPIPE | Errno::ENOTCONN => Self::Closed,
            other => Self::Kernel(other),
        }
    }
}

/// Who is at the other end of a connection, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) pid: i32,
    pub(super) uid: u32,
}

/// A connected socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
}

fn new_socket(flags: SockFlag) -> Result<OwnedFd, SocketError> {
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | flags,
        None,
    )?)
}

/// Listens at `path`, which must not exist.
pub(super) fn listen_at(path: &Path) -> Result<OwnedFd, SocketError> {
    let fd = new_socket(SockFlag::SOCK_NONBLOCK)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd)
}

/// The next connection; `None` when there is none after all.
pub(super) fn accept_at(listener: BorrowedFd<'_>) -> Result<Option<Socket>, SocketError> {
    match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
        Ok(raw) => Ok(Some(Socket {
            // SAFETY: the kernel has just made this descriptor for us.
            fd: unsafe { OwnedFd::from_raw_fd(raw) },
        })),
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

impl Socket {
    /// Connects to a daemon.
    pub(super) fn connect(path: &Path) -> Result<Self, SocketError> {
        let fd = new_socket(SockFlag::empty())?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self { fd })
    }

    /// Who is at the other end.
    pub(super) fn peer(&self) -> Result<Peer, SocketError> {
        let credentials = getsockopt(&self.fd, sockopt::PeerCredentials)?;
        Ok(Peer {
            pid: credentials.pid(),
            uid: credentials.uid(),
        })
    }

    /// Sends a message. Does not wait: who does not read what it is sent is cut off.
    pub(super) fn send(
        &self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), SocketError> {
        let raw: Vec<RawFd> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() {
            &rights[..0]
        } else {
            &rights
        };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let iov = [IoSlice::new(bytes)];
        match sendmsg::<()>(self.fd.as_raw_fd(), &iov, control, flags, None) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN) => Err(SocketError::NotRead),
            Err(other) => Err(other.into()),
        }
    }

    /// The next message, which must be there: see [`Self::wait`].
    pub(super) fn receive(&self) -> Result<Packet, SocketError> {
        let mut bytes = vec![0; MAX_MESSAGE_BYTES];
        let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(self.fd.as_raw_fd(), &mut iov, Some(&mut control), flags);
        let message = match message {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Err(SocketError::Timeout),
            Err(other) => return Err(other.into()),
        };
        let (length, flags) = (message.bytes, message.flags);
        let mut descriptors = Vec::new();
        // Also of a message that is refused below: what came is ours to close.
        for control in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made these descriptors for us.
                descriptors.extend(
                    raw.into_iter()
                        .map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }),
                );
            }
        }
        if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(SocketError::TooLong);
        }
        // No message is empty, so this is the end.
        if length == 0 {
            return Err(SocketError::Closed);
        }
        bytes.truncate(length);
        Ok(Packet { bytes, descriptors })
    }

    /// Waits until a message is there, `patience` is over, or `closing` becomes readable.
    pub(super) fn wait(
        &self,
        patience: Duration,
        closing: BorrowedFd<'_>,
    ) -> Result<(), SocketError> {
        let patience = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX);
        let mut fds = [
            PollFd::new(self.fd.as_fd(), PollFlags::POLLIN),
            PollFd::new(closing, PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::from(patience)) {
            Ok(_) if fds[0].any() == Some(true) => Ok(()),
            Ok(_) | Err(Errno::EINTR) => Err(SocketError::Timeout),
            Err(other) => Err(other.into()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

//! Descriptors of ours, handed over to a stopped target through a socket of its own.
//!
//! ```text
//!   target: socketpair -> (a, b)        ours: b, by pidfd_getfd
//!                                       ours: sendmsg(b, the descriptors)
//!   target: recvmsg(a) -> its numbers
//!   target: close a, close b
//! ```
//!
//! Three calls of the target for any number of descriptors, and no control socket of its own is needed.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::inject::{InjectError, SCRATCH_BYTES, Stopped};
use crate::process::{GetFdError, PidFd};

/// Most descriptors at once: what fits into the scratch space.
pub(super) const MAX_DESCRIPTORS: usize =
    (SCRATCH_BYTES - CONTROL - CONTROL_HEADER) / size_of::<RawFd>();

// Where things lie in the scratch space: struct msghdr, struct iovec, the byte, the control message.
const IOVEC: usize = 56;
const BYTE: usize = 72;
const CONTROL: usize = 80;
/// struct cmsghdr.
const CONTROL_HEADER: usize = 16;

const _: () =
    assert!(size_of::<libc::msghdr>() == IOVEC && size_of::<libc::iovec>() == BYTE - IOVEC);
const _: () = assert!(std::mem::offset_of!(libc::msghdr, msg_controllen) == 40);
const _: () = assert!(size_of::<libc::cmsghdr>() == CONTROL_HEADER);

/// Why the target has not got them all; it has none of them then.
#[derive(Debug)]
pub(super) enum HandOverFailure {
    /// The target has no room for them.
    NoRoom { got: usize, source: Errno },
    /// A call of the target was refused.
    Target(Errno),
    /// We could not send.
    Send(Errno),
    /// We could not get at the target's socket.
    Socket(GetFdError),
}

/// Hands `descriptors` over; answers their numbers in the target, close-on-exec, in the same order.
pub(super) fn hand_over(
    stopped: &mut Stopped<'_>,
    pidfd: &PidFd,
    descriptors: &[BorrowedFd<'_>],
) -> Result<Result<Vec<RawFd>, HandOverFailure>, InjectError> {
    debug_assert!(descriptors.len() <= MAX_DESCRIPTORS);
    let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
    let at = stopped.scratch();
    if let Err(errno) = stopped.call(
        libc::SYS_socketpair,
        [libc::AF_UNIX as u64, kind, 0, at, 0, 0],
    )? {
        return Ok(Err(match errno {
            Errno::EMFILE | Errno::ENFILE => HandOverFailure::NoRoom {
                got: 0,
                source: errno,
            },
            other => HandOverFailure::Target(other),
        }));
    }
    let [a, b] = stopped.read_scratch::<2>()?;
    let result = match send(pidfd, b, descriptors) {
        Ok(()) => receive(stopped, a, descriptors.len())?,
        Err(failure) => Err(failure),
    };
    for fd in [a, b] {
        let _ = close(stopped, fd)?;
    }
    Ok(result)
}

/// Lets the target close one of its descriptors.
pub(super) fn close(
    stopped: &mut Stopped<'_>,
    fd: RawFd,
) -> Result<Result<u64, Errno>, InjectError> {
    stopped.call(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0])
}

fn send(
    pidfd: &PidFd,
    socket: RawFd,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), HandOverFailure> {
    let socket = pidfd.get_fd(socket).map_err(HandOverFailure::Socket)?;
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(b"m")],
        &rights,
        flags,
        None,
    )
    .map(drop)
    .map_err(HandOverFailure::Send)
}

fn receive(
    stopped: &mut Stopped<'_>,
    socket: RawFd,
    count: usize,
) -> Result<Result<Vec<RawFd>, HandOverFailure>, InjectError> {
    let at = stopped.scratch();
    let control_bytes = CONTROL_HEADER + (count * size_of::<RawFd>()).next_multiple_of(8);
    stopped.write_scratch(&message(at, control_bytes))?;
    let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
    if let Err(errno) = stopped.call(libc::SYS_recvmsg, [socket as u64, at, flags, 0, 0, 0])? {
        return Ok(Err(HandOverFailure::Target(errno)));
    }
    let words: [RawFd; SCRATCH_BYTES / size_of::<RawFd>()] = stopped.read_scratch()?;
    let got = received(&words, count);
    if got.len() == count {
        return Ok(Ok(got));
    }
    for &fd in &got {
        let _ = close(stopped, fd)?;
    }
    Ok(Err(HandOverFailure::NoRoom {
        got: got.len(),
        source: Errno::EMFILE,
    }))
}

/// A msghdr with its iovec, for a scratch space at `at` in the target.
fn message(at: u64, control_bytes: usize) -> [u8; CONTROL] {
    let mut message = [0; CONTROL];
    let mut put = |offset: usize, value: u64| {
        message[offset..offset + 8].copy_from_slice(&value.to_ne_bytes())
    };
    put(16, at + IOVEC as u64);
    put(24, 1);
    put(32, at + CONTROL as u64);
    put(40, control_bytes as u64);
    put(IOVEC, at + BYTE as u64);
    put(IOVEC + 8, 1);
    message
}

/// The descriptors in a received control message: fewer than were sent if the target had no room.
fn received(words: &[RawFd], count: usize) -> Vec<RawFd> {
    let word = size_of::<RawFd>();
    // msg_controllen says how much of the space was used; a message without descriptors used none.
    let used = words[40 / word] as usize;
    let length = words[CONTROL / word] as usize;
    if used < CONTROL_HEADER || length < CONTROL_HEADER {
        return Vec::new();
    }
    let got = ((length - CONTROL_HEADER) / word).min(count);
    words
        .iter()
        .skip((CONTROL + CONTROL_HEADER) / word)
        .take(got)
        .copied()
        .collect()
}

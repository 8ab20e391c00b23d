//! The scatter list of one send or receive, at an address that does not move while the kernel uses it.

use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::ptr;

use io_uring::{opcode, squeue, types};

/// Parts of a message; the kernel takes 1024, but the longer the list the later the first byte.
pub(super) const MAX_PARTS: usize = 128;

/// A `msghdr` with its parts. Boxed, because the kernel keeps the address of a pending one.
pub(super) struct Message(Box<Inner>);

struct Inner {
    header: libc::msghdr,
    parts: [libc::iovec; MAX_PARTS],
    used: usize,
}

// SAFETY: the pointers inside lead to the message itself and to memory that the owner of the message
// keeps alive; nothing in it belongs to a thread.
unsafe impl Send for Message {}

impl Message {
    pub(super) fn new() -> Self {
        // SAFETY: all-zero bytes are a valid `msghdr` (null pointers, zero lengths).
        let header: libc::msghdr = unsafe { std::mem::zeroed() };
        let part = libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        };
        Self(Box::new(Inner {
            header,
            parts: [part; MAX_PARTS],
            used: 0,
        }))
    }

    pub(super) fn clear(&mut self) {
        self.0.used = 0;
    }

    /// Adds a part, joined with the last one where it follows it in memory. False if there is no room.
    pub(super) fn push(&mut self, start: *mut u8, len: usize) -> bool {
        if let Some(last) = self.0.used.checked_sub(1) {
            let last = &mut self.0.parts[last];
            if last.iov_base as usize + last.iov_len == start as usize {
                last.iov_len += len;
                return true;
            }
        }
        let Some(part) = self.0.parts.get_mut(self.0.used) else {
            return false;
        };
        *part = libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        };
        self.0.used += 1;
        true
    }

    /// The only part, if there is no other.
    pub(super) fn single(&self) -> Option<(*mut u8, u32)> {
        let [part] = &self.0.parts[..self.0.used] else {
            return None;
        };
        Some((part.iov_base.cast(), u32::try_from(part.iov_len).ok()?))
    }

    /// For the kernel: good until the message is changed, moved or dropped elsewhere.
    pub(super) fn as_msghdr(&mut self) -> *mut libc::msghdr {
        self.0.header.msg_iov = self.0.parts.as_mut_ptr();
        self.0.header.msg_iovlen = self.0.used;
        &raw mut self.0.header
    }

    /// Bytes of all parts.
    pub(super) fn bytes(&self) -> usize {
        self.0.parts[..self.0.used]
            .iter()
            .map(|part| part.iov_len)
            .sum()
    }

    /// Sends as much as the socket takes at once; `Err` is the error number.
    pub(super) fn send(&mut self, stream: &TcpStream) -> Result<usize, i32> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        if let Some((start, len)) = self.single() {
            // SAFETY: what the only part leads to is kept by the owner of the message, whose promise it
            // is that it stays where it is during the call.
            return moved(unsafe {
                libc::send(stream.as_raw_fd(), start.cast(), len as usize, flags)
            });
        }
        let message = self.as_msghdr();
        // SAFETY: as above; header and parts are `self`'s.
        moved(unsafe { libc::sendmsg(stream.as_raw_fd(), message, flags) })
    }

    /// Receives what is there; `Err` is the error number.
    pub(super) fn receive(&mut self, stream: &TcpStream, flags: i32) -> Result<usize, i32> {
        let message = self.as_msghdr();
        // SAFETY: as for `send`.
        moved(unsafe { libc::recvmsg(stream.as_raw_fd(), message, flags) })
    }

    /// Puts `bytes` where the parts say, as a receive would; they are as many as the parts or fewer.
    #[cfg(test)]
    pub(super) fn scatter(&mut self, mut bytes: &[u8]) {
        for part in &self.0.parts[..self.0.used] {
            let (now, later) = bytes.split_at(part.iov_len.min(bytes.len()));
            // SAFETY: the parts lead to memory that the test keeps, of at least this length.
            unsafe {
                std::ptr::copy_nonoverlapping(now.as_ptr(), part.iov_base.cast(), now.len());
            }
            bytes = later;
        }
        assert!(bytes.is_empty(), "more than was asked for");
    }

    #[cfg(test)]
    pub(super) fn lengths(&self) -> Vec<usize> {
        self.0.parts[..self.0.used]
            .iter()
            .map(|part| part.iov_len)
            .collect()
    }
}

/// The result of a system call that moves bytes.
fn moved(result: isize) -> Result<usize, i32> {
    usize::try_from(result).map_err(|_| {
        std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)
    })
}

/// One direction of a socket: what is to be moved, and whether the kernel has it.
pub(super) struct Direction {
    pub(super) message: Message,
    /// The kernel has it; the message is not touched meanwhile.
    pub(super) pending: bool,
}

impl Direction {
    pub(super) fn new() -> Self {
        Self {
            message: Message::new(),
            pending: false,
        }
    }

    /// The entry that sends the message.
    pub(super) fn send(&mut self, socket: types::Fd) -> squeue::Entry {
        match self.message.single() {
            Some((start, len)) => opcode::Send::new(socket, start, len)
                .flags(libc::MSG_NOSIGNAL)
                .build(),
            None => opcode::SendMsg::new(socket, self.message.as_msghdr())
                .flags(libc::MSG_NOSIGNAL as u32)
                .build(),
        }
    }

    /// The entry that receives the message. Where nothing is there yet, `wait_first` saves a try.
    pub(super) fn receive(&mut self, socket: types::Fd, wait_first: bool) -> squeue::Entry {
        let order = if wait_first { POLL_FIRST } else { 0 };
        match self.message.single() {
            Some((start, len)) => opcode::Recv::new(socket, start, len).ioprio(order).build(),
            None => opcode::RecvMsg::new(socket, self.message.as_msghdr())
                .ioprio(order)
                .build(),
        }
    }
}

/// `IORING_RECVSEND_POLL_FIRST`: wait for the socket before the first try.
const POLL_FIRST: u16 = 1;

//! Events of a userfaultfd, read many at once into a buffer that is made once.

use userfaultfd::{Event, EventBuffer, FaultKind, ReadWrite};

use nix::errno::Errno;

use super::{TargetAddr, Userfault};

/// Something the target did.
#[derive(Debug)]
pub enum TargetEvent {
    /// A thread waits for a page. Faults and removals can arrive in either order.
    Fault {
        /// The page's first byte.
        addr: TargetAddr,
        /// It wants to write.
        write: bool,
        /// The page is there but write-protected.
        protected: bool,
        /// The faulting thread as its own pid namespace numbers it, where the handshake asked for
        /// THREAD_ID; else of no meaning.
        tid: i32,
    },
    /// The target gave memory back (MADV_DONTNEED, MADV_REMOVE). It goes on when the event is read.
    Remove {
        /// First byte.
        start: TargetAddr,
        /// First byte behind.
        end: TargetAddr,
    },
    /// The target unmapped memory.
    Unmap {
        /// First byte.
        start: TargetAddr,
        /// First byte behind.
        end: TargetAddr,
    },
    /// The target moved memory.
    Remap {
        /// Old first byte.
        from: TargetAddr,
        /// New first byte.
        to: TargetAddr,
        /// How many bytes.
        bytes: u64,
    },
    /// The target forked: the faults of the child's address space.
    Fork(Userfault),
}

/// Why events could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadEventsError {
    /// A kind that this program does not know. The events around it in the same read
    /// were delivered.
    #[error("the kernel reports an event of the unknown kind {kind:#x}")]
    UnknownKind {
        /// The kernel's number.
        kind: u8,
    },
    /// Not a whole number of events, or the end of a descriptor that has none.
    #[error("the descriptor does not deliver userfaultfd events")]
    NotEvents,
    /// The kernel refused.
    #[error("reading userfaultfd events failed")]
    Kernel(#[source] Errno),
}

/// A buffer for events. One per thread that reads.
pub struct EventReader {
    buffer: EventBuffer,
}

impl std::fmt::Debug for EventReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventReader").finish_non_exhaustive()
    }
}

impl EventReader {
    /// Room for `events` events (32 bytes each); at least one.
    #[must_use]
    pub fn new(events: usize) -> Self {
        Self {
            buffer: EventBuffer::new(events.max(1)),
        }
    }

    /// Reads what waits, as much as the buffer holds, and calls `each` for every event. Answers how
    /// many there were: 0 when nothing waits. One system call, no allocation.
    pub fn read(
        &mut self,
        userfault: &Userfault,
        mut each: impl FnMut(TargetEvent),
    ) -> Result<usize, ReadEventsError> {
        let events = match userfault.as_crate().read_events(&mut self.buffer) {
            Ok(events) => events,
            Err(userfaultfd::Error::SystemError(e)) => {
                return match Errno::from_raw(e as i32) {
                    Errno::EINTR | Errno::EAGAIN => Ok(0),
                    other => Err(ReadEventsError::Kernel(other)),
                };
            }
            Err(_) => return Err(ReadEventsError::NotEvents),
        };
        let mut count = 0;
        let mut unknown = None;
        // To the end in any case: a fork's descriptor behind an unknown event must not leak.
        for event in events {
            match event {
                Ok(event) => {
                    count += 1;
                    each(typed(event));
                }
                Err(userfaultfd::Error::UnrecognizedEvent(kind)) => unknown = Some(kind),
                Err(_) => return Err(ReadEventsError::NotEvents),
            }
        }
        match unknown {
            Some(kind) => Err(ReadEventsError::UnknownKind { kind }),
            None => Ok(count),
        }
    }
}

fn at(pointer: *mut libc::c_void) -> TargetAddr {
    TargetAddr::new(pointer as u64)
}

fn typed(event: Event) -> TargetEvent {
    match event {
        Event::Pagefault {
            kind,
            rw,
            addr,
            thread_id,
        } => TargetEvent::Fault {
            addr: at(addr),
            write: rw == ReadWrite::Write,
            protected: kind == FaultKind::WriteProtected,
            tid: thread_id.as_raw(),
        },
        Event::Remove { start, end } => TargetEvent::Remove {
            start: at(start),
            end: at(end),
        },
        Event::Unmap { start, end } => TargetEvent::Unmap {
            start: at(start),
            end: at(end),
        },
        Event::Remap { from, to, len } => TargetEvent::Remap {
            from: at(from),
            to: at(to),
            bytes: len as u64,
        },
        Event::Fork { uffd } => TargetEvent::Fork(Userfault::from_crate(uffd)),
    }
}

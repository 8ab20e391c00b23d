//! An io_uring that runs its work on the thread that uses it, and only while that thread asks.
//!
//! Completions are run by the owner's own `enter` (deferred task work, Linux 6.1): no interrupt hits
//! the thread while it does something else, and a spinning owner sees a flag in memory instead of
//! asking the kernel. Such a ring belongs to one thread: it is made disabled, so that its failure is
//! seen where the thread is started, and is bound to the thread that enables it.

use std::io;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// Why there is no io_uring on this machine.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A sysctl, a seccomp filter or a missing kernel option.
    #[error(
        "io_uring is forbidden or not built in here: set sysctl kernel.io_uring_disabled=0, or let the container's seccomp profile allow it"
    )]
    Forbidden(#[source] io::Error),
    /// The kernel is too old.
    #[error("the tcp transport needs io_uring with deferred task work: Linux 6.1 or newer")]
    TooOld(#[source] io::Error),
    /// Memory or descriptors ran out.
    #[error("an io_uring could not be set up: check RLIMIT_MEMLOCK and RLIMIT_NOFILE")]
    Resources(#[source] io::Error),
}

impl RingError {
    fn of(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => Self::Forbidden(error),
            Some(libc::EINVAL) => Self::TooOld(error),
            _ => Self::Resources(error),
        }
    }
}

impl From<RingError> for io::Error {
    fn from(error: RingError) -> Self {
        Self::other(error)
    }
}

/// Whether this machine has the io_uring that serving over tcp needs; the error says what to do.
pub fn probe() -> Result<(), RingError> {
    let ring = Ring::new(4, 8)?;
    let mut probe = io_uring::Probe::new();
    ring.uring
        .submitter()
        .register_probe(&mut probe)
        .map_err(RingError::of)?;
    let needed = [
        opcode::SendMsg::CODE,
        opcode::RecvMsg::CODE,
        opcode::Send::CODE,
        opcode::Recv::CODE,
        opcode::Read::CODE,
        opcode::Accept::CODE,
        opcode::AsyncCancel::CODE,
    ];
    if needed.iter().all(|code| probe.is_supported(*code)) {
        Ok(())
    } else {
        let source = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        Err(RingError::TooOld(source))
    }
}

/// See the module.
pub(super) struct Ring {
    uring: IoUring,
}

impl Ring {
    /// A ring with room for `entries` submissions and `completions` that were not taken yet.
    pub(super) fn new(entries: u32, completions: u32) -> Result<Self, RingError> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_r_disabled()
            .setup_cqsize(completions)
            .build(entries)
            .map_err(RingError::of)?;
        Ok(Self { uring })
    }

    /// Binds the ring to this thread. Once, before anything is submitted.
    pub(super) fn enable(&self) -> io::Result<()> {
        self.uring.submitter().register_enable_rings()
    }

    /// Whether completions are there, or work that becomes completions with the next [`Self::submit`].
    pub(super) fn has_news(&mut self) -> bool {
        self.work_is_deferred() || !self.uring.completion().is_empty()
    }

    /// Whether the kernel has work that runs with the next [`Self::submit`].
    pub(super) fn work_is_deferred(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Queues an entry, submitting what is queued already if there is no room.
    ///
    /// # Safety
    /// Everything that the entry points to stays valid until its completion, or until the ring is
    /// dropped.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: promised by the caller.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
    }

    /// Submits what is queued and runs what is deferred. Never waits.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        match self.uring.submit() {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// As [`Self::submit`], then waits for a completion, at most `timeout` (`None`: for ever).
    pub(super) fn submit_and_wait(
        &mut self,
        timeout: Option<std::time::Duration>,
    ) -> io::Result<()> {
        let result = match timeout {
            None => self.uring.submit_and_wait(1),
            Some(timeout) => {
                let timespec = types::Timespec::from(timeout);
                let args = types::SubmitArgs::new().timespec(&timespec);
                self.uring.submitter().submit_with_args(1, &args)
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes one completion.
    pub(super) fn next(&mut self) -> Option<cqueue::Entry> {
        self.uring.completion().next()
    }
}

/// Not failures: a signal, the end of the wait, or completions that must be taken first.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY)
    )
}

//! A VM whose faults are served: staying with it until it ends.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::sync::mpsc;
use std::time::Duration;

use mycoram_agent::{
    EventHandler, LostPage, Region, RegionError, RegionEvent, RegionStats, Target, ThreadPanic,
};
use mycoram_fabric::units::ByteCount;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::sync::Arc;

use super::RunError;
use super::signals::{Received, Signals};
use crate::attach::Attached;
use crate::process::PidFd;
use crate::registry::VmFigures;

/// Something that whoever started the VM should be told.
#[derive(Debug)]
pub enum Notice {
    /// The VM's memory is served from now on.
    Attached {
        /// QEMU.
        pid: i32,
        /// From QEMU answering to its faults being served.
        attach: Duration,
        /// How long its main thread stood still.
        stopped: Duration,
        /// Its RAM.
        memory: ByteCount,
        /// How much of it may be resident.
        local_budget: ByteCount,
    },
    /// The VM of an agent that died is served again.
    TakenOver {
        /// QEMU.
        pid: i32,
        /// How long it took.
        took: Duration,
    },
    /// Pages were lost: their memory nodes are gone. An access to one ends in SIGBUS.
    Lost {
        /// Some of the new ones; none if QEMU ended before they could be named.
        pages: Vec<LostPage>,
        /// All since the start.
        total: u64,
    },
    /// Another owner with a higher epoch has the VM's memory: nothing is served any more.
    Fenced,
    /// A bug: the VM's memory is not served now, and QEMU waits at each page that is not resident.
    Failed(ThreadPanic),
    /// After such a failure it is served again. Nothing was lost.
    GoesOn,
    /// The memory is being brought home, so that QEMU can go on alone. A signal from now on ends us at
    /// once; QEMU then waits for another agent.
    ComingHome,
    /// The memory cannot be brought home. It is served as before.
    StaysAway(RegionError),
}

/// A VM that is not ours any more.
#[derive(Clone, Debug, PartialEq)]
pub struct Ran {
    /// How it ended.
    pub outcome: Outcome,
    /// Its last figures; `None` if it never came to run.
    pub figures: Option<VmFigures>,
}

impl Ran {
    pub(super) fn never(outcome: Outcome) -> Self {
        Self {
            outcome,
            figures: None,
        }
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// QEMU has ended. The status is known only if QEMU was our child.
    Ended(Option<ExitStatus>),
    /// QEMU goes on without us, all its memory at home.
    Detached,
}

impl Outcome {
    /// The exit code a shell would give: QEMU's own, or 128 and the signal that ended it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        use std::os::unix::process::ExitStatusExt;
        match self {
            Self::Ended(Some(status)) => match (status.code(), status.signal()) {
                (Some(code), _) => code as u8,
                (None, Some(signal)) => 128_u8.saturating_add(signal as u8),
                (None, None) => 1,
            },
            _ => 0,
        }
    }
}

/// The region's events, as something that can be waited for.
pub(super) struct Events {
    receiver: mpsc::Receiver<RegionEvent>,
    bell: Arc<EventFd>,
    /// Lost pages that were told.
    lost: Cell<u64>,
}

/// Region events that wait for this thread; it looks at once, and further ones are dropped.
const EVENT_QUEUE: usize = 64;

impl Events {
    pub(super) fn channel() -> io::Result<(EventHandler, Self)> {
        let (sender, receiver) = mpsc::sync_channel(EVENT_QUEUE);
        let bell = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let ring = Arc::clone(&bell);
        let handler: EventHandler = Box::new(move |event| {
            if sender.try_send(event).is_ok() {
                // Full only if it rings already.
                let _ = ring.write(1);
            }
        });
        Ok((
            handler,
            Self {
                receiver,
                bell,
                lost: Cell::new(0),
            },
        ))
    }
}

/// A region that is over: its last figures, and what it has not told yet.
pub(super) fn last_figures(
    region: &Region,
    events: &Events,
    notify: &mut dyn FnMut(Notice),
) -> RegionStats {
    let stats = region.stats();
    // The first lost page can be the end of QEMU before the region comes to tell.
    if stats.lost > events.lost.get() {
        notify(Notice::Lost {
            pages: Vec::new(),
            total: stats.lost,
        });
    }
    stats
}

/// What ended a wait.
pub(super) enum Heard {
    Woken(Woken),
    /// The region is not served any more.
    Failed(ThreadPanic),
}

/// What whoever stays with a QEMU has to do something about.
pub(super) enum Woken {
    /// QEMU has ended.
    QemuEnded,
    /// A signal for us.
    Signal(Received),
    /// Another owner has the region.
    Fenced,
}

/// Waits for the end of QEMU or a signal; the region's events become notices. Without `signals` they do what
/// they do by default.
pub(super) fn wait(
    pidfd: &PidFd,
    signals: Option<&Signals>,
    events: &Events,
    notify: &mut dyn FnMut(Notice),
) -> Result<Heard, RunError> {
    loop {
        let mut fds = [
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            // In its place, the bell twice does no harm.
            PollFd::new(
                signals.map_or(events.bell.as_fd(), AsFd::as_fd),
                PollFlags::POLLIN,
            ),
            PollFd::new(events.bell.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            done => done.map_err(io::Error::from)?,
        };
        let _ = events.bell.read();
        let (mut fenced, mut failed) = (false, None);
        for event in events.receiver.try_iter() {
            match event {
                RegionEvent::Lost { pages, total } => {
                    events.lost.set(total);
                    notify(Notice::Lost { pages, total });
                }
                RegionEvent::Fenced => fenced = true,
                RegionEvent::Failed(panic) => failed = Some(panic),
                // The pidfd tells it as well, and the status besides.
                RegionEvent::TargetExited => {}
            }
        }
        if pidfd.has_exited()? {
            return Ok(Heard::Woken(Woken::QemuEnded));
        }
        if fenced {
            notify(Notice::Fenced);
            return Ok(Heard::Woken(Woken::Fenced));
        }
        if let Some(panic) = failed {
            return Ok(Heard::Failed(panic));
        }
        // Last: a signal is still there the next time, an event is not.
        if let Some(received) = signals.map(Signals::next).transpose()?.flatten() {
            return Ok(Heard::Woken(Woken::Signal(received)));
        }
    }
}

/// The agent's view of an attached QEMU.
pub(super) fn target_of(attached: Attached) -> Result<Target, RunError> {
    let pid = attached.process.pid;
    let Some(memory) = attached.in_target.memory else {
        return Err(RunError::NoMemoryDescriptor { pid });
    };
    Ok(Target {
        pid,
        pidfd: attached.pidfd.into_fd(),
        uffd: attached.userfaultfd,
        memory: attached.memory,
        file_offset: attached.file_offset,
        base: attached.base,
        bytes: ByteCount::new(attached.bytes),
        pipes: attached
            .pipes
            .into_iter()
            .map(|pipe| mycoram_agent::ParkingPipe {
                read: pipe.read,
                write: pipe.write,
            })
            .collect(),
        held: mycoram_agent::HeldDescriptors {
            uffd: attached.in_target.userfaultfd,
            memory,
            pipes: attached
                .in_target
                .pipes
                .iter()
                .map(|p| (p.read, p.write))
                .collect(),
        },
    })
}

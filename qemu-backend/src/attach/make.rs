//! A first attach: what QEMU needs is handed to it, and the userfaultfd is made in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use mycoram_agent::{MAX_PARKING_PIPES, SLOTS_PER_PIPE};
use mycoram_fabric::units::PAGE_BYTES;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Pid, pipe2};

use super::hand_over::{HandOverFailure, MAX_DESCRIPTORS, close, hand_over};
use super::userfaultfd::{Device, FLAGS, USERFAULTFD_IOC_NEW, open_device, sysctl};
use super::{AttachError, Attached, ParkingPipe, TargetDescriptors, TargetPipe, UserfaultfdDenial};
use crate::inject::{self, InjectError, PtraceDenial, Stopped, while_stopped};
use crate::memory::{GuestMemory, MemoryChoice, find_memory, is_registered};
use crate::process::{PidFd, ProcessIdentity};
use crate::qmp::Qmp;

/// Parking pipes where the caller does not say: enough for a scan at full speed.
pub const DEFAULT_PARKING_PIPES: usize = 16;

// The device, and both ends of each pipe.
const _: () = assert!(MAX_DESCRIPTORS > 2 * MAX_PARKING_PIPES);

/// How to attach.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// Which memory. Default: the machine's main memory.
    pub memory: MemoryChoice,
    /// How many parking pipes to give to QEMU, two descriptors each; at most [`MAX_PARKING_PIPES`].
    /// Default [`DEFAULT_PARKING_PIPES`].
    pub parking_pipes: usize,
    /// How long QEMU's main thread may take to stop. Default [`inject::DEFAULT_DEADLINE`].
    pub deadline: Duration,
}

impl Default for AttachOptions {
    fn default() -> Self {
        Self {
            memory: MemoryChoice::Main,
            parking_pipes: DEFAULT_PARKING_PIPES,
            deadline: inject::DEFAULT_DEADLINE,
        }
    }
}

/// Attaches to a running QEMU.
///
/// With `qmp`, QEMU names its memory itself; without, its mappings must leave no doubt. The memory is
/// not registered yet when this returns, so no fault waits for anybody. See [`Attached`].
pub fn attach(
    pid: Pid,
    qmp: Option<&mut Qmp>,
    options: &AttachOptions,
) -> Result<Attached, AttachError> {
    let pidfd = PidFd::open(pid)?;
    let process = ProcessIdentity::of(pid)?;
    let memory = guest_memory(&pidfd, qmp, &options.memory)?;
    if is_registered(pid, &memory.mapping)? {
        return Err(AttachError::AlreadyManaged { pid });
    }

    let pipes = make_pipes(options.parking_pipes.min(MAX_PARKING_PIPES))?;
    let plan = Plan {
        device: open_device(),
        pidfd: PidFd::open(pid)?,
        pipes,
        base: memory.mapping.start,
        bytes: memory.mapping.bytes(),
    };
    let injected = while_stopped(pid, options.deadline, move |stopped| {
        let made = plan.make(stopped)?;
        Ok((made, plan))
    })?;
    let (made, plan) = injected.value;
    let made = made.map_err(|failure| plan.explain(pid, failure))?;
    Ok(Attached {
        process,
        userfaultfd: pidfd.get_fd(made.userfaultfd)?,
        pidfd,
        memory: memory.file,
        base: plan.base,
        bytes: plan.bytes,
        file_offset: memory.mapping.file_offset,
        pipes: plan.pipes,
        in_target: TargetDescriptors {
            userfaultfd: made.userfaultfd,
            memory: memory.target_fd,
            pipes: made.pipes,
        },
        stopped_for: injected.stopped_for,
    })
}

/// The memory that is meant, looked at only.
pub(crate) fn guest_memory(
    pidfd: &PidFd,
    qmp: Option<&mut Qmp>,
    choice: &MemoryChoice,
) -> Result<GuestMemory, AttachError> {
    find_memory(pidfd, qmp, choice).map_err(|error| {
        if error.is_permission() {
            // Looking at it takes the same right as tracing it.
            AttachError::Inject(InjectError::Denied(PtraceDenial::explain(pidfd.pid())))
        } else {
            error.into()
        }
    })
}

/// Ours; QEMU gets a duplicate of each end, so that what is in them outlives us.
fn make_pipes(count: usize) -> Result<Vec<ParkingPipe>, AttachError> {
    (0..count)
        .map(|_| {
            let (read, write) =
                pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(AttachError::MakePipe)?;
            let bytes = i32::from(SLOTS_PER_PIPE) * PAGE_BYTES as i32;
            fcntl(&write, FcntlArg::F_SETPIPE_SZ(bytes)).map_err(AttachError::PipeSize)?;
            Ok(ParkingPipe { read, write })
        })
        .collect()
}

/// What QEMU is to be given and to make.
struct Plan {
    device: Device,
    pidfd: PidFd,
    pipes: Vec<ParkingPipe>,
    base: u64,
    bytes: u64,
}

struct Made {
    userfaultfd: RawFd,
    pipes: Vec<TargetPipe>,
}

/// A call that QEMU made and the kernel refused.
enum Failure {
    HandOver(HandOverFailure),
    Userfaultfd(Errno),
}

impl Plan {
    /// Runs with QEMU stopped. A refused call leaves none of the descriptors behind.
    fn make(&self, stopped: &mut Stopped<'_>) -> Result<Result<Made, Failure>, InjectError> {
        let ends = self
            .pipes
            .iter()
            .flat_map(|pipe| [pipe.read.as_fd(), pipe.write.as_fd()]);
        let all: Vec<BorrowedFd<'_>> = self
            .device
            .opened()
            .map(AsFd::as_fd)
            .into_iter()
            .chain(ends)
            .collect();
        let numbers = match hand_over(stopped, &self.pidfd, &all)? {
            Ok(numbers) => numbers,
            Err(failure) => return Ok(Err(Failure::HandOver(failure))),
        };
        let (device, ends) = numbers.split_at(all.len() - 2 * self.pipes.len());

        let answer = match device {
            [device] => {
                let made = stopped.call(
                    libc::SYS_ioctl,
                    [*device as u64, USERFAULTFD_IOC_NEW, FLAGS, 0, 0, 0],
                )?;
                let _ = close(stopped, *device)?;
                made
            }
            _ => stopped.call(libc::SYS_userfaultfd, [FLAGS, 0, 0, 0, 0, 0])?,
        };
        let userfaultfd = match answer {
            Ok(fd) => fd as RawFd,
            Err(errno) => {
                for &fd in ends {
                    let _ = close(stopped, fd)?;
                }
                return Ok(Err(Failure::Userfaultfd(errno)));
            }
        };
        // Pages come and go one by one here. A kernel without huge pages refuses, and has none to turn off.
        let _ = stopped.call(
            libc::SYS_madvise,
            [self.base, self.bytes, libc::MADV_NOHUGEPAGE as u64, 0, 0, 0],
        )?;
        let pipes = ends
            .chunks_exact(2)
            .map(|ends| TargetPipe {
                read: ends[0],
                write: ends[1],
            })
            .collect();
        Ok(Ok(Made { userfaultfd, pipes }))
    }

    fn explain(&self, pid: Pid, failure: Failure) -> AttachError {
        match (failure, self.device.state()) {
            (Failure::Userfaultfd(Errno::EPERM | Errno::EACCES), Some(device)) => {
                AttachError::UserfaultfdDenied(UserfaultfdDenial {
                    pid,
                    sysctl: sysctl(),
                    device,
                })
            }
            (Failure::Userfaultfd(Errno::ENOSYS), _) => AttachError::NoUserfaultfd,
            (Failure::Userfaultfd(source), _) => AttachError::Userfaultfd { pid, source },
            (Failure::HandOver(HandOverFailure::NoRoom { got, source }), _) => {
                AttachError::NoRoom {
                    pid,
                    got,
                    wanted: 2 * self.pipes.len() + usize::from(self.device.opened().is_some()),
                    source,
                }
            }
            (
                Failure::HandOver(HandOverFailure::Target(source) | HandOverFailure::Send(source)),
                _,
            ) => AttachError::HandOver { pid, source },
            (Failure::HandOver(HandOverFailure::Socket(error)), _) => AttachError::GetFd(error),
        }
    }
}

impl Device {
    fn opened(&self) -> Option<&OwnedFd> {
        match self {
            Self::Open(device) => Some(device),
            Self::Not(_) => None,
        }
    }

    fn state(&self) -> Option<super::DeviceState> {
        match self {
            Self::Open(_) => None,
            Self::Not(state) => Some(*state),
        }
    }
}

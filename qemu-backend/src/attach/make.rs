//! A first attach: everything is made in QEMU, then duplicated to us.

use std::os::fd::{AsFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::userfaultfd::{Device, FLAGS, USERFAULTFD_IOC_NEW, open_device, sysctl};
use super::{
    AttachError, Attached, DeviceState, ParkingPipe, TargetDescriptors, TargetPipe,
    UserfaultfdDenial,
};
use crate::inject::{self, InjectError, Stopped, while_stopped};
use crate::memory::{MemoryChoice, find_memory, is_registered};
use crate::process::{FileIdentity, PidFd, ProcessIdentity, find_descriptor};
use crate::qmp::Qmp;

/// Parking pipes where the caller does not say.
pub const DEFAULT_PARKING_PIPES: usize = 8;
/// Most parking pipes: two descriptors each in QEMU, which has 1024 by default.
pub const MAX_PARKING_PIPES: usize = 128;

/// How to attach.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// Which memory. Default: the machine's main memory.
    pub memory: MemoryChoice,
    /// How many parking pipes to make in QEMU; at most [`MAX_PARKING_PIPES`]. Default [`DEFAULT_PARKING_PIPES`].
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
/// With `qmp` the device is handed over, which also serves a QEMU without privileges, and QEMU
/// names its memory itself. Faults are not served yet when this returns, so nothing waits for them:
/// the memory is not registered. See [`Attached`].
pub fn attach(
    pid: Pid,
    mut qmp: Option<&mut Qmp>,
    options: &AttachOptions,
) -> Result<Attached, AttachError> {
    let pidfd = PidFd::open(pid)?;
    let process = ProcessIdentity::of(pid)?;
    let memory = find_memory(&pidfd, qmp.as_deref_mut(), &options.memory)?;
    if is_registered(pid, &memory.mapping)? {
        return Err(AttachError::AlreadyManaged { pid });
    }

    let handed = HandedDevice::hand_over(pid, qmp)?;
    let plan = Plan {
        device: handed.number(),
        base: memory.mapping.start,
        bytes: memory.mapping.bytes(),
        pipes: options.parking_pipes.min(MAX_PARKING_PIPES),
    };
    let injected = while_stopped(pid, options.deadline, move |stopped| plan.make(stopped))?;
    let made = match injected.value {
        Ok(made) => made,
        Err(failure) => return Err(failure.explain(pid, plan.pipes, handed.state())),
    };
    drop(handed);

    let userfaultfd = pidfd.get_fd(made.userfaultfd)?;
    let pipes = made
        .pipes
        .iter()
        .map(|pipe| {
            Ok(ParkingPipe {
                read: pidfd.get_fd(pipe.read)?,
                write: pidfd.get_fd(pipe.write)?,
            })
        })
        .collect::<Result<_, AttachError>>()?;
    Ok(Attached {
        process,
        pidfd,
        userfaultfd,
        memory: memory.file,
        base: memory.mapping.start,
        bytes: memory.mapping.bytes(),
        file_offset: memory.mapping.file_offset,
        pipes,
        in_target: TargetDescriptors {
            userfaultfd: made.userfaultfd,
            memory: memory.target_fd,
            pipes: made.pipes,
        },
        stopped_for: injected.stopped_for,
    })
}

/// The name under which QEMU holds the device meanwhile.
const DEVICE_NAME: &str = "mycoram-userfaultfd";

/// /dev/userfaultfd in QEMU's hands, for as long as it is needed there.
///
/// By `getfd`, not `add-fd`: QEMU 7.2 closes what `add-fd` gave only while the guest runs. `getfd` does
/// not tell the number, so it is looked up; any descriptor of the device does.
enum HandedDevice<'a> {
    Handed { qmp: &'a mut Qmp, number: RawFd },
    Not(DeviceState),
}

impl<'a> HandedDevice<'a> {
    fn hand_over(pid: Pid, qmp: Option<&'a mut Qmp>) -> Result<Self, AttachError> {
        let (device, qmp) = match (open_device(), qmp) {
            (Device::Missing, _) => return Ok(Self::Not(DeviceState::Missing)),
            (Device::Denied, _) => return Ok(Self::Not(DeviceState::Denied)),
            (Device::Open(_), None) => return Ok(Self::Not(DeviceState::NoQmp)),
            (Device::Open(device), Some(qmp)) => (device, qmp),
        };
        qmp.get_fd(DEVICE_NAME, device.as_fd())?;
        let file = FileIdentity::of(&device).map_err(AttachError::Device)?;
        match find_descriptor(pid, file) {
            Ok(Some(number)) => Ok(Self::Handed { qmp, number }),
            found => {
                // QEMU closes it with this connection if not now.
                let _ = qmp.close_fd(DEVICE_NAME);
                found?;
                Err(AttachError::OtherQemu { pid })
            }
        }
    }

    fn number(&self) -> Option<RawFd> {
        match self {
            Self::Handed { number, .. } => Some(*number),
            Self::Not(_) => None,
        }
    }

    fn state(&self) -> Option<DeviceState> {
        match self {
            Self::Handed { .. } => None,
            Self::Not(state) => Some(*state),
        }
    }
}

impl Drop for HandedDevice<'_> {
    fn drop(&mut self) {
        if let Self::Handed { qmp, .. } = self {
            // A QEMU that is gone keeps no descriptor; else it closes it with this connection.
            let _ = qmp.close_fd(DEVICE_NAME);
        }
    }
}

/// What to make, in QEMU's terms.
#[derive(Clone, Copy)]
struct Plan {
    device: Option<RawFd>,
    base: u64,
    bytes: u64,
    pipes: usize,
}

struct Made {
    userfaultfd: RawFd,
    pipes: Vec<TargetPipe>,
}

/// A call that QEMU made and the kernel refused.
enum Failure {
    Userfaultfd(Errno),
    Pipe { made: usize, source: Errno },
}

impl Plan {
    /// Runs with QEMU stopped. A refused call leaves none of the descriptors behind.
    fn make(self, stopped: &mut Stopped<'_>) -> Result<Result<Made, Failure>, InjectError> {
        let answer = match self.device {
            Some(fd) => stopped.call(
                libc::SYS_ioctl,
                [fd as u64, USERFAULTFD_IOC_NEW, FLAGS, 0, 0, 0],
            )?,
            None => stopped.call(libc::SYS_userfaultfd, [FLAGS, 0, 0, 0, 0, 0])?,
        };
        let userfaultfd = match answer {
            Ok(fd) => fd as RawFd,
            Err(errno) => return Ok(Err(Failure::Userfaultfd(errno))),
        };
        // Pages come and go one by one here. A kernel without huge pages refuses, and has none to turn off.
        let _ = stopped.call(
            libc::SYS_madvise,
            [self.base, self.bytes, libc::MADV_NOHUGEPAGE as u64, 0, 0, 0],
        )?;

        let mut pipes = Vec::with_capacity(self.pipes);
        for made in 0..self.pipes {
            let ends = stopped.scratch();
            let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
            if let Err(source) = stopped.call(libc::SYS_pipe2, [ends, flags, 0, 0, 0, 0])? {
                for TargetPipe { read, write } in pipes {
                    let _ = close(stopped, read)?;
                    let _ = close(stopped, write)?;
                }
                let _ = close(stopped, userfaultfd)?;
                return Ok(Err(Failure::Pipe { made, source }));
            }
            let ends: [u8; 8] = stopped.read_scratch()?;
            let [a, b, c, d, e, f, g, h] = ends;
            pipes.push(TargetPipe {
                read: RawFd::from_ne_bytes([a, b, c, d]),
                write: RawFd::from_ne_bytes([e, f, g, h]),
            });
        }
        Ok(Ok(Made { userfaultfd, pipes }))
    }
}

fn close(stopped: &mut Stopped<'_>, fd: RawFd) -> Result<Result<u64, Errno>, InjectError> {
    stopped.call(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0])
}

impl Failure {
    fn explain(self, pid: Pid, wanted: usize, device: Option<DeviceState>) -> AttachError {
        match (self, device) {
            (Self::Userfaultfd(Errno::EPERM | Errno::EACCES), Some(device)) => {
                AttachError::UserfaultfdDenied(UserfaultfdDenial {
                    pid,
                    sysctl: sysctl(),
                    device,
                })
            }
            (Self::Userfaultfd(Errno::ENOSYS), _) => AttachError::NoUserfaultfd,
            (Self::Userfaultfd(source), _) => AttachError::Userfaultfd { pid, source },
            (Self::Pipe { made, source }, _) => AttachError::Pipes {
                pid,
                made,
                wanted,
                source,
            },
        }
    }
}

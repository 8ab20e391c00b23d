//! One userfaultfd: the faults of one address space, and the calls that answer them.
//!
//! ```text
//!   create / receive --> handshake (once in the descriptor's life) --> register --> copy, wake, poison
//!                   \--> a successor of a dead agent starts here: wake the whole range, go on
//! ```
//!
//! The value owns a descriptor only. What is registered and which page is where is its owner's matter.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use mycoram_fabric::units::{PAGE_BYTES, PageCount};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use userfaultfd::{RegisterMode, Uffd};

use super::opening::{self, OpenUserfaultError, UserfaultDevice};
use super::{CallFailed, FeatureSet, TargetAddr, TargetRange, abi};

/// What the kernel names the link of such a descriptor under /proc.
const DESCRIPTOR_NAME: &str = "anon_inode:[userfaultfd]";
/// An address that every process may speak of: used to ask whether the handshake has been made.
const PROBE_ADDR: u64 = 1 << 30;

/// Whether a call that fills pages also wakes who waits for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Wake who waits for the pages that were filled.
    Now,
    /// Leave them asleep; one [`Userfault::wake`] for the batch follows.
    Later,
}

impl Wake {
    const fn mode(self) -> u64 {
        match self {
            Self::Now => 0,
            Self::Later => abi::MODE_DONTWAKE,
        }
    }
}

/// Which accesses of a range are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Accesses to pages that are not there.
    Missing,
    /// These, and writes to write-protected pages.
    MissingAndProtected,
}

/// Why nothing can be filled in any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    /// The range is not mapped there, or no longer registered.
    #[error("the target has unmapped or replaced this range")]
    Range,
    /// The target's address space is being taken down.
    #[error("the target process has ended")]
    Process,
}

/// What became of a copy or of zero pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Every page.
    Done,
    /// The first page was there already: somebody was first, which is a success. Nobody was woken.
    Exists,
    /// Only the first `pages` pages, maybe none. None: an event waits to be read (a fork, a removal);
    /// read it, then try again. Some: the next call on the rest says what it met there.
    Again {
        /// Filled, and woken if asked for.
        pages: PageCount,
    },
    /// There is nothing to fill.
    Gone(Gone),
    /// The file system or the memory control group has no page left.
    NoSpace,
    /// A mistake of the caller: unaligned, not registered for it, or a source that cannot be read.
    Refused(Errno),
}

/// What became of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// Every page.
    All,
    /// Only the first pages, maybe none; the next one stays where it is, for the reason that the next
    /// call on the rest gives if some were moved.
    Some {
        /// How many.
        pages: PageCount,
        /// Why not more: `EBUSY` a page that is pinned or shared, `ENOENT` a hole.
        why: Errno,
    },
}

/// What became of a poisoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poisoned {
    /// The next access raises SIGBUS. Waiters were woken.
    Done,
    /// A page is there; nothing was poisoned.
    Exists,
    /// As [`Filled::Again`].
    Again,
    /// As [`Filled::Gone`].
    Gone(Gone),
    /// This kernel has no poison (before 6.6): see [`super::SigbusStandIn`].
    Unsupported,
}

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// It has been made already, by whoever held the descriptor before.
    #[error("this userfaultfd has been set up before; it takes one handshake in its life")]
    AlreadyMade,
    /// The kernel lacks one of them.
    #[error("this kernel does not have all of the userfaultfd features {asked:?}")]
    Unsupported {
        /// What was asked for.
        asked: FeatureSet,
    },
    /// EVENT_FORK is for the privileged.
    #[error("EVENT_FORK was asked for, which needs CAP_SYS_PTRACE")]
    NotPermitted,
    /// Something else.
    #[error("the userfaultfd handshake failed")]
    Kernel(#[source] Errno),
}

/// Why a received descriptor is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Not a userfaultfd.
    #[error("the descriptor that was received is not a userfaultfd")]
    NotUserfault,
    /// It could not be looked at.
    #[error("the descriptor that was received cannot be set up")]
    Call(#[from] CallFailed),
}

/// Why a range is not watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Another userfaultfd has it.
    #[error(
        "the range {start} + {bytes:#x} is registered with another userfaultfd; there can be only one"
    )]
    Busy {
        /// Where it starts.
        start: TargetAddr,
        /// How long it is.
        bytes: u64,
    },
    /// Not shared memory, anonymous memory or huge pages; or not mapped.
    #[error(
        "the range {start} + {bytes:#x} cannot be paged: it is not mapped, or not memory of a memfd or tmpfs file"
    )]
    NotPageable {
        /// Where it starts.
        start: TargetAddr,
        /// How long it is.
        bytes: u64,
    },
    /// The mapping is not writable by its file.
    #[error("the range {start} + {bytes:#x} is mapped from a file that may not be written")]
    ReadOnly {
        /// Where it starts.
        start: TargetAddr,
        /// How long it is.
        bytes: u64,
    },
    /// The target's process has ended.
    #[error("the target process has ended")]
    ProcessGone,
    /// Something else.
    #[error("registering the range {start} + {bytes:#x} failed")]
    Kernel {
        /// Where it starts.
        start: TargetAddr,
        /// How long it is.
        bytes: u64,
        /// The kernel's reason.
        #[source]
        source: Errno,
    },
}

/// The faults of one address space.
#[derive(Debug)]
pub struct Userfault {
    uffd: Uffd,
}

impl Userfault {
    /// One for the calling process's own address space, by whichever way is open to it.
    pub fn new_in_this_process() -> Result<Self, OpenUserfaultError> {
        opening::by_any_way().map(Self::from_owned)
    }

    /// One for the calling process's own address space, through a device that was handed over.
    pub fn new_from_device(device: &UserfaultDevice) -> Result<Self, OpenUserfaultError> {
        device.create().map(Self::from_owned)
    }

    /// One that was received from the target, or taken from it with [`super::PidFd::take_descriptor`].
    /// It is made non-blocking and close-on-exec.
    pub fn from_received(fd: OwnedFd) -> Result<Self, ReceiveError> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            .map_err(|_| ReceiveError::NotUserfault)?;
        if link.as_os_str() != DESCRIPTOR_NAME {
            return Err(ReceiveError::NotUserfault);
        }
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map_err(CallFailed::of("fcntl(F_GETFL)"))?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&fd, FcntlArg::F_SETFL(flags)).map_err(CallFailed::of("fcntl(F_SETFL)"))?;
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(CallFailed::of("fcntl(F_SETFD)"))?;
        Ok(Self::from_owned(fd))
    }

    fn from_owned(fd: OwnedFd) -> Self {
        // SAFETY: the descriptor is ours and is given away here, once.
        let uffd = unsafe { Uffd::from_raw_fd(fd.into_raw_fd()) };
        Self { uffd }
    }

    pub(super) fn from_crate(uffd: Uffd) -> Self {
        Self { uffd }
    }

    pub(super) fn as_crate(&self) -> &Uffd {
        &self.uffd
    }

    /// A second descriptor of the same userfaultfd, close-on-exec: to hand it over, or to keep one
    /// open so that the target waits when the agent dies.
    pub fn try_clone_fd(&self) -> Result<OwnedFd, CallFailed> {
        self.as_fd()
            .try_clone_to_owned()
            .map_err(|_| CallFailed::last("fcntl(F_DUPFD_CLOEXEC)"))
    }

    /// Agrees on features, once in the descriptor's life; a successor after a takeover must not call
    /// it. Answers what the kernel has beyond what was asked for.
    pub fn handshake(&self, asked: FeatureSet) -> Result<FeatureSet, HandshakeError> {
        let mut api = abi::UffdioApi {
            api: abi::UFFD_API,
            features: asked.bits(),
            ioctls: 0,
        };
        // SAFETY: `api` is the structure this ioctl takes and outlives the call.
        match unsafe { abi::uffdio_api(self.uffd.as_raw_fd(), &raw mut api) } {
            Ok(_) => Ok(FeatureSet::from_bits(api.features)),
            // The kernel answers EINVAL both to an unknown feature and to a second handshake.
            Err(Errno::EINVAL) if self.is_set_up() => Err(HandshakeError::AlreadyMade),
            Err(Errno::EINVAL) => Err(HandshakeError::Unsupported { asked }),
            Err(Errno::EPERM) => Err(HandshakeError::NotPermitted),
            Err(other) => Err(HandshakeError::Kernel(other)),
        }
    }

    /// Whether the handshake has been made. A wake on a descriptor without it is refused with EINVAL.
    #[must_use]
    pub fn is_set_up(&self) -> bool {
        self.uffd
            .wake(PROBE_ADDR as *mut libc::c_void, PAGE_BYTES)
            .is_ok()
    }

    /// Watches a range of the target.
    pub fn register(&self, range: TargetRange, watch: Watch) -> Result<(), RegisterError> {
        let mode = match watch {
            Watch::Missing => RegisterMode::MISSING,
            Watch::MissingAndProtected => RegisterMode::MISSING | RegisterMode::WRITE_PROTECT,
        };
        let (start, bytes) = (range.start(), range.bytes());
        self.uffd
            .register_with_mode(pointer(start), bytes as usize, mode)
            .map(|_| ())
            .map_err(|e| match errno_of(&e) {
                Errno::EBUSY => RegisterError::Busy { start, bytes },
                Errno::EINVAL | Errno::ENOENT | Errno::ENOMEM => {
                    RegisterError::NotPageable { start, bytes }
                }
                Errno::EPERM => RegisterError::ReadOnly { start, bytes },
                Errno::ESRCH => RegisterError::ProcessGone,
                source => RegisterError::Kernel {
                    start,
                    bytes,
                    source,
                },
            })
    }

    /// Stops watching a range and wakes who waits in it. What is not there then reads as zeros.
    pub fn unregister(&self, range: TargetRange) -> Result<(), CallFailed> {
        self.uffd
            .unregister(pointer(range.start()), range.bytes() as usize)
            .map_err(|e| CallFailed {
                call: "UFFDIO_UNREGISTER",
                source: errno_of(&e),
            })
    }

    /// Fills the pages of `range`, which are not there, with the bytes at `source`. On the fault path:
    /// this is the one call that cannot be done without.
    ///
    /// # Safety
    /// `source` is readable for `range.bytes()` bytes during the call. Others may be writing there (a
    /// device, say); then what arrives is a mixture, so the caller orders its accesses.
    pub unsafe fn copy(&self, range: TargetRange, source: *const u8, wake: Wake) -> Filled {
        let mut copy = abi::UffdioCopy {
            dst: range.start().get(),
            src: source as u64,
            len: range.bytes(),
            mode: wake.mode(),
            copy: 0,
        };
        // SAFETY: `copy` is the structure this ioctl takes and outlives the call; the caller vouches
        // for `source`, and the kernel checks both address ranges.
        let answer = unsafe { abi::uffdio_copy(self.uffd.as_raw_fd(), &raw mut copy) };
        filled(answer.err(), copy.copy)
    }

    /// Fills the pages of `range`, which are not there, with zeros.
    pub fn zero(&self, range: TargetRange, wake: Wake) -> Filled {
        let mut zero = abi::UffdioZeropage {
            range: abi_range(range),
            mode: wake.mode(),
            zeropage: 0,
        };
        // SAFETY: `zero` is the structure this ioctl takes and outlives the call.
        let answer = unsafe { abi::uffdio_zeropage(self.uffd.as_raw_fd(), &raw mut zero) };
        filled(answer.err(), zero.zeropage)
    }

    /// Moves the pages of `from`, private anonymous memory of the calling process, to `into`, which is
    /// registered with this userfaultfd and is holes. Nothing is copied: a page changes its address, and
    /// whoever touches the old one from then on meets a hole. A page that is pinned (by direct IO, a
    /// device, a ring) is refused. Since 6.8.
    ///
    /// # Safety
    /// Nobody relies on the content of `from`: references into it may meet holes.
    pub unsafe fn move_pages(&self, from: TargetRange, into: TargetAddr) -> Moved {
        let mut moved = abi::UffdioMove {
            dst: into.get(),
            src: from.start().get(),
            len: from.bytes(),
            mode: 0,
            moved: 0,
        };
        // SAFETY: `moved` is the structure this ioctl takes and outlives the call; the kernel checks both
        // ranges, and the caller vouches for what moving does to them.
        match unsafe { abi::uffdio_move(self.uffd.as_raw_fd(), &raw mut moved) } {
            Ok(_) => Moved::All,
            Err(why) => {
                let pages = u64::try_from(moved.moved).unwrap_or(0) / PAGE_BYTES as u64;
                Moved::Some {
                    pages: PageCount::new(u32::try_from(pages).unwrap_or(0)),
                    why,
                }
            }
        }
    }

    /// Wakes every thread that waits for a page of `range`. One whose page is still missing faults
    /// again, so waking too much is harmless; a successor wakes the whole region first, because faults
    /// that its predecessor had read are told to nobody else.
    pub fn wake(&self, range: TargetRange) -> Result<(), CallFailed> {
        self.uffd
            .wake(pointer(range.start()), range.bytes() as usize)
            .map_err(|e| CallFailed {
                call: "UFFDIO_WAKE",
                source: errno_of(&e),
            })
    }

    /// Makes the pages of `range`, which are not there, raise SIGBUS from now on, and wakes who waits.
    pub fn poison(&self, range: TargetRange) -> Poisoned {
        let mut poison = abi::UffdioPoison {
            range: abi_range(range),
            mode: 0,
            updated: 0,
        };
        // SAFETY: `poison` is the structure this ioctl takes and outlives the call.
        match unsafe { abi::uffdio_poison(self.uffd.as_raw_fd(), &raw mut poison) } {
            Ok(_) => Poisoned::Done,
            Err(Errno::EEXIST) => Poisoned::Exists,
            Err(Errno::EAGAIN) => Poisoned::Again,
            Err(Errno::ESRCH) => Poisoned::Gone(Gone::Process),
            Err(Errno::ENOENT | Errno::EFAULT) => Poisoned::Gone(Gone::Range),
            Err(_) => Poisoned::Unsupported,
        }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }
}

fn pointer(addr: TargetAddr) -> *mut libc::c_void {
    addr.get() as *mut libc::c_void
}

fn abi_range(range: TargetRange) -> abi::UffdioRange {
    abi::UffdioRange {
        start: range.start().get(),
        len: range.bytes(),
    }
}

/// The crate speaks of an older `nix`'s errno; ours is the same number.
fn errno_of(error: &userfaultfd::Error) -> Errno {
    match error {
        userfaultfd::Error::SystemError(e) => Errno::from_raw(*e as i32),
        _ => Errno::UnknownErrno,
    }
}

/// `answered` is what the kernel left in the structure: a count, a negative errno, or the 0 it was given.
fn filled(error: Option<Errno>, answered: i64) -> Filled {
    let pages = u64::try_from(answered).unwrap_or(0) / PAGE_BYTES as u64;
    let pages = PageCount::new(u32::try_from(pages).unwrap_or(0));
    match error {
        None => Filled::Done,
        Some(Errno::EAGAIN) => Filled::Again { pages },
        Some(Errno::EEXIST) => Filled::Exists,
        Some(Errno::ENOENT) => Filled::Gone(Gone::Range),
        Some(Errno::ESRCH) => Filled::Gone(Gone::Process),
        Some(Errno::ENOMEM | Errno::ENOSPC) => Filled::NoSpace,
        Some(other) => Filled::Refused(other),
    }
}

#[cfg(test)]
mod tests {
    use super::{Filled, filled};
    use mycoram_fabric::units::PageCount;
    use nix::errno::Errno;

    #[test]
    fn a_refused_copy_is_never_a_huge_partial_one() {
        for answered in [i64::from(-libc::EAGAIN), 0, i64::MIN] {
            assert_eq!(
                filled(Some(Errno::EAGAIN), answered),
                Filled::Again {
                    pages: PageCount::new(0)
                }
            );
        }
        assert_eq!(
            filled(Some(Errno::EAGAIN), 3 * 4096),
            Filled::Again {
                pages: PageCount::new(3)
            }
        );
    }
}

//! A pipe that holds pages while they leave.
//!
//! ```text
//!   file --splice--> [ page | page | page | ... ] --read--> frame --> WRITE to the replicas
//!                      ^ references to the physical pages, not copies
//!   then the hole is punched: now nobody can write the page any more, and the pipe has its last bytes
//! ```
//!
//! A page is read late, after the punch: system calls and devices that had the page pinned finish
//! writing into the very page that the pipe holds. Pages come out in the order they went in. The
//! descriptors may be kept open by the target too, so that a page that is leaving when the agent dies
//! is not lost with it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use mycoram_fabric::units::{PAGE_BYTES, PAGE_SHIFT, PageCount, PageIndex};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice, tee};
use nix::unistd::pipe2;

use super::{CallFailed, MemoryFile};

nix::ioctl_read_bad!(fionread, libc::FIONREAD, libc::c_int);

/// What became of a request to take pages in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Park {
    /// The first this many pages of the run are in; at least one.
    Pages(PageCount),
    /// There is no room.
    Full,
}

/// Why a pipe does not do what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParkingError {
    /// Fewer slots than asked for.
    #[error(
        "a pipe of {asked} pages is not allowed (fs.pipe-max-size, fs.pipe-user-pages-soft); {granted} are"
    )]
    TooFewSlots {
        /// Asked for.
        asked: u32,
        /// What it has.
        granted: u32,
    },
    /// The pipe holds parts of pages: somebody else uses it.
    #[error("the pipe holds {bytes} bytes, which are no whole pages")]
    NotPages {
        /// What it holds.
        bytes: u64,
    },
    /// Not that many pages are in.
    #[error("slot {slot} was asked for, and {queued} pages are parked")]
    NoSuchSlot {
        /// Asked for, from 0.
        slot: u32,
        /// What is in.
        queued: u32,
    },
    /// The descriptor is no pipe.
    #[error("the descriptor is not the end of a pipe that is needed here")]
    NotPipe,
    /// The kernel refused.
    #[error("a parking pipe failed")]
    Call(#[from] CallFailed),
}

/// Two ends of a pipe, whose slots hold a page each.
#[derive(Debug)]
pub struct ParkingPipe {
    /// First: dropping order is of no matter, but reading is what a successor begins with.
    out: OwnedFd,
    into: OwnedFd,
    slots: PageCount,
}

impl ParkingPipe {
    /// A pipe for at least `slots` pages. Pipes count against fs.pipe-user-pages-soft (64 MiB) of
    /// an unprivileged user.
    pub fn new(slots: PageCount) -> Result<Self, ParkingError> {
        let (out, into) =
            pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(CallFailed::of("pipe2"))?;
        let size = i32::try_from(slots.bytes().get()).unwrap_or(i32::MAX);
        let granted = match fcntl(&into, FcntlArg::F_SETPIPE_SZ(size)) {
            Ok(bytes) => bytes,
            Err(Errno::EPERM) => fcntl(&into, FcntlArg::F_GETPIPE_SZ)
                .map_err(CallFailed::of("fcntl(F_GETPIPE_SZ)"))?,
            Err(source) => {
                return Err(CallFailed {
                    call: "fcntl(F_SETPIPE_SZ)",
                    source,
                }
                .into());
            }
        };
        let granted = u32::try_from(granted >> PAGE_SHIFT).unwrap_or(0);
        if granted < slots.get() {
            return Err(ParkingError::TooFewSlots {
                asked: slots.get(),
                granted,
            });
        }
        Ok(Self {
            out,
            into,
            slots: PageCount::new(granted),
        })
    }

    /// Takes over the ends of a pipe: from a predecessor or from a client.
    pub fn from_ends(out: OwnedFd, into: OwnedFd) -> Result<Self, ParkingError> {
        let slots = fcntl(&into, FcntlArg::F_GETPIPE_SZ).map_err(|_| ParkingError::NotPipe)?;
        for (end, mode) in [(&out, OFlag::O_RDONLY), (&into, OFlag::O_WRONLY)] {
            let flags = fcntl(end, FcntlArg::F_GETFL).map_err(CallFailed::of("fcntl(F_GETFL)"))?;
            let flags = OFlag::from_bits_retain(flags);
            if flags & OFlag::O_ACCMODE != mode {
                return Err(ParkingError::NotPipe);
            }
            fcntl(end, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))
                .map_err(CallFailed::of("fcntl(F_SETFL)"))?;
        }
        let same = |fd: &OwnedFd| nix::sys::stat::fstat(fd).map(|s| (s.st_dev, s.st_ino));
        if same(&out) != same(&into) {
            return Err(ParkingError::NotPipe);
        }
        let pipe = Self {
            out,
            into,
            slots: PageCount::new(u32::try_from(slots >> PAGE_SHIFT).unwrap_or(0)),
        };
        pipe.queued()?;
        Ok(pipe)
    }

    /// How many pages fit.
    #[must_use]
    pub fn slots(&self) -> PageCount {
        self.slots
    }

    /// How many pages are in.
    pub fn queued(&self) -> Result<PageCount, ParkingError> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int, which outlives the call.
        unsafe { fionread(self.out.as_raw_fd(), &raw mut bytes) }
            .map_err(CallFailed::of("ioctl(FIONREAD)"))?;
        let bytes = u64::try_from(bytes).unwrap_or(0);
        if bytes % PAGE_BYTES as u64 != 0 {
            return Err(ParkingError::NotPages { bytes });
        }
        Ok(PageCount::new((bytes >> PAGE_SHIFT) as u32))
    }

    /// Takes references to `count` pages of `file` from `page` on. A page that is a hole is parked as
    /// zeros. May take fewer: ask again for the rest.
    pub fn park(
        &self,
        file: &MemoryFile,
        page: PageIndex,
        count: PageCount,
    ) -> Result<Park, ParkingError> {
        let mut offset = page.offset().get() as i64;
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        let bytes = count.bytes().as_usize();
        match splice(file, Some(&mut offset), &self.into, None, bytes, flags) {
            Ok(0) => Err(CallFailed {
                call: "splice",
                source: Errno::ENODATA,
            }
            .into()),
            Ok(moved) if moved % PAGE_BYTES == 0 => {
                Ok(Park::Pages(PageCount::new((moved >> PAGE_SHIFT) as u32)))
            }
            Ok(moved) => Err(ParkingError::NotPages {
                bytes: moved as u64,
            }),
            Err(Errno::EAGAIN) => Ok(Park::Full),
            Err(source) => Err(CallFailed {
                call: "splice",
                source,
            }
            .into()),
        }
    }

    /// Copies the oldest page out and lets go of it; `false` when none is in.
    ///
    /// # Safety
    /// `into` is writable for a page's bytes, and nobody else uses them meanwhile.
    pub unsafe fn take_to(&self, into: *mut u8) -> Result<bool, ParkingError> {
        let mut got = 0;
        // A slot is a page, so that one read is enough; pages that were written in parts need more.
        while got < PAGE_BYTES {
            // SAFETY: the caller vouches for `into`; `got` stays below a page.
            let n =
                unsafe { libc::read(self.out.as_raw_fd(), into.add(got).cast(), PAGE_BYTES - got) };
            match Errno::result(n) {
                Ok(n) if n > 0 => got += n as usize,
                Err(Errno::EAGAIN) if got == 0 => return Ok(false),
                Err(Errno::EINTR) => {}
                Ok(_) | Err(Errno::EAGAIN) => {
                    return Err(ParkingError::NotPages { bytes: got as u64 });
                }
                Err(source) => {
                    return Err(CallFailed {
                        call: "read",
                        source,
                    }
                    .into());
                }
            }
        }
        Ok(true)
    }

    /// Copies the oldest `count` pages out, one behind the other, and lets go of them. Answers how many
    /// there were.
    ///
    /// # Safety
    /// `into` is writable for `count` pages, and nobody else uses them meanwhile.
    pub unsafe fn take_run_to(
        &self,
        into: *mut u8,
        count: PageCount,
    ) -> Result<PageCount, ParkingError> {
        let bytes = count.bytes().as_usize();
        let mut got = 0;
        while got < bytes {
            // SAFETY: the caller vouches for `into`; `got` stays below the pages' bytes.
            let n = unsafe { libc::read(self.out.as_raw_fd(), into.add(got).cast(), bytes - got) };
            match Errno::result(n) {
                Ok(n) if n > 0 => got += n as usize,
                Err(Errno::EINTR) => {}
                Ok(_) | Err(Errno::EAGAIN) => break,
                Err(source) => {
                    return Err(CallFailed {
                        call: "read",
                        source,
                    }
                    .into());
                }
            }
        }
        if got % PAGE_BYTES != 0 {
            return Err(ParkingError::NotPages { bytes: got as u64 });
        }
        Ok(PageCount::new((got >> PAGE_SHIFT) as u32))
    }

    /// As [`Self::take_to`], into a buffer.
    pub fn take(&self, into: &mut [u8; PAGE_BYTES]) -> Result<bool, ParkingError> {
        // SAFETY: `into` is exclusive and as long as a page.
        unsafe { self.take_to(into.as_mut_ptr()) }
    }

    /// Gives `other` references to the oldest `count` pages too; they stay here. Answers how many.
    pub fn share_with(&self, other: &Self, count: PageCount) -> Result<PageCount, ParkingError> {
        if count.get() == 0 {
            return Ok(count);
        }
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
        match tee(&self.out, &other.into, count.bytes().as_usize(), flags) {
            Ok(bytes) if bytes % PAGE_BYTES == 0 => {
                Ok(PageCount::new((bytes >> PAGE_SHIFT) as u32))
            }
            Ok(bytes) => Err(ParkingError::NotPages {
                bytes: bytes as u64,
            }),
            Err(Errno::EAGAIN) => Ok(PageCount::new(0)),
            Err(source) => Err(CallFailed {
                call: "tee",
                source,
            }
            .into()),
        }
    }

    /// Lets go of the oldest `count` pages. `sink` is an open /dev/null. Answers how many.
    pub fn drop_oldest(
        &self,
        count: PageCount,
        sink: BorrowedFd<'_>,
    ) -> Result<PageCount, ParkingError> {
        let mut left = count.bytes().as_usize();
        while left > 0 {
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
            match splice(&self.out, None, sink, None, left, flags) {
                Ok(0) | Err(Errno::EAGAIN) => break,
                Ok(bytes) => left -= bytes,
                Err(Errno::EINTR) => {}
                Err(source) => {
                    return Err(CallFailed {
                        call: "splice",
                        source,
                    }
                    .into());
                }
            }
        }
        if !left.is_multiple_of(PAGE_BYTES) {
            return Err(ParkingError::NotPages { bytes: left as u64 });
        }
        Ok(PageCount::new(count.get() - (left >> PAGE_SHIFT) as u32))
    }

    /// Copies the page at `slot` (0 is the oldest) out; all stay parked. `scratch` is an empty pipe of
    /// at least `slot + 1` slots, empty again afterwards. Three system calls, whatever the slot.
    ///
    /// # Safety
    /// As [`Self::take_to`].
    pub unsafe fn peek_to(
        &self,
        slot: u32,
        scratch: &Self,
        sink: BorrowedFd<'_>,
        into: *mut u8,
    ) -> Result<(), ParkingError> {
        let shared = self.share_with(scratch, PageCount::new(slot.saturating_add(1)))?;
        let skipped = scratch.drop_oldest(PageCount::new(slot.min(shared.get())), sink)?;
        // SAFETY: the caller vouches for `into`.
        let got = skipped.get() == slot && unsafe { scratch.take_to(into) }?;
        if got {
            Ok(())
        } else {
            Err(ParkingError::NoSuchSlot {
                slot,
                queued: shared.get(),
            })
        }
    }

    /// As [`Self::peek_to`], into a buffer.
    pub fn peek(
        &self,
        slot: u32,
        scratch: &Self,
        sink: BorrowedFd<'_>,
        into: &mut [u8; PAGE_BYTES],
    ) -> Result<(), ParkingError> {
        // SAFETY: `into` is exclusive and as long as a page.
        unsafe { self.peek_to(slot, scratch, sink, into.as_mut_ptr()) }
    }

    /// The two ends: where pages come out, where they go in.
    #[must_use]
    pub fn into_ends(self) -> (OwnedFd, OwnedFd) {
        (self.out, self.into)
    }

    /// The end that pages come out of: to hand to whoever must keep them alive.
    #[must_use]
    pub fn out_end(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }

    /// The end that pages go into.
    #[must_use]
    pub fn into_end(&self) -> BorrowedFd<'_> {
        self.into.as_fd()
    }
}

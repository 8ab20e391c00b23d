//! The file behind a region: a memfd, or a tmpfs file that a VM's memory backend maps. Its page cache is
//! the region's resident memory, so what is resident can be asked of the kernel at any time.
//!
//! It is read with `pread` and emptied with punched holes, and never mapped by the agent: reading a
//! hole through a mapping would fill it.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use mycoram_fabric::units::{ByteCount, PAGE_BYTES, PAGE_SHIFT, PageCount, PageIndex};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};

use super::CallFailed;

/// What kind of memory a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryFileKind {
    /// memfd or tmpfs: pages of 4 KiB.
    Shmem,
    /// hugetlbfs: pages of 2 MiB or 1 GiB.
    HugePages,
}

/// Why a file does not do.
#[derive(Debug, thiserror::Error)]
pub enum MemoryFileError {
    /// On a disk, a socket, a device.
    #[error(
        "the descriptor is not a memory file: only a memfd or a file on tmpfs (such as in /dev/shm) can be paged"
    )]
    NotMemory,
    /// Empty, not whole pages, or too large.
    #[error(
        "a region's file must have whole pages, at least one and at most 2^32 - 1; this one has {bytes} bytes"
    )]
    Size {
        /// What it has.
        bytes: u64,
    },
    /// The kernel refused.
    #[error("the memory file cannot be set up")]
    Call(#[from] CallFailed),
}

/// A region's file.
#[derive(Debug)]
pub struct MemoryFile {
    fd: OwnedFd,
    pages: PageCount,
    kind: MemoryFileKind,
}

/// A run of resident pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidentExtent {
    /// First page.
    pub page: PageIndex,
    /// How many.
    pub pages: PageCount,
}

impl MemoryFile {
    /// A new memfd of `bytes` bytes, all holes, whose size is sealed. `name` shows in /proc only.
    pub fn create(name: &CStr, bytes: ByteCount) -> Result<Self, MemoryFileError> {
        let size =
            i64::try_from(bytes.get()).map_err(|_| MemoryFileError::Size { bytes: bytes.get() })?;
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .map_err(CallFailed::of("memfd_create"))?;
        nix::unistd::ftruncate(&fd, size).map_err(CallFailed::of("ftruncate"))?;
        let file = Self::from_fd(fd)?;
        file.seal_size()?;
        Ok(file)
    }

    /// A file that exists: a memory backend's, or a client's memfd.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, MemoryFileError> {
        let fs = fstatfs(&fd).map_err(CallFailed::of("fstatfs"))?;
        let kind = match fs.filesystem_type() {
            t if t == TMPFS_MAGIC => MemoryFileKind::Shmem,
            t if t == HUGETLBFS_MAGIC => MemoryFileKind::HugePages,
            _ => return Err(MemoryFileError::NotMemory),
        };
        let stat = fstat(&fd).map_err(CallFailed::of("fstat"))?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(MemoryFileError::NotMemory);
        }
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let pages = Some(ByteCount::new(bytes))
            .filter(|b| bytes > 0 && b.is_page_aligned())
            .and_then(PageCount::holding)
            .ok_or(MemoryFileError::Size { bytes })?;
        Ok(Self { fd, pages, kind })
    }

    /// Nobody may change the file's size any more. Fails on a file that is no sealable memfd.
    pub fn seal_size(&self) -> Result<(), CallFailed> {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&self.fd, FcntlArg::F_ADD_SEALS(seals))
            .map(|_| ())
            .map_err(CallFailed::of("fcntl(F_ADD_SEALS)"))
    }

    /// Whether the file's size is sealed.
    #[must_use]
    pub fn size_is_sealed(&self) -> bool {
        let sealed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        fcntl(&self.fd, FcntlArg::F_GET_SEALS)
            .is_ok_and(|bits| SealFlag::from_bits_retain(bits).contains(sealed))
    }

    /// Its size.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        self.pages
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> MemoryFileKind {
        self.kind
    }

    /// Frees `count` pages at `page`. The target's next access to them faults. No event is sent.
    pub fn punch(&self, page: PageIndex, count: PageCount) -> Result<(), CallFailed> {
        fallocate(
            &self.fd,
            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            page.offset().get() as i64,
            count.bytes().get() as i64,
        )
        .map_err(CallFailed::of("fallocate(PUNCH_HOLE)"))
    }

    /// Whether the page is resident.
    pub fn has_data(&self, page: PageIndex) -> Result<bool, CallFailed> {
        let offset = page.offset().get() as i64;
        Ok(self.seek(offset, libc::SEEK_DATA)? == Some(offset))
    }

    /// The runs of resident pages from `from` on, in order, as they are met. While others fault and
    /// evict it is a picture in motion.
    #[must_use]
    pub fn resident_extents(&self, from: PageIndex) -> Extents<'_> {
        Extents {
            file: self,
            offset: from.offset().get() as i64,
        }
    }

    /// Resident bytes as the kernel counts them.
    pub fn resident_bytes(&self) -> Result<ByteCount, CallFailed> {
        let stat = fstat(&self.fd).map_err(CallFailed::of("fstat"))?;
        // st_blocks counts 512 bytes, whatever the file system.
        Ok(ByteCount::new(
            u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
        ))
    }

    /// Copies a page out; a hole reads as zeros and stays a hole.
    pub fn read_page(
        &self,
        page: PageIndex,
        into: &mut [u8; PAGE_BYTES],
    ) -> Result<(), CallFailed> {
        // SAFETY: `into` is exclusive and as long as a page.
        unsafe { self.read_pages_to(page, 1, into.as_mut_ptr()) }.map(drop)
    }

    /// Copies at most `count` neighbouring pages out to `into`; how many, at least one.
    ///
    /// # Safety
    /// `into` is writable for so many pages' bytes, and nobody else uses them meanwhile.
    pub unsafe fn read_pages_to(
        &self,
        page: PageIndex,
        count: u32,
        into: *mut u8,
    ) -> Result<u32, CallFailed> {
        // SAFETY: the caller vouches for `into`.
        let got = unsafe {
            libc::pread(
                self.fd.as_raw_fd(),
                into.cast(),
                count as usize * PAGE_BYTES,
                page.offset().get() as i64,
            )
        };
        match got {
            -1 => Err(CallFailed::last("pread")),
            // Only somebody who shrank the file makes this happen.
            n if n < PAGE_BYTES as isize => Err(CallFailed {
                call: "pread",
                source: Errno::ENODATA,
            }),
            n => Ok((n as usize / PAGE_BYTES) as u32),
        }
    }

    fn seek(&self, offset: i64, whence: libc::c_int) -> Result<Option<i64>, CallFailed> {
        // SAFETY: lseek takes numbers. It moves the description's offset, which nobody uses: all
        // reads and writes here name theirs.
        match Errno::result(unsafe { libc::lseek(self.fd.as_raw_fd(), offset, whence) }) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::ENXIO) => Ok(None),
            Err(source) => Err(CallFailed {
                call: "lseek",
                source,
            }),
        }
    }
}

impl AsFd for MemoryFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Iterator over runs of resident pages; see [`MemoryFile::resident_extents`].
#[derive(Debug)]
pub struct Extents<'a> {
    file: &'a MemoryFile,
    offset: i64,
}

impl Iterator for Extents<'_> {
    type Item = Result<ResidentExtent, CallFailed>;

    fn next(&mut self) -> Option<Self::Item> {
        let ends = self.file.pages.bytes().get() as i64;
        if self.offset >= ends {
            return None;
        }
        let run = || -> Result<Option<(i64, i64)>, CallFailed> {
            let Some(data) = self.file.seek(self.offset, libc::SEEK_DATA)? else {
                return Ok(None);
            };
            let hole = self.file.seek(data, libc::SEEK_HOLE)?.unwrap_or(ends);
            Ok(Some((data, hole.min(ends))))
        };
        match run() {
            // A page that is punched between the two calls makes an empty run: go on one page further.
            Ok(Some((data, hole))) if data < ends => {
                let hole = hole.max(data + PAGE_BYTES as i64);
                self.offset = hole;
                let page = PageIndex::new((data >> PAGE_SHIFT) as u32);
                let pages = PageCount::new(((hole - data) >> PAGE_SHIFT) as u32);
                Some(Ok(ResidentExtent { page, pages }))
            }
            Ok(_) => {
                self.offset = ends;
                None
            }
            Err(e) => {
                self.offset = ends;
                Some(Err(e))
            }
        }
    }
}

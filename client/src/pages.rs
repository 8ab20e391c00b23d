//! The pages of a mapping in this process, which no child inherits: private memory, or a memfd of its own,
//! mapped shared.
//!
//! The program may move the mapping with mremap, or unmap parts of it. Where it is by now is asked of who
//! knows: for a memfd the kernel (`/proc/self/maps` names it by its number), for private memory the agent,
//! which hears of every move. So nothing of anybody else's is ever unmapped, and an old address is never
//! taken for the mapping.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use mycoram_agent::Places;
use mycoram_agent::kernel::MemoryFile;
use mycoram_fabric::pages::HUGE_PAGES;
use mycoram_fabric::transport::{Mapping, MappingError};
use mycoram_fabric::units::{ByteCount, PAGE_BYTES, PageCount, PageIndex};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::{fstat, major, minor};

use crate::error::MapError;

#[derive(Debug)]
enum Behind {
    File(MemoryFile),
    /// Known to the agent from the attaching on.
    Private(OnceLock<Places>),
}

/// A mapping.
pub(crate) struct Pages {
    behind: Behind,
    /// Where it started when somebody last looked.
    start: AtomicPtr<u8>,
    bytes: ByteCount,
}

/// A part of the mapping that is where the program has put it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// First address.
    pub(crate) start: usize,
    /// Bytes.
    pub(crate) len: usize,
    /// Distance of its first byte from the mapping's.
    pub(crate) offset: usize,
}

pub(crate) fn refused(what: &'static str) -> impl Fn(Errno) -> MapError {
    move |source| MapError::Memory { what, source }
}

impl Pages {
    /// Maps a new memfd of `bytes`, whole pages, all holes.
    pub(crate) fn of_file(bytes: ByteCount) -> Result<Self, MapError> {
        let file = MemoryFile::create(c"mycoram", bytes).map_err(MapError::File)?;
        let length = NonZeroUsize::new(bytes.as_usize()).ok_or(MapError::Empty)?;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE,
                file.as_fd(),
                0,
            )
        }
        .map_err(refused("mmap"))?;
        Self::kept(Behind::File(file), start, bytes)
    }

    /// Maps `bytes` of private memory, whole pages, all holes. The agent is to be named with
    /// [`Self::known_to`] when it serves them.
    pub(crate) fn private(bytes: ByteCount) -> Result<Self, MapError> {
        let align = HUGE_PAGES as usize * PAGE_BYTES;
        let start = match Mapping::reserved_at(align, bytes.as_usize()) {
            Ok(memory) => memory.into_start().cast(),
            Err(MappingError::Empty) => return Err(MapError::Empty),
            Err(MappingError::Kernel { source, .. }) => return Err(refused("mmap")(source)),
        };
        // SAFETY: the range was mapped just now. Huge pages come by the agent's hand only. A kernel without them
        // refuses, and needs it not.
        let _ = unsafe { madvise(start, bytes.as_usize(), MmapAdvise::MADV_NOHUGEPAGE) };
        Self::kept(Behind::Private(OnceLock::new()), start, bytes)
    }

    /// A new mapping, kept from core dumps and children.
    fn kept(behind: Behind, start: NonNull<c_void>, bytes: ByteCount) -> Result<Self, MapError> {
        let pages = Self {
            behind,
            start: AtomicPtr::new(start.as_ptr().cast()),
            bytes,
        };
        // A core dump would bring in every page, and a child would share what it cannot serve.
        for advice in [MmapAdvise::MADV_DONTFORK, MmapAdvise::MADV_DONTDUMP] {
            // SAFETY: the range was mapped just now; neither advice changes what it holds.
            if let Err(error) = unsafe { madvise(start, bytes.as_usize(), advice) } {
                pages.unmap();
                return Err(refused("madvise")(error));
            }
        }
        Ok(pages)
    }

    /// Says who knows where private pages are.
    pub(crate) fn known_to(&self, places: Places) {
        if let Behind::Private(known) = &self.behind {
            let _ = known.set(places);
        }
    }

    /// Where it started when somebody last looked with [`Self::parts`].
    #[inline]
    pub(crate) fn start(&self) -> NonNull<u8> {
        NonNull::new(self.start.load(Ordering::Relaxed)).unwrap_or(NonNull::dangling())
    }

    pub(crate) fn bytes(&self) -> ByteCount {
        self.bytes
    }

    /// A descriptor of the memfd, which private memory has not.
    pub(crate) fn file(&self) -> Result<OwnedFd, MapError> {
        let Behind::File(file) = &self.behind else {
            return Err(refused("dup")(Errno::EBADF));
        };
        let dup = file.as_fd().try_clone_to_owned();
        dup.map_err(|_| refused("dup")(Errno::last()))
    }

    /// Where its parts are now; none if the program has unmapped all of it.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let parts = match &self.behind {
            Behind::File(file) => parts_of_file(file),
            Behind::Private(known) => match known.get() {
                Some(places) => places.parts().into_iter().map(Part::of).collect(),
                None => vec![Part {
                    start: self.start.load(Ordering::Relaxed) as usize,
                    len: self.bytes.as_usize(),
                    offset: 0,
                }],
            },
        };
        if let Some(first) = parts.iter().find(|part| part.offset == 0) {
            self.start.store(
                std::ptr::with_exposed_provenance_mut(first.start),
                Ordering::Relaxed,
            );
        }
        parts
    }

    /// Unmaps it, wherever it is.
    pub(crate) fn unmap(&self) {
        for part in self.parts() {
            if let Some(start) = NonNull::new(std::ptr::with_exposed_provenance_mut(part.start)) {
                // SAFETY: the owner gives up the mapping, and the kernel says that this is a part of it.
                let _ = unsafe { munmap(start, part.len) };
            }
        }
    }
}

impl Part {
    fn of((addr, page, pages): (u64, PageIndex, PageCount)) -> Self {
        Self {
            start: addr as usize,
            len: pages.bytes().as_usize(),
            offset: page.offset().get() as usize,
        }
    }
}

/// As the kernel has them.
fn parts_of_file(file: &MemoryFile) -> Vec<Part> {
    let (Ok(maps), Ok(stat)) = (
        std::fs::read_to_string("/proc/self/maps"),
        fstat(file.as_fd()),
    ) else {
        return Vec::new();
    };
    let device = format!("{:02x}:{:02x}", major(stat.st_dev), minor(stat.st_dev));
    parts_of(&maps, &device, stat.st_ino)
}

/// Lines of a maps file that belong to the file with this device and number.
fn parts_of(maps: &str, device: &str, inode: u64) -> Vec<Part> {
    maps.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (range, _rights, offset) = (words.next()?, words.next()?, words.next()?);
            if words.next()? != device || words.next()?.parse::<u64>().ok()? != inode {
                return None;
            }
            let number = |text| usize::from_str_radix(text, 16).ok();
            let (start, end) = range.split_once('-')?;
            let start = number(start)?;
            Some(Part {
                start,
                len: number(end)?.checked_sub(start)?,
                offset: number(offset)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Pages, Part, parts_of};
    use mycoram_fabric::units::ByteCount;

    #[test]
    fn parts_are_told_apart_from_what_is_not_theirs() {
        let maps = "7f0000000000-7f0000004000 rw-s 00000000 00:01 77   /memfd:mycoram (deleted)\n\
                    7f0000004000-7f0000005000 rw-s 00000000 00:01 78   /memfd:mycoram (deleted)\n\
                    7f0000008000-7f0000009000 rw-s 00008000 00:01 77   /memfd:mycoram (deleted)\n\
                    7f000000a000-7f000000b000 rw-p 00000000 00:00 0\n";
        let part = |start, len, offset| Part { start, len, offset };
        assert_eq!(
            parts_of(maps, "00:01", 77),
            [
                part(0x7f00_0000_0000, 0x4000, 0),
                part(0x7f00_0000_8000, 0x1000, 0x8000)
            ]
        );
    }

    #[test]
    fn the_kernel_says_where_a_mapping_is_and_that_it_is_gone() {
        let pages = Pages::of_file(ByteCount::mib(1)).expect("maps");
        let start = pages.start().as_ptr() as usize;
        assert_eq!(
            pages.parts(),
            [Part {
                start,
                len: 1 << 20,
                offset: 0
            }]
        );
        pages.unmap();
        assert_eq!(pages.parts(), []);
    }
}

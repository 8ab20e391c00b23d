//! A target that is this very process: a memfd, a mapping of it, a userfaultfd; or private memory.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use mycoram_agent::kernel::{MemoryFile, ParkingRooms, PidFd, RoomsError, Userfault};
use mycoram_agent::{
    HeldDescriptors, Owner, ParkingPipe, PrivateTarget, Region, RegionConfig, RegionEvent,
    SLOTS_PER_PIPE, Target,
};
use mycoram_fabric::pages::{HUGE_PAGES, RemoteRegion};
use mycoram_fabric::transport::Mapping;
use mycoram_fabric::units::{ByteCount, Epoch, PAGE_BYTES, PageCount, RegionId};
use nix::sys::mman::{MmapAdvise, madvise};

/// Keeps the descriptors that a target process would keep.
pub struct LocalTarget {
    /// First: unmapping would wait for an agent to read of it, while this is open.
    pub uffd: OwnedFd,
    pub mapping: View,
    pub memory: OwnedFd,
    pipes: Vec<(OwnedFd, OwnedFd)>,
    pub pages: u32,
}

impl LocalTarget {
    pub fn new(pages: u32) -> Self {
        Self::over(pages, View::of)
    }

    /// Private memory, for [`attach_private`]. The memfd is there and not used.
    pub fn private(pages: u32) -> Self {
        Self::over(pages, |_, bytes| View::private(bytes))
    }

    fn over(pages: u32, view: impl Fn(&OwnedFd, usize) -> View) -> Self {
        let bytes = ByteCount::new(u64::from(pages) * PAGE_BYTES as u64);
        let file = MemoryFile::create(c"mycoram-test", bytes).expect("a memfd");
        let memory = file.as_fd().try_clone_to_owned().expect("a descriptor");
        let mapping = view(&memory, bytes.as_usize());
        let uffd = Userfault::new_in_this_process()
            .expect("a userfaultfd: root, or vm.unprivileged_userfaultfd=1")
            .try_clone_fd()
            .expect("a descriptor");
        let pipes = (0..16)
            .map(|_| ParkingPipe::new().expect("a pipe"))
            .map(|pipe| (pipe.read, pipe.write))
            .collect();
        Self {
            mapping,
            memory,
            uffd,
            pipes,
            pages,
        }
    }

    pub fn target(&self) -> Target {
        let dup = |fd: &OwnedFd| fd.try_clone().expect("a descriptor");
        let pid = std::process::id() as i32;
        Target {
            pid,
            pidfd: PidFd::open(pid).expect("ourselves").into_fd(),
            uffd: dup(&self.uffd),
            memory: dup(&self.memory),
            file_offset: 0,
            base: self.mapping.as_ptr() as u64,
            bytes: ByteCount::new(u64::from(self.pages) * PAGE_BYTES as u64),
            pipes: self
                .pipes
                .iter()
                .map(|(read, write)| ParkingPipe {
                    read: dup(read),
                    write: dup(write),
                })
                .collect(),
            held: HeldDescriptors {
                uffd: self.uffd.as_raw_fd(),
                memory: self.memory.as_raw_fd(),
                pipes: self
                    .pipes
                    .iter()
                    .map(|(read, write)| (read.as_raw_fd(), write.as_raw_fd()))
                    .collect(),
            },
        }
    }

    /// A word of a page, as any thread of a program reads and writes it.
    pub fn word(&self, page: u32, at: usize) -> &AtomicU64 {
        assert!(page < self.pages && at < PAGE_BYTES / 8);
        // SAFETY: inside of the mapping and aligned; all users of it use atomics.
        unsafe {
            &*self
                .mapping
                .as_ptr()
                .add(page as usize * PAGE_BYTES + at * 8)
                .cast::<AtomicU64>()
        }
    }

    pub fn byte(&self, page: u32, at: usize) -> &AtomicU8 {
        assert!(page < self.pages && at < PAGE_BYTES);
        // SAFETY: as above.
        unsafe {
            &*self
                .mapping
                .as_ptr()
                .add(page as usize * PAGE_BYTES + at)
                .cast::<AtomicU8>()
        }
    }

    /// Fills a page with words that only this page and value have.
    pub fn fill(&self, page: u32, value: u64) {
        for at in [0, 1, 255, 511] {
            self.word(page, at)
                .store(pattern(page, value, at), Ordering::Relaxed);
        }
    }

    pub fn check(&self, page: u32, value: u64) {
        for at in [0, 1, 255, 511] {
            let got = self.word(page, at).load(Ordering::Relaxed);
            assert_eq!(
                got,
                pattern(page, value, at),
                "page {page} word {at} does not hold value {value}"
            );
        }
        assert_eq!(self.word(page, 100).load(Ordering::Relaxed), 0);
    }

    /// Moves the whole mapping somewhere else.
    pub fn move_mapping(&mut self) {
        let bytes = self.mapping.bytes;
        let free = View::of(&self.memory, bytes);
        // SAFETY: `free` is a mapping of our own that nobody uses; it is replaced by the moved one.
        let moved = unsafe {
            libc::mremap(
                self.mapping.start.cast(),
                bytes,
                bytes,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                free.start,
            )
        };
        assert_eq!(moved, free.start.cast());
        self.mapping.start = free.start;
        std::mem::forget(free);
    }

    /// Whether the kernel has the page in the file.
    pub fn is_resident(&self, page: u32) -> bool {
        let at = i64::from(page) * PAGE_BYTES as i64;
        nix::unistd::lseek(&self.memory, at, nix::unistd::Whence::SeekData) == Ok(at)
    }

    /// Resident bytes as the kernel counts them.
    pub fn resident_bytes(&self) -> u64 {
        let stat = nix::sys::stat::fstat(&self.memory).expect("fstat");
        stat.st_blocks as u64 * 512
    }

    /// Bytes of private memory that the kernel holds, as it counts them.
    pub fn private_bytes(&self) -> u64 {
        let start = format!("{:x}-", self.mapping.as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mine = maps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = mine.into_iter().find(|line| line.starts_with("Rss:"));
        let kib = rss.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kib.expect("a line of the mapping") << 10
    }

    /// Whether the kernel has the page of private memory.
    pub fn is_present(&self, page: u32) -> bool {
        let mut there = 0_u8;
        let at = std::ptr::from_ref(self.word(page, 0)).cast_mut();
        // SAFETY: one page of the mapping, one byte for the answer.
        let asked = unsafe { libc::mincore(at.cast(), PAGE_BYTES, &raw mut there) };
        assert_eq!(asked, 0);
        there & 1 != 0
    }

    /// Throws pages away, as a program does.
    pub fn discard(&self, page: u32, pages: u32) {
        let at = std::ptr::from_ref(self.word(page, 0)).cast_mut();
        let at = NonNull::new(at).expect("mapped").cast();
        let bytes = pages as usize * PAGE_BYTES;
        // SAFETY: pages of the mapping, which all users reach by atomics.
        unsafe { madvise(at, bytes, MmapAdvise::MADV_DONTNEED) }.expect("madvise");
    }
}

pub fn pattern(page: u32, value: u64, at: usize) -> u64 {
    (u64::from(page) << 32 | at as u64) ^ value.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A mapping of the target's file that may be moved.
pub struct View {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: an address range, reached by atomics only.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    fn of(memory: &OwnedFd, bytes: usize) -> Self {
        Self::map(bytes, libc::MAP_SHARED, memory.as_raw_fd())
    }

    /// From where a huge page can start.
    fn private(bytes: usize) -> Self {
        let align = HUGE_PAGES as usize * PAGE_BYTES;
        let memory = Mapping::reserved_at(align, bytes).expect("memory");
        let start = memory.into_start().as_ptr();
        let view = Self { start, bytes };
        // SAFETY: mapped just now.
        unsafe { libc::madvise(view.start.cast(), bytes, libc::MADV_NOHUGEPAGE) };
        view
    }

    fn map(bytes: usize, flags: i32, file: i32) -> Self {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                file,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        Self {
            start: start.cast(),
            bytes,
        }
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.start
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: what `of` mapped, or what it was moved to; nobody uses it any more.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

pub fn config(name: &str, dir: &Path, budget_pages: u64) -> RegionConfig {
    let mut config = RegionConfig::new(
        name.parse().expect("a name"),
        ByteCount::new(budget_pages * PAGE_BYTES as u64),
    );
    config.state_dir = dir.to_owned();
    config
}

pub fn owner(epoch: u64) -> Owner {
    Owner {
        region: RegionId::new(0x5eed),
        epoch: Epoch::new(epoch),
        directory: b"where the extents are".to_vec(),
    }
}

pub fn attach(target: &LocalTarget, remote: Arc<dyn RemoteRegion>, config: RegionConfig) -> Region {
    Region::attach(
        target.target(),
        remote,
        owner(1),
        config,
        Box::new(|event: RegionEvent| eprintln!("event: {event:?}")),
    )
    .expect("attached")
}

/// `None`, said aloud, where the kernel cannot move pages.
pub fn attach_private(
    target: &LocalTarget,
    remote: Arc<dyn RemoteRegion>,
    config: RegionConfig,
) -> Option<Region> {
    attach_with_halls(target, remote, config, 0)
}

/// The same, with room for so many huge pages on their way out.
pub fn attach_with_halls(
    target: &LocalTarget,
    remote: Arc<dyn RemoteRegion>,
    config: RegionConfig,
    halls: u32,
) -> Option<Region> {
    let rooms = match ParkingRooms::new(halls, PageCount::new(4 * u32::from(SLOTS_PER_PIPE))) {
        Ok(rooms) => rooms,
        Err(RoomsError::Unsupported) => {
            println!("skipped: this kernel cannot move pages (Linux 6.8 or newer does)");
            return None;
        }
        Err(error) => panic!("no rooms: {error}"),
    };
    let private = PrivateTarget {
        uffd: target.uffd.try_clone().expect("a descriptor"),
        base: target.mapping.as_ptr() as u64,
        bytes: ByteCount::new(u64::from(target.pages) * PAGE_BYTES as u64),
        rooms,
    };
    let events = Box::new(|event: RegionEvent| eprintln!("event: {event:?}"));
    Some(Region::attach_private(private, remote, owner(1), config, events).expect("attached"))
}

//! Plain shared memory, as floors and comparisons use it.

use std::ffi::CString;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A shared mapping of a memfd of its own; unmapped when dropped.
pub(crate) struct SharedMemory {
    start: NonNull<u8>,
    bytes: usize,
    _file: OwnedFd,
}

// SAFETY: an address range; its bytes are read with volatile loads only, which no sharing disturbs.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    pub(crate) fn new(bytes: usize) -> std::io::Result<Self> {
        let length = NonZeroUsize::new(bytes).ok_or(std::io::ErrorKind::InvalidInput)?;
        let name = CString::new("mycoram-bench").expect("no zero byte");
        let file = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&file, bytes as i64)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                &file,
                0,
            )
        }?;
        Ok(Self {
            start: start.cast(),
            bytes,
            _file: file,
        })
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn read_byte(&self, offset: usize) -> u8 {
        assert!(offset < self.bytes, "outside of the mapping");
        // SAFETY: inside of the mapping, as just checked.
        unsafe { self.start.as_ptr().add(offset).read_volatile() }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: what mmap gave, unmapped once; nobody keeps a reference into it.
        let _ = unsafe { munmap(self.start.cast(), self.bytes) };
    }
}

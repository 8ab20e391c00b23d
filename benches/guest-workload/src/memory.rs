//! The memory under test, and the few calls that an init has to make itself.

use std::io;

/// Bytes in a page.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Anonymous memory, a page at a time.
pub(crate) struct Memory {
    start: *mut u8,
    bytes: usize,
}

impl Memory {
    /// Maps `bytes` (a multiple of the page size) of anonymous memory, 4 KiB pages only.
    pub(crate) fn map(bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh private mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range was just mapped; advice changes no contents. Without it a first touch
        // would zero 2 MiB, and pages would not be visited one by one.
        let _ = unsafe { libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE) };
        Ok(Self {
            start: start.cast(),
            bytes,
        })
    }

    /// How many pages there are.
    pub(crate) fn pages(&self) -> u64 {
        (self.bytes / PAGE_BYTES) as u64
    }

    /// The bytes of page `index`.
    pub(crate) fn page(&mut self, index: u64) -> &mut [u8; PAGE_BYTES] {
        assert!(index < self.pages(), "page {index} of {}", self.pages());
        // SAFETY: inside of the mapping, aligned, valid for any bit pattern, and exclusive because
        // `self` is borrowed exclusively.
        unsafe { &mut *self.start.add(index as usize * PAGE_BYTES).cast() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: start and length are what mmap gave; nothing borrows from a dropped `Memory`.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

/// The kernel's command line, through a /proc that is mounted for it.
pub(crate) fn kernel_command_line() -> String {
    let _ = std::fs::create_dir("/proc");
    // SAFETY: all arguments are valid C strings; a failure is seen at the read below.
    unsafe {
        libc::mount(
            c"proc".as_ptr(),
            c"/proc".as_ptr(),
            c"proc".as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    std::fs::read_to_string("/proc/cmdline").unwrap_or_default()
}

/// Ends the guest. Returns only where that is not allowed.
pub(crate) fn power_off() {
    // SAFETY: `sync` takes no arguments and changes no memory.
    unsafe { libc::sync() };
    // SAFETY: as process 1 of a guest this ends it; elsewhere it is refused.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}

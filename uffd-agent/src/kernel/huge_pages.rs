//! Huge pages of this process: asking for them, and whether a range is one.
//!
//! A page that faults where huge pages may not be gets a table of small pages before anybody is told of the fault,
//! and a huge page cannot be moved to where such a table is. So memory that huge pages are moved into has to be
//! allowed to have them, although the kernel never puts one there by itself: a fault goes to the agent.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

use super::{CallFailed, TargetRange};

/// Of a huge page, in the answer of a scan.
const IS_HUGE: u64 = 1 << 6;

/// `struct page_region` of the kernel.
#[repr(C)]
#[derive(Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of the kernel.
#[repr(C)]
struct ScanOrder {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanOrder);

/// Whether all of a range of this process is one huge page. `pagemap` is its `/proc/self/pagemap`. Linux 6.7.
pub(crate) fn is_one_huge_page(pagemap: &File, range: TargetRange) -> bool {
    let mut found = PageRegion::default();
    let (start, end) = (range.start().get(), range.start().get() + range.bytes());
    let mut order = ScanOrder {
        size: size_of::<ScanOrder>() as u64,
        flags: 0,
        start,
        end,
        walk_end: 0,
        vec: &raw mut found as u64,
        vec_len: 1,
        max_pages: 0,
        category_inverted: 0,
        category_mask: IS_HUGE,
        category_anyof_mask: 0,
        return_mask: IS_HUGE,
    };
    // SAFETY: the order is the structure that this call takes; it writes one region into `found`.
    let regions = unsafe { pagemap_scan(pagemap.as_raw_fd(), &raw mut order) };
    regions == Ok(1) && (found.start, found.end) == (start, end)
}

/// Whether this process may have huge pages where it asks for them.
pub(crate) fn may_have_huge_pages() -> bool {
    let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    // SAFETY: takes no arguments beyond these, and changes nothing.
    let refused = unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) };
    text.is_ok_and(|text| !text.contains("[never]")) && refused == 0
}

/// Lets the kernel have huge pages in a range of this process.
pub(crate) fn allow_huge_pages(range: TargetRange) -> Result<(), CallFailed> {
    let start = std::ptr::NonNull::new(range.start().get() as *mut libc::c_void);
    let start = start.unwrap_or(std::ptr::NonNull::dangling());
    // SAFETY: changes nothing that the range holds; the kernel checks that it is mapped.
    unsafe { madvise(start, range.bytes() as usize, MmapAdvise::MADV_HUGEPAGE) }.map_err(|source| {
        CallFailed {
            call: "madvise(MADV_HUGEPAGE)",
            source,
        }
    })
}

/// Makes a range of private memory new: nothing is in it, no table either, and one huge page may be.
///
/// # Safety
/// It is private anonymous memory of the caller's, and nobody else uses it meanwhile.
pub(crate) unsafe fn renew(range: TargetRange) -> Result<(), Errno> {
    let (start, bytes) = (range.start().get() as usize, range.bytes() as usize);
    let Some((start, bytes)) = start.try_into().ok().zip(bytes.try_into().ok()) else {
        return Err(Errno::EINVAL);
    };
    // SAFETY: the caller vouches for what is there now.
    let new = unsafe {
        mmap_anonymous(
            Some(start),
            bytes,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE,
        )
    }?;
    // SAFETY: the mapping is new.
    unsafe { madvise(new, bytes.get(), MmapAdvise::MADV_HUGEPAGE) }
}

//! Structures and numbers of `linux/userfaultfd.h` that the `userfaultfd` crate lacks or hides.
//! The layouts are the kernel's; the assertions below keep them so.

use std::mem::{offset_of, size_of};

/// The `api` field of the handshake.
pub(super) const UFFD_API: u64 = 0xAA;
const UFFDIO: u8 = 0xAA;

/// A copy or zero page that leaves waiters asleep until a wake.
pub(super) const MODE_DONTWAKE: u64 = 1;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UffdioApi {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UffdioRange {
    pub(super) start: u64,
    pub(super) len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UffdioCopy {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    /// Answer: bytes copied, or a negative errno, or untouched.
    pub(super) copy: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UffdioZeropage {
    pub(super) range: UffdioRange,
    pub(super) mode: u64,
    /// As `UffdioCopy::copy`.
    pub(super) zeropage: i64,
}

/// Since 6.6.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UffdioPoison {
    pub(super) range: UffdioRange,
    pub(super) mode: u64,
    /// As `UffdioCopy::copy`.
    pub(super) updated: i64,
}

/// Since 6.8.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UffdioMove {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    /// Answer: bytes moved, or a negative errno, or untouched.
    pub(super) moved: i64,
}

const _: () = {
    assert!(size_of::<UffdioApi>() == 24);
    assert!(offset_of!(UffdioApi, features) == 8);
    assert!(offset_of!(UffdioApi, ioctls) == 16);
    assert!(size_of::<UffdioRange>() == 16);
    assert!(offset_of!(UffdioRange, len) == 8);
    assert!(size_of::<UffdioCopy>() == 40);
    assert!(offset_of!(UffdioCopy, src) == 8);
    assert!(offset_of!(UffdioCopy, mode) == 24);
    assert!(offset_of!(UffdioCopy, copy) == 32);
    assert!(size_of::<UffdioZeropage>() == 32);
    assert!(offset_of!(UffdioZeropage, mode) == 16);
    assert!(offset_of!(UffdioZeropage, zeropage) == 24);
    assert!(size_of::<UffdioPoison>() == 32);
    assert!(offset_of!(UffdioPoison, mode) == 16);
    assert!(offset_of!(UffdioPoison, updated) == 24);
    assert!(size_of::<UffdioMove>() == 40);
    assert!(offset_of!(UffdioMove, src) == 8);
    assert!(offset_of!(UffdioMove, mode) == 24);
    assert!(offset_of!(UffdioMove, moved) == 32);
};

nix::ioctl_readwrite!(uffdio_api, UFFDIO, 0x3F, UffdioApi);
nix::ioctl_readwrite!(uffdio_copy, UFFDIO, 0x03, UffdioCopy);
nix::ioctl_readwrite!(uffdio_zeropage, UFFDIO, 0x04, UffdioZeropage);
nix::ioctl_readwrite!(uffdio_move, UFFDIO, 0x05, UffdioMove);
nix::ioctl_readwrite!(uffdio_poison, UFFDIO, 0x08, UffdioPoison);
// On /dev/userfaultfd: takes the flags of userfaultfd(2), answers a new descriptor.
nix::ioctl_write_int_bad!(userfaultfd_ioc_new, nix::request_code_none!(UFFDIO, 0x00));

//! The guest's two files: a Debian kernel, and an initramfs whose only program is the workload.

use std::path::PathBuf;

use mycoram_testbed::{KernelSeries, KernelStore, archive_of_init};

use super::{DemoError, program};
use crate::checkout;

/// What QEMU boots.
pub(super) struct Image {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
}

fn initramfs_path() -> PathBuf {
    checkout::target_dir().join("demo").join("initramfs.cpio")
}

fn store() -> KernelStore {
    KernelStore::new(checkout::target_dir().join("testbed").join("kernels"))
}

/// Fetches the kernel and packs the initramfs.
pub(super) fn prepare() -> Result<(), DemoError> {
    store().kernel(KernelSeries::V6_1)?;
    let workload = program("guest-workload");
    let bytes = std::fs::read(&workload).map_err(|source| DemoError::File {
        path: workload,
        source,
    })?;
    let path = initramfs_path();
    let write = || {
        std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
        std::fs::write(&path, archive_of_init(&bytes))
    };
    write().map_err(|source| DemoError::File {
        path: path.clone(),
        source,
    })
}

/// What [`prepare`] has left.
pub(super) fn prepared() -> Result<Image, DemoError> {
    Ok(Image {
        kernel: store().kernel(KernelSeries::V6_1)?.vmlinuz,
        initramfs: initramfs_path(),
    })
}

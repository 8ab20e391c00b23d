//! The pool: the memory that a node lends, from a memfd, reserved in full when the node starts.
//!
//! A page that was promised and is not there when it is needed would be a lost page, so nothing is
//! overcommitted. Registered memory is zeroed by writing zeros: a punched hole would leave the device
//! with the old page, and everybody else with a new one.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::runs::Run;
use crate::transport::{Mapping, MappingError};
use crate::units::{ByteCount, PAGE_BYTES};

/// Whether the pool is to be in huge pages. They spare the device and the processor translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Ordinary pages.
    Off,
    /// Huge pages if the machine has enough of them reserved, else ordinary ones.
    Prefer,
    /// Huge pages or none at all.
    Require,
}

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A pool has at least one page, and whole pages only.
    #[error("a pool of {asked} cannot be: its size is a multiple of {PAGE_BYTES} bytes, and not 0")]
    Size {
        /// What was asked for.
        asked: ByteCount,
    },
    /// More than the machine has to spare.
    #[error("a pool of {asked} cannot be: this machine has {available} to spare")]
    NotEnough {
        /// What was asked for.
        asked: ByteCount,
        /// MemAvailable of /proc/meminfo.
        available: ByteCount,
    },
    /// The kernel did not give it.
    #[error("the kernel did not give {asked} for the pool")]
    Kernel {
        /// What was asked for.
        asked: ByteCount,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// It could not be mapped.
    #[error("the pool could not be mapped")]
    Map(#[from] MappingError),
}

/// Memory to lend.
#[derive(Clone, Debug)]
pub struct Pool {
    mapping: Arc<Mapping>,
    hugepages: bool,
}

impl Pool {
    /// Reserves `bytes` of zeros. When huge pages are preferred and cannot be had, that is logged with
    /// the reason, and ordinary pages are taken.
    pub fn reserve(bytes: ByteCount, hugepages: HugePages) -> Result<Self, PoolError> {
        if bytes.get() == 0 || !bytes.is_page_aligned() {
            return Err(PoolError::Size { asked: bytes });
        }
        if hugepages != HugePages::Off {
            match Self::from_memfd(bytes, MFdFlags::MFD_HUGETLB) {
                Ok(mapping) => {
                    return Ok(Self {
                        mapping,
                        hugepages: true,
                    });
                }
                Err(error) if hugepages == HugePages::Require => return Err(error),
                Err(error) => tracing::warn!(
                    %bytes,
                    error = &error as &dyn std::error::Error,
                    "not enough huge pages are reserved (see /proc/sys/vm/nr_hugepages): the pool is in ordinary pages"
                ),
            }
        }
        if let Some(available) = available_memory()
            && bytes > available
        {
            return Err(PoolError::NotEnough {
                asked: bytes,
                available,
            });
        }
        Ok(Self {
            mapping: Self::from_memfd(bytes, MFdFlags::empty())?,
            hugepages: false,
        })
    }

    fn from_memfd(bytes: ByteCount, flags: MFdFlags) -> Result<Arc<Mapping>, PoolError> {
        let kernel = |errno: nix::Error| PoolError::Kernel {
            asked: bytes,
            source: errno.into(),
        };
        let file: File = memfd_create(c"mycoram-pool", flags | MFdFlags::MFD_CLOEXEC)
            .map_err(kernel)?
            .into();
        let too_large = |_| PoolError::Size { asked: bytes };
        let length = i64::try_from(bytes.get()).map_err(too_large)?;
        file.set_len(bytes.get())
            .map_err(|source| PoolError::Kernel {
                asked: bytes,
                source,
            })?;
        fallocate(&file, FallocateFlags::empty(), 0, length).map_err(kernel)?;
        Ok(Arc::new(Mapping::shared(&file, bytes.as_usize())?))
    }

    /// The bytes, for the data server's constructor.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// How many bytes.
    #[must_use]
    pub fn bytes(&self) -> ByteCount {
        ByteCount::new(self.mapping.len() as u64)
    }

    /// Whether it is in huge pages.
    #[must_use]
    pub fn hugepages(&self) -> bool {
        self.hugepages
    }

    /// Writes zeros. The caller knows that nobody else reaches these bytes.
    pub(super) fn zero(&self, run: Run) {
        let (offset, bytes) = (run.offset as usize, run.bytes as usize);
        self.mapping
            .check(offset, bytes)
            .expect("runs of the ledger lie inside of the pool it was made for");
        // SAFETY: checked to lie inside of the mapping, which `self` keeps. Nobody has a reference into
        // a mapping; the ledger lends these bytes to nobody, and their exports were revoked.
        unsafe { std::ptr::write_bytes(self.mapping.as_ptr().add(offset), 0, bytes) };
    }
}

/// MemAvailable of /proc/meminfo; `None` where the kernel does not say.
fn available_memory() -> Option<ByteCount> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).map(ByteCount::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_zero_and_becomes_zero_again_where_it_is_told() {
        let pool = Pool::reserve(ByteCount::new(3 * 4096), HugePages::Off).expect("12 KiB");
        pool.mapping().copy_in(0, &[7; 3 * 4096]).expect("inside");
        pool.zero(Run {
            offset: 4096,
            bytes: 4096,
        });
        let mut bytes = [1; 3 * 4096];
        pool.mapping().copy_out(0, &mut bytes).expect("inside");
        assert!(bytes[..4096].iter().all(|b| *b == 7));
        assert!(bytes[4096..8192].iter().all(|b| *b == 0));
        assert!(bytes[8192..].iter().all(|b| *b == 7));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for bytes in [0, 1, 4097] {
            let refused = Pool::reserve(ByteCount::new(bytes), HugePages::Off);
            assert!(matches!(refused, Err(PoolError::Size { .. })), "{bytes}");
        }
        let refused = Pool::reserve(ByteCount::new(1 << 50), HugePages::Off);
        assert!(matches!(refused, Err(PoolError::NotEnough { .. })));
        let refused = Pool::reserve(ByteCount::new(1 << 50), HugePages::Require);
        assert!(matches!(
            refused,
            Err(PoolError::Kernel { .. } | PoolError::Map(_))
        ));
    }

    #[test]
    fn without_huge_pages_the_pool_is_in_ordinary_ones() {
        // One page is no multiple of a huge page, so this cannot be had in them on any machine.
        let pool = Pool::reserve(ByteCount::new(4096), HugePages::Prefer).expect("one page");
        assert!(!pool.hugepages());
    }
}

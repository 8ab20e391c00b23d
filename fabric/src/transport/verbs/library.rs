//! Is there RDMA on this machine at all? Asked once, before anything else, and answered in one sentence.
//!
//! **Fork.** Processes here fork (to start a QEMU, a helper, an agent), and a forked child shares pages
//! with its parent copy-on-write: on an old kernel the parent's next write to a registered private page
//! would move it away from under the device. Since Linux 5.12 the kernel copies pinned pages for the
//! child instead, which libibverbs reports as "unneeded", and nothing is done. On an older kernel
//! `ibv_fork_init` is called once, before the first device is opened: registered pages are then absent
//! in children. A child must in either case leave its parent's devices and queue pairs alone.

use std::ffi::CStr;
use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;

use super::ffi;

/// Why there is no verbs transport here. Each sentence names the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The libraries are not installed.
    #[error(
        "{library} cannot be loaded, so RDMA cannot be used: install libibverbs1, librdmacm1 and ibverbs-providers, or use --transport tcp"
    )]
    LibraryMissing {
        /// The file that was looked for.
        library: &'static str,
    },
    /// Libraries, but nothing to drive.
    #[error("this machine has no RDMA device (see `rdma link`): use --transport tcp")]
    NoDevice,
    /// The connection manager is a kernel module of its own.
    #[error(
        "the kernel's RDMA connection manager is missing: run `modprobe rdma_ucm`, or use --transport tcp"
    )]
    NoConnectionManager {
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Devices, but rdma_cm finds none of them behind an IP address of this network namespace.
    #[error(
        "none of the {devices} RDMA devices has a link that is up with an IP address in this network namespace: give one an address (`ip addr add`), or use --transport tcp"
    )]
    NoAddress {
        /// How many devices there are.
        devices: usize,
    },
    /// The address to listen on is not one of an RDMA device.
    #[error(
        "{address} is not an address of an RDMA device here: choose one of those that `rdma link` shows, or use --transport tcp"
    )]
    NotOurAddress {
        /// What was asked for.
        address: SocketAddr,
    },
    /// The address is right, but nobody can listen there now.
    #[error("listening on {address} failed: is another memory node running there?")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// With several devices, "any address" does not say which one a key is for.
    #[error("{devices} RDMA devices have addresses here: listen on the address of one of them")]
    WhichDevice {
        /// How many.
        devices: usize,
    },
    /// A device is there but cannot be used, mostly for permissions on /dev/infiniband.
    #[error(
        "the RDMA device cannot be opened (is /dev/infiniband accessible?): use --transport tcp"
    )]
    Device {
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Threads, epoll or event descriptors.
    #[error("the verbs transport could not be set up")]
    System {
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Both libraries are in this process; the fork decision is taken.
pub(super) fn ready() -> Result<(), OpenError> {
    for (file, library) in [
        (c"libibverbs.so.1", "libibverbs.so.1"),
        (c"librdmacm.so.1", "librdmacm.so.1"),
    ] {
        if !is_loaded(file) {
            return Err(OpenError::LibraryMissing { library });
        }
    }
    decide_about_fork();
    Ok(())
}

fn is_loaded(file: &CStr) -> bool {
    // SAFETY: RTLD_NOLOAD loads and runs nothing; it says whether the object is in the process, which
    // it then never leaves, because the reference taken here is kept.
    let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    !handle.is_null()
}

fn decide_about_fork() {
    static DECIDED: OnceLock<()> = OnceLock::new();
    DECIDED.get_or_init(|| {
        // SAFETY: no arguments, callable at any time.
        if unsafe { ffi::ibv_is_fork_initialized() } == ffi::IBV_FORK_UNNEEDED {
            return;
        }
        // SAFETY: as above; it fails with EINVAL when somebody registered memory before.
        if let Err(error) = ffi::zero_or_errno(unsafe { ffi::ibv_fork_init() }) {
            tracing::warn!(%error, "this kernel does not keep registered memory safe across fork, and libibverbs could not be told to: do not fork while connected");
        }
    });
}

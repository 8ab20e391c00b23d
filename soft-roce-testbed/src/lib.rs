//! Real Soft-RoCE (`rdma_rxe`) devices for tests and benches, on any machine.
//!
//! Where this host's kernel can load `rdma_rxe` and we are root, a command runs right here; elsewhere
//! it runs in a Debian kernel booted by QEMU, whose root is this host's `/` (read-only, with a
//! throw-away layer on top), so that the same binaries, libraries and tools are there.
//!
//! ```text
//!  Testbed::detect ──> place: Host | Guest
//!        │
//!      boot ──> Booted ── run(Job) ──> Outcome      (as many jobs as wanted, one after the other)
//!                 │
//!   caller ── stdout/stderr ◄── frames over one virtio-serial port ◄── `inside` (process 1 of the guest)
//!                                                                        │ topology, command
//!                                                                        ▼
//!                                                              rxe1 ── veth ── rxe2
//! ```
//!
//! [`link`] injects faults (link down, loss, delay) from a test that runs inside. Nothing here installs
//! packages: kernels, and a QEMU newer than the machine's, are unpacked under the checkout's `target/`.

mod apt_source;
mod booted;
mod console;
mod device;
mod frames;
mod guest;
mod host;
mod initramfs;
pub mod inside;
mod interrupts;
mod job;
mod kernel;
mod kernel_store;
pub mod link;
mod machine;
mod modules;
mod packages;
mod presence;
mod qemu_store;
mod testbed;
mod topology;

pub use apt_source::{AptSource, AptSourceError};
pub use booted::Booted;
pub use console::Diagnosis;
pub use frames::FrameError;
pub use guest::BootError;
pub use host::HostError;
pub use initramfs::archive_of_init;
pub use job::{Job, Outcome, OutputSink, PassThrough, RunError};
pub use kernel::{KernelSeries, KernelSeriesError};
pub use kernel_store::{Kernel, KernelStore, KernelStoreError};
pub use modules::MissingModule;
pub use packages::PackagesError;
pub use presence::is_inside;
pub use qemu_store::newer_qemu;
pub use testbed::{DetectError, Options, Place, Testbed, Wanted, WantedError, kvm_is_usable};
pub use topology::{NODES_MAX, Topology, TopologyError};

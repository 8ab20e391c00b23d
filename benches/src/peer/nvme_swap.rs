//! Swap on a RAM disk of the "other machine", reached by NVMe over RDMA.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{PeerError, make_directory, run, write};

const TARGET: &str = "/sys/kernel/config/nvmet";
const NAME: &str = "nqn.2024-01.mycoram:bench";
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:6f1c2c1e-2d3d-4a5b-8f00-000000000001";
const HOST_ID: &str = "6f1c2c1e-2d3d-4a5b-8f00-000000000001";
const PORT: &str = "4420";
const DEVICE: &str = "/dev/nvme0n1";
/// How long the device may take to appear.
const APPEARS: Duration = Duration::from_secs(10);

/// The swap, on.
pub(crate) struct NvmeSwap(());

impl NvmeSwap {
    /// Makes a target of `bytes` that listens on `address`, connects to it, and swaps to it.
    pub(crate) fn start(address: &str, bytes: u64) -> Result<Self, PeerError> {
        if std::env::var_os("MYCORAM_TESTBED_TOPOLOGY").is_none() {
            return Err(PeerError::NotInGuest);
        }
        let blocks = format!("rd_size={}", bytes / 1024);
        run("modprobe", &["brd", "rd_nr=1", &blocks])?;
        run("modprobe", &["nvmet-rdma"])?;
        run("modprobe", &["nvme-rdma"])?;
        if !Path::new(TARGET).exists() {
            run("mount", &["-t", "configfs", "none", "/sys/kernel/config"])?;
        }
        let subsystem = format!("{TARGET}/subsystems/{NAME}");
        make_directory(&subsystem)?;
        write(format!("{subsystem}/attr_allow_any_host"), "1")?;
        make_directory(format!("{subsystem}/namespaces/1"))?;
        write(format!("{subsystem}/namespaces/1/device_path"), "/dev/ram0")?;
        write(format!("{subsystem}/namespaces/1/enable"), "1")?;
        let port = format!("{TARGET}/ports/1");
        make_directory(&port)?;
        write(format!("{port}/addr_adrfam"), "ipv4")?;
        write(format!("{port}/addr_trtype"), "rdma")?;
        write(format!("{port}/addr_traddr"), address)?;
        write(format!("{port}/addr_trsvcid"), PORT)?;
        let link = format!("{port}/subsystems/{NAME}");
        symlink(&subsystem, &link).map_err(|source| PeerError::File {
            path: link.into(),
            source,
        })?;
        write(
            "/dev/nvme-fabrics",
            &format!(
                "nqn={NAME},transport=rdma,traddr={address},trsvcid={PORT},hostnqn={HOST},hostid={HOST_ID}"
            ),
        )?;
        let start = Instant::now();
        while !Path::new(DEVICE).exists() {
            if start.elapsed() > APPEARS {
                return Err(PeerError::NoDevice {
                    seconds: APPEARS.as_secs(),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        run("mkswap", &[DEVICE])?;
        run("swapon", &[DEVICE])?;
        Ok(Self(()))
    }

    /// Sets how many pages (two to the power of `cluster`) the kernel reads at a swap fault.
    pub(crate) fn set_cluster(&self, cluster: u32) -> Result<(), PeerError> {
        write("/proc/sys/vm/page-cluster", &cluster.to_string())
    }
}

//! What a user would take instead: the kernel's swap on memory of another machine, over NVMe-oF RDMA on the
//! same device.
//!
//! ```text
//!   program in a control group      nvme0n1 (nvme-rdma)           nvmet-rdma -- brd (a RAM disk)
//!   memory.max = the budget    ---> swap            --RDMA-->     10.77.0.2
//! ```
//!
//! Set up by files of configfs and /dev/nvme-fabrics alone, and not taken down: it is made in a guest
//! that is thrown away.

mod control_group;
mod nvme_swap;

pub(crate) use control_group::ControlGroup;
pub(crate) use nvme_swap::NvmeSwap;

use std::path::{Path, PathBuf};

/// Why the kernel's far memory is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    #[error(
        "this is not a guest of the test bed, and what is set up here is not taken down: use cargo xtask bench peers"
    )]
    NotInGuest,
    #[error("{} could not be used", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} could not be run")]
    Start {
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} failed: {words}")]
    Failed {
        program: &'static str,
        words: Box<str>,
    },
    #[error("the NVMe device did not appear in {seconds} s")]
    NoDevice { seconds: u64 },
}

fn write(path: impl AsRef<Path>, text: &str) -> Result<(), PeerError> {
    let path = path.as_ref();
    // Not created: these are files that the kernel has or has not.
    let file = |source| PeerError::File {
        path: path.to_owned(),
        source,
    };
    std::io::Write::write_all(
        &mut std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .map_err(file)?,
        text.as_bytes(),
    )
    .map_err(file)
}

fn make_directory(path: impl AsRef<Path>) -> Result<(), PeerError> {
    let path = path.as_ref();
    std::fs::create_dir_all(path).map_err(|source| PeerError::File {
        path: path.to_owned(),
        source,
    })
}

fn run(program: &'static str, words: &[&str]) -> Result<(), PeerError> {
    let output = std::process::Command::new(program)
        .args(words)
        .output()
        .map_err(|source| PeerError::Start { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().into();
    Err(PeerError::Failed { program, words })
}

//! A control group that holds a program to so much memory.

use std::path::PathBuf;

use super::{PeerError, make_directory, write};

const ROOT: &str = "/sys/fs/cgroup";

/// A group with a limit; removed when dropped, once its processes have gone.
pub(crate) struct ControlGroup {
    path: PathBuf,
}

impl ControlGroup {
    /// A new group whose processes may have `bytes` of memory, and swap as much as they like.
    pub(crate) fn with_memory(name: &str, bytes: u64) -> Result<Self, PeerError> {
        write(format!("{ROOT}/cgroup.subtree_control"), "+memory")?;
        let path = PathBuf::from(ROOT).join(name);
        make_directory(&path)?;
        let group = Self { path };
        group.set_memory(bytes)?;
        Ok(group)
    }

    /// Changes the limit.
    pub(crate) fn set_memory(&self, bytes: u64) -> Result<(), PeerError> {
        write(self.path.join("memory.max"), &bytes.to_string())
    }

    /// What a process writes 0 to, to be in the group.
    pub(crate) fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Bytes charged to it now.
    pub(crate) fn memory(&self) -> u64 {
        std::fs::read_to_string(self.path.join("memory.current"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}

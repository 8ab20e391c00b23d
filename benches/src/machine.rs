//! On what a figure was taken: commit, processor, kernel.

use std::process::Command;

use serde::Serialize;

/// Where a report comes from.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// The commit that was built, with `-dirty` when files differ from it; null outside of a checkout.
    pub(crate) commit: Option<String>,
    pub(crate) machine: Processor,
    /// `uname -r`.
    pub(crate) kernel: String,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Processor {
    model: String,
    cpus: usize,
    memory_bytes: u64,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let line = |file: &str, key: &str| {
            std::fs::read_to_string(file).ok().and_then(|text| {
                text.lines()
                    .find(|line| line.starts_with(key))
                    .and_then(|line| line.split_once(':'))
                    .map(|(_, value)| value.trim().to_owned())
            })
        };
        let memory_kib = line("/proc/meminfo", "MemTotal")
            .and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        Self {
            // A guest has no git; who starts the bench there says which commit it is.
            commit: std::env::var("MYCORAM_COMMIT").ok().or_else(commit),
            machine: Processor {
                model: line("/proc/cpuinfo", "model name").unwrap_or_default(),
                cpus: std::thread::available_parallelism().map_or(1, usize::from),
                memory_bytes: memory_kib.unwrap_or(0) * 1024,
            },
            kernel: nix::sys::utsname::uname()
                .map(|names| names.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
        }
    }
}

fn commit() -> Option<String> {
    let output = Command::new("git")
        .args([
            "describe",
            "--always",
            "--dirty",
            "--abbrev=40",
            "--exclude=*",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.is_empty()).then(|| text.trim().to_owned())
}

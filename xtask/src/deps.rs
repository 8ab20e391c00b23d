//! `cargo xtask deps`: what the rest needs from the system, installed after saying so.
//!
//! xtask itself builds with the Rust toolchain alone, so that this can be the first thing a fresh
//! machine runs.

use std::io;
use std::process::{Command, ExitCode, Stdio};

use clap::Args;

/// Packages to build with, and what they are for.
const BUILD: &[Package] = &[
    Package::new("build-essential", "the linker and C examples"),
    Package::new("pkg-config", "finding libraries"),
    Package::new("libclang-dev", "bindings of libibverbs"),
    Package::new("cmake", "the independent ibverbs crate"),
    Package::new("libibverbs-dev", "verbs headers, and the rdma-sys feature"),
    Package::new("librdmacm-dev", "the rdma-sys feature"),
];

/// Packages to run the product, its demo and its tests with.
const RUN: &[Package] = &[
    Package::new("libibverbs1", "verbs at run time"),
    Package::new("librdmacm1", "RDMA connections"),
    Package::new("ibverbs-providers", "drivers of RDMA devices"),
    Package::new("qemu-system-x86", "guests"),
    Package::new("busybox-static", "the first root of guests"),
    Package::new("kmod", "indexing kernel modules"),
    Package::new("xz-utils", "unpacking kernel modules"),
    Package::new("iproute2", "links, namespaces and rdma devices"),
    Package::new("perftest", "measuring a device without our code"),
    Package::new("ibverbs-utils", "looking at devices"),
    Package::new("rdmacm-utils", "looking at RDMA connections"),
    Package::new("python3", "a target of tests whose calls are interrupted"),
    Package::new("etcd-server", "the store that several control planes share"),
    Package::new("nvme-cli", "the swap-over-NVMe-oF peer of the benches"),
];

struct Package {
    name: &'static str,
    purpose: &'static str,
}

impl Package {
    const fn new(name: &'static str, purpose: &'static str) -> Self {
        Self { name, purpose }
    }
}

/// Options of `cargo xtask deps`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only say what is missing; exit code 1 if anything is.
    #[arg(long)]
    check: bool,
}

/// Why the system's packages could not be completed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DepsError {
    /// Not a Debian.
    #[error(
        "this machine has no dpkg; install by its own means what these Debian packages hold: {wanted}"
    )]
    NoDpkg { wanted: Box<str> },
    /// Neither root nor sudo.
    #[error("packages are missing and only root can install them; run: apt-get install {missing}")]
    NotRoot { missing: Box<str> },
    /// apt-get failed.
    #[error("apt-get {step} failed; run by hand: apt-get install {missing}")]
    Apt {
        step: &'static str,
        missing: Box<str>,
    },
    /// A program could not be started.
    #[error("cannot run {program}")]
    Start {
        program: &'static str,
        source: io::Error,
    },
}

/// Installs what is missing, or says it.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let result = if arguments.check {
        check()
    } else {
        ensure().map(|()| true)
    };
    match result {
        Ok(true) => {
            println!("deps: everything is there");
            ExitCode::SUCCESS
        }
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("deps: {}", crate::testbed::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<bool, DepsError> {
    let missing = missing()?;
    for package in &missing {
        println!("deps: missing {}: {}", package.name, package.purpose);
    }
    Ok(missing.is_empty())
}

/// Installs what is missing, after naming each package and its purpose.
pub(crate) fn ensure() -> Result<(), DepsError> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        eprintln!("deps: installing {}: {}", package.name, package.purpose);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let listed: Box<str> = names.join(" ").into();
    if !apt_get(&["-qq", "update"], &listed)? {
        eprintln!("deps: apt-get update failed; trying with the lists that are there");
    }
    let mut words = vec!["-qq", "install", "--yes", "--no-install-recommends"];
    words.extend(&names);
    if apt_get(&words, &listed)? {
        Ok(())
    } else {
        Err(DepsError::Apt {
            step: "install",
            missing: listed,
        })
    }
}

fn missing() -> Result<Vec<&'static Package>, DepsError> {
    let all: Vec<&'static Package> = BUILD.iter().chain(RUN).collect();
    let names: Vec<&str> = all.iter().map(|package| package.name).collect();
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status} ${Package}\\n"])
        .args(&names)
        .stderr(Stdio::null())
        .output()
        .map_err(|_| DepsError::NoDpkg {
            wanted: names.join(" ").into(),
        })?;
    let said = String::from_utf8_lossy(&output.stdout);
    let installed = installed(&said);
    Ok(all
        .into_iter()
        .filter(|package| !installed.contains(&package.name))
        .collect())
}

/// Names that dpkg calls installed; removed ones with files left behind are not.
fn installed(said: &str) -> Vec<&str> {
    said.lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect()
}

/// Runs apt-get as root; true if it succeeded.
fn apt_get(words: &[&str], missing: &str) -> Result<bool, DepsError> {
    let root = nix::unistd::geteuid().is_root();
    let has_sudo = || {
        Command::new("sudo")
            .args(["-n", "true"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let program = match (root, root || has_sudo()) {
        (true, _) => "apt-get",
        (false, true) => "sudo",
        (false, false) => {
            return Err(DepsError::NotRoot {
                missing: missing.into(),
            });
        }
    };
    let mut command = Command::new(program);
    if !root {
        command.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    }
    let status = command
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    Ok(status
        .map_err(|source| DepsError::Start { program, source })?
        .success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_package_is_not_installed() {
        assert_eq!(
            installed("installed kmod\nconfig-files cpio\nnot-installed zstd\n"),
            ["kmod"]
        );
    }
}

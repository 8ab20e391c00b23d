//! A QEMU that is newer than the machine's own, from its release's backports, unpacked and not installed.
//!
//! Owns `DIR/`: `unpacked/` (the packages' files) and `qemu-system-x86_64` (written last: a directory without
//! it is unfinished and made anew), which starts the unpacked one with the modules of its own build.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::packages::{PackageFetch, PackagesError, configured_suite, file};

const PACKAGE: &str = "qemu-system-x86";
const PROGRAM: &str = "qemu-system-x86_64";

/// The newer QEMU, fetched into `dir` if it is not there yet; `None` if the machine's apt sources lead to none.
pub fn newer_qemu(dir: &Path) -> Result<Option<PathBuf>, PackagesError> {
    let start = dir.join(PROGRAM);
    if start.is_file() {
        return Ok(Some(start));
    }
    fs::create_dir_all(dir).map_err(file(dir))?;
    let lock_path = dir.join("lock");
    let lock = File::create(&lock_path).map_err(file(&lock_path))?;
    lock.lock().map_err(file(&lock_path))?;
    if start.is_file() {
        return Ok(Some(start));
    }
    let release = configured_suite()?;
    let backports = format!("{release}-backports");
    let fetch = PackageFetch::from_suites(dir, &format!("{release} {backports}"))?;
    if !offers_newer(&fetch.versions(PACKAGE, &backports)?) {
        return Ok(None);
    }
    eprintln!(
        "testbed: fetching a newer QEMU from suite {backports} (once; kept in {})",
        dir.display()
    );
    fetch.download_with_missing(PACKAGE, &backports)?;
    let unpacked = dir.join("unpacked");
    fetch.unpack(&unpacked)?;
    let text = start_script(&fs::canonicalize(&unpacked).map_err(file(&unpacked))?);
    let unfinished = dir.join("unfinished");
    fs::write(&unfinished, text).map_err(file(&unfinished))?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o755))
        .map_err(file(&unfinished))?;
    fs::rename(&unfinished, &start).map_err(file(&start))?;
    Ok(Some(start))
}

/// Whether the candidate is another version than the one that is installed.
fn offers_newer(policy: &str) -> bool {
    let version = |key: &str| {
        let line = policy
            .lines()
            .find_map(|line| line.trim().strip_prefix(key));
        line.map(str::trim).filter(|version| *version != "(none)")
    };
    version("Candidate:").is_some_and(|candidate| version("Installed:") != Some(candidate))
}

/// It finds its firmware by where it lies, its libraries and modules by what it is told.
fn start_script(unpacked: &Path) -> String {
    let usr = unpacked.join("usr");
    let libraries = usr.join("lib/x86_64-linux-gnu");
    format!(
        "#!/bin/sh\n\
         # Written by the test bed; see soft-roce-testbed/src/qemu_store.rs.\n\
         export QEMU_MODULE_DIR='{modules}'\n\
         export LD_LIBRARY_PATH='{libraries}'\n\
         exec '{program}' \"$@\"\n",
        modules = libraries.join("qemu").display(),
        libraries = libraries.display(),
        program = usr.join("bin").join(PROGRAM).display(),
    )
}

#[cfg(test)]
mod tests {
    use super::offers_newer;

    #[test]
    fn only_another_version_is_newer() {
        let policy = |installed: &str, candidate: &str| {
            format!("qemu-system-x86:\n  Installed: {installed}\n  Candidate: {candidate}\n")
        };
        assert!(offers_newer(&policy("1:7.2+dfsg-7", "1:10.0.2~bpo12+1")));
        assert!(offers_newer(&policy("(none)", "1:10.0.2~bpo12+1")));
        assert!(!offers_newer(&policy("1:7.2+dfsg-7", "1:7.2+dfsg-7")));
        assert!(!offers_newer(&policy("1:7.2+dfsg-7", "(none)")));
        assert!(!offers_newer("N: Unable to locate package qemu-system-x86"));
    }
}

//! Debian packages of any suite, fetched through the machine's own apt and unpacked: never installed.
//!
//! ```text
//!   configured source ─ with another suite ─> lists of our own ─> packages/*.deb ─ dpkg-deb ─> a directory
//! ```
//!
//! Everything lies in the directory that the caller gives; downloads and lists go when they were unpacked.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::apt_source::{AptSource, AptSourceError};

/// Why packages could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PackagesError {
    /// Reading or writing below the directory.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot run {program}")]
    Start {
        /// Its name.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {said}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// The end of what it wrote.
        said: Box<str>,
    },
    /// The machine's apt sources are of no use.
    #[error(transparent)]
    Source(#[from] AptSourceError),
}

/// The lists of some suites, and what is downloaded by them.
#[derive(Debug)]
pub(crate) struct PackageFetch {
    dir: PathBuf,
}

impl PackageFetch {
    /// Fetches the lists of `suites` (separated by blanks) into `dir`, which is there.
    pub(crate) fn from_suites(dir: &Path, suites: &str) -> Result<Self, PackagesError> {
        let source = configured_source()?;
        let fetch = Self {
            dir: dir.to_owned(),
        };
        let source_file = fetch.source_file();
        fs::write(&source_file, source.for_suite(suites)).map_err(file(&source_file))?;
        for made in [
            fetch.lists().join("partial"),
            fetch.packages().join("partial"),
        ] {
            fs::create_dir_all(&made).map_err(file(&made))?;
        }
        fetch.apt("apt-get", &["-qq", "update"])?;
        Ok(fetch)
    }

    fn source_file(&self) -> PathBuf {
        self.dir.join("derived.sources")
    }

    fn lists(&self) -> PathBuf {
        self.dir.join("lists")
    }

    fn packages(&self) -> PathBuf {
        self.dir.join("packages")
    }

    fn apt(&self, program: &'static str, words: &[&str]) -> Result<Output, PackagesError> {
        let mut command = Command::new(program);
        for option in [
            format!("Dir::Etc::sourcelist={}", self.source_file().display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::Lists={}", self.lists().display()),
            format!("Dir::Cache={}", self.dir.display()),
            format!("Dir::Cache::Archives={}", self.packages().display()),
            // The directory is ours, perhaps below a private home: the unprivileged helper user could not write it.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        checked(program, command.args(words).current_dir(self.packages()))
    }

    /// Names of packages that start with `prefix`, one a line.
    pub(crate) fn names(&self, prefix: &str) -> Result<String, PackagesError> {
        let names = self.apt("apt-cache", &["pkgnames", prefix])?;
        Ok(String::from_utf8_lossy(&names.stdout).into_owned())
    }

    /// What apt knows of a package in `suite`, versions in the order of their number.
    pub(crate) fn versions(&self, package: &str, suite: &str) -> Result<String, PackagesError> {
        let known = self.apt("apt-cache", &["-t", suite, "policy", package])?;
        Ok(String::from_utf8_lossy(&known.stdout).into_owned())
    }

    /// Downloads these packages, without what they depend on.
    pub(crate) fn download(&self, packages: &[String]) -> Result<(), PackagesError> {
        let mut words = vec!["-qq", "download"];
        words.extend(packages.iter().map(String::as_str));
        self.apt("apt-get", &words).map(|_| ())
    }

    /// Downloads `package` of `suite`, and of what it depends on all that this machine lacks or has too old.
    pub(crate) fn download_with_missing(
        &self,
        package: &str,
        suite: &str,
    ) -> Result<(), PackagesError> {
        let words = [
            "-qq",
            "--yes",
            "--no-install-recommends",
            "--download-only",
            "-t",
            suite,
            "install",
            package,
        ];
        self.apt("apt-get", &words).map(|_| ())
    }

    /// Unpacks what was downloaded into `unpacked`; downloads and lists are gone then.
    pub(crate) fn unpack(self, unpacked: &Path) -> Result<(), PackagesError> {
        let packages = self.packages();
        for entry in fs::read_dir(&packages).map_err(file(&packages))? {
            let package = entry.map_err(file(&packages))?.path();
            if package.extension().is_none_or(|end| end != "deb") {
                continue;
            }
            let mut command = Command::new("dpkg-deb");
            let command = command.arg("--extract").arg(&package).arg(unpacked);
            checked("dpkg-deb", command)?;
        }
        for done in [packages, self.lists()] {
            fs::remove_dir_all(&done).map_err(file(&done))?;
        }
        Ok(())
    }
}

/// The release that this machine's apt is configured for, such as `bookworm`.
pub(crate) fn configured_suite() -> Result<String, PackagesError> {
    Ok(configured_source()?.suite().to_owned())
}

/// The first usable source among `/etc/apt/sources.list.d/*.sources` and `/etc/apt/sources.list`.
fn configured_source() -> Result<AptSource, PackagesError> {
    let parts = Path::new("/etc/apt/sources.list.d");
    let mut deb822: Vec<PathBuf> = fs::read_dir(parts)
        .map(|entries| {
            entries
                .filter_map(Result::ok)
                .map(|entry| entry.path())
                .collect()
        })
        .unwrap_or_default();
    deb822.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "sources")
    });
    deb822.sort();
    let from_deb822 = deb822
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .find_map(|text| AptSource::from_deb822(&text).ok());
    if let Some(source) = from_deb822 {
        return Ok(source);
    }
    let text = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    Ok(AptSource::from_one_line(&text)?)
}

pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> PackagesError {
    let path = path.to_owned();
    move |source| PackagesError::File { path, source }
}

/// Users other than root often have no `sbin` in their `PATH`, where depmod lives.
fn path_with_sbin() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Runs a program to its end; what it wrote, or why it failed.
pub(crate) fn checked(
    program: &'static str,
    command: &mut Command,
) -> Result<Output, PackagesError> {
    let output = command
        .env("PATH", path_with_sbin())
        .stdin(Stdio::null())
        .output()
        .map_err(|source| PackagesError::Start { program, source })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = said.lines().rev().take(4).collect();
    Err(PackagesError::Failed {
        program,
        said: tail.into_iter().rev().collect::<Vec<_>>().join("; ").into(),
    })
}

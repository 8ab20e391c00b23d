//! Debian kernels unpacked under `target/`, fetched through the machine's own apt: never installed.
//!
//! Owns `DIR/<series>/`: `unpacked/` (the packages' files), `modules/` (those the guest loads first,
//! plain), `ready.json` (written last: a directory without it is unfinished and made anew).

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::{Deserialize, Serialize};

use crate::apt_source::{AptSource, AptSourceError};
use crate::kernel::KernelSeries;
use crate::modules::{self, MissingModule};

/// A kernel ready to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// The boot image.
    pub vmlinuz: PathBuf,
    /// `lib/modules/RELEASE` with all modules.
    pub modules_dir: PathBuf,
    /// Decompressed modules of the first root, in load order.
    pub first_modules: Vec<PathBuf>,
}

impl Kernel {
    fn map_paths(&self, map: impl Fn(&Path) -> PathBuf) -> Self {
        Self {
            release: self.release.clone(),
            vmlinuz: map(&self.vmlinuz),
            modules_dir: map(&self.modules_dir),
            first_modules: self.first_modules.iter().map(|path| map(path)).collect(),
        }
    }
}

/// Where kernels are kept.
#[derive(Debug, Clone)]
pub struct KernelStore {
    dir: PathBuf,
}

/// Why a kernel could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelStoreError {
    /// Reading or writing under the store.
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
    /// The suite has no kernel of the series.
    #[error("suite {suite} offers no kernel {series}")]
    NoSuchKernel {
        /// The series.
        series: KernelSeries,
        /// Where it was looked for.
        suite: &'static str,
    },
    /// A package without the image or the modules.
    #[error("the packages of kernel {series} hold no {missing}")]
    Incomplete {
        /// The series.
        series: KernelSeries,
        /// What is not there.
        missing: &'static str,
    },
    /// A needed module is not there.
    #[error(transparent)]
    Module(#[from] MissingModule),
}

impl KernelStore {
    /// A store in `dir`, which is made when it is first needed.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The kernel, fetched and unpacked if it is not there yet. One process at a time does that.
    pub fn kernel(&self, series: KernelSeries) -> Result<Kernel, KernelStoreError> {
        let dir = self.dir.join(series.name());
        if let Some(kernel) = read_ready(&dir) {
            return Ok(kernel);
        }
        fs::create_dir_all(&self.dir).map_err(file(&self.dir))?;
        let lock_path = self.dir.join(format!("{series}.lock"));
        let lock = File::create(&lock_path).map_err(file(&lock_path))?;
        lock.lock().map_err(file(&lock_path))?;
        if let Some(kernel) = read_ready(&dir) {
            return Ok(kernel);
        }
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(file(&dir))?;
        }
        fs::create_dir_all(&dir).map_err(file(&dir))?;
        eprintln!(
            "testbed: fetching kernel {series} from suite {} (once; kept in {})",
            series.suite(),
            dir.display()
        );
        self.fetch(series, &dir)?;
        let kernel = prepare(series, &dir)?;
        let ready = dir.join("ready.json");
        // Relative in the file, so that a moved or copied target/ still works.
        let stored = kernel.map_paths(|path| path.strip_prefix(&dir).unwrap_or(path).to_owned());
        let text = serde_json::to_vec_pretty(&stored).map_err(|error| KernelStoreError::File {
            path: ready.clone(),
            source: error.into(),
        })?;
        fs::write(&ready, text).map_err(file(&ready))?;
        Ok(kernel)
    }

    /// Downloads and unpacks the packages into `dir/unpacked`.
    fn fetch(&self, series: KernelSeries, dir: &Path) -> Result<(), KernelStoreError> {
        let source = configured_source()?;
        let source_file = dir.join("kernel.sources");
        fs::write(&source_file, source.for_suite(series.suite())).map_err(file(&source_file))?;
        let (lists, packages) = (dir.join("lists"), dir.join("packages"));
        for made in [lists.join("partial"), packages.clone()] {
            fs::create_dir_all(&made).map_err(file(&made))?;
        }
        let apt = |program: &'static str, words: &[&str]| -> Result<Output, KernelStoreError> {
            let mut command = Command::new(program);
            for option in [
                format!("Dir::Etc::sourcelist={}", source_file.display()),
                "Dir::Etc::sourceparts=-".to_owned(),
                format!("Dir::State::Lists={}", lists.display()),
                format!("Dir::Cache={}", dir.display()),
                // The download directory is ours, perhaps below a private home: the unprivileged helper user could not write it.
                "APT::Sandbox::User=root".to_owned(),
            ] {
                command.arg("-o").arg(option);
            }
            checked(program, command.args(words).current_dir(&packages))
        };
        apt("apt-get", &["-qq", "update"])?;
        let names = apt("apt-cache", &["pkgnames", &series.package_prefix()])?;
        let names = String::from_utf8_lossy(&names.stdout);
        let wanted = series
            .packages(names.lines())
            .ok_or(KernelStoreError::NoSuchKernel {
                series,
                suite: series.suite(),
            })?;
        let mut words = vec!["-qq", "download"];
        words.extend(wanted.iter().map(String::as_str));
        apt("apt-get", &words)?;
        let unpacked = dir.join("unpacked");
        for entry in fs::read_dir(&packages).map_err(file(&packages))? {
            let package = entry.map_err(file(&packages))?.path();
            checked(
                "dpkg-deb",
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(&package)
                    .arg(&unpacked),
            )?;
        }
        for done in [&packages, &lists] {
            fs::remove_dir_all(done).map_err(file(done))?;
        }
        Ok(())
    }
}

/// Finds image and modules, indexes them and decompresses those of the first root.
fn prepare(series: KernelSeries, dir: &Path) -> Result<Kernel, KernelStoreError> {
    let unpacked = dir.join("unpacked");
    let incomplete = |missing| KernelStoreError::Incomplete { series, missing };
    let base = [unpacked.join("usr"), unpacked.clone()]
        .into_iter()
        .find(|base| base.join("lib/modules").is_dir())
        .ok_or(incomplete("modules"))?;
    let modules_root = base.join("lib/modules");
    let release = fs::read_dir(&modules_root)
        .map_err(file(&modules_root))?
        .filter_map(Result::ok)
        .find_map(|entry| entry.file_name().into_string().ok())
        .ok_or(incomplete("modules"))?;
    let modules_dir = modules_root.join(&release);
    let vmlinuz = [
        unpacked.join(format!("boot/vmlinuz-{release}")),
        modules_dir.join("vmlinuz"),
    ]
    .into_iter()
    .find(|path| path.is_file())
    .ok_or(incomplete("boot image"))?;
    checked(
        "depmod",
        Command::new("depmod").arg("-b").arg(&base).arg(&release),
    )?;
    let read = |name: &str| {
        let path = modules_dir.join(name);
        fs::read_to_string(&path).map_err(file(&path))
    };
    let order = modules::load_order(&read("modules.dep")?, &read("modules.builtin")?)?;
    let plain_dir = dir.join("modules");
    fs::create_dir_all(&plain_dir).map_err(file(&plain_dir))?;
    let mut first_modules = Vec::new();
    for relative in order {
        let from = modules_dir.join(&relative);
        let name = relative.rsplit('/').next().unwrap_or(&relative);
        let (content, plain_name) = match name.strip_suffix(".xz") {
            Some(plain) => (
                checked("xz", Command::new("xz").arg("-dc").arg(&from))?.stdout,
                plain,
            ),
            None => (fs::read(&from).map_err(file(&from))?, name),
        };
        let to = plain_dir.join(plain_name);
        fs::write(&to, content).map_err(file(&to))?;
        first_modules.push(to);
    }
    Ok(Kernel {
        release,
        vmlinuz,
        modules_dir,
        first_modules,
    })
}

/// The first usable source among `/etc/apt/sources.list.d/*.sources` and `/etc/apt/sources.list`.
fn configured_source() -> Result<AptSource, KernelStoreError> {
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

fn read_ready(dir: &Path) -> Option<Kernel> {
    let kernel: Kernel = serde_json::from_slice(&fs::read(dir.join("ready.json")).ok()?).ok()?;
    let kernel = kernel.map_paths(|path| dir.join(path));
    kernel.vmlinuz.is_file().then_some(kernel)
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> KernelStoreError {
    let path = path.to_owned();
    move |source| KernelStoreError::File { path, source }
}

/// Users other than root often have no `sbin` in their `PATH`, where depmod lives.
fn path_with_sbin() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

fn checked(program: &'static str, command: &mut Command) -> Result<Output, KernelStoreError> {
    let output = command
        .env("PATH", path_with_sbin())
        .stdin(Stdio::null())
        .output()
        .map_err(|source| KernelStoreError::Start { program, source })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = said.lines().rev().take(4).collect();
    Err(KernelStoreError::Failed {
        program,
        said: tail.into_iter().rev().collect::<Vec<_>>().join("; ").into(),
    })
}

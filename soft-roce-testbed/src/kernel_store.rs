//! Debian kernels unpacked under `target/`, fetched through the machine's own apt: never installed.
//!
//! Owns `DIR/<series>/`: `unpacked/` (the packages' files), `modules/` (those the guest loads first,
//! plain), `ready.json` (written last: a directory without it is unfinished and made anew).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::kernel::KernelSeries;
use crate::modules::{self, MissingModule};
use crate::packages::{PackageFetch, PackagesError, checked, file};

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
    /// The packages could not be fetched, or not be used.
    #[error(transparent)]
    Packages(#[from] PackagesError),
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
        let text =
            serde_json::to_vec_pretty(&stored).map_err(|error| file(&ready)(error.into()))?;
        fs::write(&ready, text).map_err(file(&ready))?;
        Ok(kernel)
    }

    /// Downloads and unpacks the packages into `dir/unpacked`.
    fn fetch(&self, series: KernelSeries, dir: &Path) -> Result<(), KernelStoreError> {
        let fetch = PackageFetch::from_suites(dir, series.suite())?;
        let names = fetch.names(&series.package_prefix())?;
        let wanted = series
            .packages(names.lines())
            .ok_or(KernelStoreError::NoSuchKernel {
                series,
                suite: series.suite(),
            })?;
        fetch.download(&wanted)?;
        Ok(fetch.unpack(&dir.join("unpacked"))?)
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

fn read_ready(dir: &Path) -> Option<Kernel> {
    let kernel: Kernel = serde_json::from_slice(&fs::read(dir.join("ready.json")).ok()?).ok()?;
    let kernel = kernel.map_paths(|path| dir.join(path));
    kernel.vmlinuz.is_file().then_some(kernel)
}

//! `cargo xtask install-client --prefix DIR`: puts libmycoram where C programs find it.
//!
//! ```text
//!   DIR/include/mycoram.h
//!   DIR/lib/libmycoram.so.1, libmycoram.so -> libmycoram.so.1
//!   DIR/lib/pkgconfig/mycoram.pc
//! ```
//!
//! Nothing else is touched: for a prefix that the dynamic linker knows, run `ldconfig` afterwards.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::{checkout, testbed};

/// The name that programs are linked to; its number is the interface's version.
const SONAME: &str = "libmycoram.so.1";

/// Options of `cargo xtask install-client`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Where to: /usr/local, or any directory.
    #[arg(long, value_name = "DIR")]
    prefix: PathBuf,
    /// Cargo profile of the library.
    #[arg(long, value_name = "NAME", default_value = "release")]
    profile: String,
}

/// Why nothing was installed.
#[derive(Debug, thiserror::Error)]
enum InstallError {
    #[error("libmycoram could not be built")]
    Build,
    #[error("cargo could not be run")]
    Cargo(#[source] std::io::Error),
    #[error("{} could not be written", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Builds the library and installs it.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match install(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("install-client: {}", testbed::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn install(arguments: &Arguments) -> Result<(), InstallError> {
    let built = checkout::cargo()
        .args(["build", "--package", "mycoram", "--lib", "--profile"])
        .arg(&arguments.profile)
        .status()
        .map_err(InstallError::Cargo)?;
    if !built.success() {
        return Err(InstallError::Build);
    }
    // Cargo puts the profile named dev into a directory of another name.
    let directory = match arguments.profile.as_str() {
        "dev" => "debug",
        other => other,
    };
    let prefix = std::path::absolute(&arguments.prefix).map_err(|source| InstallError::Write {
        path: arguments.prefix.clone(),
        source,
    })?;
    let (lib, include) = (prefix.join("lib"), prefix.join("include"));
    let pkgconfig = lib.join("pkgconfig");
    for directory in [&include, &pkgconfig] {
        at(directory, fs::create_dir_all(directory))?;
    }
    let client = checkout::root().join("client");
    let library = checkout::target_dir().join(directory).join("libmycoram.so");
    place(&library, &lib.join(SONAME))?;
    let link = lib.join("libmycoram.so");
    let _ = fs::remove_file(&link);
    at(&link, symlink(SONAME, &link))?;
    place(
        &client.join("include/mycoram.h"),
        &include.join("mycoram.h"),
    )?;
    let template = client.join("mycoram.pc.in");
    let text = at(&template, fs::read_to_string(&template))?
        .replace("@prefix@", &prefix.to_string_lossy())
        .replace("@version@", env!("CARGO_PKG_VERSION"));
    let description = pkgconfig.join("mycoram.pc");
    at(&description, fs::write(&description, text))?;
    eprintln!("installed under {}", prefix.display());
    Ok(())
}

/// Copies beside the destination and renames, so that a program that has the old file mapped keeps it.
fn place(from: &Path, to: &Path) -> Result<(), InstallError> {
    let new = to.with_extension("new");
    at(&new, fs::copy(from, &new))?;
    at(to, fs::rename(&new, to))
}

fn at<T>(path: &Path, outcome: std::io::Result<T>) -> Result<T, InstallError> {
    outcome.map_err(|source| InstallError::Write {
        path: path.to_owned(),
        source,
    })
}

//! `cargo xtask hygiene`: no tracked file names a package registry or mirror that this machine is set up
//! with. Such a name is of no use to anybody else, and hides what a file really depends on.
//!
//! The names are read from the machine's own settings: none stands in this file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::checkout;

/// Larger files are data, not text.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// What a public crate index is called in every lock file: not a setting of this machine.
const PUBLIC_INDEX_OWNER: &str = "github.com";

/// Prints each line that names one.
pub(crate) fn run() -> ExitCode {
    let hosts = configured_hosts();
    let Ok(output) = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(checkout::root())
        .output()
    else {
        eprintln!("hygiene: cannot run git");
        return ExitCode::FAILURE;
    };
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found = 0;
    let mut files = 0;
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        files += 1;
        let path = checkout::root().join(name);
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > FILE_BYTES_MAX) {
            continue;
        }
        // What is not text has no lines to show.
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if hosts.iter().any(|host| line.contains(host.as_str())) {
                eprintln!(
                    "hygiene: {name}:{}: names a registry or mirror of this machine",
                    number + 1
                );
                found += 1;
            }
        }
    }
    if files == 0 || found > 0 {
        eprintln!("hygiene: {found} lines in {files} files");
        return ExitCode::FAILURE;
    }
    println!(
        "hygiene: {files} files name none of the {} registries and mirrors of this machine",
        hosts.len()
    );
    ExitCode::SUCCESS
}

/// Hosts in the settings of apt and cargo, and in the environment.
fn configured_hosts() -> BTreeSet<String> {
    let mut texts = Vec::new();
    let apt = Path::new("/etc/apt");
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let mut settings = vec![apt.join("sources.list")];
    for directory in [apt.join("sources.list.d"), apt.join("apt.conf.d")] {
        settings.extend(
            fs::read_dir(directory)
                .into_iter()
                .flatten()
                .filter_map(Result::ok)
                .map(|entry| entry.path()),
        );
    }
    settings.extend(
        home.iter()
            .flat_map(|home| [home.join("config.toml"), home.join("config")]),
    );
    texts.extend(
        settings
            .iter()
            .filter_map(|path| fs::read_to_string(path).ok()),
    );
    let names = |name: &str| {
        name.starts_with("CARGO_REGISTR")
            || name.starts_with("CARGO_SOURCE")
            || name.to_lowercase().ends_with("_proxy")
            || name.ends_with("_INDEX_URL")
    };
    texts.extend(
        std::env::vars()
            .filter(|(name, _)| names(name))
            .map(|(_, value)| value),
    );
    texts
        .iter()
        .flat_map(|text| hosts(text))
        .filter(|host| {
            host != PUBLIC_INDEX_OWNER && host.contains('.') && !host.starts_with("127.")
        })
        .collect()
}

/// Host names of the addresses in a text.
fn hosts(text: &str) -> Vec<String> {
    let after_scheme = text
        .match_indices("://")
        .map(|(at, mark)| &text[at + mark.len()..]);
    let host = after_scheme.map(|rest| {
        rest.split(|c: char| !(c.is_ascii_alphanumeric() || ".-@".contains(c)))
            .next()
            .unwrap_or_default()
    });
    host.map(|host| host.rsplit('@').next().unwrap_or(host).to_owned())
        .filter(|host| !host.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_in_settings() {
        let text = "URIs: http://one.invalid/debian\nregistry = \"sparse+https://user@two.invalid:8080/index/\"\nno://\n";
        assert_eq!(hosts(text), ["one.invalid", "two.invalid"]);
    }
}

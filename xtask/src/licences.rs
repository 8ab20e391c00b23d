//! `cargo xtask licences`: every dependency's licence is one that MIT OR Apache-2.0 code can be shipped with.
//!
//! Works offline, on what `cargo metadata` says. No opinion about advisories or sources.

use std::process::ExitCode;

use serde::Deserialize;

use crate::checkout;

/// Licences whose terms are kept by shipping their texts.
const ACCEPTED: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "BSL-1.0",
    "CC0-1.0",
    "Unlicense",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "MPL-2.0",
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

/// Prints each package whose licence is not accepted.
pub(crate) fn run() -> ExitCode {
    let output = checkout::cargo()
        .args(["metadata", "--format-version=1", "--locked"])
        .stderr(std::process::Stdio::inherit())
        .output();
    let metadata: Metadata = match output.map(|output| serde_json::from_slice(&output.stdout)) {
        Ok(Ok(metadata)) => metadata,
        Ok(Err(error)) => return failed(&format!("cargo metadata is not understood: {error}")),
        Err(error) => return failed(&format!("cannot run cargo: {error}")),
    };
    let refused: Vec<&Package> = metadata
        .packages
        .iter()
        .filter(|package| !package.license.as_deref().is_some_and(is_accepted))
        .collect();
    for package in &refused {
        let licence = package.license.as_deref().unwrap_or("no licence");
        eprintln!("licences: {} {}: {licence}", package.name, package.version);
    }
    if refused.is_empty() {
        println!(
            "licences: {} packages, all accepted",
            metadata.packages.len()
        );
        ExitCode::SUCCESS
    } else {
        failed("not every licence is accepted")
    }
}

fn failed(said: &str) -> ExitCode {
    eprintln!("licences: {said}");
    ExitCode::FAILURE
}

/// Whether one may choose terms that are all accepted. `AND` binds stronger than `OR`; `/` is an old `OR`.
fn is_accepted(expression: &str) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let accepted = any_of(&words, &mut at);
    accepted && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize) -> bool {
    let mut accepted = all_of(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        accepted |= all_of(words, at);
    }
    accepted
}

fn all_of(words: &[&str], at: &mut usize) -> bool {
    let mut accepted = one(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        accepted &= one(words, at);
    }
    accepted
}

fn one(words: &[&str], at: &mut usize) -> bool {
    match words.get(*at) {
        Some(&"(") => {
            *at += 1;
            let accepted = any_of(words, at);
            if words.get(*at) == Some(&")") {
                *at += 1;
            }
            accepted
        }
        Some(licence) => {
            *at += 1;
            if words.get(*at) == Some(&"WITH") {
                let full = format!("{licence} WITH {}", words.get(*at + 1).unwrap_or(&""));
                *at += 2;
                return ACCEPTED.contains(&full.as_str());
            }
            ACCEPTED.contains(licence)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_needs_one_and_a_sum_needs_all() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-2.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        ] {
            assert!(is_accepted(good), "{good}");
        }
        for bad in [
            "GPL-2.0",
            "MIT AND GPL-2.0",
            "",
            "MIT MIT",
            "Apache-2.0 WITH odd-exception",
        ] {
            assert!(!is_accepted(bad), "{bad}");
        }
    }
}

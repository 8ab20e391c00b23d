//! `cargo xtask layout`: the rules of the house that a compiler does not know.
//!
//! - arrows between the houses point down only, and every direct dependency is explained in
//!   `docs/dependencies.md`, and nothing is explained there that is not used;
//! - a module opens with `//!`; a file over 800 lines says why, one over 1200 is two rooms;
//! - pure logic has no clock, socket, thread or system call in it;
//! - raw bindings are spoken to in one place each;
//! - docs tell what is: no unfinished words in the code.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;
use serde::Serialize;

/// The houses, from the top down. A house may know those behind it in this list.
const HOUSES: &[&str] = &[
    "myco",
    "mycoram-qemu",
    "mycoram",
    "mycoram-control",
    "mycoram-agent",
    "mycoram-fabric",
];

/// Over this many lines a file says why, in its `//!`, on a line that starts with this.
const LONG_FILE_LINES: usize = 800;
const LONG_FILE_REASON: &str = "//! Long because";
/// Over this many lines a file is two rooms.
const TWO_ROOMS_LINES: usize = 1200;

/// Places of pure logic. Each must exist: a place that was moved is moved here too.
const PURE: &[&str] = &[
    "uffd-agent/src/engine",
    "uffd-agent/src/policy",
    "uffd-agent/src/daemon/ledger.rs",
    "uffd-agent/src/daemon/message.rs",
    "fabric/src/transport/sim",
    "fabric/src/wire",
    "fabric/src/units.rs",
    "fabric/src/node/runs.rs",
    "fabric/src/node/ledger.rs",
    "fabric/src/node/core.rs",
    "fabric/src/remote/homes.rs",
    "fabric/src/remote/directory.rs",
    "fabric/src/remote/queue.rs",
    "fabric/src/group/roll.rs",
    "fabric/src/group/runs.rs",
    "fabric/src/rebuild/extent.rs",
    "fabric/src/rebuild/pace.rs",
    "fabric/src/rebuild/plan.rs",
    "fabric/src/transfer/budget.rs",
    "fabric/src/transfer/piece.rs",
    "fabric/src/transfer/progress.rs",
    "fabric/src/transfer/schedule.rs",
    "control-plane/src/cluster",
    "control-plane/src/store/format.rs",
    "control-plane/src/store/memory.rs",
    "control-plane/src/rendezvous.rs",
    "control-plane/src/static_placement.rs",
];
/// What pure logic does not say.
const IMPURE: &[&str] = &[
    "tokio::",
    "std::net::Tcp",
    "std::net::Udp",
    "Instant::now",
    "SystemTime::now",
    // A yield while waiting is no work of a thread's; these are.
    "std::thread::spawn",
    "std::thread::sleep",
    "std::thread::scope",
    "std::thread::Builder",
    "nix::",
    "libc::",
    "std::fs",
    "io_uring",
    "std::os::fd::OwnedFd",
];

/// Words of raw bindings and the only places that may say them.
const RAW: &[(&str, &[&str])] = &[
    (
        "ibv_",
        &["fabric/src/transport/verbs/", "soft-roce-testbed/"],
    ),
    ("UFFDIO_", &["uffd-agent/src/kernel/"]),
];

/// What finished code does not say.
const UNFINISHED: &[&str] = &["TODO", "FIXME", "XXX", "HACK"];

#[derive(Args)]
pub(crate) struct Arguments {
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// One broken rule.
#[derive(Serialize)]
struct Finding {
    place: String,
    rule: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.rule)
    }
}

/// A source file of the checkout.
struct Source {
    /// Relative to the checkout.
    path: String,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs")
    }

    /// The code in front of its unit tests, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .zip(1..)
            .take_while(|(line, _)| !line.starts_with("#[cfg(test)]"))
            .filter(|(line, _)| !line.trim_start().starts_with("//"))
            .map(|(line, number)| (number, line))
    }
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let root = crate::checkout::root();
    let findings = match inspect(root) {
        Ok(findings) => findings,
        Err(error) => {
            eprintln!("the checkout cannot be read: {error}");
            return ExitCode::FAILURE;
        }
    };
    if arguments.json {
        println!(
            "{}",
            serde_json::json!({ "schema": "xtask.layout", "schema_version": 1, "findings": findings })
        );
    } else {
        findings.iter().for_each(|finding| println!("{finding}"));
    }
    if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn inspect(root: &Path) -> std::io::Result<Vec<Finding>> {
    let sources = sources(root)?;
    let mut findings = Vec::new();
    check_rooms(&sources, &mut findings);
    check_pure(&sources, &mut findings);
    check_raw(&sources, &mut findings);
    check_manifests(root, &mut findings)?;
    Ok(findings)
}

/// Every Rust file that git knows or would take.
fn sources(root: &Path) -> std::io::Result<Vec<Source>> {
    let listed = Command::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "*.rs",
        ])
        .current_dir(root)
        .output()?;
    let mut sources = Vec::new();
    for path in String::from_utf8_lossy(&listed.stdout).lines() {
        // A file that was deleted and not yet committed is still listed.
        if let Ok(text) = std::fs::read_to_string(root.join(path)) {
            sources.push(Source {
                path: path.to_owned(),
                text,
            });
        }
    }
    if sources.is_empty() {
        return Err(std::io::Error::other(
            "git lists no Rust file: is this a checkout?",
        ));
    }
    Ok(sources)
}

fn check_rooms(sources: &[Source], findings: &mut Vec<Finding>) {
    for source in sources {
        let mut say = |rule: String| {
            findings.push(Finding {
                place: source.path.clone(),
                rule,
            })
        };
        if !source.text.starts_with("//!") && !source.is_test() {
            say("opens without //!: say what it is for".to_owned());
        }
        let lines = source.text.lines().count();
        if lines > TWO_ROOMS_LINES {
            say(format!("{lines} lines: this is two rooms"));
        } else if lines > LONG_FILE_LINES
            && !source
                .text
                .lines()
                .any(|line| line.starts_with(LONG_FILE_REASON))
        {
            say(format!(
                "{lines} lines: split it, or say why with `{LONG_FILE_REASON} ..`"
            ));
        }
        if source.path == "xtask/src/layout.rs" {
            continue;
        }
        for (number, line) in source
            .text
            .lines()
            .zip(1..)
            .map(|(line, number)| (number, line))
        {
            if let Some(word) = UNFINISHED.iter().find(|word| line.contains(**word)) {
                say(format!(
                    "line {number} says {word}: finish it, or make it an issue"
                ));
            }
        }
    }
}

fn check_pure(sources: &[Source], findings: &mut Vec<Finding>) {
    for place in PURE {
        let mut found = false;
        for source in sources
            .iter()
            .filter(|source| source.path.starts_with(place))
        {
            found = true;
            if source.is_test() {
                continue;
            }
            for (number, line) in source.code() {
                if let Some(word) = IMPURE.iter().find(|word| line.contains(**word)) {
                    findings.push(Finding {
                        place: format!("{}:{number}", source.path),
                        rule: format!("pure logic says `{word}`"),
                    });
                }
            }
        }
        if !found {
            findings.push(Finding {
                place: (*place).to_owned(),
                rule: "pure logic is expected here: was it moved?".to_owned(),
            });
        }
    }
}

fn check_raw(sources: &[Source], findings: &mut Vec<Finding>) {
    for (word, places) in RAW {
        for source in sources
            .iter()
            .filter(|source| source.path != "xtask/src/layout.rs")
        {
            if places.iter().any(|place| source.path.starts_with(place)) {
                continue;
            }
            for (number, line) in source.code().filter(|(_, line)| line.contains(word)) {
                let _ = line;
                findings.push(Finding {
                    place: format!("{}:{number}", source.path),
                    rule: format!("`{word}` is said outside of {}", places.join(", ")),
                });
            }
        }
    }
}

fn check_manifests(root: &Path, findings: &mut Vec<Finding>) -> std::io::Result<()> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(root)
        .output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let page_path = PathBuf::from("docs/dependencies.md");
    let page = std::fs::read_to_string(root.join(&page_path))?;
    let explained: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|row| row.split(" |").next())
        .flat_map(|names| names.split(", "))
        .map(|name| name.trim_matches('`'))
        .collect();
    let mut used = BTreeSet::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let height = HOUSES.iter().position(|house| *house == name);
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or_default();
            let is_ours = dependency["path"].is_string();
            if !is_ours {
                used.insert(on);
            }
            let below = HOUSES.iter().position(|house| *house == on);
            if let (Some(height), Some(below)) = (height, below) {
                if below <= height {
                    findings.push(Finding {
                        place: name.to_owned(),
                        rule: format!("knows {on}: arrows point down only"),
                    });
                }
            } else if height.is_some() && is_ours && dependency["kind"].as_str() != Some("dev") {
                findings.push(Finding {
                    place: name.to_owned(),
                    rule: format!("knows {on}, which is not a house below it"),
                });
            }
        }
    }
    let page = page_path.display().to_string();
    for name in used.difference(&explained) {
        findings.push(Finding {
            place: page.clone(),
            rule: format!("`{name}` is used and not explained"),
        });
    }
    for name in explained.difference(&used) {
        findings.push(Finding {
            place: page.clone(),
            rule: format!("`{name}` is explained and not used"),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Finding, Source, check_pure, check_raw, check_rooms};

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    fn places(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_room_without_a_sign_or_with_too_much_in_it_is_found() {
        let mut findings = Vec::new();
        check_rooms(
            &[
                source("a/src/b.rs", "use c;\n"),
                source("a/src/d.rs", &format!("//! d\n{}", "x\n".repeat(900))),
            ],
            &mut findings,
        );
        assert_eq!(findings.len(), 2, "{:?}", places(&findings));
        let mut findings = Vec::new();
        check_rooms(
            &[source(
                "a/src/d.rs",
                &format!("//! d\n//! Long because of a table.\n{}", "x\n".repeat(900)),
            )],
            &mut findings,
        );
        assert!(findings.is_empty(), "{:?}", places(&findings));
    }

    #[test]
    fn a_clock_in_pure_logic_is_found_and_one_in_its_tests_is_not() {
        let mut findings = Vec::new();
        let text = "//! e\nlet now = Instant::now();\n#[cfg(test)]\nlet now = Instant::now();\n";
        check_pure(
            &[source("uffd-agent/src/engine/fault.rs", text)],
            &mut findings,
        );
        assert!(places(&findings).contains(
            &"uffd-agent/src/engine/fault.rs:2: pure logic says `Instant::now`".to_owned()
        ));
        assert!(
            !places(&findings)
                .iter()
                .any(|line| line.contains("fault.rs:4"))
        );
    }

    #[test]
    fn a_raw_binding_outside_of_its_room_is_found() {
        let mut findings = Vec::new();
        check_raw(
            &[
                source("client/src/a.rs", "ioctl(UFFDIO_COPY)\n"),
                source("uffd-agent/src/kernel/a.rs", "UFFDIO_COPY\n"),
            ],
            &mut findings,
        );
        assert_eq!(findings.len(), 1);
    }
}

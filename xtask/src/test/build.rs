//! Builds all test programs, and learns from cargo what and where they are.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;

use crate::checkout;

/// One test program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Suite {
    /// Package it belongs to.
    pub(crate) package: String,
    /// Target: the test file's name, or the library or binary with tests inside.
    pub(crate) target: String,
    /// The built program.
    pub(crate) executable: PathBuf,
    /// The package's directory, where cargo runs its tests.
    pub(crate) package_dir: PathBuf,
}

impl Suite {
    /// `package::target`.
    pub(crate) fn name(&self) -> String {
        format!("{}::{}", self.package, self.target)
    }
}

/// Why nothing could be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("cannot run cargo")]
    Start(#[source] io::Error),
    #[error("the tests do not build")]
    Failed,
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds the workspace's binaries, which tests start, and all test programs.
pub(crate) fn test_programs() -> Result<Vec<Suite>, BuildError> {
    let binaries = checkout::cargo()
        .args(["build", "--quiet", "--workspace"])
        .status()
        .map_err(BuildError::Start)?;
    if !binaries.success() {
        return Err(BuildError::Failed);
    }
    let output = checkout::cargo()
        .args([
            "test",
            "--quiet",
            "--workspace",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ])
        .stderr(Stdio::inherit())
        .output()
        .map_err(BuildError::Start)?;
    if !output.status.success() {
        return Err(BuildError::Failed);
    }
    Ok(suites(&String::from_utf8_lossy(&output.stdout)))
}

/// The test programs named in cargo's messages, one JSON object a line.
fn suites(messages: &str) -> Vec<Suite> {
    let mut suites: Vec<Suite> = messages.lines().filter_map(suite).collect();
    suites.sort_by_key(Suite::name);
    suites
}

fn suite(line: &str) -> Option<Suite> {
    let message: Message = serde_json::from_str(line).ok()?;
    if message.reason != "compiler-artifact" || !message.profile?.test {
        return None;
    }
    let package_dir = message.manifest_path.parent()?.to_owned();
    let package = package_dir
        .strip_prefix(checkout::root())
        .unwrap_or(&package_dir);
    let package = package
        .components()
        .map(|part| part.as_os_str().to_string_lossy())
        .collect::<Vec<_>>()
        .join("/");
    Some(Suite {
        package,
        target: message.target?.name,
        executable: message.executable?,
        package_dir: Path::new(&package_dir).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_are_taken() {
        let root = checkout::root().display();
        let line = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"{root}/fabric/Cargo.toml","target":{{"name":"rxe_x","kind":["test"]}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let messages = [
            line(false, "null"),
            line(true, r#""/t/rxe_x-1""#),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
            "noise".to_owned(),
        ];
        let found = suites(&messages.join("\n"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name(), "fabric::rxe_x");
        assert!(found[0].package_dir.ends_with("fabric"));
    }
}

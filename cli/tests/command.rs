//! What every subcommand shares: help, version, completions, man pages, exit codes.

use std::process::{Command, Output};

use serde_json::Value;

fn myco(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_myco"))
        .args(args)
        .output()
        .expect("myco runs")
}

fn stdout(args: &[&str]) -> String {
    let output = myco(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn version_is_said_in_words_and_in_json() {
    assert!(stdout(&["version"]).starts_with(concat!("myco ", env!("CARGO_PKG_VERSION"))));
    let version: Value = serde_json::from_str(&stdout(&["version", "--json"])).expect("json");
    assert_eq!(version["schema"], "myco.version");
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["control_protocol"], mycoram_fabric::wire::VERSION);
}

#[test]
fn completions_and_man_pages_know_every_noun() {
    let help = stdout(&["--help"]);
    let commands = help.split("Commands:").nth(1).expect("a list of nouns");
    let commands = commands.split("Options:").next().expect("its end");
    let nouns: Vec<&str> = commands
        .lines()
        .filter_map(|line| {
            line.strip_prefix("  ")
                .filter(|rest| !rest.starts_with(' '))
        })
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(
        nouns.contains(&"node") && nouns.contains(&"version"),
        "{nouns:?}"
    );
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&["completions", shell]);
        assert!(nouns.iter().all(|noun| script.contains(noun)), "{shell}");
    }
    assert!(stdout(&["man"]).contains(".TH myco 1"));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a path");
    stdout(&["man", "--directory", path]);
    for noun in nouns.iter().filter(|noun| **noun != "help") {
        let page = directory.path().join(format!("myco-{noun}.1"));
        assert!(page.exists(), "no manual page for {noun}");
    }
    assert!(directory.path().join("myco-node-serve.1").exists());
}

#[test]
fn exit_codes_are_in_the_help() {
    let help = stdout(&["--help"]);
    assert!(
        help.contains("Exit codes:") && help.contains("MYCO_LOG"),
        "{help}"
    );
}

#[test]
fn wrong_arguments_end_with_2() {
    for args in [
        &["nonsense"][..],
        &[],
        &["node"],
        &["node", "serve"],
        &["version", "--no"],
    ] {
        assert_eq!(myco(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let script = format!(
        "{} man | true; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_myco")
    );
    let status = Command::new("bash")
        .args(["-c", &script])
        .status()
        .expect("bash");
    assert_eq!(status.code(), Some(0));
}

//! What `serve --json` says when it cannot: one object of the schema `myco.error` on stdout, where whoever started it
//! waits for the line that it is ready.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Runs a command that ends by itself: its exit code, and the only line on its stdout.
fn fails(arguments: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_myco"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("myco runs");
    let code = output.status.code().expect("it ends by itself");
    let stdout = String::from_utf8(output.stdout).expect("text");
    let words = String::from_utf8(output.stderr).expect("text");
    assert!(code != 0 && !words.is_empty(), "{arguments:?}: {stdout}");
    assert_eq!(stdout.lines().count(), 1, "{arguments:?}: {stdout}");
    let object: Value = serde_json::from_str(&stdout).expect("one object");
    assert_eq!(object["schema"], "myco.error", "{arguments:?}");
    assert_eq!(object["schema_version"], 1);
    assert_eq!(object["exit_code"], code, "{arguments:?}");
    // The same sentence for a person.
    let error = object["error"].as_str().expect("a sentence");
    let said: Vec<_> = words.split_whitespace().collect();
    assert!(said.join(" ").contains(error), "{error} is not in {words}");
    (code, object)
}

#[test]
fn a_serve_command_that_cannot_start_says_so_where_its_ready_line_would_be() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = dir.path().join("none/such");
    let missing = missing.to_str().expect("text");
    let store = format!("redb:{missing}");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("its address").to_string();
    let node = ["node", "serve", "--json", "--capacity", "1MiB", "--listen"];
    let control = ["control", "serve", "--json", "--insecure", "--listen"];
    let agent = ["agent", "serve", "--json", "--max-local", "1MiB", "--nodes"];
    let free = "127.0.0.1:0";
    let with = |command: &[&'static str], more: &[&str]| fails(&[command, more].concat()).0;
    assert_eq!(with(&node, &[&taken]), 1);
    assert_eq!(with(&node, &[free, "--metrics", &taken]), 1);
    let key = [free, "--name", "n1", "--cluster-key", missing];
    assert_eq!(with(&node, &key), 3);
    assert_eq!(with(&control, &[free, "--store", &store]), 1);
    let memory = format!("redb:{}", dir.path().join("store").display());
    assert_eq!(with(&control, &[&taken, "--store", &memory]), 1);
    assert_eq!(with(&agent, &[missing]), 3);
    assert_eq!(with(&agent, &["control://127.0.0.1:1?insecure=yes"]), 4);
}

#[test]
fn arguments_that_make_no_sense_are_an_object_too() {
    let (code, object) = fails(&["node", "serve", "--json", "--listen", "127.0.0.1:0"]);
    assert_eq!(code, 2);
    let error = object["error"].as_str().expect("a sentence");
    assert!(
        error.contains("required") && error.contains("--capacity") && !error.contains("Usage"),
        "{error}"
    );
    let nowhere = ["--listen", "nowhere"];
    for command in ["node", "control"] {
        let (code, object) = fails(&[&[command, "serve", "--json"][..], &nowhere].concat());
        assert_eq!(code, 2);
        let error = object["error"].as_str().expect("a sentence");
        assert!(error.contains("nowhere"), "{error}");
    }
    assert_eq!(fails(&["agent", "serve", "--json", "--no-such"]).0, 2);
    assert_eq!(fails(&["node", "--json"]).0, 2);
}

/// Without `--json`, or where it is an argument for another program, stdout stays empty; help is no failure.
#[test]
fn nothing_else_changes() {
    let run = |arguments: &[&str]| {
        let mut myco = Command::new(env!("CARGO_BIN_EXE_myco"));
        myco.args(arguments).output().expect("myco runs")
    };
    for arguments in [
        &["node", "serve"][..],
        &["vm", "run", "--no-such", "--", "--json"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    let help = run(&["node", "serve", "--help", "--json"]);
    assert!(help.status.success() && help.stdout.starts_with(b"Lend"));
}

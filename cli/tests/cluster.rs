//! `myco cluster` as a real process.

use std::process::Command;

use serde_json::Value;

const MYCO: &str = env!("CARGO_BIN_EXE_myco");

#[test]
fn init_makes_a_cluster_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = dir.path().join("c");
    let init = || {
        let mut myco = Command::new(MYCO);
        myco.args(["cluster", "init", "--json"]).arg(&made);
        let output = myco.output().expect("myco runs");
        let object: Value = serde_json::from_slice(&output.stdout).expect("one object");
        (output.status.code(), object)
    };
    let (code, object) = init();
    assert_eq!(code, Some(0));
    assert_eq!(object["schema"], "myco.cluster-init");
    let id = object["cluster"].as_str().expect("an identity");
    let key = std::fs::read_to_string(made.join("node/cluster.pub")).expect("a key");
    assert!(key.contains(id), "{key}");
    let (code, error) = init();
    assert_eq!((code, &error["exit_code"]), (Some(1), &1.into()));
    let again = std::fs::read_to_string(made.join("node/cluster.pub")).expect("a key");
    assert_eq!(again, key, "the cluster that was there was touched");
}

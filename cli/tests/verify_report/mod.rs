//! What `myco region verify --json` says.

use std::collections::BTreeSet;

use serde_json::Value;

/// The wrong replicas that it names: page, node, and whether it was repaired.
pub(crate) fn found(report: &Value) -> BTreeSet<(u64, String, bool)> {
    let wrong = report["wrong"].as_array().expect("a list");
    let one = |wrong: &Value| {
        let node = wrong["node"].as_str().expect("a name").to_owned();
        let page = wrong["page"].as_u64().expect("a number");
        (page, node, wrong["repaired"] == true)
    };
    wrong.iter().map(one).collect()
}

//! `cargo xtask bench all`: every bench, one after the other, and one table of the figures that have a bound.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{Arguments, Transport};
use crate::checkout;

/// Benches that are taken over verbs, too.
const ALSO_OVER_VERBS: [&str; 1] = ["fault"];
/// Of the document that `--json` writes.
const VERSION: u32 = 1;

/// Runs them all; the exit code is not 0 if a figure is missing, or misses its bound.
pub(super) fn run(arguments: &Arguments, program: &Path) -> Result<u8, Box<dyn Error>> {
    let listed = Command::new(program).arg("list").output()?;
    let directory = checkout::target_dir().join("benches");
    fs::create_dir_all(&directory)?;
    let mut reports = Vec::new();
    for name in String::from_utf8(listed.stdout)?.lines() {
        let over_verbs = ALSO_OVER_VERBS
            .contains(&name)
            .then_some(Some(Transport::Verbs));
        for transport in [None].into_iter().chain(over_verbs) {
            reports.push(one(arguments, program, name, transport, &directory)?);
        }
    }
    let rows: Vec<Row> = reports.iter().flat_map(rows).collect();
    for row in &rows {
        println!("{row}");
    }
    if let Some(path) = &arguments.json {
        let document = json!({ "version": VERSION, "reports": reports });
        fs::write(path, serde_json::to_vec_pretty(&document)?)?;
    }
    Ok(u8::from(!rows.iter().all(|row| row.holds == Some(true))))
}

/// One bench's report; one that broke off says so in its own.
fn one(
    arguments: &Arguments,
    program: &Path,
    name: &str,
    transport: Option<Transport>,
    directory: &Path,
) -> Result<Value, Box<dyn Error>> {
    let over = transport.map_or("", Transport::name);
    let path: PathBuf = directory.join(format!("{name}{over}.json"));
    println!("bench: {name} {over}");
    if path.exists() {
        fs::remove_file(&path)?;
    }
    let mut one = arguments.clone();
    one.name = name.to_owned();
    one.transport = transport;
    one.json = Some(path.clone());
    super::run_one(&one, program)?;
    let mut report: Value = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => json!({ "bench": name, "failure": "it left no report" }),
    };
    report["over"] = over.into();
    Ok(report)
}

/// A line of the table.
#[derive(Debug, PartialEq)]
struct Row {
    bench: String,
    figure: String,
    value: Option<f64>,
    bound: String,
    holds: Option<bool>,
}

/// The figures of a report that have a bound; one row where it has none at all.
fn rows(report: &Value) -> Vec<Row> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let bench = format!("{} {}", text(&report["bench"]), text(&report["over"]));
    let metrics = report["metrics"].as_array().map_or(&[][..], Vec::as_slice);
    let mut rows: Vec<Row> = metrics
        .iter()
        .filter_map(|metric| {
            let (side, bound) = metric["bound"].as_object()?.iter().next()?;
            Some(Row {
                bench: bench.trim().to_owned(),
                figure: text(&metric["name"]),
                value: metric["value"].as_f64(),
                bound: format!("{} {bound}", side.replace('_', " ")),
                holds: metric["holds"].as_bool(),
            })
        })
        .collect();
    if rows.is_empty() {
        rows.push(Row {
            bench: bench.trim().to_owned(),
            figure: text(&report["failure"]),
            value: None,
            bound: String::new(),
            holds: None,
        });
    }
    rows
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self
            .value
            .map_or_else(|| "none".to_owned(), |value| format!("{value:.3}"));
        let word = match self.holds {
            Some(true) => "holds",
            Some(false) => "MISSES",
            None => "MISSING",
        };
        write!(
            f,
            "{:<12} {:<32} {value:>12}   {:<14} {word}",
            self.bench, self.figure, self.bound
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_a_figure_with_a_bound_and_what_is_missing_is_no_success() {
        let report = json!({ "bench": "scan", "over": "", "metrics": [
            { "name": "scan_over_wire", "value": 0.4, "bound": { "at_least": 0.5 }, "holds": false },
            { "name": "wire_megabytes_per_s", "value": 4000.0 },
            { "name": "other", "value": null, "bound": { "at_most": 1.0 }, "holds": null },
        ]});
        let rows = rows(&report);
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (rows[0].holds, rows[0].bound.as_str()),
            (Some(false), "at least 0.5")
        );
        assert!(rows[0].to_string().ends_with("MISSES"), "{}", rows[0]);
        assert!(rows[1].to_string().ends_with("MISSING"), "{}", rows[1]);
        let broken = super::rows(&json!({ "bench": "idle", "over": "", "failure": "why" }));
        assert_eq!((broken.len(), broken[0].holds), (1, None));
    }
}

//! Two sides of results, each several runs: how much the second is of the first, and whether that is more
//! than the runs of one side differ among themselves.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::args::CompareArgs;

/// What is compared: a name, where it is in the JSON, and its unit.
const MEASURES: [(&str, &str, &str); 10] = [
    ("accepted", "/accepted_per_s", "messages/s"),
    ("delivered", "/delivered_per_s", "messages/s"),
    ("accept p50", "/accept_us/p50", "us"),
    ("accept p99", "/accept_us/p99", "us"),
    ("accept p99.9", "/accept_us/p99.9", "us"),
    ("end to end p50", "/end_to_end_us/p50", "us"),
    ("end to end p99", "/end_to_end_us/p99", "us"),
    ("server CPU", "/server_cpu_us_per_message", "us/message"),
    ("client CPU", "/client_cpu_us_per_message", "us/message"),
    ("resident", "/server_resident_bytes", "bytes"),
];

/// Settings that two sides may differ in without being another measurement.
const FREE: [&str; 5] = ["addr", "run_id", "seed", "cores", "reconnect"];

/// One measure on both sides.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    name: &'static str,
    unit: &'static str,
    before: Side,
    after: Side,
}

/// The runs of one side: the median, and the least and the most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Side {
    median: f64,
    least: f64,
    most: f64,
}

impl Side {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self {
            median: low.midpoint(high),
            least,
            most,
        })
    }

    /// How far the runs are apart, as a part of their median.
    fn spread(&self) -> f64 {
        (self.most - self.least) / self.median.abs().max(f64::MIN_POSITIVE)
    }
}

impl Row {
    fn ratio(&self) -> f64 {
        self.after.median / self.before.median
    }

    /// The ratio that the most different runs of both sides have, either way.
    fn bounds(&self) -> (f64, f64) {
        (
            self.after.least / self.before.most,
            self.after.most / self.before.least,
        )
    }

    /// All runs of one side are beyond all of the other.
    fn is_apart(&self) -> bool {
        self.after.least > self.before.most || self.after.most < self.before.least
    }
}

/// What was found.
#[derive(Debug)]
pub struct Comparison {
    runs: (usize, usize),
    rows: Vec<Row>,
    /// Settings that are not the same on both sides.
    differences: Vec<String>,
    /// Runs that were not good.
    bad: usize,
}

/// Reads both sides and compares them.
///
/// # Errors
/// A sentence for people.
pub fn run(args: &CompareArgs) -> Result<Comparison, String> {
    let before = read_all(&args.before)?;
    let after = read_all(&args.after)?;
    Ok(compare(&before, &after))
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Value>, String> {
    let mut runs = Vec::new();
    for path in paths {
        runs.extend(read(path)?);
    }
    Ok(runs)
}

/// The runs in one file: itself, or those in its `runs`.
fn read(path: &Path) -> Result<Vec<Value>, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {shown}: {error}; give a file of --json"))?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|error| format!("{shown} is not JSON: {error}; give a file of --json"))?;
    let runs = match value.get("runs").and_then(Value::as_array) {
        Some(runs) => runs.clone(),
        None => vec![value],
    };
    if runs.is_empty() || runs.iter().any(|run| run.get("run").is_none()) {
        return Err(format!(
            "{shown} is not the result of a run; give a file that `iris-bench run --json` wrote"
        ));
    }
    Ok(runs)
}

fn compare(before: &[Value], after: &[Value]) -> Comparison {
    let rows = MEASURES.iter().filter_map(|&(name, pointer, unit)| {
        let side = |runs: &[Value]| {
            let values = runs.iter().filter_map(|run| run.pointer(pointer)?.as_f64());
            Side::of(values.collect())
        };
        Some(Row {
            name,
            unit,
            before: side(before)?,
            after: side(after)?,
        })
    });
    let bad = before.iter().chain(after).filter(|run| run["ok"] != true);
    Comparison {
        runs: (before.len(), after.len()),
        rows: rows.collect(),
        differences: differences(before, after),
        bad: bad.count(),
    }
}

fn differences(before: &[Value], after: &[Value]) -> Vec<String> {
    let settings = |runs: &[Value], name: &str| {
        let all = runs.iter().map(|run| run["run"][name].to_string());
        Vec::from_iter(all.collect::<BTreeSet<_>>()).join(", ")
    };
    let names = before.iter().chain(after);
    let names = names.filter_map(|run| run["run"].as_object());
    let names: BTreeSet<&String> = names.flat_map(|run| run.keys()).collect();
    let names = names
        .into_iter()
        .filter(|name| !FREE.contains(&name.as_str()));
    let different = names.filter_map(|name| {
        let (one, other) = (settings(before, name), settings(after, name));
        (one != other).then(|| format!("{name}: {one} and {other}"))
    });
    different.collect()
}

impl Comparison {
    /// The same was measured on both sides, and all of it was good.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.differences.is_empty() && self.bad == 0
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let (before, after) = self.runs;
        let mut out = format!(
            "{before} run(s) and {after} run(s); medians, spread = (most - least) / median\n\n"
        );
        let head = ["A", "spread", "B", "spread", "B/A", "from", "to"];
        out.push_str(&format!("  {:<16}", ""));
        for word in head {
            let width = if word == "spread" { 8 } else { 12 };
            out.push_str(&format!("{word:>width$}"));
        }
        out.push('\n');
        for row in &self.rows {
            let (least, most) = row.bounds();
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "  {:<16}{:>12.1}{:>7.0}%{:>12.1}{:>7.0}%{:>12.3}{least:>12.3}{most:>12.3}  {}{}",
                row.name,
                row.before.median,
                row.before.spread() * 100.0,
                row.after.median,
                row.after.spread() * 100.0,
                row.ratio(),
                row.unit,
                if row.is_apart() {
                    ""
                } else {
                    "  (the runs overlap)"
                },
            );
        }
        for difference in &self.differences {
            let _ = writeln!(out, "\n  NOT THE SAME was measured: {difference}");
        }
        if self.bad > 0 {
            let _ = writeln!(out, "\n  {} of the runs FAILED or were refused", self.bad);
        }
        out
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let side = |side: &Side| {
            json!({
                "median": side.median, "least": side.least, "most": side.most,
                "spread": side.spread(),
            })
        };
        let rows = self.rows.iter().map(|row| {
            let (least, most) = row.bounds();
            json!({
                "name": row.name, "unit": row.unit,
                "before": side(&row.before), "after": side(&row.after),
                "ratio": row.ratio(), "ratio_least": least, "ratio_most": most,
                "apart": row.is_apart(),
            })
        });
        json!({
            "ok": self.is_good(), "runs_before": self.runs.0, "runs_after": self.runs.1,
            "differences": self.differences, "failed_runs": self.bad,
            "rows": rows.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(accepted: f64, connections: u32) -> Value {
        json!({
            "ok": true, "accepted_per_s": accepted, "accept_us": {"p50": 100.0},
            "run": {"connections": connections, "run_id": accepted.to_string()},
        })
    }

    /// R: E-7
    #[test]
    fn the_ratio_of_the_medians_stands_beside_how_far_the_runs_are_apart() {
        let before = [100.0, 110.0, 90.0].map(|rate| result(rate, 8));
        let after = [200.0, 210.0].map(|rate| result(rate, 8));
        let comparison = compare(&before, &after);
        assert!(comparison.is_good());
        let row = &comparison.rows[0];
        assert_eq!((row.name, row.ratio()), ("accepted", 2.05));
        assert_eq!(row.bounds(), (200.0 / 110.0, 210.0 / 90.0));
        assert!((row.before.spread() - 0.2).abs() < 1e-9 && row.is_apart());
        assert!(
            !comparison.rows[1].is_apart(),
            "the same latency is no difference"
        );
        assert!(
            comparison.table().contains("2.050"),
            "{}",
            comparison.table()
        );
    }

    #[test]
    fn results_of_different_settings_or_of_failed_runs_are_no_comparison() {
        let other = compare(&[result(1.0, 8)], &[result(1.0, 9)]);
        assert!(!other.is_good());
        assert!(
            other.table().contains("connections: 8 and 9"),
            "{}",
            other.table()
        );
        let mut failed = result(1.0, 8);
        failed["ok"] = json!(false);
        let failed = compare(&[result(1.0, 8)], &[failed]);
        assert!(!failed.is_good() && failed.table().contains("1 of the runs FAILED"));
    }

    #[test]
    fn a_file_of_one_run_and_a_file_of_several_are_both_read() {
        let directory = tempfile::tempdir().unwrap();
        let (one, several) = (directory.path().join("1"), directory.path().join("2"));
        std::fs::write(&one, result(5.0, 8).to_string()).unwrap();
        let runs = json!({"runs": [result(6.0, 8), result(7.0, 8)]});
        std::fs::write(&several, runs.to_string()).unwrap();
        assert_eq!(read_all(&[one, several.clone()]).unwrap().len(), 3);
        std::fs::write(&several, "{}").unwrap();
        assert!(
            read(&several)
                .unwrap_err()
                .contains("is not the result of a run")
        );
    }
}

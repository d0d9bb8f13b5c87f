//! The dashboard and the alert rules in `tools/`: they name what exists, and lead to a runbook.

use std::collections::BTreeSet;
use std::time::Instant;

use super::admin;
use super::harness::{PATIENCE, Server, Setup, data_dir};
use super::raw::Raw;

const DASHBOARD: &str = include_str!("../../tools/grafana/iris.json");
const ALERTS: &str = include_str!("../../tools/prometheus/alerts.yml");
const OPERATIONS: &str = include_str!("../../docs/OPERATIONS.md");

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let is_of_name = |letter: char| letter.is_ascii_lowercase() || letter == '_';
    let words = text.split(|letter: char| !is_of_name(letter));
    let metrics = words.filter(|word| word.starts_with("iris_"));
    metrics.map(str::to_owned).collect()
}

/// How a heading is linked to.
fn anchor(heading: &str) -> String {
    let lower = heading.to_lowercase();
    let kept = lower.chars().filter_map(|letter| match letter {
        ' ' => Some('-'),
        letter if letter.is_alphanumeric() || letter == '-' => Some(letter),
        _ => None,
    });
    kept.collect::<String>()
}

/// R: E-2
#[test]
fn dashboard_and_alerts_name_metrics_that_a_switch_has() {
    let data = data_dir();
    let server = Server::start_with(data.path(), &Setup::small_storage());
    let mut ann = Raw::login(&server, "ann");
    let mut wanted = named(DASHBOARD);
    wanted.extend(named(ALERTS));
    assert!(wanted.len() > 20, "{wanted:?}");
    let deadline = Instant::now() + PATIENCE;
    for n in 1.. {
        ann.send_accepted("ben", n, &[7; 16_000]); // until there is a checkpoint
        let metrics = admin::get(data.path(), "/metrics").1;
        let samples = metrics.lines().filter(|line| !line.starts_with('#'));
        let there: BTreeSet<String> = samples
            .map(|line| line.split(['{', ' ']).next().unwrap().to_owned())
            .collect();
        let missing: Vec<_> = wanted.difference(&there).collect();
        if missing.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "no such metrics: {missing:?}");
    }
}

/// R: E-2, E-8
#[test]
fn every_alert_leads_to_a_runbook_that_is_there() {
    let headings = OPERATIONS.lines().filter(|line| line.starts_with('#'));
    let anchors: BTreeSet<String> = headings
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect();
    let alerts = ALERTS.matches("- alert: ").count();
    let runbooks: Vec<&str> = ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("runbook: docs/OPERATIONS.md#"))
        .collect();
    assert!(alerts > 0 && alerts == runbooks.len(), "one for each");
    for runbook in runbooks {
        assert!(anchors.contains(runbook), "no {runbook} in {anchors:?}");
    }
}

/// R: E-2
#[test]
fn the_dashboard_is_json_whose_panels_ask_something() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{}", panel["title"]);
    }
    let ids: BTreeSet<u64> = panels
        .iter()
        .map(|panel| panel["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids.len(), panels.len());
}

//! How long things take, as a running switch records it and `iris hist` shows it.

use std::path::Path;
use std::process::Command;

use iris::measure::Stage;
use iris::measure::dump::{Dump, Merged, Row, merge};

use super::admin::{get, post};
use super::harness::{Server, data_dir, iris};
use super::raw::Raw;

fn merged(rows: &[Row]) -> Vec<Merged> {
    merge(rows.iter().map(|row| (String::new(), row))).unwrap()
}

/// What the switch has recorded, its cores together.
fn recorded(data: &Path) -> Vec<Merged> {
    let (code, body) = get(data, "/histograms");
    assert_eq!(code, 200, "{body}");
    let dump = Dump::parse(&body).unwrap();
    assert_eq!(dump.silent, [] as [u16; 0]);
    merged(&dump.histograms)
}

fn count(recorded: &[Merged], stage: Stage) -> u64 {
    let merged = recorded.iter().find(|merged| merged.stage == stage.name());
    merged.unwrap().histogram.len()
}

/// Everybody sends to everybody, one after the other, and acknowledges what comes.
fn talk(server: &Server, names: &[&str]) -> u64 {
    let mut all: Vec<Raw> = names.iter().map(|name| Raw::login(server, name)).collect();
    let mut sent = 0;
    for to in 0..names.len() {
        for from in (0..names.len()).filter(|from| *from != to) {
            all[from].send_accepted(names[to], 1, b"how long?");
            sent += 1;
        }
        let mut last = 0;
        for _ in 1..names.len() {
            last = all[to].entry().seq;
        }
        all[to].ack(last);
        // The answer to the ping comes behind the acknowledgement.
        all[to].until_pong();
    }
    sent
}

/// R: E-1
#[test]
fn every_message_is_counted_once_in_every_stage_of_its_way() {
    let data = data_dir();
    let server = Server::start(data.path());
    let names = ["ann", "ben", "cat", "dan", "eve", "fay"];
    let sent = talk(&server, &names);
    let all = recorded(data.path());
    for stage in [Stage::Batch, Stage::Deliver, Stage::Accept, Stage::E2e] {
        assert_eq!(count(&all, stage), sent, "{}", stage.name());
    }
    for stage in [Stage::Handshake, Stage::Auth] {
        assert_eq!(count(&all, stage), names.len() as u64, "{}", stage.name());
    }
    assert!(
        count(&all, Stage::Sync) >= sent,
        "one at a time, each has its own"
    );
    assert_eq!(count(&all, Stage::Apply), count(&all, Stage::Sync));
    // Six names on two cores: by chance all on one in one of 32 runs, and then nothing crosses.
    let (route, ring) = (count(&all, Stage::Route), count(&all, Stage::Ring));
    assert!(route < sent && ring == 2 * route, "{route} {ring}");
    for merged in &all {
        let took = merged.end_ms - merged.start_ms;
        let max_ms = merged.histogram.max() / 1_000_000;
        assert!(max_ms <= took + 50, "{}: {max_ms} ms", merged.stage);
    }
    let of = |stage: Stage| all.iter().find(|one| one.stage == stage.name()).unwrap();
    let [sync, accept, e2e] = [Stage::Sync, Stage::Accept, Stage::E2e].map(of);
    assert!(
        sync.histogram.min() <= accept.histogram.min(),
        "a sync is a part of it"
    );
    assert!(sync.histogram.min() < e2e.histogram.max());
    assert!(accept.histogram.min() > 1_000, "less than a microsecond");
}

/// R: E-1
#[test]
fn a_reset_hands_over_what_was_recorded_and_begins_anew() {
    let data = data_dir();
    let server = Server::start(data.path());
    let sent = talk(&server, &["ann", "ben"]);
    let (code, body) = post(data.path(), "/histograms/reset", "");
    assert_eq!(code, 200, "{body}");
    let before = Dump::parse(&body).unwrap().histograms;
    let together = merged(&before);
    assert_eq!(count(&together, Stage::Accept), sent);
    let (_, body) = get(data.path(), "/histograms");
    let after = Dump::parse(&body).unwrap().histograms;
    assert_eq!(after.len(), before.len());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((before.core, &before.stage), (after.core, &after.stage));
        assert_eq!(
            before.end_ms, after.start_ms,
            "something between them is lost"
        );
    }
    assert_eq!(count(&recorded(data.path()), Stage::Accept), 0);
    assert_eq!(get(data.path(), "/histograms/reset").0, 405);
}

/// R: E-1
#[test]
fn what_waited_for_its_recipient_is_no_matter_of_speed() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    for n in 1..=3 {
        ann.send_accepted("ben", n, b"while you were out");
    }
    let mut ben = Raw::login(&server, "ben");
    (1..=3).for_each(|seq| assert_eq!(ben.entry().seq, seq));
    ben.ack(3);
    ben.until_pong();
    let all = recorded(data.path());
    assert_eq!(count(&all, Stage::Accept), 3);
    assert_eq!(count(&all, Stage::Deliver), 0);
    assert_eq!(count(&all, Stage::E2e), 0);
    ann.send_accepted("ben", 4, b"and now");
    assert_eq!(ben.entry().seq, 4);
    ben.ack(4);
    ben.until_pong();
    let all = recorded(data.path());
    assert_eq!(count(&all, Stage::Deliver), 1);
    assert_eq!(count(&all, Stage::E2e), 1);
}

/// `iris hist` with these arguments; what it prints.
fn hist(arguments: &[&str]) -> String {
    let output = iris().arg("hist").args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    assert_eq!(errors, "");
    String::from_utf8(output.stdout).unwrap()
}

/// The columns of the line of a stage.
fn line<'a>(table: &'a str, stage: &str) -> Vec<&'a str> {
    let mut lines = table.lines().map(|line| line.split_whitespace());
    let found = lines.find(|columns| columns.clone().next() == Some(stage));
    found
        .unwrap_or_else(|| panic!("no {stage} in\n{table}"))
        .collect()
}

/// R: E-1
#[test]
fn the_command_shows_a_running_switch_what_was_kept_and_both_together() {
    let data = data_dir();
    let server = Server::start(data.path());
    let sent = talk(&server, &["ann", "ben", "cat"]).to_string();
    let at = data.path().to_str().unwrap();
    let table = hist(&["--data", at, "--plot"]);
    assert_eq!(line(&table, "accept")[1], sent);
    assert!(
        table.contains("p99.99") && table.contains(" e2e"),
        "{table}"
    );
    let cores = hist(&[at, "--per-core", "--stage", "sync"]);
    assert_eq!(
        cores
            .lines()
            .filter(|line| line.starts_with("sync core "))
            .count(),
        2
    );

    let kept = data.path().join("kept.json");
    let kept = kept.to_str().unwrap();
    std::fs::write(kept, hist(&["--data", at, "--format", "json"])).unwrap();
    assert_eq!(line(&hist(&[kept]), "accept")[1], sent);
    let twice = (2 * sent.parse::<u64>().unwrap()).to_string();
    assert_eq!(
        line(&hist(&[kept, at]), "accept")[1],
        twice,
        "a file and a switch"
    );
    let svg = data.path().join("curves.svg");
    let svg = svg.to_str().unwrap();
    hist(&[kept, at, "--stage", "accept", "--per-source", "--svg", svg]);
    let picture = std::fs::read_to_string(svg).unwrap();
    assert_eq!(
        picture.matches("<polyline").count(),
        2,
        "one for each source"
    );

    let diff = hist(&["diff", kept, at]);
    assert!(
        diff.lines().any(|line| line.contains("B/A  1.00")),
        "{diff}"
    );
    assert_eq!(line(&hist(&["--data", at, "--reset"]), "accept")[1], sent);
    assert_eq!(line(&hist(&["--data", at]), "accept")[1], "0");
}

/// R: E-1
#[test]
fn an_interval_shows_what_happens_within_it_and_resets_nothing() {
    let data = data_dir();
    let server = Server::start(data.path());
    let sent = talk(&server, &["ann", "ben"]).to_string();
    let at = data.path().to_str().unwrap();
    let table = hist(&["--data", at, "--interval", "1s", "--stage", "accept"]);
    assert_eq!(line(&table, "accept")[1], "0", "{table}");
    assert_eq!(line(&hist(&["--data", at]), "accept")[1], sent);
}

/// R: E-1
#[test]
fn what_cannot_be_shown_is_said_with_the_reason() {
    let data = data_dir();
    let refused = |arguments: &[&str]| {
        let output = iris().arg("hist").args(arguments).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(errors.lines().count(), 1, "{errors}");
        (output.status.code().unwrap(), errors)
    };
    let at = data.path().to_str().unwrap();
    let (code, told) = refused(&["--data", at]);
    assert_eq!(code, 2);
    assert!(told.contains("no switch answers"), "{told}");
    let file = data.path().join("notes");
    std::fs::write(&file, "{}").unwrap();
    let (code, told) = refused(&[file.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(told.contains("no dump of histograms"), "{told}");
    let (code, told) = refused(&[file.to_str().unwrap(), "--reset"]);
    assert_eq!(code, 1);
    assert!(told.contains("running"), "{told}");
}

/// R: E-1
#[test]
fn a_public_tool_reads_the_same_from_what_is_written() {
    let python = std::env::var("IRIS_HDRH_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_library = Command::new(&python)
        .args(["-c", "import hdrh.log"])
        .output();
    if !has_library.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {python} has no `hdrhistogram` (pip install hdrhistogram)");
        return;
    }
    let data = data_dir();
    let server = Server::start(data.path());
    talk(&server, &["ann", "ben", "cat", "dan"]);
    let file = |name: &str, text: String| {
        let path = data.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let at = data.path().to_str().unwrap();
    let dump = file("dump.json", hist(&["--data", at, "--format", "json"]));
    let dumped = dump.to_str().unwrap();
    let log = file("dump.hlog", hist(&[dumped, "--format", "hlog"]));
    let shown = file("shown.json", hist(&["diff", dumped, dumped, "--json"]));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/check_histograms.py");
    let output = Command::new(&python)
        .arg(script)
        .args([&dump, &log, &shown])
        .output();
    let output = output.unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(lines.lines().count(), Stage::ALL.len(), "{lines}");
}

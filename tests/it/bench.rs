//! `iris-bench` against the real switch, with small numbers: whether its scenarios run, verify and fail as
//! they say. What they measure is in BENCHMARKS.md.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use super::harness::{Server, data_dir};

fn bench(server: &Server, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iris-bench"));
    command.args(arguments).arg("--data").arg(&server.data);
    command.args(["--established", "4", "--rate", "50"]);
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().unwrap()
}

/// What it printed, and whether it said that all was well.
fn outcome(child: Child) -> (String, bool) {
    let output = child.wait_with_output().unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    text.push_str(&String::from_utf8(output.stderr).unwrap());
    println!("{text}");
    (text, output.status.success())
}

const STORM: [&str; 7] = [
    "storm",
    "--clients",
    "60",
    "--undisturbed",
    "0.3",
    "--settle",
    "0.1",
];

/// R: A-6
#[test]
fn clients_that_are_cut_all_at_once_are_all_back_with_their_tickets() {
    let data = data_dir();
    let server = Server::start(data.path());
    let (text, is_good) = outcome(bench(&server, &STORM));
    assert!(is_good, "{text}");
    assert!(text.contains("all 60 back after"), "{text}");
    let back = text.lines().find(|line| line.starts_with("  coming back "));
    let back = back.unwrap_or_else(|| panic!("{text}"));
    assert!(back.contains("0 full and 60 resumed"), "{back}");
}

/// R: A-6
#[test]
fn clients_that_come_back_without_any_patience_are_all_back_too() {
    let data = data_dir();
    let server = Server::start(data.path());
    let arguments = [&STORM[..], &["--aggressive"]].concat();
    let (text, is_good) = outcome(bench(&server, &arguments));
    assert!(is_good, "{text}");
    assert!(text.contains("all 60 back after"), "{text}");
    assert!(text.contains("0 resumed"), "{text}");
}

#[test]
fn a_storm_after_which_somebody_is_missing_fails() {
    let data = data_dir();
    let server = Server::start(data.path());
    let arguments = [&STORM[..], &["--timeout", "5"]].concat();
    let mut child = bench(&server, &arguments);
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut until = |wanted: &str| {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            assert!(errors.read_line(&mut line).unwrap() > 0, "no `{wanted}`");
        }
    };
    until("60 clients logged in");
    server.pause();
    until("not all came back");
    server.resume();
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(text.contains("FAILED: 0 of 60 are back"), "{text}");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

/// R: A-6, B-7
#[test]
fn beside_hostile_clients_of_each_kind_every_message_of_others_arrives_once_and_in_order() {
    let data = data_dir();
    let server = Server::start(data.path());
    let arguments = ["hostile", "--clients", "3", "--seconds", "0.5"];
    let (text, is_good) = outcome(bench(&server, &arguments));
    assert!(is_good, "{text}");
    assert_eq!(text.matches(" times  ").count(), 7, "{text}");
}

/// What a call of `iris-bench` wrote with `--json`, and what it printed.
fn result(arguments: &[&str]) -> (serde_json::Value, String) {
    let directory = data_dir();
    let json = directory.path().join("result.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_iris-bench"));
    command.args(arguments).arg("--json").arg(&json);
    let (text, _) = outcome(
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let written = std::fs::read(&json).unwrap_or_else(|error| panic!("{error}: {text}"));
    (serde_json::from_slice(&written).unwrap(), text)
}

/// R: H-2
#[test]
fn the_limit_is_a_share_of_what_a_bare_relay_did_under_the_same_load_and_all_of_it_is_verified() {
    let scratch = data_dir();
    let place = scratch.path().to_str().unwrap();
    let arguments =
        "limit -c 4 -w 2 --rounds 1 -d 0.3 --warmup 0.1 --half-rate 100 --client-core 0";
    let mut arguments: Vec<&str> = arguments.split(' ').collect();
    let iris = env!("CARGO_BIN_EXE_iris");
    arguments.extend(["--server-core", "0", "--scratch", place, "--iris", iris]);
    let (json, text) = result(&arguments);
    assert!(text.contains("of the bare relay's"), "{text}");
    assert!(
        json["throughput_share"]
            .as_f64()
            .is_some_and(|share| share > 0.0)
    );
    let turns = json["turns"].as_array().unwrap();
    let kinds: Vec<_> = turns
        .iter()
        .map(|turn| turn["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["bare relay", "switch"]);
    for run in turns
        .iter()
        .flat_map(|turn| [&turn["saturated"], &turn["half"]])
    {
        assert!(run["drained"] == true && run["violations"] == 0, "{text}");
    }
    assert_eq!(
        std::fs::read_dir(scratch.path()).unwrap().count(),
        0,
        "all is removed"
    );
}

/// R: H-3
#[test]
fn idle_sessions_are_counted_in_bytes_of_the_switch() {
    let scratch = data_dir();
    let place = scratch.path().to_str().unwrap();
    let iris = env!("CARGO_BIN_EXE_iris");
    let arguments = [
        "idle",
        "-c",
        "200",
        "--before",
        "50",
        "--settle",
        "0.2",
        "--scratch",
        place,
        "--iris",
        iris,
    ];
    let (json, text) = result(&arguments);
    let looks = json["looks"].as_array().unwrap();
    let counts: Vec<_> = looks
        .iter()
        .map(|look| look["connections"].as_u64())
        .collect();
    assert_eq!(counts, [Some(0), Some(50), Some(250)], "{text}");
    // With so few the allocator's grain is in it; the goal is measured with thousands.
    let each = json["bytes_each"].as_f64().unwrap();
    assert!((1_000.0..64_000.0).contains(&each), "{text}");
}

/// R: E-7
#[test]
fn a_filled_data_directory_is_a_past_that_a_run_goes_on_from() {
    let data = data_dir();
    let place = data.path().to_str().unwrap();
    let fill = "fill --users 20 --entries 30 --senders 3 --pending --run-id abc --data";
    let mut fill: Vec<&str> = fill.split(' ').collect();
    fill.push(place);
    let (json, text) = result(&fill);
    assert_eq!(json["entries"], 600, "{text}");
    let server = Server::start(data.path());
    let run = "fan-in -q -c 20 -d 0.3 --warmup 0.1 --targets 2 --run-id abc --data";
    let mut run: Vec<&str> = run.split(' ').collect();
    run.push(server.data.to_str().unwrap());
    let (json, text) = result(&run);
    assert_eq!(json["ok"], true, "{text}");
    assert_eq!(json["run"]["scenario"], "fan-in");
}

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
    assert_eq!(text.matches(" times  ").count(), 6, "{text}");
}

//! Whole runs against the fake switch: what it does wrong must be found, and nothing else.

use clap::Parser;

use crate::args::{Cli, Command, RunArgs};
use crate::fake_switch::{FakeSwitch, Fault};
use crate::report::Outcome;
use crate::run::run;

fn arguments(extra: &[&str]) -> RunArgs {
    let short = [
        "iris-bench",
        "run",
        "-q",
        "-d",
        "0.2",
        "--warmup",
        "0.05",
        "-c",
        "8",
    ];
    let Command::Run(args) = Cli::parse_from(short.iter().chain(extra).copied()).command else {
        unreachable!("run was asked for");
    };
    args
}

fn run_against(fault: Fault, extra: &[&str]) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let switch = FakeSwitch::start(directory.path(), fault);
    let mut args = arguments(extra);
    args.data = directory.path().to_owned();
    let outcome = run(&args).unwrap();
    assert_eq!(outcome.address, switch.address, "found in LOCK");
    outcome
}

fn assert_good(outcome: &Outcome) {
    assert!(outcome.is_good(), "{}", outcome.table());
    assert!(outcome.counters.delivered > 0 && outcome.verified > 0);
}

#[test]
fn a_faithful_switch_passes_in_saturation() {
    let outcome = run_against(Fault::None, &["-w", "4"]);
    assert_good(&outcome);
    assert!(outcome.accept.count() > 0 && outcome.end_to_end.count() > 0);
    assert!(outcome.json()["server_cpu_us_per_message"].is_number());
}

#[test]
fn a_faithful_switch_passes_with_several_threads() {
    assert_good(&run_against(Fault::None, &["--threads", "3", "-w", "2"]));
}

/// R: E-7
#[test]
fn an_open_loop_sends_exactly_what_was_scheduled() {
    let outcome = run_against(Fault::None, &["--rate", "2000"]);
    assert_good(&outcome);
    assert_eq!(outcome.verified, 500, "2,000 a second for 0.25 s");
    assert_eq!(outcome.accept.count(), 400, "those of the measured 0.2 s");
}

/// R: B-5
#[test]
fn a_message_delivered_twice_fails_the_run() {
    let outcome = run_against(Fault::Duplicate, &[]);
    assert!(
        outcome.table().contains("duplicate: message"),
        "{}",
        outcome.table()
    );
}

/// R: B-1
#[test]
fn an_accepted_message_that_is_lost_fails_the_run() {
    let outcome = run_against(Fault::Lose, &["--drain-timeout", "0.3", "--rate", "400"]);
    assert!(!outcome.is_good());
    assert!(outcome.table().contains("FAILED"), "{}", outcome.table());
}

#[test]
fn an_invented_message_fails_the_run() {
    assert!(!run_against(Fault::Invent, &[]).is_good());
}

#[test]
fn a_refused_message_is_sent_again_in_order_and_the_run_passes() {
    let outcome = run_against(Fault::Refuse, &["-w", "64"]);
    assert_good(&outcome);
    assert!(outcome.counters.refused > 0);
}

#[test]
fn a_lost_connection_fails_the_run_unless_it_may_reconnect() {
    let outcome = run_against(Fault::Disconnect, &[]);
    assert!(
        outcome
            .failure
            .as_ref()
            .is_some_and(|text| text.contains("lost"))
    );
    assert!(!outcome.is_good());
    let outcome = run_against(Fault::Disconnect, &["--reconnect", "-w", "4"]);
    assert_good(&outcome);
    assert_eq!(outcome.counters.lost, 1);
}

#[test]
fn without_a_switch_the_error_says_where_it_was_looked_for() {
    let directory = tempfile::tempdir().unwrap();
    let address = FakeSwitch::start(directory.path(), Fault::None).address;
    let mut args = arguments(&[]);
    args.data = directory.path().to_owned();
    let error = run(&args).unwrap_err();
    assert!(error.contains(&address.to_string()), "{error}");
}

#[test]
fn without_a_development_identity_the_error_says_how_to_get_one() {
    let mut args = arguments(&[]);
    args.data = "/nonexistent".into();
    assert!(run(&args).unwrap_err().contains("iris serve --dev"));
}

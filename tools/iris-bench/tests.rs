//! Whole runs against the fake switch: what it does wrong must be found, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;

use crate::args::{Cli, Command, RunArgs};
use crate::fake_switch::{FakeSwitch, Fault};
use crate::pattern::Pattern;
use crate::report::{Outcome, Shortfall};
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

/// R: E-7
#[test]
fn a_burst_leaves_with_the_intended_time_of_its_first_message() {
    let outcome = run_against(Fault::None, &["--rate", "2000", "--burst", "10"]);
    assert_good(&outcome);
    assert_eq!((outcome.verified, outcome.accept.count()), (500, 400));
}

/// R: E-7
#[test]
fn a_rate_that_finds_no_room_in_flight_is_refused_with_the_reason_and_its_messages_are_in_order() {
    // One message in flight on each of 8 connections, and answers that take 2 ms at least.
    let outcome = run_against(Fault::None, &["--rate", "200000", "-w", "1"]);
    assert_good(&outcome);
    let shortfall = outcome.shortfall();
    assert!(
        matches!(shortfall, Some(Shortfall::SwitchTooSlow { .. })),
        "{shortfall:?}\n{}",
        outcome.table()
    );
}

fn scenario(pattern: Pattern, extra: &[&str]) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let _switch = FakeSwitch::start(directory.path(), Fault::None);
    let args = RunArgs {
        data: directory.path().to_owned(),
        pattern,
        ..arguments(extra)
    };
    run(&args).unwrap()
}

/// R: E-7
#[test]
fn what_was_stored_for_those_who_are_away_is_drained_and_verified_when_they_log_in() {
    let outcome = scenario(Pattern::Offline, &["-w", "4", "--threads", "2"]);
    assert_good_at_the_end(&outcome);
    let caught_up = outcome.caught_up.unwrap();
    assert_eq!(outcome.counters.delivered, 0, "nobody was there");
    assert_eq!(caught_up.messages, outcome.verified);
    assert!(outcome.table().contains("drained"), "{}", outcome.table());
}

/// R: E-7
#[test]
fn fan_in_and_mixed_loads_are_verified_like_any_other() {
    assert_good_at_the_end(&scenario(Pattern::FanIn, &["-w", "4", "--targets", "2"]));
    assert_good_at_the_end(&scenario(Pattern::Mixed, &["-w", "4", "--rate", "1000"]));
}

fn assert_good_at_the_end(outcome: &Outcome) {
    assert!(outcome.is_good(), "{}", outcome.table());
    assert!(outcome.counters.accepted > 0 && outcome.verified > 0);
}

/// R: E-7
#[test]
fn the_latencies_written_as_a_log_are_those_that_were_measured() {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    let outcome = run_against(Fault::None, &["--rate", "500"]);
    let longest_ms = [outcome.accept.max_micros(), outcome.end_to_end.max_micros()];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("latency.hlog");
    crate::hdr::write(&path, &[outcome]).unwrap();
    let text = std::fs::read(&path).unwrap();
    let intervals = IntervalLogIterator::new(&text).filter_map(|entry| match entry {
        Ok(LogEntry::Interval(interval)) => Some(interval),
        _ => None,
    });
    let found: Vec<(String, bool)> = intervals
        .zip(longest_ms)
        .map(|(interval, longest)| {
            assert!(
                (interval.max() - longest / 1e3).abs() < 0.01,
                "{}",
                interval.max()
            );
            let is_v2 = interval.encoded_histogram().starts_with("HISTFAAA");
            (interval.tag().unwrap().as_str().to_owned(), is_v2)
        })
        .collect();
    let wanted = ["accept", "end-to-end"].map(|tag| (tag.to_owned(), true));
    assert_eq!(found, wanted);
}

/// R: E-7
#[test]
fn the_ramp_finds_a_rate_that_holds() {
    let directory = tempfile::tempdir().unwrap();
    let _switch = FakeSwitch::start(directory.path(), Fault::None);
    let args = RunArgs {
        data: directory.path().to_owned(),
        p99: std::time::Duration::from_secs(5),
        // Eight connections with one message each at most: some rate is too high for them.
        ..arguments(&["--ramp", "-w", "1", "--rate", "400"])
    };
    let ramp = crate::ramp::run(&args).unwrap();
    assert!(ramp.is_good(), "{}", ramp.table());
    assert!(
        ramp.highest.is_some_and(|rate| rate >= 1.0),
        "{}",
        ramp.table()
    );
    assert_eq!(ramp.json()["ok"], true);
}

/// R: H-2
#[test]
fn the_bare_relay_answers_and_forwards_every_message_exactly_once() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_owned();
    let stop = Arc::new(AtomicBool::new(false));
    let (data_of_relay, stop_of_relay) = (data.clone(), Arc::clone(&stop));
    let relay = std::thread::spawn(move || crate::relay::serve(&data_of_relay, 0, stop_of_relay));
    let serves = || {
        let addr = crate::local::Lock::read(&data).addr;
        addr.is_some_and(|addr| addr.contains(':'))
    };
    while !serves() {
        assert!(!relay.is_finished(), "{:?}", relay.join());
        std::thread::yield_now();
    }
    for extra in [&["-w", "8"][..], &["--rate", "1000", "--burst", "5"]] {
        let args = RunArgs {
            data: data.clone(),
            ..arguments(extra)
        };
        assert_good_at_the_end(&run(&args).unwrap());
    }
    stop.store(true, Ordering::Relaxed);
    relay.join().unwrap().unwrap();
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

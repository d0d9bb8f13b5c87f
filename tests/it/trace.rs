//! Traces of a user's messages, switched on in a running switch.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use iris::runtime::trace::{Step, What};

use super::admin::post;
use super::harness::{Server, Setup, data_dir, iris};
use super::raw::Raw;

/// Asks until a watch has said `wanted` steps.
fn steps(server: &Server, watch: u64, wanted: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    let began = std::time::Instant::now();
    while steps.len() < wanted {
        assert!(began.elapsed() < super::harness::PATIENCE, "{steps:?}");
        let traced = next(server, watch);
        steps.extend(traced.steps);
    }
    steps
}

fn next(server: &Server, watch: u64) -> iris::runtime::admin::Traced {
    let (code, body) = post(
        &server.data,
        "/trace/next",
        &format!("{{\"watch\":{watch}}}"),
    );
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn begin(server: &Server, user: &str) -> u64 {
    let question = format!("{{\"user\":\"{user}\",\"for_ms\":60000}}");
    let (code, body) = post(&server.data, "/trace", &question);
    assert_eq!(code, 200, "{body}");
    serde_json::from_str::<iris::runtime::admin::Traced>(&body)
        .unwrap()
        .watch
}

/// R: E-2
#[test]
fn every_step_of_a_watched_users_messages_is_shown_under_the_messages_own_id() {
    let data = data_dir();
    let server = Server::start(data.path());
    let names = ["ann", "ben", "cat", "dan", "eve"];
    let mut all: Vec<Raw> = names.iter().map(|name| Raw::login(&server, name)).collect();
    all[0].send_accepted("zoe", 1, b"before"); // nobody watches
    let watch = begin(&server, "ann");
    all[2].send_accepted("dan", 1, b"of others");
    for (number, to) in names.iter().enumerate().skip(1) {
        all[0].send_accepted(to, 1, b"watched");
        let entry = loop {
            let entry = all[number].entry();
            if entry.from == "ann" {
                break entry;
            }
        };
        all[number].ack(entry.seq);
        all[number].until_pong();
        let of = steps(&server, watch, 7);
        let trace = uuid::Uuid::from_slice(&entry.id).unwrap().to_string();
        assert!(of.iter().all(|step| step.trace == trace), "{of:?}");
        assert!(
            of.iter()
                .all(|step| (step.from.as_str(), step.to.as_str()) == ("ann", to))
        );
        let mut whats: Vec<What> = of.iter().map(|step| step.what).collect();
        assert_eq!(whats[0], What::Received);
        let place = |what| of.iter().position(|step| step.what == what).unwrap();
        assert!(place(What::Durable) < place(What::Accepted));
        assert!(place(What::Durable) < place(What::Pushed));
        whats.sort_unstable();
        whats.retain(|what| *what != What::Routed); // only to another core
        assert_eq!(
            whats,
            [
                What::Received,
                What::Proposed,
                What::Durable,
                What::Applied,
                What::Accepted,
                What::Pushed,
                What::Acknowledged
            ]
        );
        assert!(of.is_sorted_by_key(|step| step.clock_ns));
        let pushed = &of[place(What::Pushed)];
        assert_eq!(
            (pushed.seq, pushed.device.as_deref()),
            (Some(entry.seq), Some("phone"))
        );
        assert!(of.iter().all(|step| step.since_us.is_some()));
    }
    assert!(next(&server, watch).steps.is_empty());
}

/// R: E-2
#[test]
fn a_refused_message_is_traced_to_its_refusal_and_what_is_no_trace_is_refused() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    let watch = begin(&server, "ann");
    ann.send("ben", 5, b"four are missing");
    ann.rejected();
    let of = steps(&server, watch, 3);
    assert_eq!(of.last().unwrap().what, What::Refused, "{of:?}");
    for (bad, code) in [
        ("{\"user\":\"ann\",\"for_ms\":0}", 409),
        ("{\"user\":\"ann\",\"for_ms\":600001}", 409),
        ("{\"user\":\"a b\",\"for_ms\":1000}", 400),
        ("nonsense", 400),
    ] {
        let (found, told) = post(data.path(), "/trace", bad);
        assert_eq!(found, code, "{told}");
    }
    assert_eq!(post(data.path(), "/trace/next", "{\"watch\":77}").0, 409);
}

/// The command, and its lines.
fn trace(server: &Server, more: &[&str]) -> (Child, impl Iterator<Item = String>) {
    let mut command: Command = iris();
    command
        .args(["trace", "--user", "ann", "--data"])
        .arg(&server.data);
    let mut child = command.args(more).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines.map(Result::unwrap))
}

/// R: E-2
#[test]
fn the_command_prints_the_steps_and_ends_when_its_time_is_over() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    let (mut child, mut lines) = trace(&server, &["--for", "4s", "--json"]);
    let mut n = 0;
    // Sent until the command has told the switch, and its first line comes.
    let (first, came) = crossbeam_channel::bounded(1);
    std::thread::scope(|scope| {
        scope.spawn(|| first.send(lines.next().unwrap()).unwrap());
        while came.is_empty() {
            n += 1;
            ann.send_accepted("ben", n, b"seen?");
        }
    });
    let step: Step = serde_json::from_str(&came.recv().unwrap()).unwrap();
    assert_eq!(step.from, "ann");
    let rest: Vec<String> = lines.collect();
    assert!(
        rest.iter()
            .any(|line| line.contains("\"what\":\"durable\""))
    );
    assert!(child.wait().unwrap().success());
}

/// R: E-2
#[test]
fn a_life_is_told_in_fixed_sentences_with_typed_fields_as_json() {
    let data = data_dir();
    let setup = Setup {
        environment: vec![("IRIS_LOG__FORMAT", "json".to_owned())],
        ..Setup::default()
    };
    let server = Server::start_with(data.path(), &setup);
    let port = u64::from(server.address.port());
    server.terminate();
    let (status, lines) = server.ended();
    assert!(status.success());
    let lines: Vec<serde_json::Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "no {field} in {line}");
        }
    }
    let told = |sentence: &str| {
        let of = lines.iter().filter(|line| line["message"] == sentence);
        of.collect::<Vec<_>>()
    };
    for once in [
        "data directory formatted",
        "data directory opened",
        "ready",
        "stopped",
    ] {
        assert_eq!(told(once).len(), 1, "{once}: {lines:?}");
    }
    let ready = told("ready")[0]["address"].as_str().unwrap();
    assert!(ready.ends_with(&format!(":{port}")), "{ready}");
    assert!(
        told("log recovered")
            .iter()
            .all(|line| line["log"].is_u64())
    );
    let stopped = told("core stopped");
    assert_eq!(stopped.len(), 2, "two cores");
    for field in [
        "core", "turns", "sleeps", "events", "logins", "entries", "commits",
    ] {
        assert!(
            stopped.iter().all(|line| line[field].is_u64()),
            "{field}: {stopped:?}"
        );
    }
}

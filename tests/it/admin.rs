//! The admin socket of a running switch: probes, metrics, `iris status`, and who may not disturb them.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use super::harness::{Server, data_dir, iris};
use super::raw::Raw;

/// How long any answer may take; the switch's own deadline for a request is 5 s.
const PATIENCE: Duration = Duration::from_secs(20);

fn socket(data: &Path) -> PathBuf {
    data.join("admin.sock")
}

fn connect(data: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket(data)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends these bytes; all that comes until the switch closes.
fn exchange(data: &Path, request: &[u8]) -> String {
    let mut stream = connect(data);
    // It may have answered and closed before it has read everything.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// Status and body of an answer.
fn parse(answer: &str) -> (u16, &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    (status.parse().unwrap(), body)
}

pub fn get(data: &Path, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: iris\r\n\r\n");
    let answer = exchange(data, request.as_bytes());
    let (status, body) = parse(&answer);
    (status, body.to_owned())
}

pub fn post(data: &Path, path: &str, body: &str) -> (u16, String) {
    let len = body.len();
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: iris\r\nContent-Length: {len}\r\n\r\n{body}");
    let answer = exchange(data, request.as_bytes());
    let (status, body) = parse(&answer);
    (status, body.to_owned())
}

/// The value of one series.
fn value(metrics: &str, series: &str) -> u64 {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("no {series} in:\n{metrics}"));
    line.parse().unwrap()
}

pub fn sum(metrics: &str, name: &str) -> u64 {
    let samples = metrics.lines().filter(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('{'))
    });
    samples
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
        .sum()
}

fn status(data: &Path, more: &[&str]) -> Output {
    let mut command = iris();
    command.arg("status").arg("--data").arg(data).args(more);
    command.output().unwrap()
}

/// R: E-2
#[test]
fn a_ready_switch_says_so_to_probes() {
    let data = data_dir();
    let _server = Server::start(data.path());
    assert_eq!(get(data.path(), "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get(data.path(), "/readyz"), (200, "ready\n".to_owned()));
    let head = exchange(data.path(), b"HEAD /readyz HTTP/1.0\r\n\r\n");
    assert_eq!(parse(&head), (200, ""));
}

/// R: E-2
#[test]
fn metrics_parse_are_unique_and_count_what_happened() {
    let data = data_dir();
    let server = Server::start(data.path());
    let (mut ann, mut ben) = (Raw::login(&server, "ann"), Raw::login(&server, "ben"));
    ann.send_accepted("ben", 1, b"counted");
    assert_eq!(ben.entry().seq, 1);
    let (code, metrics) = get(data.path(), "/metrics");
    assert_eq!(code, 200);
    let (mut names, mut series) = (BTreeSet::new(), BTreeSet::new());
    for line in metrics.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(names.insert(name), "{name} comes twice");
        } else if !line.starts_with("# HELP ") {
            let (what, number) = line.rsplit_once(' ').unwrap();
            number.parse::<f64>().unwrap();
            assert!(series.insert(what), "{what} comes twice");
            let name = what.split('{').next().unwrap();
            let parts = ["_bucket", "_sum", "_count"].iter();
            let mut wholes = parts.filter_map(|part| name.strip_suffix(part));
            assert!(
                names.contains(name) || wholes.any(|whole| names.contains(whole)),
                "{what}"
            );
        }
    }
    let version = format!(
        "iris_build_info{{version=\"{}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(value(&metrics, &version), 1);
    assert_eq!(value(&metrics, "iris_ready"), 1);
    assert_eq!(sum(&metrics, "iris_core_up"), 2, "two cores");
    assert_eq!(sum(&metrics, "iris_connections"), 2);
    assert_eq!(sum(&metrics, "iris_sessions"), 2);
    assert_eq!(sum(&metrics, "iris_entries_sent_total"), 1);
    assert!(sum(&metrics, "iris_commits_total") >= 1);
    assert!(sum(&metrics, "iris_committed_batches_total") >= 1);
    assert!(sum(&metrics, "iris_log_durable_bytes") > 0);
    assert_eq!(sum(&metrics, "iris_log_space"), 0, "enough");
    drop((ann, ben));
    let deadline = Instant::now() + PATIENCE;
    while sum(&get(data.path(), "/metrics").1, "iris_sessions") != 0 {
        assert!(Instant::now() < deadline, "sessions that ended still count");
    }
}

/// R: E-2
#[test]
fn the_status_command_tells_ready_from_not_running_by_its_exit_code() {
    let data = data_dir();
    let missing = status(data.path(), &[]);
    assert_eq!(missing.status.code(), Some(2));
    let line = String::from_utf8(missing.stderr).unwrap();
    assert!(
        line.contains("iris serve") && line.lines().count() == 1,
        "{line}"
    );

    let server = Server::start(data.path());
    let ready = status(data.path(), &[]);
    assert_eq!(ready.status.code(), Some(0));
    let table = String::from_utf8(ready.stdout).unwrap();
    assert!(table.starts_with("ready\n"), "{table}");
    assert!(table.contains(&server.address.to_string()), "{table}");
    let json = status(data.path(), &["--json"]);
    assert_eq!(json.status.code(), Some(0));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["ready"], true);
    assert_eq!(json["pid"], server.pid());
    assert_eq!(json["cores"].as_array().unwrap().len(), 2);

    server.kill();
    let killed = status(data.path(), &[]);
    assert_eq!(killed.status.code(), Some(2), "a socket that nobody serves");
    assert_eq!(status(data.path(), &["--no-such"]).status.code(), Some(2));
}

/// A switch that is asked for by another name: what answers says what the switch would.
#[test]
fn the_status_command_has_exit_code_1_and_the_reasons_when_the_switch_is_not_ready() {
    let data = data_dir();
    let listener = std::os::unix::net::UnixListener::bind(socket(data.path())).unwrap();
    let answering = std::thread::spawn(move || {
        for body in [NOT_READY, "no JSON"] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).unwrap() > 0);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all((head + body).as_bytes()).unwrap();
        }
    });
    let output = status(data.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("not ready\n"), "{text}");
    assert!(text.contains("  log 0: shards 3, 17 are damaged"), "{text}");
    let garbage = status(data.path(), &[]);
    assert_eq!(garbage.status.code(), Some(1));
    assert!(garbage.stdout.is_empty() && !garbage.stderr.is_empty());
    answering.join().unwrap();
}

const NOT_READY: &str = r#"{"version":"0.1.0","pid":7,"address":"127.0.0.1:7447","ready":false,
"reasons":["log 0: shards 3, 17 are damaged and not served; run `iris log salvage`"],"cores":[]}"#;

/// R: E-2, E-4
#[test]
fn the_socket_is_for_its_owner_replaced_after_a_kill_and_removed_by_a_stop() {
    let data = data_dir();
    let server = Server::start(data.path());
    let found = std::fs::metadata(socket(data.path())).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);

    server.kill();
    assert!(
        socket(data.path()).exists(),
        "nobody was there to remove it"
    );
    assert!(UnixStream::connect(socket(data.path())).is_err());

    let server = Server::start(data.path());
    assert_eq!(get(data.path(), "/readyz").0, 200);
    assert_eq!(server.stop().code(), Some(0));
    assert!(!socket(data.path()).exists());
}

/// R: E-4
#[test]
fn a_stopping_switch_is_alive_and_not_ready() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann"); // does not close when it is told goodbye
    // SAFETY: a signal to our own child, which is waited for only when it is dropped.
    assert_eq!(unsafe { libc::kill(server.pid() as i32, libc::SIGTERM) }, 0);
    ann.goodbye();
    let (code, reasons) = get(data.path(), "/readyz");
    assert_eq!(code, 503);
    assert!(reasons.contains("draining"), "{reasons}");
}

#[test]
fn clients_that_stall_do_not_block_others_and_are_cut() {
    let data = data_dir();
    let _server = Server::start(data.path());
    let mut stalled: Vec<UnixStream> = (0..7).map(|_| connect(data.path())).collect();
    for stream in &mut stalled {
        stream.write_all(b"G").unwrap();
    }
    let begun = Instant::now();
    assert_eq!(get(data.path(), "/readyz").0, 200);
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "it waited for them"
    );
    for stream in &mut stalled {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap(); // ends at the switch's deadline
        assert_eq!(rest, b"");
    }
    assert!(begun.elapsed() < PATIENCE);
}

/// More connections than are served at once: the others wait for their turn, and get it.
#[test]
fn crowds_are_served_in_turn() {
    let data = data_dir();
    let _server = Server::start(data.path());
    let mut stalled: Vec<UnixStream> = (0..8).map(|_| connect(data.path())).collect();
    for stream in &mut stalled {
        stream.write_all(b"G").unwrap();
    }
    assert_eq!(get(data.path(), "/readyz").0, 200);
}

/// R: A-5
#[test]
fn garbage_is_refused_with_its_code_and_hurts_nobody() {
    let data = data_dir();
    let server = Server::start(data.path());
    let code = |request: &[u8]| parse(&exchange(data.path(), request)).0;
    assert_eq!(
        code(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        400
    );
    assert_eq!(code(b"GET\r\n\r\n"), 400);
    assert_eq!(code(b"GET / HTTP/1.1\r\nHost iris\r\n\r\n"), 400);
    let long = [
        b"GET / HTTP/1.1\r\nX: ".as_slice(),
        &[b'x'; 9_000],
        b"\r\n\r\n",
    ]
    .concat();
    assert_eq!(code(&long), 431);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(33));
    assert_eq!(code(many.as_bytes()), 431);
    assert_eq!(code(b"GET /nothing HTTP/1.1\r\nHost: iris\r\n\r\n"), 404);
    let body = b"POST /metrics HTTP/1.1\r\nHost: iris\r\nContent-Length: 9\r\n\r\nunwanted!";
    assert_eq!(code(body), 405);
    assert_eq!(exchange(data.path(), b""), "");
    assert_eq!(get(data.path(), "/readyz").0, 200);
    assert_eq!(server.stop().code(), Some(0), "nothing panicked");
}

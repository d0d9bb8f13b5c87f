//! The admin port: what a stranger on this machine gets without a token, with one, and never.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::admin;
use super::harness::{PATIENCE, Server, Setup, data_dir, iris};
use super::raw::Raw;

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A switch in this directory with an admin port on one that the kernel chose; where.
pub fn start(directory: &Path) -> (Server, SocketAddr) {
    let (file, data) = (directory.join("admin.token"), directory.join("data"));
    let data = data.as_path();
    std::fs::write(&file, TOKEN).unwrap();
    let environment = vec![
        ("IRIS_ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
        ("IRIS_ADMIN__TOKEN_FILE", file.to_str().unwrap().to_owned()),
    ];
    let server = Server::start_with(
        data,
        &Setup {
            environment,
            ..Setup::default()
        },
    );
    let status: serde_json::Value = serde_json::from_str(&admin::get(data, "/status").1).unwrap();
    let port = status["admin"].as_str().unwrap().parse().unwrap();
    (server, port)
}

fn connect(port: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(port).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Status, head and body of the answer to these bytes.
fn exchange(port: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = connect(port);
    let _ = stream.write_all(request.as_bytes()); // it may answer before it has read everything
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_lowercase(), body.to_owned())
}

fn get(port: SocketAddr, path: &str, token: Option<&str>) -> (u16, String, String) {
    let shown = token.map_or(String::new(), |token| {
        format!("Authorization: Bearer {token}\r\n")
    });
    exchange(
        port,
        &format!("GET {path} HTTP/1.1\r\nHost: iris\r\n{shown}\r\n"),
    )
}

/// R: E-2
#[test]
fn the_port_says_only_whether_the_switch_lives_to_who_has_no_token() {
    let data = data_dir();
    let (_server, port) = start(data.path());
    assert_eq!(get(port, "/healthz", None).0, 200);
    for path in [
        "/readyz",
        "/metrics",
        "/status",
        "/debug/users",
        "/debug/config",
    ] {
        for token in [None, Some("wrong"), Some(&TOKEN[1..])] {
            let (code, head, body) = get(port, path, token);
            assert_eq!(code, 401, "{path} {token:?}");
            assert!(head.contains("\r\nwww-authenticate: bearer"), "{head}");
            assert!(!body.contains(TOKEN), "{body}");
        }
        assert_eq!(get(port, path, Some(TOKEN)).0, 200, "{path}");
    }
}

/// R: A-3, E-2
#[test]
fn the_port_takes_no_orders_from_anybody() {
    let data = data_dir();
    let (server, port) = start(data.path());
    let mut ann = Raw::login(&server, "ann");
    let ann_s = r#"{"user":"ann","for_ms":1000}"#;
    for (path, body) in [
        ("/revoke", ann_s),
        ("/trace", ann_s),
        ("/histograms/reset", ""),
    ] {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: iris\r\nAuthorization: Bearer {TOKEN}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(exchange(port, &request).0, 403, "{path}");
    }
    ann.until_pong();
}

/// R: E-2
#[test]
fn a_crowd_on_the_port_does_not_keep_the_sockets_owner_waiting() {
    let data = data_dir();
    let (server, port) = start(data.path());
    let mut crowd: Vec<TcpStream> = (0..40).map(|_| connect(port)).collect();
    for stream in &mut crowd {
        stream.write_all(b"G").unwrap();
    }
    let begun = Instant::now();
    assert_eq!(admin::get(&server.data, "/readyz").0, 200);
    assert!(begun.elapsed() < Duration::from_secs(4), "it waited");
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9_000));
    assert_eq!(exchange(port, &long).0, 431, "after the crowd was cut");
}

/// R: E-2
#[test]
fn a_port_that_is_taken_costs_the_port_and_not_the_switch() {
    let data = data_dir();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = data.path().join("admin.token");
    std::fs::write(&file, TOKEN).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let environment = vec![
        ("IRIS_ADMIN__LISTEN", address.clone()),
        ("IRIS_ADMIN__TOKEN_FILE", file.to_str().unwrap().to_owned()),
    ];
    let setup = Setup {
        environment,
        ..Setup::default()
    };
    let server = Server::start_with(&data.path().join("data"), &setup);
    let line = server.log_line("without its admin port");
    assert!(line.contains(&address), "{line}");
    assert_eq!(admin::get(&server.data, "/readyz").0, 200);
}

/// R: E-2
#[test]
fn a_token_that_is_none_keeps_the_switch_from_starting() {
    let data = data_dir();
    let file = data.path().join("short.token");
    std::fs::write(&file, "short").unwrap();
    let mut command = iris();
    command.args(["serve", "--dev", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(data.path().join("data"));
    command.env("IRIS_ADMIN__LISTEN", "127.0.0.1:0");
    command.env("IRIS_ADMIN__TOKEN_FILE", &file);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let refused = said.any(|line| {
        let line = line.unwrap();
        if line.contains("ready") {
            child.kill().unwrap();
            panic!("it serves: {line}");
        }
        line.contains("openssl rand -hex 32")
    });
    assert!(refused);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

/// R: E-2
#[test]
fn users_who_fall_behind_are_named_and_the_configuration_is_shown() {
    let data = data_dir();
    let (server, port) = start(data.path());
    let (mut ann, mut ben) = (Raw::login(&server, "ann"), Raw::login(&server, "ben"));
    for n in 1..=3 {
        ann.send_accepted("ben", n, b"unread");
    }
    ann.send_accepted("zoe", 1, b"who never came");
    assert_eq!(ben.entry().seq, 1); // taken, and not acknowledged
    let deadline = Instant::now() + PATIENCE;
    let found = loop {
        let text = get(port, "/debug/users", Some(TOKEN)).2;
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        if found["cores_missing"] == 0 && found["pending"] == 4 {
            break found;
        }
        assert!(Instant::now() < deadline, "{text}");
    };
    let first = &found["backlogged"][0];
    assert_eq!(
        (&first["user"], &first["pending"]),
        (&"ben".into(), &3.into())
    );
    assert_eq!(found["backlogged"][1]["user"], "zoe");
    let slow = &found["slowest"][0];
    assert_eq!(
        (&slow["user"], &slow["sessions"]),
        (&"ben".into(), &1.into())
    );
    assert_eq!(
        (&slow["behind"], found["slowest"].as_array().unwrap().len()),
        (&3.into(), 1)
    );
    let metrics = get(port, "/metrics", Some(TOKEN)).2;
    assert_eq!(admin::sum(&metrics, "iris_inbox_pending_entries"), 4);
    assert_eq!(admin::sum(&metrics, "iris_messages_accepted_total"), 4);
    let cores = get(port, "/debug/cores", Some(TOKEN)).2;
    let cores: serde_json::Value = serde_json::from_str(&cores).unwrap();
    assert_eq!(cores.as_array().unwrap().len(), 2);
    let config = get(port, "/debug/config", Some(TOKEN)).2;
    assert!(
        config.contains("[admin]\nlisten = \"127.0.0.1:0\"  # environment"),
        "{config}"
    );
    assert!(!config.contains(TOKEN), "a path, not what is in it");
}

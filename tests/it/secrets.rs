//! Secrets stay where they are: not in what a switch or a command writes, not in core files, and files
//! that others could read are named.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use iris::auth::SigningKey;
use iris_proto::v2::server_frame::Frame as ServerFrame;

use super::harness::{Server, Setup, data_dir, iris, mint_with, now_s};
use super::raw::{Hello, Raw};
use super::reload::{configure, reload, reloaded};

/// 40 bytes; parts of it are looked for, too.
const SECRET: &str = "Tr0ub4dor-correct-horse-battery-staple-9";
/// `oct` of 32 other bytes, in base64url.
const SET_SECRET: &str = "c2VjcmV0LW9mLXRoZS1zZXQtMDEyMzQ1Njc4OWFiY2Q";

/// Every form in which a secret could stand in a line: a part of it, its bytes as a list or in hex.
fn forms(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let list = |bytes: &[u8]| {
        bytes
            .iter()
            .map(u8::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let mut forms = Vec::new();
    for part in bytes.chunks_exact(12) {
        forms.push(String::from_utf8(part.to_vec()).unwrap());
        forms.push(list(&part[..6]));
        forms.push(hex(&part[..6]));
    }
    forms
}

fn assert_silent(what: &str, secrets: &[String], lines: &[String]) {
    for line in lines {
        for form in secrets {
            assert!(!line.contains(form), "{what} says `{form}`: {line}");
        }
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, mode).unwrap();
}

fn key_set(k: &str) -> String {
    format!(r#"{{"keys": [{{"kty": "oct", "kid": "set", "alg": "HS256", "k": "{k}"}}]}}"#)
}

const AUTH: &str = "[auth]\nissuer = \"iris-dev\"\njwks = \"keys.json\"\n\
    [[auth.keys]]\nkid = \"hs\"\nalg = \"HS256\"\nfile = \"hs.secret\"\n\
    [[auth.keys]]\nkid = \"dev\"\nalg = \"EdDSA\"\nfile = \"token-verify.pem\"\n";

/// A switch that logs everything, with secrets in its files.
fn start(data: &Path) -> Server {
    Server::start(data).kill(); // makes the identity
    let dev = data.join("dev");
    write(&dev.join("hs.secret"), SECRET);
    write(&dev.join("keys.json"), &key_set(SET_SECRET));
    let setup = Setup {
        config: Some(configure(data, AUTH)),
        environment: vec![("IRIS_LOG__LEVEL", "trace".to_owned())],
        ..Setup::default()
    };
    Server::start_with(data, &setup)
}

/// Tokens that are taken and tokens that are not.
fn tokens(server: &Server) -> (Vec<String>, Vec<String>) {
    let hs = SigningKey::read("hs", SECRET.as_bytes()).unwrap();
    let good = vec![
        server.identity().token("ann"),
        mint_with(&hs, "ann", None, 600, now_s()),
    ];
    let other = SigningKey::read("hs", &[7; 40]).unwrap();
    let unknown = SigningKey::read("unknown", SECRET.as_bytes()).unwrap();
    let mut bad = vec![
        mint_with(&other, "ann", None, 600, now_s()),
        mint_with(&unknown, "ann", None, 600, now_s()),
        mint_with(&hs, "ann", None, 60, now_s() - 4_000),
        good[0].replace('.', "!"),
        good[0][..good[0].len() - 9].to_owned(),
        "x".repeat(5_000),
    ];
    bad.push(format!("{}.{}", good[0], good[1]));
    (good, bad)
}

/// R: A-2
#[test]
fn neither_tokens_nor_secrets_are_in_a_log_that_says_everything() {
    let data = data_dir();
    let server = start(data.path());
    let (good, bad) = tokens(&server);
    for token in &good {
        let mut client = Raw::connect(server.address, &server.identity());
        client.hello(token, &Hello::default());
        client.welcome();
        client.reauth(&good[0]);
        client.send("ann", 1, b"a body of which nothing is said either");
        let said = client.until_pong();
        let renewed = |frame: &ServerFrame| matches!(frame, ServerFrame::Reauthed(_));
        assert!(said.iter().any(renewed), "{said:?}");
    }
    for token in &bad {
        let mut client = Raw::connect(server.address, &server.identity());
        client.hello(token, &Hello::default());
        assert!(matches!(client.next(), ServerFrame::Goodbye(_)));
        let mut client = Raw::login(&server, "ann");
        client.reauth(token);
        let said = client.until_pong();
        let refused = |frame: &ServerFrame| matches!(frame, ServerFrame::Rejected(_));
        assert!(said.iter().any(refused), "{said:?}");
    }
    let dev = data.path().join("dev");
    reloaded(&server);
    // Files that fail, with the secret wherever a parser could repeat it.
    let broken = [
        ("keys.json", format!("{{\"keys\": \"{SECRET}\"}}")),
        ("keys.json", format!("{{\"keys\": [\"{SECRET}\"]}}")),
        (
            "keys.json",
            format!("{{\"{SECRET}\": 1, \"keys\": [{{\"alg\": [\"{SECRET}\"]}}]}}"),
        ),
        ("keys.json", key_set(SECRET).replace("oct", "RSA")),
        ("keys.json", key_set(&SET_SECRET[..20])),
        ("keys.json", key_set(&SET_SECRET.replace('c', "!"))),
        ("keys.json", SECRET.to_owned()),
        ("hs.secret", SECRET[..20].to_owned()),
        ("hs.secret", format!("-----BEGIN {SECRET}-----")),
        ("token-verify.pem", SECRET.to_owned()),
        ("key.pem", SECRET.to_owned()),
        (
            "key.pem",
            format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"),
        ),
    ];
    for (name, text) in broken {
        let original = std::fs::read_to_string(dev.join(name)).unwrap();
        write(&dev.join(name), &text);
        let line = reload(&server);
        assert!(
            line.contains("nothing was changed"),
            "{name}, {text}: {line}"
        );
        write(&dev.join(name), &original);
    }
    server.terminate();
    let (status, log) = server.ended();
    assert_eq!(status.code(), Some(0));
    assert!(
        log.iter().any(|line| line.contains("DEBUG")),
        "it says hardly anything"
    );
    let mut secrets = forms(SECRET);
    secrets.extend(forms(SET_SECRET));
    secrets.extend(forms("secret-of-the-set-0123456789abcd"));
    secrets.push("a body of which".to_owned());
    for token in good.iter().chain(&bad) {
        // Its claims are no secret, but in the form in which they could be used again.
        let parts = token.split(['.', '!']).filter(|part| part.len() >= 20);
        secrets.extend(
            parts.flat_map(|part| [part[..20].to_owned(), part[part.len() - 20..].to_owned()]),
        );
    }
    assert_silent("the switch", &secrets, &log);
}

fn said(output: &Output) -> Vec<String> {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(text)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// R: A-2
#[test]
fn commands_that_fail_do_not_repeat_the_token_or_the_secret_that_they_were_given() {
    let data = data_dir();
    let server = start(data.path());
    let (_, bad) = tokens(&server);
    let address = server.address.to_string();
    let at = ["--data", data.path().to_str().unwrap(), "--addr", &address];
    for token in &bad {
        let mut send = iris();
        send.args(["send", "--user", "ann", "--to", "ben", "--token", token])
            .args(at);
        let output = send.arg("hello").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let end = token[token.len() - 9..].to_owned();
        assert_silent(
            "`iris send`",
            &[token[..20].to_owned(), end],
            &said(&output),
        );
    }
    let short = data.path().join("short");
    write(&short, &SECRET[..24]);
    let mut token = iris();
    token
        .args(["token", "--user", "ann", "--kid", "k", "--key"])
        .arg(&short);
    let output = token.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_silent("`iris token`", &forms(SECRET), &said(&output));
}

/// R: A-2
#[test]
fn files_that_others_may_read_or_change_are_named_at_the_start_at_a_reload_and_by_config_check() {
    let data = data_dir();
    let server = start(data.path());
    let dev = data.path().join("dev");
    let (_, log) = {
        server.terminate();
        server.ended()
    };
    let is_warning = |line: &&String| line.contains("has mode");
    assert_eq!(log.iter().filter(is_warning).count(), 0, "{log:#?}");
    let loose = [
        ("key.pem", 0o640, "private key and has mode 0640"),
        (
            "hs.secret",
            0o604,
            "a secret that signs tokens and has mode 0604",
        ),
        (
            "keys.json",
            0o644,
            "a secret that signs tokens and has mode 0644",
        ),
        (
            "token-verify.pem",
            0o664,
            "decides who is let in and has mode 0664",
        ),
        (
            "iris.toml",
            0o646,
            "decides who is let in and has mode 0646",
        ),
    ];
    for (name, mode, _) in loose {
        std::fs::set_permissions(dev.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let setup = Setup {
        config: Some(dev.join("iris.toml")),
        ..Setup::default()
    };
    let server = Server::start_with(data.path(), &setup);
    reloaded(&server);
    server.terminate();
    let (_, log) = server.ended();
    let mut check = iris();
    check
        .args(["config", "check", "--config"])
        .arg(dev.join("iris.toml"));
    let checked = check.output().unwrap();
    assert_eq!(checked.status.code(), Some(0));
    for (name, _, says) in loose {
        let is_it = |line: &&String| line.contains(name) && line.contains(says);
        let said_in_log = log
            .iter()
            .filter(is_it)
            .filter(|line| line.contains("WARN"));
        assert_eq!(said_in_log.count(), 2, "{name}: {log:#?}");
        assert_eq!(said(&checked).iter().filter(is_it).count(), 1, "{name}");
    }
}

#[test]
fn a_switch_leaves_no_core_file_and_an_operator_can_allow_one() {
    let data = data_dir();
    let server = Server::start(data.path());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let mut values = core["Max core file size".len()..].split_whitespace();
    let (soft, hard) = (values.next().unwrap(), values.next().unwrap());
    let own = std::fs::read_to_string("/proc/self/limits").unwrap();
    let own = own
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let own_hard = own["Max core file size".len()..]
        .split_whitespace()
        .nth(1)
        .unwrap();
    assert!(soft == "1" || own_hard == "0", "{core}");
    assert_eq!(hard, own_hard, "it can be raised again");
}

//! The audit log of real switches: what is in it, and what `iris audit verify` finds.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;

use iris_proto::v2::GoodbyeReason;
use iris_proto::v2::server_frame::Frame as ServerFrame;
use serde_json::Value;

use super::harness::{Server, data_dir, iris, mint_with, now_s};
use super::raw::{Hello, Raw};

/// Its files, in order.
fn files(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("audit")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|name| name == "jsonl"))
        .collect();
    files.sort();
    files
}

fn records(data: &Path) -> Vec<Value> {
    let texts = files(data)
        .into_iter()
        .map(|path| fs::read_to_string(path).unwrap());
    let lines: Vec<String> = texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn of<'a>(records: &'a [Value], event: &str) -> Vec<&'a Value> {
    records
        .iter()
        .filter(|record| record["event"] == event)
        .collect()
}

fn verify_with(data: &Path, more: &[&str]) -> Output {
    let mut command = iris();
    command.args(["audit", "verify"]).arg("--data").arg(data);
    command.args(more).output().unwrap()
}

fn verdict(data: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let output = verify_with(data, &[more, &["--json"]].concat());
    let verdict = serde_json::from_slice(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (
        output.status.code(),
        verdict.unwrap_or_else(|_| panic!("{errors}")),
    )
}

fn sound(data: &Path) -> Value {
    let (code, verdict) = verdict(data, &[]);
    assert_eq!(code, Some(0), "{verdict}");
    assert_eq!(verdict["sound"], true);
    verdict
}

fn is_found(data: &Path) -> bool {
    let (code, verdict) = verdict(data, &[]);
    assert_eq!(code == Some(0), verdict["sound"] == true);
    code == Some(1)
}

fn refused(server: &Server, token: &str) -> GoodbyeReason {
    let mut client = Raw::connect(server.address, &server.identity());
    client.hello(token, &Hello::default());
    client.goodbye()
}

/// R: A-10
#[test]
fn logins_refusals_revocations_and_reloads_are_in_it_and_no_secret_is() {
    let data = data_dir();
    let server = Server::start(data.path());
    let identity = server.identity();
    let token = identity.token("ann");
    let mut ann = Raw::connect(server.address, &identity);
    ann.hello(&token, &Hello::default());
    ann.welcome();
    let expired = mint_with(&identity.key, "ann", None, 3_600, now_s() - 7_200);
    ann.send_accepted("ben", 1, b"a body that nobody logs");
    let further = identity.token("ann");
    ann.reauth(&further);
    assert!(matches!(ann.next(), ServerFrame::Reauthed(_)));
    let (text, _) = token.rsplit_once('.').unwrap();
    let (_, signature) = expired.rsplit_once('.').unwrap();
    let forged = format!("{text}.{signature}");
    for bad in ["", "no token", &forged, &expired] {
        assert_eq!(refused(&server, bad), GoodbyeReason::BadToken, "{bad}");
    }
    let mut revoke = iris();
    revoke
        .args(["revoke", "--user", "ann", "--data"])
        .arg(data.path());
    assert!(revoke.status().unwrap().success());
    assert_eq!(ann.goodbye(), GoodbyeReason::Revoked);
    assert_eq!(refused(&server, &token), GoodbyeReason::Revoked);
    let mut far = iris();
    far.args(["revoke", "--user", "ben", "--before"])
        .arg((now_s() + 200_000).to_string());
    assert!(
        !far.arg("--data")
            .arg(data.path())
            .status()
            .unwrap()
            .success()
    );
    server.hang_up();
    server.log_line("SIGHUP: reloaded");
    assert_eq!(server.stop().code(), Some(0));

    sound(data.path());
    let records = records(data.path());
    let numbers: Vec<_> = records
        .iter()
        .map(|record| record["n"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (1..=records.len() as u64).collect::<Vec<_>>());
    let login = of(&records, "login")[0];
    assert_eq!(
        (&login["user"], &login["device"]),
        (&"ann".into(), &"phone".into())
    );
    assert_eq!(login["address"], "127.0.0.1");
    assert_eq!(of(&records, "renewed")[0]["user"], "ann");
    let reasons: Vec<_> = of(&records, "refused")
        .iter()
        .map(|record| record["reason"].clone())
        .collect();
    for reason in ["malformed", "bad_signature", "expired", "REVOKED"] {
        assert!(
            reasons.contains(&reason.into()),
            "{reason} is not among {reasons:?}"
        );
    }
    assert_eq!(of(&records, "ended")[0]["user"], "ann");
    let revokes = of(&records, "revoke");
    assert_eq!(
        (&revokes[0]["user"], &revokes[0]["outcome"]),
        (&"ann".into(), &"done".into())
    );
    assert!(
        revokes[1]["outcome"].as_str().unwrap().contains("ahead"),
        "{revokes:?}"
    );
    assert_eq!(of(&records, "reload")[0]["outcome"], "done");
    assert_eq!(
        (of(&records, "start").len(), of(&records, "stop").len()),
        (1, 1)
    );
    let text = fs::read_to_string(&files(data.path())[0]).unwrap();
    for secret in [&token[..], &further, "nobody logs"] {
        assert!(!text.contains(secret));
    }
}

/// R: A-10
#[test]
fn no_byte_of_a_stopped_switchs_log_changes_unnoticed_and_its_end_is_remembered() {
    let data = data_dir();
    let server = Server::start(data.path());
    drop(Raw::login(&server, "ann"));
    assert_eq!(server.stop().code(), Some(0));
    let last = sound(data.path())["last"].as_str().unwrap().to_owned();
    let path = &files(data.path())[0];
    let whole = fs::read(path).unwrap();
    // Every byte is tried by the unit tests; here some of each kind, through the command.
    for at in (0..whole.len())
        .step_by(97)
        .chain(whole.len() - 3..whole.len())
    {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(path, &changed).unwrap();
        assert!(is_found(data.path()), "byte {at}");
    }
    let lines: Vec<&[u8]> = whole.split_inclusive(|&byte| byte == b'\n').collect();
    fs::write(path, lines[..lines.len() - 1].concat()).unwrap();
    assert!(is_found(data.path()), "HEAD remembers the last record");
    fs::remove_file(data.path().join("audit/HEAD")).unwrap();
    let (code, verdict) = verdict(data.path(), &[]);
    assert_eq!(code, Some(1), "who remembers it is missing, too");
    assert!(
        verdict["findings"].to_string().contains("HEAD is missing"),
        "{verdict}"
    );
    let output = verify_with(data.path(), &["--expect", &last]);
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(output.contains("--expect names"), "{output}");
    fs::write(path, &whole).unwrap();
    assert!(is_found(data.path()), "HEAD is missing still");
    let nothing = verify_with(&data.path().join("elsewhere"), &[]);
    assert_eq!(nothing.status.code(), Some(2));
}

/// R: A-10
#[test]
fn the_chain_goes_on_over_restarts_and_kills_and_a_torn_record_is_cut() {
    let data = data_dir();
    for round in 0..4 {
        let server = Server::start(data.path());
        drop(Raw::login(&server, &format!("user-{round}")));
        if round % 2 == 0 {
            server.kill(); // at any moment of its writing
        } else {
            assert_eq!(server.stop().code(), Some(0));
        }
        // One that was killed at once may not have begun it.
        let output = verify_with(data.path(), &[]);
        assert_ne!(output.status.code(), Some(1), "{output:?}");
    }
    let path = files(data.path()).pop().unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"n\":99,\"time_ms\":17").unwrap();
    let (code, noted) = verdict(data.path(), &[]);
    assert_eq!(code, Some(0), "{noted}");
    assert!(
        noted["notes"].to_string().contains("not finished"),
        "{noted}"
    );
    let server = Server::start(data.path());
    assert_eq!(server.stop().code(), Some(0));
    sound(data.path());
    let records = records(data.path());
    assert_eq!(of(&records, "cut")[0]["bytes"], 20);
    assert_eq!(of(&records, "begin").len(), 1, "one chain, one file");
    assert!(
        of(&records, "start").len() >= 3,
        "those that were killed may be missing one"
    );
}

/// R: A-10
#[test]
fn damage_is_left_as_it_is_and_a_new_chain_says_so() {
    let data = data_dir();
    let server = Server::start(data.path());
    assert_eq!(server.stop().code(), Some(0));
    let path = files(data.path()).pop().unwrap();
    let mut changed = fs::read(&path).unwrap();
    let at = changed.len() / 2;
    changed[at] ^= 1;
    fs::write(&path, &changed).unwrap();
    let server = Server::start(data.path());
    drop(Raw::login(&server, "ann"));
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(fs::read(&path).unwrap(), changed);
    let (code, verdict) = verdict(data.path(), &[]);
    assert_eq!(code, Some(1));
    let findings = verdict["findings"].to_string();
    assert!(findings.contains("began a new chain"), "{findings}");
    let records = records(data.path());
    assert_eq!(of(&records, "login")[0]["user"], "ann");
    assert_eq!(of(&records, "begin").last().unwrap()["after_damage"], true);
}

/// R
#[test]
fn strangers_who_are_turned_away_again_and_again_are_counted() {
    let data = data_dir();
    let server = Server::start(data.path());
    for _ in 0..200 {
        assert_eq!(refused(&server, "no token"), GoodbyeReason::BadToken);
    }
    assert_eq!(server.stop().code(), Some(0));
    sound(data.path());
    let records = records(data.path());
    assert!(of(&records, "refused").len() <= 4, "{records:?}");
    let counted = of(&records, "repeated")
        .into_iter()
        .chain(of(&records, "refused"));
    let counts = counted.map(|record| record["count"].as_u64().unwrap_or(1));
    assert_eq!(counts.sum::<u64>(), 200);
}

/// R: A-10
#[test]
fn a_log_that_cannot_be_written_keeps_no_switch_from_serving() {
    let data = data_dir();
    let server = Server::start(data.path());
    assert_eq!(server.stop().code(), Some(0));
    fs::rename(data.path().join("audit"), data.path().join("away")).unwrap();
    fs::write(data.path().join("audit"), "in the way").unwrap();
    let server = Server::start(data.path());
    server.log_line("the audit log cannot be written");
    let mut ann = Raw::login(&server, "ann");
    ann.send_accepted("ann", 1, b"served");
    fs::remove_file(data.path().join("audit")).unwrap();
    fs::rename(data.path().join("away"), data.path().join("audit")).unwrap();
    drop(Raw::login(&server, "ben"));
    assert_eq!(server.stop().code(), Some(0));
    sound(data.path());
    let records = records(data.path());
    let lost = of(&records, "lost");
    assert_eq!(lost[0]["why"], "disk");
    assert!(
        lost[0]["count"].as_u64().unwrap() >= 1,
        "the start, at least"
    );
}

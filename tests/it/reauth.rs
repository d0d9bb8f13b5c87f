//! A session whose token ends: it is warned, may bring another token, and then goes on.

use std::path::Path;

use iris::auth::SigningKey;
use iris_proto::v2::server_frame::Frame as ServerFrame;
use iris_proto::v2::{GoodbyeReason, RejectCode};

use super::harness::{Server, Setup, data_dir, mint_with, now_s};
use super::raw::{Hello, Raw};

/// A switch that allows clocks no difference, so that tokens end when they say.
fn exact(data: &Path) -> Server {
    let setup = Setup {
        environment: vec![("IRIS_AUTH__LEEWAY_S", "0".to_owned())],
        ..Setup::default()
    };
    Server::start_with(data, &setup)
}

fn login(server: &Server, user: &str, ttl_s: u64) -> Raw {
    let identity = server.identity();
    let mut client = Raw::connect(server.address, &identity);
    let token = identity.token_with(user, None, ttl_s);
    client.hello(&token, &Hello::default());
    client.welcome();
    client
}

fn expiring(client: &mut Raw) -> u64 {
    match client.next() {
        ServerFrame::Expiring(expiring) => expiring.seconds_left,
        other => panic!("Expiring was due, {other:?} came"),
    }
}

/// The seconds that the session has after it brought this token.
fn reauthed(client: &mut Raw, token: &str) -> u64 {
    let tag = client.reauth(token);
    match client.next() {
        ServerFrame::Reauthed(answer) if answer.tag == tag => answer.expires_in_s,
        other => panic!("Reauthed was due, {other:?} came"),
    }
}

/// R: A-2
#[test]
fn a_session_is_warned_of_its_end_and_goes_on_with_a_new_token() {
    let data = data_dir();
    let server = exact(data.path());
    let mut ann = login(&server, "ann", 9);
    let mut clock = login(&server, "clock", 11);
    assert!((1..=2).contains(&expiring(&mut ann)));
    let token = server.identity().token_with("ann", None, 600);
    assert!((598..=600).contains(&reauthed(&mut ann, &token)));
    // Another session ends later than Ann's would have.
    assert!(expiring(&mut clock) <= 2);
    assert_eq!(clock.goodbye(), GoodbyeReason::TokenExpired);
    assert_eq!(ann.until_pong(), [], "Ann is not warned again");
    ann.send_accepted("ann", 1, b"still here");
}

/// R: A-2
#[test]
fn a_token_that_ends_sooner_ends_the_session_sooner() {
    let data = data_dir();
    let server = exact(data.path());
    let mut ann = login(&server, "ann", 3_600);
    let token = server.identity().token_with("ann", None, 2);
    assert!(reauthed(&mut ann, &token) <= 2);
    assert_eq!(ann.goodbye(), GoodbyeReason::TokenExpired);
}

/// R
#[test]
fn a_token_that_is_not_for_this_session_changes_nothing() {
    let data = data_dir();
    let server = exact(data.path());
    let identity = server.identity();
    let other_key = SigningKey::read("dev", &[7; 32]).unwrap();
    let good = identity.token("ann");
    let tokens = [
        String::new(),
        good[..good.len() - 3].to_owned(),
        "x".repeat(60_000),
        identity.token("mallory"),
        identity.token_with("ann", Some("laptop"), 600),
        identity.token_with("mallory", Some("phone"), 600),
        mint_with(&identity.key, "ann", None, 60, now_s() - 3_600), // expired
        mint_with(&other_key, "ann", None, 60, now_s()),
    ];
    let mut answers = Vec::new();
    for (n, token) in (1..).zip(tokens) {
        let mut ann = login(&server, "ann", 3_600);
        let tag = ann.reauth(&token);
        let (code, mut answer) = ann.rejected();
        assert_eq!((code, answer.tag), (RejectCode::BadToken, tag), "{token:?}");
        answer.tag = 0;
        answers.push(answer);
        // A guess costs a signature check: the next one has to wait.
        ann.reauth(&good);
        let (code, answer) = ann.rejected();
        assert_eq!(code, RejectCode::Overloaded);
        assert!((1..=1_000).contains(&answer.retry_after_ms));
        ann.send_accepted("ben", n, b"still here");
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "the answer tells which rule it was");
}

/// R
#[test]
fn a_further_token_may_name_the_device_or_none() {
    let data = data_dir();
    let server = exact(data.path());
    let identity = server.identity();
    for device in [None, Some("phone")] {
        let mut ann = login(&server, "ann", 3_600);
        let token = identity.token_with("ann", device, 600);
        assert!(reauthed(&mut ann, &token) <= 600);
    }
}

/// R: A-2
#[test]
fn a_further_token_is_no_login() {
    let data = data_dir();
    let server = exact(data.path());
    let identity = server.identity();
    let mut stranger = Raw::connect(server.address, &identity);
    stranger.reauth(&identity.token("ann"));
    assert_eq!(stranger.goodbye(), GoodbyeReason::BadFrame);
}

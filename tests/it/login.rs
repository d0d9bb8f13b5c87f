//! Strangers, bad tokens and bad bytes: each has a typed end, and others notice nothing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use iris::auth::SigningKey;
use iris_proto::v2::client_frame::Frame as ClientFrame;
use iris_proto::v2::server_frame::Frame as ServerFrame;
use iris_proto::v2::{self, GoodbyeReason, RejectCode};

use super::harness::{Server, Setup, data_dir, mint_with, now_s};
use super::raw::{Hello, Raw};

fn refusal(server: &Server, token: &str, hello: &Hello<'_>) -> GoodbyeReason {
    let mut client = Raw::connect(server.address, &server.identity());
    client.hello(token, hello);
    client.goodbye()
}

/// R: A-2
#[test]
fn every_bad_token_gets_the_same_goodbye() {
    let data = data_dir();
    let server = Server::start(data.path());
    let identity = server.identity();
    let other_key = SigningKey::read("dev", &[7; 32]).unwrap();
    let other_kid = SigningKey::read("unknown", &[7; 32]).unwrap();
    let good = identity.token("ann");
    let (head, signature) = good.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let tokens = [
        String::new(),
        "not a token".to_owned(),
        "a.b.c".to_owned(),
        format!("{head}."),
        format!("{head}.{first}{}", &signature[1..]),
        mint_with(&identity.key, "ann", None, 60, now_s() - 3_600), // expired
        mint_with(&identity.key, "ann", None, 60, now_s() + 3_600), // not valid yet
        mint_with(&other_key, "ann", None, 60, now_s()),            // HS256 for an EdDSA key
        mint_with(&other_kid, "ann", None, 60, now_s()),
        format!("eyJhbGciOiJub25lIn0.{}.", head.split_once('.').unwrap().1),
        "x".repeat(4_000),
        "x".repeat(6_000), // longer than any token may be
        format!(" {good}"),
        format!("{good}."),
        format!("{good}.{signature}"),
        format!(
            "eyJhbGciOiJFZERTQSIsImNyaXQiOlsiYjY0Il19.{}.{signature}",
            "e30"
        ),
    ];
    let mut goodbyes = Vec::new();
    for token in tokens {
        let mut client = Raw::connect(server.address, &identity);
        client.hello(&token, &Hello::default());
        match client.next() {
            ServerFrame::Goodbye(goodbye) => goodbyes.push(goodbye),
            other => panic!("token {token:?}: {other:?}"),
        }
        assert!(client.try_next().is_err(), "something came after a Goodbye");
    }
    assert_eq!(goodbyes[0].reason(), GoodbyeReason::BadToken);
    goodbyes.dedup();
    assert_eq!(goodbyes.len(), 1, "the answer tells which rule it was");
    Raw::login(&server, "ann");
}

/// R: A-4
#[test]
fn a_token_for_one_device_opens_no_session_of_another() {
    let data = data_dir();
    let server = Server::start(data.path());
    let token = server.identity().token_with("ann", Some("phone"), 60);
    let laptop = Hello {
        device: "laptop",
        ..Hello::default()
    };
    assert_eq!(
        refusal(&server, &token, &laptop),
        GoodbyeReason::DeviceMismatch
    );
    let mut client = Raw::connect(server.address, &server.identity());
    client.hello(
        &token,
        &Hello {
            device: "",
            ..Hello::default()
        },
    );
    assert_eq!(client.welcome().device, "phone");
}

/// R: A-2
#[test]
fn a_session_ends_with_its_token() {
    let data = data_dir();
    let environment = vec![("IRIS_AUTH__LEEWAY_S", "0".to_owned())];
    let server = Server::start_with(
        data.path(),
        &Setup {
            environment,
            ..Setup::default()
        },
    );
    let identity = server.identity();
    let mut client = Raw::connect(server.address, &identity);
    client.hello(&identity.token_with("ann", None, 2), &Hello::default());
    client.welcome();
    assert_eq!(client.goodbye(), GoodbyeReason::TokenExpired);
}

/// R: A-5
#[test]
fn a_frame_over_its_limit_ends_the_connection_before_and_after_login() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut stranger = Raw::connect(server.address, &server.identity());
    stranger.write_bytes(&(8 * 1024 + 1u32).to_be_bytes());
    assert_eq!(stranger.goodbye(), GoodbyeReason::FrameTooLarge);
    let mut ann = Raw::login(&server, "ann");
    ann.write_bytes(&u32::MAX.to_be_bytes());
    assert_eq!(ann.goodbye(), GoodbyeReason::FrameTooLarge);
}

/// R: A-5
#[test]
fn bytes_that_are_no_frame_and_frames_out_of_place_end_the_connection() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut stranger = Raw::connect(server.address, &server.identity());
    stranger.send("ben", 1, b"before Hello");
    assert_eq!(stranger.goodbye(), GoodbyeReason::BadFrame);
    let mut ann = Raw::login(&server, "ann");
    ann.write_bytes(&[0, 0, 0, 3, 0xff, 0xff, 0xff]);
    assert_eq!(ann.goodbye(), GoodbyeReason::BadFrame);
    let mut ann = Raw::login(&server, "ann");
    ann.hello(&server.identity().token("ann"), &Hello::default());
    assert_eq!(ann.goodbye(), GoodbyeReason::BadFrame);
}

/// R: E-6
#[test]
fn an_unknown_frame_is_answered_and_the_session_goes_on() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    ann.write_bytes(&[0, 0, 0, 5, 0xaa, 0x06, 2, 8, 77]); // variant 101 with tag 77
    let (code, rejected) = ann.rejected();
    assert_eq!((code, rejected.tag), (RejectCode::UnknownFrame, 77));
    ann.send_accepted("ann", 1, b"still here");
}

/// R: E-6
#[test]
fn a_client_without_a_common_version_is_told_so() {
    let data = data_dir();
    let server = Server::start(data.path());
    let identity = server.identity();
    let mut client = Raw::connect(server.address, &identity);
    client.write(ClientFrame::Hello(v2::Hello {
        token: identity.token("ann"),
        send_epoch: 1,
        version_min: 3,
        version_max: 4,
        ..Default::default()
    }));
    assert_eq!(client.goodbye(), GoodbyeReason::Version);
}

#[test]
fn the_newest_connection_of_a_device_replaces_the_older_one() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut old = Raw::login(&server, "ann");
    let mut new = Raw::login(&server, "ann");
    assert_eq!(old.goodbye(), GoodbyeReason::Replaced);
    new.send_accepted("ann", 1, b"x");
}

/// R: B-9
#[test]
fn a_ninth_device_is_told_that_there_are_too_many() {
    let data = data_dir();
    let server = Server::start(data.path());
    for i in 0..8 {
        let device = format!("device-{i}");
        Raw::login_with(
            &server,
            "ann",
            &Hello {
                device: &device,
                ..Hello::default()
            },
        );
    }
    let token = server.identity().token("ann");
    let ninth = Hello {
        device: "device-8",
        ..Hello::default()
    };
    assert_eq!(
        refusal(&server, &token, &ninth),
        GoodbyeReason::TooManyDevices
    );
}

/// R: A-5
#[test]
fn strangers_who_say_nothing_or_too_little_are_closed_at_the_deadline() {
    let data = data_dir();
    let environment = vec![("IRIS_LIMITS__HELLO_TIMEOUT_MS", "300".to_owned())];
    let server = Server::start_with(
        data.path(),
        &Setup {
            environment,
            ..Setup::default()
        },
    );
    let mut silent = TcpStream::connect(server.address).unwrap();
    silent
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut dribbling = silent_after(&server, &[0x16, 0x03]);
    let mut half_hello = Raw::connect(server.address, &server.identity());
    half_hello.write_bytes(&[0, 0, 1, 0, 10]);
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"", "nothing can be said before the handshake");
    dribbling.read_to_end(&mut rest).unwrap();
    assert_eq!(half_hello.goodbye(), GoodbyeReason::HelloTimeout);
}

fn silent_after(server: &Server, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// R: A-1
#[test]
fn plaintext_and_other_protocols_get_nowhere_and_hurt_nobody() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0; 100],
        &[0xff; 5_000],
    ] {
        let mut rest = Vec::new();
        // An alert or nothing, and then the end; a reset is an end, too.
        let _ = silent_after(&server, bytes).read_to_end(&mut rest);
        assert!(rest.len() < 100, "{} bytes for a stranger", rest.len());
    }
    ann.send_accepted("ann", 1, b"x");
}

/// R: A-5
#[test]
fn garbage_right_behind_a_hello_ends_that_connection_and_nothing_else() {
    let data = data_dir();
    let server = Server::start(data.path());
    let identity = server.identity();
    let mut watcher = Raw::login(&server, "watcher");
    // Half of these users live on the other core than the one that accepts. The garbage comes a little
    // later each time, before, while and after a connection leaves for that core.
    for i in 0..600 {
        let mut client = Raw::connect(server.address, &identity);
        client.hello(&identity.token(&format!("user-{i}")), &Hello::default());
        (0..i * 100).for_each(|_| std::hint::spin_loop());
        client.write_unsealed(&[0x17, 3, 3, 0, 32]);
        client.write_unsealed(&[0xee; 32]);
        while client.try_next().is_ok() {}
    }
    watcher.send_accepted("watcher", 1, b"still here");
}

/// R: A-5
#[test]
fn the_largest_numbers_in_every_field_are_just_numbers() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut ann = Raw::login(&server, "ann");
    ann.send_accepted("ann", 1, b"x");
    assert_eq!(ann.entry().seq, 1);
    ann.ack(u64::MAX);
    ann.write(ClientFrame::Fetch(v2::Fetch {
        tag: u64::MAX,
        after: u64::MAX,
        limit: u32::MAX,
    }));
    assert!(matches!(ann.next(), ServerFrame::Fetched(end) if !end.more));
    ann.send("ann", u64::MAX, b"x");
    assert_eq!(ann.rejected().1.expected, 2);
    let resume = Hello {
        resume_after: Some(u64::MAX),
        epoch: u64::MAX,
        ..Hello::default()
    };
    let (_, welcome) = Raw::login_with(&server, "ann", &resume);
    assert_eq!(welcome.cursor, 1);
}

/// R: A-5
#[test]
fn a_bad_record_behind_a_burst_of_pings_ends_that_connection_and_nothing_else() {
    let data = data_dir();
    let server = Server::start(data.path());
    let mut watcher = Raw::login(&server, "watcher");
    for i in 0..20 {
        let mut client = Raw::login(&server, &format!("user-{i}"));
        for nonce in 0..2_000 {
            client.write(ClientFrame::Ping(v2::Ping { nonce }));
        }
        client.write_unsealed(&[0x17, 3, 3, 0, 32]);
        client.write_unsealed(&[0xee; 32]);
        // Takes the slot that the broken one leaves.
        Raw::login(&server, "another");
    }
    watcher.send_accepted("watcher", 1, b"still here");
}

/// Says Hello on all of them at once; how many go on, and what the others were told.
fn log_in_at_once(clients: &mut [Raw], token: &str) -> (usize, Vec<GoodbyeReason>) {
    for client in clients.iter_mut() {
        client.shake_hands();
    }
    for client in clients.iter_mut() {
        client.hello(token, &Hello::default());
    }
    let mut reasons = Vec::new();
    let mut live: Vec<&mut Raw> = clients.iter_mut().collect();
    // In the first round some answer before they are replaced; in the second all Hellos are decided.
    for nonce in 1..=2 {
        for client in &mut live {
            client.write_if_open(ClientFrame::Ping(v2::Ping { nonce }));
        }
        live.retain_mut(|client| {
            loop {
                match client.next() {
                    ServerFrame::Pong(pong) if pong.nonce == nonce => return true,
                    ServerFrame::Goodbye(goodbye) => {
                        reasons.push(goodbye.reason());
                        return false;
                    }
                    _ => {}
                }
            }
        });
    }
    (live.len(), reasons)
}

/// Connections are spread over the cores, so a Hello that was read first may arrive at its user's core
/// last.
/// R: B-6
#[test]
fn of_connections_of_a_device_that_come_at_once_one_stays_and_the_others_are_told() {
    let data = data_dir();
    let server = Server::start(data.path());
    let identity = server.identity();
    for round in 0..50 {
        let token = identity.token(&format!("user{}", round % 4));
        let connect = |_| Raw::connect(server.address, &identity);
        let mut clients: Vec<Raw> = (0..4).map(connect).collect();
        let (live, reasons) = log_in_at_once(&mut clients, &token);
        assert_eq!(live, 1, "round {round}");
        assert_eq!(reasons, [GoodbyeReason::Replaced; 3], "round {round}");
    }
}
